"""Towers against the transformers classes they wrap, and the reading of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import text_config, tiny_clip_tokenizer, tiny_image_tower
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from bridge.errors import WeightsError
from bridge.files import read_json
from bridge.towers import (
    IMAGE_FAMILIES,
    TEXT_TOWERS,
    Layer,
    fingerprint,
    load_tower,
    read_spec,
)

TOKENIZER = tiny_clip_tokenizer()
CLASSES = {c.__name__: c for c in (CLIPTextModel, CLIPTextModelWithProjection)}


def test_nothing_is_written_while_a_tower_loads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make("CLIPTextModel").save_pretrained(tmp_path)
    capfd.readouterr()
    load_tower("CLIPTextModel", tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    assert capfd.readouterr() == ("", "")


def make(architecture: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return CLASSES[architecture](text_config(TOKENIZER, projection_dim=24)).eval()


def token_ids() -> torch.Tensor:
    texts = ["a cat", "two red apples left of a cat", ""]
    return TOKENIZER(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids


@pytest.mark.parametrize("architecture", CLASSES)
@torch.no_grad()
def test_text_states_are_those_of_the_module(architecture: str) -> None:
    module, ids = make(architecture), token_ids()
    out = module(ids, output_hidden_states=True)
    layers = (Layer(), Layer(-2, False), Layer(-2, True), Layer(-1, False))
    states = TEXT_TOWERS[architecture](module, ids, layers)
    norm = getattr(module, "text_model", module).final_layer_norm
    expected = (
        out.last_hidden_state,
        out.hidden_states[-2],
        norm(out.hidden_states[-2]),
        out.hidden_states[-1],
    )
    for found, wanted in zip(states.hidden, expected, strict=True):
        assert torch.equal(found, wanted)
    pooled = out.text_embeds if architecture.endswith("Projection") else out.pooler_output
    assert torch.equal(states.pooled, pooled)
    assert states.hidden[0].shape == (3, 77, 32)
    # The last layer is published with its norm: the two must not be the same thing.
    assert not torch.allclose(states.hidden[0], states.hidden[3])


@pytest.mark.parametrize("architecture", CLASSES)
@torch.no_grad()
def test_the_mask_reaches_the_module(architecture: str) -> None:
    module, ids = make(architecture), token_ids()
    mask = (ids != TOKENIZER.eos_token_id).long()
    encode = TEXT_TOWERS[architecture]
    masked = encode(module, ids, (Layer(),), mask)
    assert masked.mask is mask
    assert torch.equal(masked.hidden[0], module(ids, attention_mask=mask).last_hidden_state)
    assert not torch.allclose(masked.hidden[0], encode(module, ids).hidden[0])


@torch.no_grad()
def test_image_states_drop_the_class_token_and_keep_the_grid() -> None:
    module = tiny_image_tower()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    states = IMAGE_FAMILIES["clip"].encode(module, pixels, (-2, -1))
    out = module(pixels, output_hidden_states=True)
    assert states.grid == (4, 4)
    assert [p.shape for p in states.patches] == [(2, 16, 32)] * 2
    assert torch.equal(states.patches[0], out.hidden_states[-2][:, 1:])
    assert torch.equal(states.pooled, out.image_embeds)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("architecture", CLASSES)
@torch.no_grad()
def test_a_saved_tower_loads_again(architecture: str, tmp_path: Path) -> None:
    module = make(architecture)
    module.save_pretrained(tmp_path)
    spec = read_spec(tmp_path, architecture)
    assert (spec.width, spec.layers, spec.context) == (32, 3, 77)
    assert spec.pooled_width == (24 if architecture.endswith("Projection") else 32)
    assert (spec.activation, spec.attention_mask) == ("quick_gelu", False)
    loaded = load_tower(architecture, tmp_path, dtype=torch.float32, device="cpu")
    assert torch.equal(loaded(token_ids())[0], module(token_ids())[0])
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert fingerprint(loaded) == fingerprint(module)


@torch.no_grad()
def test_an_index_may_point_into_another_folder(tmp_path: Path) -> None:
    module = make("CLIPTextModel")
    module.save_pretrained(tmp_path / "one")
    other = tmp_path / "two"
    other.mkdir()
    (other / "config.json").write_bytes((tmp_path / "one/config.json").read_bytes())
    names = load_file(tmp_path / "one/model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../one/model.safetensors")}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_tower("CLIPTextModel", other, dtype=torch.float32, device="cpu")
    assert fingerprint(loaded) == fingerprint(module)


def test_a_missing_tensor_is_an_error_and_not_a_random_number(tmp_path: Path) -> None:
    make("CLIPTextModel").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in tensors if name.endswith("final_layer_norm.weight"))
    del tensors[dropped]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 of its tensors.*final_layer_norm"):
        load_tower("CLIPTextModel", tmp_path, dtype=torch.float32, device="cpu")


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    make("CLIPTextModel").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("final_layer_norm.weight"))
    tensors[name] = torch.ones(5)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="CLIPTextModel in"):
        load_tower("CLIPTextModel", tmp_path, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing", "pickle"])
def test_damaged_weights_are_one_clear_error(damage: str, tmp_path: Path) -> None:
    module = make("CLIPTextModel")
    module.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        weights.write_bytes(b"\xff" * 1000)
    else:
        weights.unlink()
    if damage == "pickle":
        torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="CLIPTextModel in"):
        load_tower("CLIPTextModel", tmp_path, dtype=torch.float32, device="cpu")


def test_configs_that_are_no_configs(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(WeightsError, match="is missing"):
        read_json(path)
    path.write_text("{half")
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(WeightsError, match="no JSON object"):
        read_json(path)
    path.write_text("{}")
    with pytest.raises(WeightsError, match="hidden_size"):
        read_spec(tmp_path, "CLIPTextModel")


# ---------------------------------------------------------------- fingerprints


def test_fingerprints_tell_towers_apart() -> None:
    one = make("CLIPTextModel")
    seen = {
        fingerprint(one),
        fingerprint(make("CLIPTextModel", seed=1)),
        fingerprint(make("CLIPTextModelWithProjection")),
        fingerprint(make("CLIPTextModel").to(torch.bfloat16)),
    }
    assert len(seen) == 4
    assert fingerprint(make("CLIPTextModel")) in seen


def test_fingerprint_changes_with_training() -> None:
    module = make("CLIPTextModel")
    before = fingerprint(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.001)
    assert fingerprint(module) != before
