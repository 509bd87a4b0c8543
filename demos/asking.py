"""Asking as a stream: the answer so far, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import bridge
from bridge.errors import ImageError, PromptError
from bridge.vlm.image import load_image
from bridge.vlm.question import checked_turns
from demos.models import Models

if TYPE_CHECKING:
    from PIL.Image import Image

Turn = tuple[str, str]

# How many earlier turns go along. The embedded model learnt chats of four turns.
_REMEMBERED = 3

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
    for piece in _stream(vlm, image, question, list(turns[-_REMEMBERED:])):
        text += piece
        yield text


def _stream(vlm: bridge.BridgeVLM, image: Image, question: str, turns: list[Turn]) -> Iterator[str]:
    while True:
        try:
            return bridge.describe(image, question, model=vlm, history=turns, stream=True)
        except PromptError:
            if not turns:
                raise
            turns = turns[1:]
