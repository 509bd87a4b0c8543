"""A BridgeVLM to a folder that `load_vlm` reads: transformers' LLaVA layout where it can say all
that the model is, else bridge's own (`bridge.vlm.own_layout`)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bridge.errors import UnsupportedModelError
from bridge.runtime import quiet_loading
from bridge.vlm.aspect import OneView
from bridge.vlm.model import BridgeVLM


def save_vlm(vlm: BridgeVLM, folder: str | os.PathLike[str]) -> Path:
    """Write the whole model, in its dtypes, and give the folder.

    A pairing like LLaVA's (CLIP or SigLIP, `mlp2x_gelu`, a decoder of LLaMA's kind) loads with
    stock `LlavaForConditionalGeneration.from_pretrained`; `bridge.vlm.stock.why_not` says of any
    other why it does not. Files appear under their names when all are whole, config.json last.
    Raises UnsupportedModelError for a model of text alone, and for anyres.
    """
    from bridge.vlm.own_layout import write_own
    from bridge.vlm.stock import why_not, write_stock

    check_can_save(vlm)
    place = Path(folder)
    part = place / f".saving.{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        with quiet_loading():
            (write_stock if why_not(vlm) is None else write_own)(vlm, part)
        for file in sorted(part.rglob("*"), key=lambda file: file.name == "config.json"):
            if file.is_file():
                target = place / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def check_can_save(vlm: BridgeVLM) -> None:
    """Raises UnsupportedModelError for what `save_vlm` cannot write."""
    if vlm.vision is None:
        raise UnsupportedModelError(
            f"{vlm.name} is a language model alone; save it with its own save_pretrained"
        )
    if not isinstance(vlm.aspect, OneView):
        raise UnsupportedModelError(
            f"{vlm.name} takes pictures in tiles (anyres), which bridge does not save; pair its "
            "tower and language model anew with bridge.vlm.pair"
        )
