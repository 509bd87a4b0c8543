"""Pictures into answers: LLaVA's road, in parts that can be read and changed.

Names load on first use, so that reading a picture or writing a chat needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_names

if TYPE_CHECKING:
    from bridge.vlm.answering import describe
    from bridge.vlm.blip2 import from_blip2
    from bridge.vlm.checkpoints.convert import convert
    from bridge.vlm.choice import Choice
    from bridge.vlm.closed_form import PairSums, fit_linear_projector
    from bridge.vlm.conversations import CONVERSATIONS
    from bridge.vlm.image import load_image
    from bridge.vlm.inside.occluding import Blanked, Occlusion, answer_without, occlusion
    from bridge.vlm.inside.overlays import heat_overlay, lens_overlay
    from bridge.vlm.inside.projector_lens import Lens, lens
    from bridge.vlm.inside.rollouts import AttentionRollout, attention_rollout
    from bridge.vlm.inside.sides import SideBySide, side_by_side
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
    "AttentionRollout": "bridge.vlm.inside.rollouts",
    "Blanked": "bridge.vlm.inside.occluding",
    "BridgeVLM": "bridge.vlm.model",
    "CONVERSATIONS": "bridge.vlm.conversations",
    "Choice": "bridge.vlm.choice",
    "Lens": "bridge.vlm.inside.projector_lens",
    "Occlusion": "bridge.vlm.inside.occluding",
    "PairSums": "bridge.vlm.closed_form",
    "SideBySide": "bridge.vlm.inside.sides",
    "TrainOptions": "bridge.vlm.train.options",
    "Training": "bridge.vlm.train.run",
    "answer_without": "bridge.vlm.inside.occluding",
    "attention_rollout": "bridge.vlm.inside.rollouts",
    "build_projector": "bridge.vlm.projectors",
    "convert": "bridge.vlm.checkpoints.convert",
    "describe": "bridge.vlm.answering",
    "fit_linear_projector": "bridge.vlm.closed_form",
    "from_blip2": "bridge.vlm.blip2",
    "from_llava": "bridge.vlm.llava",
    "heat_overlay": "bridge.vlm.inside.overlays",
    "lens": "bridge.vlm.inside.projector_lens",
    "lens_overlay": "bridge.vlm.inside.overlays",
    "load_image": "bridge.vlm.image",
    "load_llm": "bridge.vlm.part_loading",
    "load_projector": "bridge.vlm.projectors",
    "load_vision": "bridge.vlm.part_loading",
    "load_vlm": "bridge.vlm.load",
    "occlusion": "bridge.vlm.inside.occluding",
    "pair": "bridge.vlm.pairing",
    "save_projector": "bridge.vlm.projectors",
    "save_vlm": "bridge.vlm.save",
    "side_by_side": "bridge.vlm.inside.sides",
    "train_vlm": "bridge.vlm.train.run",
}

# Submodules that are reached as attributes, without an import of their own.
_ROOMS = ("checkpoints", "inside", "projectors", "stock", "train")

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
