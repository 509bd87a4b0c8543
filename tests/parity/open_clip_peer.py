"""open_clip's own models over tiny random weights, saved as it saves them and read by it again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peers import package
from safetensors.torch import save_file
from support.reference_open_clip import scatter
from support.tiny_models import tiny_clip_tokenizer

TOKENIZER = tiny_clip_tokenizer("!")
# What the 144 configs of open_clip and the config files on the hub say, and what its code knows.
WAYS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "squash": {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "bilinear": {"interpolation": "bilinear", "mean": 0.5, "std": None},
    "longest": {"resize_mode": "longest", "fill_color": 7},
    "random": {"interpolation": "random", "resize_mode": "shortest"},
}
# Four blocks would say no more; open_clip's defaults stand wherever a case does not change them.
SMALL = {"layers": 2, "mlp_ratio": 2.0}


def small_model(
    text: Mapping[str, Any] = {}, vision: Mapping[str, Any] = {}, **top: Any
) -> dict[str, Any]:
    """A ``model_cfg`` of few layers; all that is not given is left out."""
    return {
        "embed_dim": 24,
        "text_cfg": {"vocab_size": len(TOKENIZER), **SMALL, **text},
        "vision_cfg": {**SMALL, **vision},
        **top,
    }


def write(
    folder: Path,
    model: Mapping[str, Any],
    preprocess: Mapping[str, Any] = {},
    tokenizer: Any = TOKENIZER,
) -> Path:
    """A checkpoint in open_clip's layout, of a model that open_clip itself makes of ``model``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    made = scatter(_built(folder))
    state = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path) -> tuple[Any, Any]:
    """The peer's model of a folder, and its way with pictures."""
    peer = package("open_clip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _, transform = peer.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform


def _built(folder: Path) -> Any:
    """The peer's model with weights that it draws itself."""
    peer = package("open_clip")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
