"""Pictures into answers: LLaVA's road, in parts that can be read and changed.

Names load on first use, so that reading a picture or writing a chat needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.vlm.answering import describe
    from bridge.vlm.blip2 import from_blip2
    from bridge.vlm.checkpoints.convert import convert
    from bridge.vlm.choice import Choice
    from bridge.vlm.image import load_image
    from bridge.vlm.llava import from_llava
    from bridge.vlm.load import load_vlm
    from bridge.vlm.model import BridgeVLM
    from bridge.vlm.pairing import pair
    from bridge.vlm.part_loading import load_llm, load_vision
    from bridge.vlm.projectors import build_projector, load_projector, save_projector
    from bridge.vlm.save import save_vlm
    from bridge.vlm.train.options import TrainOptions
    from bridge.vlm.train.run import Training, train_vlm

# Public name -> the module that defines it.
_HOMES = {
    "BridgeVLM": "bridge.vlm.model",
    "Choice": "bridge.vlm.choice",
    "TrainOptions": "bridge.vlm.train.options",
    "Training": "bridge.vlm.train.run",
    "build_projector": "bridge.vlm.projectors",
    "convert": "bridge.vlm.checkpoints.convert",
    "describe": "bridge.vlm.answering",
    "from_blip2": "bridge.vlm.blip2",
    "from_llava": "bridge.vlm.llava",
    "load_image": "bridge.vlm.image",
    "load_llm": "bridge.vlm.part_loading",
    "load_projector": "bridge.vlm.projectors",
    "load_vision": "bridge.vlm.part_loading",
    "load_vlm": "bridge.vlm.load",
    "pair": "bridge.vlm.pairing",
    "save_projector": "bridge.vlm.projectors",
    "save_vlm": "bridge.vlm.save",
    "train_vlm": "bridge.vlm.train.run",
}

__all__ = [
    "BridgeVLM",
    "Choice",
    "TrainOptions",
    "Training",
    "build_projector",
    "convert",
    "describe",
    "from_blip2",
    "from_llava",
    "load_image",
    "load_llm",
    "load_projector",
    "load_vision",
    "load_vlm",
    "pair",
    "save_projector",
    "save_vlm",
    "train_vlm",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bridge.vlm' has no attribute {name!r}")
