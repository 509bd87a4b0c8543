"""One question to several models: the swap of a tower or a projector, side by side.

A BridgeVLM is a frozen data class, so a swapped one is
``dataclasses.replace(vlm, projector=other)``, or `bridge.vlm.pair` of other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import OptionError
from bridge.vlm.chat import Turn
from bridge.vlm.inside.places import one_picture
from bridge.vlm.inside.words import tell, word_log_probs
from bridge.vlm.question import checked_turns

if TYPE_CHECKING:
    from bridge.vlm.model import BridgeVLM


@dataclass(frozen=True, eq=False)
class SideBySide:
    """The answers of N models, and how likely each finds each other's."""

    question: str
    names: tuple[str, ...]
    answers: tuple[str, ...]
    n_soft: tuple[int, ...]  # soft tokens that each makes of the picture
    log_probs: np.ndarray  # (N, N): row i weighs answer j; NaN for an answer without a word

    @property
    def agree(self) -> bool:
        """Whether all gave the same answer."""
        return len(set(self.answers)) == 1


def side_by_side(
    vlms: Sequence[BridgeVLM], image: Any, question: str, *, history: Sequence[Turn] = ()
) -> SideBySide:
    """Ask every model the same question about the same picture.

    Log-probabilities are sums over the answer's words. They compare within a row; between rows
    only where the models share a language model.

    Raises OptionError for fewer than two models, and what `BridgeVLM.answer` raises.
    """
    if len(vlms) < 2:
        raise OptionError(f"{len(vlms)} model(s) were given; side by side takes two or more")
    checked_turns(question, history)
    picture = one_picture(image)
    answers = [vlm.answer(picture, question, history=history) for vlm in vlms]
    rows, n_soft = [], []
    for vlm in vlms:
        soft = vlm.picture_tokens(vlm.views([picture])[0])
        n_soft.append(len(soft[0]))
        rows.append([_weigh(vlm, soft, question, answer, history) for answer in answers])
    names = tuple(vlm.name for vlm in vlms)
    return SideBySide(question, names, tuple(answers), tuple(n_soft), np.array(rows))


def _weigh(
    vlm: BridgeVLM, soft: Sequence[Any], question: str, answer: str, history: Sequence[Turn]
) -> float:
    if not answer.strip():
        return float("nan")
    told = tell(vlm, question, answer, history, [len(each) for each in soft])
    return float(word_log_probs(vlm, told, soft).sum())
