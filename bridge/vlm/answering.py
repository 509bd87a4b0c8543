"""`bridge.describe`: one call from a picture and a question to an answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, overload

from bridge.vlm.chat import Turn
from bridge.vlm.image import ImageInput, load_image
from bridge.vlm.question import checked_max_new_tokens, checked_turns

if TYPE_CHECKING:
    from bridge.vlm.model import BridgeVLM


@overload
def describe(
    image: ImageInput,
    question: str = ...,
    *,
    model: str | os.PathLike[str] | BridgeVLM = ...,
    history: Sequence[Turn] = ...,
    max_new_tokens: int = ...,
    stream: Literal[False] = ...,
    device: str | None = ...,
    dtype: str | None = ...,
) -> str: ...


@overload
def describe(
    image: ImageInput,
    question: str = ...,
    *,
    model: str | os.PathLike[str] | BridgeVLM = ...,
    history: Sequence[Turn] = ...,
    max_new_tokens: int = ...,
    stream: Literal[True],
    device: str | None = ...,
    dtype: str | None = ...,
) -> Iterator[str]: ...


def describe(
    image: ImageInput,
    question: str = "describe the picture.",
    *,
    model: str | os.PathLike[str] | BridgeVLM = "emoji-llava",
    history: Sequence[Turn] = (),
    max_new_tokens: int = 64,
    stream: bool = False,
    device: str | None = None,
    dtype: str | None = "auto",
) -> str | Iterator[str]:
    """Answer ``question`` about ``image``, greedily.

    ``image`` is a path, bytes, a PIL image or an array (see `load_image`). ``model`` is an
    embedded name, a folder, a hub id, or a loaded BridgeVLM; names and folders are kept
    loaded between calls. ``history`` holds earlier (question, answer) pairs about the same
    picture. ``stream=True`` gives an iterator of text pieces instead of a string.

    Input is checked before any model loads. An answer stops at ``max_new_tokens`` or at the
    end of the model's context. Raises ImageError, PromptError, OptionError, and what
    `load_vlm` raises.
    """
    checked_turns(question, history)
    checked_max_new_tokens(max_new_tokens)
    picture = load_image(image)
    if isinstance(model, str | os.PathLike):
        vlm = _loaded(os.fspath(model), device, dtype)
    else:
        vlm = model
    if stream:
        return vlm.stream(picture, question, history=history, max_new_tokens=max_new_tokens)
    return vlm.answer(picture, question, history=history, max_new_tokens=max_new_tokens)


@lru_cache(maxsize=2)
def _loaded(model: str, device: str | None, dtype: str | None) -> BridgeVLM:
    from bridge.vlm.load import load_vlm

    return load_vlm(model, device=device, dtype=dtype)
