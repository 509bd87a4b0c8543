"""Every error that bridge raises on purpose, under one root; and a warning.

Each message names the input, says what was wrong with it, and what to do.
No torch here: errors must be importable before anything heavy loads.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = [
    "BridgeError",
    "DataError",
    "DialectWarning",
    "HubError",
    "ImageError",
    "KeywordError",
    "MissingDependencyError",
    "NumbersError",
    "OffManifoldWarning",
    "OptionError",
    "PromptError",
    "UnknownModelError",
    "UnsupportedModelError",
    "WeightsError",
    "WriteError",
]


def quoted(text: object, most: int = 200) -> str:
    """A caller's text as an error shows it: as Python writes it, cut where it is long."""
    whole = str(text)
    return repr(whole if len(whole) <= most else whole[:most] + "…")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


class BridgeError(Exception):
    """Root of bridge's own errors. Catch this to catch them all."""


class PromptError(BridgeError, ValueError):
    """A prompt, negative prompt or question that cannot be encoded."""


class OptionError(BridgeError, ValueError):
    """An option of a verb (steps, seed, size, layer ...) outside its range."""


class KeywordError(OptionError, TypeError):
    """A keyword that a function does not have; Python's own error for it is a TypeError."""


class ImageError(BridgeError, ValueError):
    """An image that cannot be read, or that is outside the accepted sizes."""


class DataError(BridgeError, ValueError):
    """A file or row of data that cannot be trained or measured on."""


class DialectWarning(UserWarning):
    """A prompt has a mark of another tool, which its own dialect reads as text."""


class OffManifoldWarning(UserWarning):
    """Weights took states further from a tower's own than any prompt goes by itself."""


class UnknownModelError(BridgeError, LookupError):
    """A model name that is no embedded name, no short name, no folder and no hub id."""


class WeightsError(BridgeError, OSError):
    """A weights file that is missing, damaged or of the wrong layout."""


class WriteError(BridgeError, OSError):
    """A file or folder that cannot be written: a full disk, a name too long, no permission."""


class HubError(BridgeError, OSError):
    """A hub repository that could not be fetched (no network, no access, no such id)."""


class UnsupportedModelError(BridgeError, TypeError):
    """A pipeline or checkpoint whose kind bridge has no recipe for."""


class NumbersError(BridgeError, ArithmeticError):
    """Numbers that a model gave and nothing can be made of: not finite, or all zero by weights."""


class MissingDependencyError(BridgeError, ImportError):
    """An optional package that a feature needs; the message names the extra to install."""


# ---------------------------------------------------------------- warnings

Note = tuple[type[Warning], str]
"""A warning that is yet to be given: its category and its words."""

_HOME = os.path.dirname(os.path.abspath(__file__)) + os.sep
_NOTES: ContextVar[list[Note] | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Iterator[list[Note]]:
    """Within the block ``warn`` adds to the list instead, so that a result that is kept can give
    its warnings again. Other threads are not touched."""
    notes: list[Note] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def warn(category: type[Warning], message: str) -> None:
    """Warn at the line that called bridge, whatever the number of frames between."""
    notes = _NOTES.get()
    if notes is not None:
        notes.append((category, message))
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HOME):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
