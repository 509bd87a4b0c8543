"""Attention rollout: how much of each position flows, layer by layer, into each word.

By ``bridge.towers.rollout``, after Abnar & Zuidema, "Quantifying Attention Flow in Transformers"
(2020).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bridge.checks import keywords
from bridge.errors import UnsupportedModelError
from bridge.towers import rollout
from bridge.vlm.chat import Turn, checked_turns
from bridge.vlm.explain.answers import answer_words
from bridge.vlm.explain.pictures import View, check_index, check_word, one_picture, views_of
from bridge.vlm.model import BridgeVLM


@dataclass(frozen=True, eq=False)
class AttentionRollout:
    """Shares of W words in M soft tokens; a word's shares and its ``text`` add up to 1."""

    question: str
    answer: str
    words: tuple[str, ...]
    soft: np.ndarray  # (W, M) the share of each soft token
    text: np.ndarray  # (W,) the share of all that is not a soft token
    views: tuple[View, ...]

    def cells(self, word: int | str | None = None, view: int = 0) -> np.ndarray:
        """(rows, columns) shares of one word (one of ``words``, or its number) or, without
        ``word``, of the mean word. Raises OptionError."""
        seen = self.views[check_index(view, len(self.views), "view")]
        if word is None:
            return seen.cells(self.soft.mean(0))
        return seen.cells(self.soft[check_word(word, self.words)])


@keywords
@torch.inference_mode()
def attention_rollout(
    vlm: BridgeVLM,
    image: Any,
    question: str,
    answer: str | None = None,
    *,
    history: Sequence[Turn] = (),
) -> AttentionRollout:
    """What each word of ``answer`` drew on in the language model.

    A word's row is the mean over its tokens, each taken where the model was about to write it.
    The whole chat's attention is held in memory: layers x heads x T x T.

    Args:
        image: one picture, in any form that `load_image` reads.
        question, history: as in `BridgeVLM.answer`.
        answer: by default the model's own.

    Raises:
        UnsupportedModelError: a projector without a grid, a language model without attention.
        OptionError: several pictures.

    It also raises what `BridgeVLM.answer` raises.
    """
    checked_turns(question, history)
    picture = one_picture(image)
    preprocessed, counts = vlm.views([picture])
    assert preprocessed is not None
    views = views_of(vlm, preprocessed)
    if answer is None:
        answer = vlm.answer(picture, question, history=history)
    chat = answer_words(vlm, question, answer, history, counts)
    rows = vlm.embed([chat.ids], vlm.picture_tokens(preprocessed))
    given = attentions_of(vlm.llm, rows.inputs_embeds, vlm.name)
    about_to = [[place - 1 for place in word.tokens] for word in chat.words]
    flow = rollout(given, [place for each in about_to for place in each])
    words = torch.stack([each.mean(0) for each in flow.split([len(e) for e in about_to])]).numpy()
    soft = words[:, list(chat.image)]
    return AttentionRollout(question, answer, chat.texts, soft, words.sum(1) - soft.sum(1), views)


def attentions_of(llm: Any, inputs_embeds: torch.Tensor, name: str) -> list[torch.Tensor]:
    """(heads, T, T) of each layer for one row (1, T, D) without padding.

    Fused kernels give no attention, so a twin of the model in transformers' plain code runs: its
    parameters are shared, its settings its own, and ``llm`` is left as it is.
    """
    tensors = [*llm.parameters(), *llm.buffers()]
    twin = copy.deepcopy(llm, {id(tensor): tensor for tensor in tensors})
    try:
        twin.set_attn_implementation("eager")
        found = twin(
            inputs_embeds=inputs_embeds, output_attentions=True, use_cache=False
        ).attentions
    except (ValueError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(f"{name}: {type(llm).__name__} {_NONE}: {error}") from error
    if not found or any(layer is None for layer in found):
        raise UnsupportedModelError(f"{name}: {type(llm).__name__} {_NONE}")
    return [layer[0] for layer in found]


_NONE = "gives no attention of its layers; bridge.vlm.occlusion works without"
