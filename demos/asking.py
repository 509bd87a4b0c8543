"""Asking as a stream: the answer so far, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import bridge
from bridge.errors import ImageError, PromptError
from bridge.vlm.image import load_image
from bridge.vlm.question import checked_turns
from demos.models import Models

if TYPE_CHECKING:
    from PIL.Image import Image

Turn = tuple[str, str]
NO_WORDS = "(the model gave no words)"  # shown in the place of an empty answer
Made = TypeVar("Made")

# How many earlier turns go along. The embedded model learnt chats of four turns.
REMEMBERED = 3

# What a browser is sent. Far above what any vision tower looks at.
_SHOWN_SIDE = 1536


def picture_of(path: str | os.PathLike[str]) -> Image:
    """Any uploaded file as an RGB picture that every browser shows.

    Raises ImageError, in which the file is called what its owner calls it.
    """
    try:
        picture = load_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(os.fspath(path), os.path.basename(path))) from None
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return picture


def uploaded(given: dict[str, Any] | None) -> str | None:
    """The path of an uploaded file, as Gradio hands it over with ``preprocess=False``.

    Gradio has checked by then that the path is one of its uploads. Its preprocessing, which
    is left out, would open the picture itself, and one that it cannot open would end there
    in an error without words; here `bridge.vlm.image.load_image` judges it.
    """
    return given.get("path") if given else None


def answer(
    models: Models, picture: str | Image, question: str, turns: Sequence[Turn]
) -> Iterator[str]:
    """The growing answer to ``question``; ``turns`` are earlier (question, answer) pairs.

    The last three go along, or fewer where the model's context has no room for them.
    Raises ImageError, PromptError, and what loading the model raises.
    """
    # Bad input is told before the model loads.
    checked_turns(question, [])
    image = load_image(picture)
    vlm = models.vlm()
    text = ""
    pieces = with_turns_that_fit(
        list(turns[-REMEMBERED:]),
        lambda history: bridge.describe(image, question, model=vlm, history=history, stream=True),
    )
    for piece in pieces:
        text += piece
        yield text


def with_turns_that_fit(turns: list[Turn], run: Callable[[list[Turn]], Made]) -> Made:
    """``run(turns)``, with the oldest turns left out until the model's context has room."""
    while True:
        try:
            return run(turns)
        except PromptError:
            if not turns:
                raise
            turns = turns[1:]
