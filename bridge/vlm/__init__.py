"""Pictures into answers: LLaVA's road, in parts that can be read and changed.

    chat.py, conversations.py      turns, messages, and the layouts that models are asked in
    image.py, views.py             a picture as RGB, and as the views that a tower takes
    vision.py, projectors/         views to states, states to soft tokens
    merge_embeddings.py            soft tokens into the chat
    model.py, answering.py         BridgeVLM, and how it is asked
    load.py, save.py, pairing.py   from files, to files, of parts that never met
    hf_models.py, checkpoints/     transformers' LLaVA and BLIP-2; the original LLaVA
    lora.py, train/                training in LLaVA's two stages
    explain/                       where an answer comes from

Names load on first use, so that reading a picture or writing a chat needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_names

if TYPE_CHECKING:
    from bridge.vlm.answering import Choice as Choice
    from bridge.vlm.answering import describe as describe
    from bridge.vlm.checkpoints.convert import convert as convert
    from bridge.vlm.conversations import CONVERSATIONS as CONVERSATIONS
    from bridge.vlm.explain.answers import SideBySide as SideBySide
    from bridge.vlm.explain.answers import side_by_side as side_by_side
    from bridge.vlm.explain.lens import Lens as Lens
    from bridge.vlm.explain.lens import lens as lens
    from bridge.vlm.explain.occlusion import Ablation as Ablation
    from bridge.vlm.explain.occlusion import Occlusion as Occlusion
    from bridge.vlm.explain.occlusion import answer_without as answer_without
    from bridge.vlm.explain.occlusion import occlusion as occlusion
    from bridge.vlm.explain.pictures import heat_overlay as heat_overlay
    from bridge.vlm.explain.pictures import lens_overlay as lens_overlay
    from bridge.vlm.explain.rollout import AttentionRollout as AttentionRollout
    from bridge.vlm.explain.rollout import attention_rollout as attention_rollout
    from bridge.vlm.hf_models import from_blip2 as from_blip2
    from bridge.vlm.hf_models import from_llava as from_llava
    from bridge.vlm.image import load_image as load_image
    from bridge.vlm.load import load_llm as load_llm
    from bridge.vlm.load import load_vision as load_vision
    from bridge.vlm.load import load_vlm as load_vlm
    from bridge.vlm.model import BridgeVLM as BridgeVLM
    from bridge.vlm.pairing import pair as pair
    from bridge.vlm.projectors import build_projector as build_projector
    from bridge.vlm.projectors import load_projector as load_projector
    from bridge.vlm.projectors import save_projector as save_projector
    from bridge.vlm.projectors.per_state import PairSums as PairSums
    from bridge.vlm.projectors.per_state import fit_linear_projector as fit_linear_projector
    from bridge.vlm.save import save_vlm as save_vlm
    from bridge.vlm.train.options import TrainOptions as TrainOptions
    from bridge.vlm.train.run import Training as Training
    from bridge.vlm.train.run import train_vlm as train_vlm

# Module -> the public names that it defines.
_PUBLIC = {
    "answering": ("Choice", "describe"),
    "checkpoints.convert": ("convert",),
    "conversations": ("CONVERSATIONS",),
    "explain.answers": ("SideBySide", "side_by_side"),
    "explain.lens": ("Lens", "lens"),
    "explain.occlusion": ("Ablation", "Occlusion", "answer_without", "occlusion"),
    "explain.pictures": ("heat_overlay", "lens_overlay"),
    "explain.rollout": ("AttentionRollout", "attention_rollout"),
    "hf_models": ("from_blip2", "from_llava"),
    "image": ("load_image",),
    "load": ("load_llm", "load_vision", "load_vlm"),
    "model": ("BridgeVLM",),
    "pairing": ("pair",),
    "projectors": ("build_projector", "load_projector", "save_projector"),
    "projectors.per_state": ("PairSums", "fit_linear_projector"),
    "save": ("save_vlm",),
    "train.options": ("TrainOptions",),
    "train.run": ("Training", "train_vlm"),
}
_HOMES = {name: f"bridge.vlm.{module}" for module, names in _PUBLIC.items() for name in names}
# Submodules that are reached as attributes, without an import of their own.
_ROOMS = ("checkpoints", "explain", "hf_models", "projectors", "train")

__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES, _ROOMS)
