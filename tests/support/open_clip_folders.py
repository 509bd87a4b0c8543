"""Folders in open_clip's layout, and a small model to fill them with."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from support.reference_open_clip import OpenClip, Text, Visual, scatter
from support.tiny_models import tiny_clip_tokenizer

VOCAB = len(tiny_clip_tokenizer())

HEADS = {"text_cfg": {"heads": 6}, "vision_cfg": {"head_width": 16}}


def write(
    folder: Path, state: dict[str, torch.Tensor], model: dict[str, Any] | None, tokenizer: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    if model is not None:
        config = {"model_cfg": model, "preprocess_cfg": {"resize_mode": "squash"}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def plain(act: type[nn.Module], **changes: Any) -> OpenClip:
    torch.manual_seed(0)
    text = Text(VOCAB, 77, 48, 6, 3, 96, 40, act, **changes)
    return scatter(OpenClip(text, Visual(32, 8, 32, 2, 4, 80, 40, act)))


def drawn(name: str, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of a checkpoint by its name: the same wherever it is drawn."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    if name.endswith("running_var"):
        return 0.5 + values.abs()
    norms = name.endswith("gamma") or ("weight" in name and values.ndim == 1)
    if norms:
        return 1 + 0.3 * values
    return values * (0.3 if values.ndim < 2 else min(0.3, values[0].numel() ** -0.5))


def drawn_pixels(side: int) -> torch.Tensor:
    return drawn("pixels", (2, 3, side, side)) * side
