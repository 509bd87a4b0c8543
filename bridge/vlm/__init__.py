"""Pictures into answers: LLaVA's road, in parts that can be read and changed.

    chat.py, conversations.py      turns, messages, and the layouts that models are asked in
    views.py                       a picture as the views that a tower takes
    vision.py, projectors/         views to states, states to soft tokens
    merge_embeddings.py            soft tokens into the chat
    model.py, answering.py         BridgeVLM, and how it is asked
    load.py, save.py, pairing.py   from files, to files, of parts that never met
    hf_models.py, checkpoints/     transformers' LLaVA and BLIP-2; the original LLaVA
    lora.py, train/                training in LLaVA's two stages
    explain/                       where an answer comes from

Names load on first use, so that reading a picture or writing a chat needs no torch.
"""

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

if TYPE_CHECKING:
    from bridge.images import load_image
    from bridge.vlm import checkpoints, explain, hf_models, projectors, train
    from bridge.vlm.answering import Choice, describe
    from bridge.vlm.checkpoints.convert import convert
    from bridge.vlm.conversations import CONVERSATIONS
    from bridge.vlm.explain.answers import SideBySide, side_by_side
    from bridge.vlm.explain.lens import Lens, lens
    from bridge.vlm.explain.occlusion import Ablation, Occlusion, answer_without, occlusion
    from bridge.vlm.explain.pictures import heat_overlay, lens_overlay
    from bridge.vlm.explain.rollout import AttentionRollout, attention_rollout
    from bridge.vlm.hf_models import from_blip2, from_llava
    from bridge.vlm.load import load_llm, load_vision, load_vlm
    from bridge.vlm.model import BridgeVLM
    from bridge.vlm.pairing import pair
    from bridge.vlm.projectors import build_projector, load_projector, save_projector
    from bridge.vlm.projectors.per_state import PairSums, fit_linear_projector
    from bridge.vlm.save import save_vlm
    from bridge.vlm.train.options import TrainOptions
    from bridge.vlm.train.run import Training, train_vlm

__getattr__, __dir__, __all__ = lazy_imports(__name__)
