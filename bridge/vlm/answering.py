"""Answers of a BridgeVLM: to a model's name, out of a given set, and piece by piece.

Everything is checked before a model loads, and what was checked is a `Question`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from bridge.checks import keywords
from bridge.embedded import ANSWERING
from bridge.errors import OptionError, UnsupportedModelError
from bridge.images import ImagesInput, load_images
from bridge.kept import kept
from bridge.runtime import Dtype
from bridge.vlm.chat import Turn, check_no_special_tokens, checked_max_new_tokens, checked_turns

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from bridge.vlm.model import BridgeVLM

Normalise = Literal["none", "tokens", "bytes"]
_NORMALISE = ("none", "tokens", "bytes")


class Question(NamedTuple):
    """One chat that waits for its answer: its RGB pictures, and turns of which the last is open."""

    pictures: list[Image]
    turns: Sequence[Turn]


def read_question(image: ImagesInput, question: object, history: object) -> Question:
    """Check the texts, then read the pictures. Raises PromptError, ImageError."""
    turns = checked_turns(question, history)
    return Question(load_images(image), turns)


@overload
def describe(
    image: ImagesInput,
    question: str = ...,
    *,
    model: str | os.PathLike[str] | BridgeVLM = ...,
    history: Sequence[Turn] = ...,
    max_new_tokens: int = ...,
    stream: Literal[False] = ...,
    device: str | torch.device | None = ...,
    dtype: Dtype | None = ...,
) -> str: ...


@overload
def describe(
    image: ImagesInput,
    question: str = ...,
    *,
    model: str | os.PathLike[str] | BridgeVLM = ...,
    history: Sequence[Turn] = ...,
    max_new_tokens: int = ...,
    stream: Literal[True],
    device: str | torch.device | None = ...,
    dtype: Dtype | None = ...,
) -> Iterator[str]: ...


@keywords
def describe(
    image: ImagesInput,
    question: str = "describe the picture.",
    *,
    model: str | os.PathLike[str] | BridgeVLM = ANSWERING,
    history: Sequence[Turn] = (),
    max_new_tokens: int = 64,
    stream: bool = False,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
) -> str | Iterator[str]:
    """Answer ``question`` about ``image``, greedily.

    Args:
        image: a path, bytes, a PIL image or an array (see `load_image`), or a list of several:
            they stand where the question says ``<image>``, or before it.
        question: a text of at most 100,000 characters.
        model: an embedded name, a folder, a hub id, or a loaded BridgeVLM; names and folders are
            kept loaded between calls.
        history: earlier (question, answer) pairs about the same picture.
        max_new_tokens: 1 to 4096. An answer stops there, or at the end of the model's context.
        stream: give an iterator of text pieces instead of a string.
        device, dtype: as in `load_vlm`, for a model that is not loaded yet.

    Raises:
        ImageError, PromptError, OptionError: before any model loads.

    It also raises what `load_vlm` raises.
    """
    limit = checked_max_new_tokens(max_new_tokens)
    asked = read_question(image, question, history)
    vlm = _named(model, device, dtype) if isinstance(model, str | os.PathLike) else _live(model)
    if stream:
        return vlm.stream_answer(asked, limit)
    return vlm.answer_all([asked], limit)[0]


def _named(
    model: str | os.PathLike[str],
    device: str | torch.device | None,
    dtype: Dtype | None,
) -> BridgeVLM:
    """The model of a name; its files are looked at on every call, loaded on the first."""
    from bridge.runtime import check_dtype, resolve_device, resolve_dtype
    from bridge.vlm.load import locate

    place = resolve_device(device)
    check_dtype(dtype)
    folder = locate(model)
    return _loaded(folder, place, resolve_dtype(dtype, place, folder), os.fspath(model))


def _live(model: object) -> BridgeVLM:
    from bridge.vlm.model import BridgeVLM

    if not isinstance(model, BridgeVLM):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}; give a name, a folder, a hub id or a BridgeVLM "
            "(bridge.load_vlm, or bridge.vlm.from_llava of a stock LLaVA)"
        )
    return model


@kept(2)
def _loaded(folder: Path, device: torch.device, dtype: torch.dtype, name: str) -> BridgeVLM:
    from bridge.vlm.load import load_folder

    return load_folder(folder, device, dtype, name)


# -- answers out of a given set -----------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """How a model weighed the allowed answers, in the order they were given.

    Attributes:
        answer: the likeliest.
        choices: all of them.
        scores: what was compared.
        log_probs: sums over tokens and the end of the answer, natural logarithm: how likely the
            model finds each, whatever the others are.
    """

    answer: str
    choices: tuple[str, ...]
    scores: tuple[float, ...]
    log_probs: tuple[float, ...]

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Softmax of the scores: how likely each answer is, given that it is one of them."""
        import torch

        return tuple(torch.tensor(self.scores, dtype=torch.float64).softmax(0).tolist())


def choose(
    vlm: BridgeVLM, asked: Question, choices: Sequence[str], normalise: Normalise = "none"
) -> Choice:
    """The likeliest of ``choices``; see `BridgeVLM.choose`.

    Each allowed answer gets the log-probability of its tokens after the chat, all in one batch,
    the picture seen once.
    """
    import torch

    given = _checked_choices(choices)
    if normalise not in _NORMALISE:
        raise OptionError(f"normalise is {normalise!r}; one of {', '.join(_NORMALISE)}")
    check_no_special_tokens([(text, "") for text in given], vlm.writer.control_tokens)
    with torch.inference_mode():
        views, counts = vlm.views(asked.pictures)
        prompt = vlm.prompt_ids(asked.turns, counts)
        # A tokenizer may join the prompt's last piece with the answer's first; then all answers
        # are scored from where the first of them leaves the prompt.
        rows = [vlm.writer.ids(asked.turns, counts, answer) for answer in given]
        start = min(n_common(prompt, row) for row in rows)
        soft = vlm.picture_tokens(views)
        batch = vlm.embed(rows, soft * len(rows), "right")
        # Padded on the right, all rows leave the prompt at one place.
        keep = batch.inputs_embeds.shape[1] - start + 1
        logits = vlm.read(batch, keep)[:, :-1].float().log_softmax(-1)
        log_probs = []
        for index, row in enumerate(rows):
            ids = torch.tensor(row[start:], device=logits.device, dtype=torch.long)
            taken = logits[index, : len(ids)].gather(-1, ids[:, None])
            log_probs.append(float(taken.double().sum()))
    divisors = {
        "none": [1] * len(given),
        "tokens": [len(row) - start for row in rows],
        "bytes": [len(text.encode()) for text in given],
    }[normalise]
    scores = [total / size for total, size in zip(log_probs, divisors, strict=True)]
    best = max(range(len(given)), key=scores.__getitem__)
    return Choice(given[best], given, tuple(scores), tuple(log_probs))


def _checked_choices(choices: object) -> tuple[str, ...]:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        raise OptionError(f"choices is a {type(choices).__name__}; give a list of texts")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise OptionError(f"the choice {choice!r} is not a text; give words, such as 'yes'")
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


# -- answers piece by piece ---------------------------------------------------------------


def stream_text(tokenizer: Any, run: Callable[..., object]) -> Iterator[str]:
    """Run ``run(streamer=..., stopping_criteria=...)`` in a thread and yield its text.

    transformers' TextIteratorStreamer hands pieces over through a queue. Two things it leaves
    open are settled here: an error in the worker reaches the reader (who would otherwise wait
    for ever), and a reader who leaves stops the worker.

    White space around the whole answer is left out, so the joined pieces equal the stripped
    text. Special tokens are skipped. Raises what ``run`` raised, after the pieces before it.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    left = threading.Event()
    failures: list[BaseException] = []
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    class ReaderLeft(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full(
                (input_ids.shape[0],), left.is_set(), device=input_ids.device, dtype=torch.bool
            )

    def work() -> None:
        try:
            run(streamer=streamer, stopping_criteria=StoppingCriteriaList([ReaderLeft()]))
        except BaseException as error:
            failures.append(error)
            streamer.end()

    def read() -> Iterator[str]:
        worker = threading.Thread(target=work, name="bridge-answer", daemon=True)
        worker.start()
        try:
            yield from _stripped(streamer)
            worker.join()
            if failures:
                raise failures[0]
        finally:
            left.set()
            worker.join()

    return read()


def _stripped(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without empty ones and without white space at the two ends of the whole."""
    started, held = False, ""
    for piece in pieces:
        text = held + piece if started else piece.lstrip()
        body = text.rstrip()
        held = text[len(body) :]
        if body:
            started = True
            yield body
