"""CLIP's relatives and vision-only models against transformers' whole models, on random weights.

1e-5 of the largest entry in fp32: the same classes calculate, in another order at most.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.comparisons import relative
from support.reference_open_clip import scatter
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_tokenizers import tiny_bert_tokenizer, tiny_xlmr_tokenizer

from bridge.errors import OptionError, WeightsError
from bridge.towers import Layer, open_image_tower, open_text_tower
from bridge.towers.families import family_of

TOLERANCE = 1e-5
TEXTS = ["two red apples left of a cat", "", "a dog"]
LAYERS = (Layer(), Layer(-1, False), Layer(-2, False))
PICTURES = [
    Image.linear_gradient("L").resize((40, 60)),
    Image.radial_gradient("L").resize((33, 50)),
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {**SMALL, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
}


# Kind -> how transformers' classes begin, a tokenizer, what its text and its image config say.
KINDS: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "chinese_clip": (
        "ChineseCLIP", tiny_bert_tokenizer, {"max_position_embeddings": 40, "pad_token_id": 0}, {},
    ),
    "altclip": (
        "AltCLIP", tiny_xlmr_tokenizer,
        {"max_position_embeddings": 40, "pad_token_id": 1, "project_dim": 24}, {},
    ),
    "metaclip_2": ("MetaClip2", tiny_xlmr_tokenizer, {"max_position_embeddings": 77}, {}),
    "aimv2": ("Aimv2", tiny_clip_tokenizer, {"max_position_embeddings": 77}, {}),
}  # fmt: skip


def near(found: torch.Tensor | None, wanted: torch.Tensor) -> None:
    assert found is not None and found.shape == wanted.shape
    assert relative(found, wanted) <= TOLERANCE


def written(folder: Path, kind: str) -> Any:
    """A whole model of transformers with random weights, its folder written."""
    start, made, said, seen = KINDS[kind]
    tokenizer = made()
    text = {**SMALL, "intermediate_size": 64, "vocab_size": len(tokenizer), **said}
    if kind in ("metaclip_2", "aimv2"):
        text["eos_token_id"] = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = getattr(transformers, f"{start}Config")(
        text_config=text, vision_config={**SEEN, **seen}, projection_dim=24
    )
    model = scatter(getattr(transformers, f"{start}Model")(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_clip_relatives(tmp_path: Path, kind: str) -> None:
    model = written(tmp_path, kind)
    assert family_of(tmp_path) == "clip_relatives"
    text, image = (open_(tmp_path, device="cpu") for open_ in (open_text_tower, open_image_tower))
    batch, pixels = text.tokenize(TEXTS), image.pixels(PICTURES)
    wanted = model(input_ids=batch.ids, attention_mask=batch.mask, pixel_values=pixels)
    said, seen = text.encode(batch, LAYERS), image.encode(pixels, (-1, -2))
    near(said.pooled, model.get_text_features(batch.ids, batch.mask).pooler_output)
    near(seen.pooled, model.get_image_features(pixels).pooler_output)
    near(text.scores(said.pooled, seen.pooled), wanted.logits_per_text)
    inner = model.text_model(batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    near(said.hidden[0], inner.last_hidden_state)
    near(said.hidden[2], inner.hidden_states[-2])
    shown = model.vision_model(pixels, output_hidden_states=True).hidden_states
    places = 16 + (kind != "aimv2")
    assert shown[-1].shape[1] == places and seen.grid == (4, 4)
    near(seen.patches[1], shown[-2][:, places - 16 :])
    assert text.spec.width == said.hidden[0].shape[-1]
    assert text.spec.pooled_width == image.spec.pooled_width == 24
    assert len(text.encode(batch, attentions=True).attentions) == text.spec.layers == 2
    # A text in a batch is the text alone: padding is not seen.
    near(text.encode([TEXTS[2]]).pooled, said.pooled[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_one_side_alone_lacks_its_map(tmp_path: Path, kind: str) -> None:
    written(tmp_path, kind)
    file = tmp_path / "model.safetensors"
    kept = {k: t for k, t in load_file(file).items() if "projection" not in k}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"text_projection\.weight"):
        open_text_tower(tmp_path, device="cpu")
    with pytest.raises(WeightsError, match=r"visual_projection\.weight"):
        open_image_tower(tmp_path, device="cpu")


# model_type -> class, its config, and how many places come before the patches.
SEERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "siglip_vision_model": ("SiglipVision", {}, 0),
    "dinov2": ("Dinov2", {"mlp_ratio": 2}, 1),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 3}, 4),
    "dinov3_vit": ("DINOv3ViT", {"num_register_tokens": 2}, 3),
    "aimv2_vision_model": ("Aimv2Vision", {}, 0),
}


@pytest.mark.parametrize("kind", SEERS)
@torch.no_grad()
def test_vision_models(tmp_path: Path, kind: str) -> None:
    name, told, before = SEERS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SEEN, **told})
    if "intermediate_size" not in type(config)().to_dict():
        config = getattr(transformers, f"{name}Config")(
            **{k: v for k, v in {**SEEN, **told}.items() if k != "intermediate_size"}
        )
    model = scatter(getattr(transformers, f"{name}Model")(config))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    assert family_of(tmp_path) == "vision_models"
    tower = open_image_tower(tmp_path, device="cpu")
    pixels = tower.pixels(PICTURES)
    wanted = model(pixels, output_hidden_states=True)
    found = tower.encode(pixels, (-1, -2, -3))
    for place, patches in enumerate(found.patches):
        near(patches, wanted.hidden_states[-place - 1][:, before:])
    assert found.grid == (4, 4) and found.patches[0].shape == (2, 16, 32)
    assert tower.spec.context == 16 + before and tower.scoring is None
    if kind == "siglip_vision_model":
        near(found.pooled, wanted.pooler_output)
    else:
        assert found.pooled is None and tower.spec.pooled_width == 0
    with pytest.raises(OptionError, match="no text side"):
        open_text_tower(tmp_path, device="cpu")


@torch.no_grad()
def test_a_picture_of_another_size_than_dinov2s_config(tmp_path: Path) -> None:
    """It was trained at 518 pixels, and its processor cuts 224."""
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(**SMALL, mlp_ratio=2, image_size=56, patch_size=8)
    )
    scatter(model).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    tower = open_image_tower(tmp_path, device="cpu")
    pixels = tower.pixels(PICTURES)
    wanted = model(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    near(tower.encode(PICTURES).patches[0], wanted)


def test_dinov3s_processor_is_pils(tmp_path: Path) -> None:
    """transformers has it for torchvision alone."""
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(**SEEN)
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    told = {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "size": {"height": 32, "width": 32},
    }
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    told |= {"image_mean": mean, "image_std": std, "resample": 2, "do_rescale": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    found = open_image_tower(tmp_path, device="cpu").pixels([Image.new("RGB", (50, 40), "white")])
    wanted = (1 - torch.tensor(mean)) / torch.tensor(std)
    assert found.shape == (1, 3, 32, 32)
    assert torch.allclose(found[0, :, 5, 5], wanted, atol=1e-6)
