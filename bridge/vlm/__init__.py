"""Pictures into answers: LLaVA's road, in parts that can be read and changed.

Names load on first use, so that reading a picture or writing a chat needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_names

if TYPE_CHECKING:
    from bridge.vlm.answering import Choice, describe
    from bridge.vlm.checkpoints.convert import convert
    from bridge.vlm.conversations import CONVERSATIONS
    from bridge.vlm.explain.answers import SideBySide, side_by_side
    from bridge.vlm.explain.lens import Lens, lens
    from bridge.vlm.explain.occlusion import Blanked, Occlusion, answer_without, occlusion
    from bridge.vlm.explain.pictures import heat_overlay, lens_overlay
    from bridge.vlm.explain.rollout import AttentionRollout, attention_rollout
    from bridge.vlm.hf_models import from_blip2, from_llava
    from bridge.vlm.image import load_image
    from bridge.vlm.load import load_llm, load_vision, load_vlm
    from bridge.vlm.model import BridgeVLM
    from bridge.vlm.pairing import pair
    from bridge.vlm.projectors import build_projector, load_projector, save_projector
    from bridge.vlm.projectors.per_state import PairSums, fit_linear_projector
    from bridge.vlm.save import save_vlm
    from bridge.vlm.train.options import TrainOptions
    from bridge.vlm.train.run import Training, train_vlm

# Public name -> the module that defines it.
_HOMES = {
    "AttentionRollout": "bridge.vlm.explain.rollout",
    "Blanked": "bridge.vlm.explain.occlusion",
    "BridgeVLM": "bridge.vlm.model",
    "CONVERSATIONS": "bridge.vlm.conversations",
    "Choice": "bridge.vlm.answering",
    "Lens": "bridge.vlm.explain.lens",
    "Occlusion": "bridge.vlm.explain.occlusion",
    "PairSums": "bridge.vlm.projectors.per_state",
    "SideBySide": "bridge.vlm.explain.answers",
    "TrainOptions": "bridge.vlm.train.options",
    "Training": "bridge.vlm.train.run",
    "answer_without": "bridge.vlm.explain.occlusion",
    "attention_rollout": "bridge.vlm.explain.rollout",
    "build_projector": "bridge.vlm.projectors",
    "convert": "bridge.vlm.checkpoints.convert",
    "describe": "bridge.vlm.answering",
    "fit_linear_projector": "bridge.vlm.projectors.per_state",
    "from_blip2": "bridge.vlm.hf_models",
    "from_llava": "bridge.vlm.hf_models",
    "heat_overlay": "bridge.vlm.explain.pictures",
    "lens": "bridge.vlm.explain.lens",
    "lens_overlay": "bridge.vlm.explain.pictures",
    "load_image": "bridge.vlm.image",
    "load_llm": "bridge.vlm.load",
    "load_projector": "bridge.vlm.projectors",
    "load_vision": "bridge.vlm.load",
    "load_vlm": "bridge.vlm.load",
    "occlusion": "bridge.vlm.explain.occlusion",
    "pair": "bridge.vlm.pairing",
    "save_projector": "bridge.vlm.projectors",
    "save_vlm": "bridge.vlm.save",
    "side_by_side": "bridge.vlm.explain.answers",
    "train_vlm": "bridge.vlm.train.run",
}

# Submodules that are reached as attributes, without an import of their own.
_ROOMS = ("checkpoints", "explain", "projectors", "hf_models", "train")

__all__ = [
    "CONVERSATIONS",
    "AttentionRollout",
    "Blanked",
    "BridgeVLM",
    "Choice",
    "Lens",
    "Occlusion",
    "PairSums",
    "SideBySide",
    "TrainOptions",
    "Training",
    "answer_without",
    "attention_rollout",
    "build_projector",
    "convert",
    "describe",
    "fit_linear_projector",
    "from_blip2",
    "from_llava",
    "heat_overlay",
    "lens",
    "lens_overlay",
    "load_image",
    "load_llm",
    "load_projector",
    "load_vision",
    "load_vlm",
    "occlusion",
    "pair",
    "save_projector",
    "save_vlm",
    "side_by_side",
    "train_vlm",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _ROOMS)
