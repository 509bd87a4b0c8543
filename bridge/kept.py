"""What is kept from one call to the next, and the one door that lets it all go.

The verbs keep the models, tokenizers and files of the last names that they were given. Whatever
keeps such a thing says so here, so that ``bridge.release()`` finds it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache
from typing import TypeVar

from bridge.checks import keywords

_Value = TypeVar("_Value")
_droppers: list[Callable[[], None]] = []


def kept(most: int) -> Callable[[Callable[..., _Value]], _lru_cache_wrapper[_Value]]:
    """As ``functools.lru_cache(most)``, and what it keeps is let go by ``release``."""

    def keep(function: Callable[..., _Value]) -> _lru_cache_wrapper[_Value]:
        cached = lru_cache(maxsize=most)(function)
        on_release(cached.cache_clear)
        return cached

    return keep


def on_release(drop: Callable[[], None]) -> None:
    """Have ``release`` call ``drop``; for a module that keeps things in a way of its own."""
    _droppers.append(drop)


@keywords
def release() -> None:
    """Let go of all that the verbs keep from one call to the next, to free its memory.

    That is the towers, tokenizers, pipelines, VLMs, LoRAs and textual inversions that were given by
    name, and the states of prompts. They load again when they are next asked for. What the caller
    holds (a pipeline, a ``bridge.Encoder``, a ``BridgeVLM``) stays as it is.
    """
    for drop in _droppers:
        drop()
    gc.collect()  # modules are held in circles, by their hooks for one
