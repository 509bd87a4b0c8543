"""Tiny model folders of every layout that bridge opens, and the public doors that open them.

Each door opens its folder and uses it briefly (one prompt, one short question), so that what only
shows in use is met too.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import bridge
from bridge.towers import open_captioner, open_image_tower, open_text_tower
from bridge.vlm import convert, load_llm, load_vision, pair, save_vlm
from support import tiny_models
from support.reference_open_clip import OpenClip, Text, Visual, scatter
from support.tiny_checkpoints import (
    LLM_WIDTH,
    VISION_WIDTH,
    clip_settings,
    llava_config,
    llava_parts,
    llava_state,
    save_clip,
    save_llava,
    tiny_blip2,
    tiny_next,
)
from support.tiny_pairs import (
    LLAVA_HF_TEMPLATE,
    TEXT_TEMPLATE,
    plain_tokenizer,
    tiny_llm,
    tiny_tower,
)
from support.tiny_t5 import tiny_t5_encoder, tiny_t5_tokenizer
from support.tiny_tokenizers import tiny_xlmr_tokenizer
from support.tiny_vlm import tiny_llava

PICTURE = Image.new("RGB", (40, 32), (200, 30, 40))
Door = Callable[[Path], object]


def _ask(folder: Path) -> object:
    vlm = bridge.load_vlm(folder, device="cpu")
    return vlm.answer(PICTURE, "a cat?", max_new_tokens=2)


def _describe(folder: Path) -> object:
    return bridge.describe(PICTURE, "a cat?", model=folder, max_new_tokens=1, device="cpu")


def _see(folder: Path) -> object:
    tower, processor = load_vision(folder, device="cpu")
    pixels = processor(images=[PICTURE], return_tensors="pt")["pixel_values"] if processor else None
    return tower if pixels is None else tower(pixels)


def _speak(folder: Path) -> object:
    llm, tokenizer = load_llm(folder, device="cpu")
    talk = pair(None, llm, tokenizer, name=str(folder))
    return talk.answer(None, "a cat?", max_new_tokens=2)


def _read(folder: Path) -> object:
    return open_text_tower(folder, device="cpu").encode(["a cat", ""])


def _look(folder: Path) -> object:
    return open_image_tower(folder, device="cpu").encode(PICTURE)


def _caption(folder: Path) -> object:
    captioner = open_captioner(folder, device="cpu")
    return captioner.caption(PICTURE, num_beams=1, max_new_tokens=5)


def _condition(folder: Path) -> object:
    return bridge.condition("a (cat:1.2)", model=folder, device="cpu", height=64, width=64)


def _draw(folder: Path) -> object:
    pipe = bridge.load_pipeline(folder, device="cpu")
    return bridge.generate("a cat", model=pipe, steps=1, height=64, width=64)


def _convert(to: Any) -> Door:
    def door(folder: Path) -> object:
        with tempfile.TemporaryDirectory() as out:
            return convert(folder, Path(out) / "converted", to=to)

    return door


@dataclass(frozen=True)
class Kind:
    """A layout: what makes a folder of it, and the doors that open it."""

    make: Callable[[Path], object]
    doors: dict[str, Door]


def _llava(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(tiny_llava(Path(place)), folder)


def _original(folder: Path) -> None:
    projector = nn.Sequential(
        nn.Linear(VISION_WIDTH, LLM_WIDTH), nn.GELU(), nn.Linear(LLM_WIDTH, LLM_WIDTH)
    )
    tower, llm, *rest = llava_parts(projector)
    config = llava_config(llm, Path("vision_tower"), image_aspect_ratio="square")
    save_llava(folder, config, llava_state(tower, llm, *rest))
    save_clip(folder / "vision_tower", tower, weights=False)


def _own(folder: Path) -> None:
    torch.manual_seed(0)
    llm, words = tiny_llm("GPT2", 300), plain_tokenizer(TEXT_TEMPLATE)
    save_vlm(pair(tiny_tower("dinov2"), llm, words, projector="linear"), folder)


def _llm(folder: Path) -> None:
    tiny_llm("Llama", 300).save_pretrained(folder)
    plain_tokenizer(LLAVA_HF_TEMPLATE.replace("<image>", "")).save_pretrained(folder)


def _tower(folder: Path) -> None:
    tiny_tower("dinov2").save_pretrained(folder)
    settings = {**clip_settings(32), "image_processor_type": "BitImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _clip(folder: Path) -> None:
    torch.manual_seed(0)
    words = tiny_models.tiny_clip_tokenizer()
    vision = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = tiny_models.text_config(words)
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24
    )
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(clip_settings(32)))


def _siglip(folder: Path) -> None:
    torch.manual_seed(0)
    side = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    side |= {"num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={
            **side, "vocab_size": 90, "max_position_embeddings": 16, "projection_size": 24,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
        },
        vision_config={**side, "image_size": 32, "patch_size": 8},
    )  # fmt: skip
    scatter(transformers.SiglipModel(config)).save_pretrained(folder)
    tiny_t5_tokenizer().save_pretrained(folder)
    settings = {"image_processor_type": "SiglipImageProcessor"}
    settings |= {"size": {"height": 32, "width": 32}}  # type: ignore[dict-item]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _open_clip(folder: Path, **changes: Any) -> None:
    torch.manual_seed(0)
    words = tiny_models.tiny_clip_tokenizer()
    text = Text(len(words), 77, 48, 6, 3, 96, 40, nn.GELU)
    model = scatter(OpenClip(text, Visual(32, 8, 32, 2, 4, 80, 40, nn.GELU)))
    folder.mkdir()
    save_file(model.state(True), folder / "open_clip_model.safetensors")
    words.save_pretrained(folder)
    config = {"text_cfg": {"heads": 6}, "vision_cfg": {"head_width": 16}}
    settings = {"model_cfg": config, "preprocess_cfg": {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))


def _t5(folder: Path) -> None:
    tiny_t5_encoder().save_pretrained(folder)
    tiny_t5_tokenizer().save_pretrained(folder)


def _multilingual(folder: Path) -> None:
    torch.manual_seed(0)
    words = tiny_xlmr_tokenizer()
    config = transformers.XLMRobertaConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=1,
        intermediate_size=32, max_position_embeddings=40, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    encoder = scatter(transformers.XLMRobertaModel(config))
    head = scatter(nn.Linear(64, 24))
    folder.mkdir()
    state = {f"transformer.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state |= {f"LinearTransformation.{name}": t for name, t in head.state_dict().items()}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors")
    settings = {"modelBase": "xlm-roberta-base", "architectures": ["MultilingualCLIP"]}
    settings |= {"numDims": 24, "transformerDimensions": 64}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps(settings))
    words.save_pretrained(folder)


_TOWERS = {"text tower": _read, "image tower": _look}

KINDS = {
    "llava": Kind(
        _llava,
        {"ask": _ask, "describe": _describe, "vision": _see, "llm": _speak,
         "convert": _convert("llava")},
    ),
    "llava-next": Kind(tiny_next, {"ask": _ask}),
    "original": Kind(_original, {"ask": _ask, "convert": _convert("hf")}),
    "own": Kind(_own, {"ask": _ask, "vision": _see, "llm": _speak}),
    "blip2": Kind(tiny_blip2, {"ask": _ask, "image tower": _look}),
    "llm": Kind(_llm, {"llm": _speak, "text tower": _read}),
    "tower": Kind(_tower, {"vision": _see}),
    "clip": Kind(_clip, {**_TOWERS, "vision": _see}),
    "siglip": Kind(_siglip, {**_TOWERS, "vision": _see}),
    "open_clip": Kind(_open_clip, _TOWERS),
    "t5": Kind(_t5, {"text tower": _read}),
    "multilingual": Kind(_multilingual, {"text tower": _read}),
    "sd": Kind(
        lambda folder: tiny_models.tiny_sd_pipeline().save_pretrained(folder),
        {"condition": _condition, "draw": _draw},
    ),
    "sdxl": Kind(
        lambda folder: tiny_models.tiny_sdxl_pipeline().save_pretrained(folder),
        {"condition": _condition, "draw": _draw},
    ),
}  # fmt: skip
"""Name of a layout to how it is made and opened."""


def make_all(root: Path) -> dict[str, Path]:
    """One whole folder of every layout below ``root``."""
    for name, kind in KINDS.items():
        kind.make(root / name)
    return {name: root / name for name in KINDS}
