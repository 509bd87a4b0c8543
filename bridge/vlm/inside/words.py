"""An answer as words, each with the places of its tokens, and how likely the model finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bridge.errors import PromptError
from bridge.vlm.chat import Turn
from bridge.vlm.choice import n_common
from bridge.vlm.question import check_no_special_tokens, checked_turns

if TYPE_CHECKING:
    from bridge.vlm.model import BridgeVLM


@dataclass(frozen=True)
class Word:
    """A word of the answer; ``tokens`` are positions in `Told.ids`."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Told:
    """A chat up to the end of an answer."""

    ids: tuple[int, ...]
    start: int  # of the answer's first token
    words: tuple[Word, ...]
    image: tuple[int, ...]  # positions of the soft tokens

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(word.text for word in self.words)


def tell(
    vlm: BridgeVLM, question: str, answer: str, history: Sequence[Turn], n_soft: Sequence[int]
) -> Told:
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
    return Told(tuple(ids), start, words, image)


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
    vlm: BridgeVLM, told: Told, soft: Sequence[torch.Tensor], batch: int = 16
) -> torch.Tensor:
    """(K, words) float64: each word's log-probability with each of K pictures' soft tokens.

    A word's is the sum over its tokens, natural logarithm, what comes before it given.
    """
    target = torch.tensor(told.ids[told.start :], device=vlm.device, dtype=torch.long)
    rows = []
    for begin in range(0, len(soft), batch):
        part = list(soft[begin : begin + batch])
        spliced = vlm.embed([told.ids] * len(part), part, "right")
        logits = vlm.read(spliced, len(target) + 1)[:, :-1].float().log_softmax(-1)
        rows.append(logits.gather(-1, target.expand(len(part), -1)[..., None])[..., 0])
    tokens = torch.cat(rows).double().cpu()
    places = [[place - told.start for place in word.tokens] for word in told.words]
    return torch.stack([tokens[:, each].sum(-1) for each in places], dim=-1)
