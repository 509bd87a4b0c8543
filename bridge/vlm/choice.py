"""Answers out of a given set: yes or no, A to D, one of a few words.

The model is not asked to write but to weigh: each allowed answer gets the log-probability of
its tokens after the chat, all in one batch, the picture seen once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from bridge.errors import OptionError
from bridge.vlm.chat import Turn
from bridge.vlm.image import ImagesInput, load_images
from bridge.vlm.question import check_no_special_tokens, checked_turns

if TYPE_CHECKING:
    from bridge.vlm.model import BridgeVLM

Normalise = Literal["none", "tokens", "bytes"]
_NORMALISE = ("none", "tokens", "bytes")


@dataclass(frozen=True)
class Choice:
    """How a model weighed the allowed answers, in the order they were given."""

    answer: str
    choices: tuple[str, ...]
    scores: tuple[float, ...]  # what was compared
    log_probs: tuple[float, ...]  # sums over tokens, natural logarithm

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Softmax of the scores: how likely each answer is, given that it is one of them."""
        return tuple(torch.tensor(self.scores, dtype=torch.float64).softmax(0).tolist())


@torch.inference_mode()
def choose(
    vlm: BridgeVLM,
    image: ImagesInput,
    question: str,
    choices: Sequence[str],
    *,
    history: Sequence[Turn] = (),
    normalise: Normalise = "none",
) -> Choice:
    """The likeliest of ``choices`` as the answer to ``question``.

    A choice's log-probability is the sum over its tokens and the end of the answer (the token of
    the chat layout or, where that has none, the tokenizer's end of text); so "cat" has no
    advantage over "cat and dog" for being its beginning. ``normalise`` divides it by the number of
    "tokens" or of UTF-8 "bytes" of the choice (the `acc_norm` of EleutherAI's
    lm-evaluation-harness); "none" compares sums (its `acc`). Equal scores go to the first.

    Raises OptionError for fewer than two choices, empty or repeated ones, and what `answer`
    raises.
    """
    given = _checked(choices)
    if normalise not in _NORMALISE:
        raise OptionError(f"normalise is {normalise!r}; one of {', '.join(_NORMALISE)}")
    turns = checked_turns(question, history)
    check_no_special_tokens([(text, "") for text in given], vlm.writer.control_tokens)
    pictures = load_images(image)
    views, counts = vlm.views(pictures)
    prompt = vlm.prompt_ids(turns, counts)
    # A tokenizer may join the prompt's last piece with the answer's first; then all answers
    # are scored from where the first of them leaves the prompt.
    rows = [vlm.writer.ids(turns, counts, answer) for answer in given]
    start = min(n_common(prompt, row) for row in rows)
    soft = vlm.picture_tokens(views)
    batch = vlm.embed(rows, soft * len(rows), "right")
    # Padded on the right, all rows leave the prompt at one place.
    keep = batch.inputs_embeds.shape[1] - start + 1
    logits = vlm.read(batch, keep)[:, :-1].float().log_softmax(-1)
    log_probs, lengths = [], []
    for index, row in enumerate(rows):
        told = torch.tensor(row[start:], device=logits.device, dtype=torch.long)
        taken = logits[index, : len(told)].gather(-1, told[:, None])
        log_probs.append(float(taken.double().sum()))
        lengths.append(len(told))
    divisors = {
        "none": [1] * len(given),
        "tokens": lengths,
        "bytes": [len(text.encode()) for text in given],
    }[normalise]
    scores = [total / size for total, size in zip(log_probs, divisors, strict=True)]
    best = max(range(len(given)), key=scores.__getitem__)
    return Choice(given[best], given, tuple(scores), tuple(log_probs))


def _checked(choices: object) -> tuple[str, ...]:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        raise OptionError(f"choices is a {type(choices).__name__}; give a list of texts")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise OptionError(f"the choice {choice!r} is no text; give words, such as 'yes'")
    given = tuple(choice.strip() for choice in choices)
    if len(given) < 2 or len(set(given)) != len(given):
        raise OptionError(f"choices are {given}; give at least two, all different")
    return given


def n_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids the two begin with in common."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
