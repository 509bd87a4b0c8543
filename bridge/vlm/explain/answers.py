"""An answer as words, how likely a model finds each, and the answers of several models.

A BridgeVLM is a frozen data class, so one with another part is
``dataclasses.replace(vlm, projector=other)``, or `bridge.vlm.pair` of other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bridge.checks import keywords
from bridge.errors import OptionError, PromptError
from bridge.vlm.answering import n_common
from bridge.vlm.chat import Turn, check_no_special_tokens, checked_turns
from bridge.vlm.explain.pictures import one_picture
from bridge.vlm.model import BridgeVLM


@dataclass(frozen=True)
class Word:
    """A word of the answer; ``tokens`` are positions in `AnswerWords.ids`."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AnswerWords:
    """A chat up to the end of an answer."""

    ids: tuple[int, ...]
    start: int  # of the answer's first token
    words: tuple[Word, ...]
    image: tuple[int, ...]  # positions of the soft tokens

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(word.text for word in self.words)


def answer_words(
    vlm: BridgeVLM, question: str, answer: str, history: Sequence[Turn], n_soft: Sequence[int]
) -> AnswerWords:
    """The chat that ends in ``answer``, as the model would have written it.

    Raises PromptError for an answer without a word, and what `BridgeVLM.answer` raises.
    """
    turns = checked_turns(question, history)
    check_no_special_tokens([(answer, "")], vlm.writer.control_tokens)
    ids = vlm.writer.ids(turns, n_soft, answer)
    start = n_common(vlm.prompt_ids(turns, n_soft), ids)
    words = split_words(vlm.tokenizer, ids, start)
    if not words:
        raise PromptError(f"the answer {answer!r} has no word that could be looked into")
    image = tuple(place for place, token in enumerate(ids) if token == vlm.image_token_id)
    return AnswerWords(tuple(ids), start, words, image)


def split_words(tokenizer: Any, ids: Sequence[int], start: int) -> tuple[Word, ...]:
    """The words that ``ids[start:]`` spell: a token with white space before it begins one.

    Special tokens belong to no word. A token that ends inside a character goes with the next.
    """
    words: list[tuple[str, list[int]]] = []
    before, waiting = "", []
    for place in range(start, len(ids)):
        so_far = tokenizer.decode(ids[start : place + 1], skip_special_tokens=True)
        waiting.append(place)
        piece = so_far[len(before) :]
        if so_far.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        before = so_far
        if not piece:  # a special token, or one that only prepares the next
            waiting = []
        elif piece[:1].isspace() or not words:
            words.append((piece.strip(), waiting))
            waiting = []
        else:
            text, places = words[-1]
            words[-1] = (text + piece.rstrip(), places + waiting)
            waiting = []
    return tuple(Word(text, tuple(places)) for text, places in words if text)


@torch.inference_mode()
def word_log_probs(
    vlm: BridgeVLM, chat: AnswerWords, soft: Sequence[torch.Tensor], batch: int = 16
) -> torch.Tensor:
    """(K, words) float64: each word's log-probability with each of K pictures' soft tokens.

    A word's is the sum over its tokens, natural logarithm, what comes before it given.
    """
    target = torch.tensor(chat.ids[chat.start :], device=vlm.device, dtype=torch.long)
    rows = []
    for begin in range(0, len(soft), batch):
        part = list(soft[begin : begin + batch])
        spliced = vlm.embed([chat.ids] * len(part), part, "right")
        logits = vlm.read(spliced, len(target) + 1)[:, :-1].float().log_softmax(-1)
        rows.append(logits.gather(-1, target.expand(len(part), -1)[..., None])[..., 0])
    tokens = torch.cat(rows).double().cpu()
    places = [[place - chat.start for place in word.tokens] for word in chat.words]
    return torch.stack([tokens[:, each].sum(-1) for each in places], dim=-1)


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


@keywords
def side_by_side(
    vlms: Sequence[BridgeVLM], image: Any, question: str, *, history: Sequence[Turn] = ()
) -> SideBySide:
    """Ask every model the same question about the same picture.

    Args:
        vlms: two or more models.
        image: one picture, in any form that `load_image` reads.
        question, history: as in `BridgeVLM.answer`.

    Returns:
        Answers and log-probabilities, sums over an answer's words. These compare within a row;
        between rows only where the models share a language model.

    Raises:
        OptionError: fewer than two models, or another number of pictures than one.

    It also raises what `BridgeVLM.answer` raises.
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
    chat = answer_words(vlm, question, answer, history, [len(each) for each in soft])
    return float(word_log_probs(vlm, chat, soft).sum())
