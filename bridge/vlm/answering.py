"""`bridge.describe`: one call from a picture and a question to an answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from bridge.embedded import ANSWERING
from bridge.errors import UnsupportedModelError
from bridge.kept import kept
from bridge.vlm.chat import Turn
from bridge.vlm.image import ImagesInput, load_images
from bridge.vlm.question import checked_max_new_tokens, checked_turns

if TYPE_CHECKING:
    import torch

    from bridge.vlm.model import BridgeVLM


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
    dtype: str | torch.dtype | None = ...,
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
    dtype: str | torch.dtype | None = ...,
) -> Iterator[str]: ...


def describe(
    image: ImagesInput,
    question: str = "describe the picture.",
    *,
    model: str | os.PathLike[str] | BridgeVLM = ANSWERING,
    history: Sequence[Turn] = (),
    max_new_tokens: int = 64,
    stream: bool = False,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> str | Iterator[str]:
    """Answer ``question`` about ``image``, greedily.

    ``image`` is a path, bytes, a PIL image or an array (see `load_image`), or a list of several:
    they stand where the question says ``<image>``, or before it. ``model`` is an
    embedded name, a folder, a hub id, or a loaded BridgeVLM; names and folders are kept
    loaded between calls. ``history`` holds earlier (question, answer) pairs about the same
    picture. ``stream=True`` gives an iterator of text pieces instead of a string.

    Input is checked before any model loads. An answer stops at ``max_new_tokens`` or at the
    end of the model's context. Raises ImageError, PromptError, OptionError, and what
    `load_vlm` raises.
    """
    checked_turns(question, history)
    checked_max_new_tokens(max_new_tokens)
    picture = load_images(image)
    vlm = _named(model, device, dtype) if isinstance(model, str | os.PathLike) else _live(model)
    if stream:
        return vlm.stream(picture, question, history=history, max_new_tokens=max_new_tokens)
    return vlm.answer(picture, question, history=history, max_new_tokens=max_new_tokens)


def _named(
    model: str | os.PathLike[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
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
