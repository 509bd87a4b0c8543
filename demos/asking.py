"""Asking as a stream: the answer so far, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import bridge
from bridge.errors import PromptError
from bridge.images import load_image
from bridge.vlm.chat import checked_turns
from demos.limits import read_text
from demos.models import Models

if TYPE_CHECKING:
    from PIL.Image import Image

Turn = tuple[str, str]
NO_WORDS = "(the model gave no words)"  # shown in the place of an empty answer
Made = TypeVar("Made")

# How many earlier turns go along. The embedded model learnt chats of four turns.
REMEMBERED = 3


def read_question(value: object) -> str:
    """A question as it was sent. Raises PromptError."""
    ((asked, _),) = checked_turns(read_text(value, "the question"), [])
    return asked


def answer(
    models: Models, picture: str | Image, question: str, turns: Sequence[Turn]
) -> Iterator[str]:
    """The growing answer to ``question``; ``turns`` are earlier (question, answer) pairs.

    The last three go along, or fewer where the model's context has no room for them.
    Raises ImageError, PromptError, and what loading the model raises.
    """
    # Bad input is told before the model loads.
    read_question(question)
    image = load_image(picture)
    vlm = models.vlm()
    said = ""
    pieces = with_turns_that_fit(
        list(turns[-REMEMBERED:]),
        lambda history: bridge.describe(image, question, model=vlm, history=history, stream=True),
    )
    for piece in pieces:
        said += piece
        yield said


def with_turns_that_fit(turns: list[Turn], run: Callable[[list[Turn]], Made]) -> Made:
    """``run(turns)``, with the oldest turns left out until the model's context has room."""
    while True:
        try:
            return run(turns)
        except PromptError:
            if not turns:
                raise
            turns = turns[1:]
