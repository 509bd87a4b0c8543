"""One CLIP for both roads: joined out of live towers, equal to the CLIP it came from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionModel

from bridge.errors import OptionError, WeightsError
from bridge.towers import count_parameters, join_clip

_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    text = {**_TOWER, "vocab_size": 40, "max_position_embeddings": 12}
    vision = {**_TOWER, "image_size": 32, "patch_size": 8}
    made = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    place = tmp_path_factory.mktemp("clip")
    made.save_pretrained(place)
    return place


def towers(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return (
        CLIPTextModel.from_pretrained(folder, dtype=dtype).eval(),
        CLIPVisionModel.from_pretrained(folder, dtype=dtype).eval(),
    )


@torch.inference_mode()
def test_the_joined_clip_is_the_clip_and_shares_its_towers(folder: Path) -> None:
    text, vision = towers(folder)
    made = join_clip(folder, text, vision)
    whole = CLIPModel.from_pretrained(folder).eval()
    inputs = {
        "input_ids": torch.randint(0, 40, (3, 12)),
        "pixel_values": torch.randn(2, 3, 32, 32),
    }
    assert torch.equal(made(**inputs).logits_per_image, whole(**inputs).logits_per_image)
    heads = 8 * 16 * 2 + 1
    apart = count_parameters(text) + count_parameters(vision)
    assert count_parameters(text, vision, made) == apart + heads == count_parameters(whole)
    assert count_parameters(text, vision, whole) == 2 * apart + heads


def keep_layers(tower: Any, count: int) -> None:
    """Cut ``tower`` to its lower layers, or lengthen it by copies of its last one."""
    layers = [*tower.encoder.layers, copy.deepcopy(tower.encoder.layers[-1])]
    tower.encoder.layers = torch.nn.ModuleList(layers[:count])
    tower.config.num_hidden_layers = count


@pytest.mark.parametrize("side", [0, 1], ids=["text", "vision"])
@torch.inference_mode()
def test_of_a_tower_with_the_lower_layers_alone_the_others_are_read(
    folder: Path, side: int
) -> None:
    pair = towers(folder)
    short = pair[side].train()
    keep_layers(short, 1)
    made = join_clip(folder, *pair)
    whole = CLIPModel.from_pretrained(folder).eval()
    ids, pictures = torch.randint(0, 40, (3, 12)), torch.randn(2, 3, 32, 32)
    inputs = {"input_ids": ids, "pixel_values": pictures}
    assert torch.equal(made(**inputs).logits_per_image, whole(**inputs).logits_per_image)
    assert count_parameters(*pair, made) == count_parameters(whole)
    assert len(short.encoder.layers) == 1
    assert all(part.training for part in short.modules())
    assert not any(part.training for part in made.modules())
    # Each collects its own states, whoever ran first.
    given = (ids, pictures)[side]
    joined = (made.text_model, made.vision_model)[side]
    for tower, depth in [(short, 1), (joined, 2)] * 2:
        assert len(tower(given, output_hidden_states=True).hidden_states) == depth + 1


@pytest.mark.parametrize("side", [0, 1], ids=["text", "vision"])
def test_a_short_tower_of_another_clip_and_a_longer_one_are_refused(
    folder: Path, side: int
) -> None:
    pair = towers(folder)
    keep_layers(pair[side], 1)
    with torch.no_grad():
        next(pair[side].encoder.parameters())[0] += 1
    with pytest.raises(OptionError, match="differs in the live tower"):
        join_clip(folder, *pair)
    pair = towers(folder)
    keep_layers(pair[side], 3)
    with pytest.raises(OptionError, match=r"tower has 2 layers, the live one 3"):
        join_clip(folder, *pair)


def test_the_owners_towers_stay_in_their_mode(folder: Path) -> None:
    text, vision = towers(folder)
    vision.train()
    made = join_clip(folder, text, vision)
    assert all(part.training for part in vision.modules())
    assert not any(part.training for part in text.modules())
    assert not made.training and not made.visual_projection.training


def test_parameters_are_counted_once_and_in_their_own_number() -> None:
    layer = torch.nn.Linear(3, 4)
    tied = torch.nn.Linear(3, 4)
    tied.weight = layer.weight
    assert count_parameters(layer) == count_parameters(layer, layer) == 16
    assert count_parameters(layer, tied) == 20
    assert count_parameters(layer.half()) == 16


def test_towers_of_another_clip_are_refused(folder: Path) -> None:
    text, vision = towers(folder)
    with torch.no_grad():
        next(vision.parameters())[0] += 1
    with pytest.raises(OptionError, match="differs in the live tower"):
        join_clip(folder, text, vision)
    with pytest.raises(OptionError, match="holds no CLIPVision"):
        join_clip(folder, text, text)
    with pytest.raises(OptionError, match="do not go together"):
        join_clip(folder, text, towers(folder, torch.bfloat16)[1])


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="not 'clip'"):
        join_clip(tmp_path, torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
