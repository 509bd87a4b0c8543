"""What one visitor may ask of the app; the library's own bounds are wider.

Anyone may send anything to the app's endpoints, so what arrives is read here: no value at all
counts as an untouched field, and what is of the wrong kind or too much is one error.
"""

from __future__ import annotations

import math
from typing import Any

from bridge.errors import OptionError, PromptError
from bridge.prompt import parse
from bridge.prompt.syntax import check_text, parts_of

UNREADABLE = "The app cannot read what was sent. Reload the page and try again."
"""What a request that no page makes is answered with."""

MOST_CHARACTERS = 4_000
MOST_PARTS = 16
"""Prompts joined by ``AND``: each takes as much work and memory as a picture of its own."""

MOST_PIXELS = 16_000_000
"""Of an uploaded picture, by its header, before anything of it is decoded."""

MOST_COMPARED = 16
"""Pictures that are compared at once."""

MOST_LABELS = 50
MOST_LABEL_CHARACTERS = 200
"""Texts that pictures are compared with, and the characters of each."""

MOST_SENTENCES = 8
"""Sentences of one's own that every label is put into."""

MOST_REQUEST = 8 << 20
"""Bytes of a request that carries no file; a million characters of any script fit."""

MOST_UPLOAD = 100 << 20
"""Bytes of an uploaded file."""

MOST_WAITING = 200
"""Requests that wait for their turn, of all visitors together."""

MOST_SESSIONS = 500
"""Visitors who are remembered; beyond them, whoever was away the longest is forgotten."""

IDLE_SECONDS = 3600
"""A visitor who did nothing for so long is forgotten: chat, study and pictures."""


def lane(name: str, at_once: int) -> dict[str, Any]:
    """Options of an event: it waits only for others of its lane, of which so many run at once."""
    return {"concurrency_id": name, "concurrency_limit": at_once}


# Together fewer than the server's 40 threads, so that a full lane never holds up another.
DRAW, ASK, STUDY = lane("draw", 4), lane("ask", 4), lane("study", 4)
COMPARE = lane("compare", 4)
TYPING, STOP = lane("typing", 2), lane("stop", 2)
# What shows, hides or hands over; it opens uploaded pictures, too.
QUICK = lane("quick", 6)


def read_text(value: object, name: str, most: int = MOST_CHARACTERS) -> str:
    """A text that somebody typed. Raises PromptError."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PromptError(f"{name} is no text but {_kind(value)}; write words.")
    if len(value) > most:
        raise PromptError(
            f"{name} has {len(value):,} characters; this app takes at most {most:,}. Shorten it."
        )
    return value


def read_lines(value: object, name: str, most: int, each: int) -> list[str]:
    """The lines of a text that have words, at most ``most``, of at most ``each`` characters.

    Args:
        value: what was typed.
        name: what the lines are, such as "labels".
        most, each: the bounds.

    Raises:
        PromptError: no text, letters that cannot be sent on, or more than the bounds.
    """
    text = check_text(read_text(value, f"the list of {name}", 2 * most * each), f"the {name}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > most:
        raise PromptError(
            f"These are {len(lines)} {name}, and this page takes at most {most}; leave some out."
        )
    for line in lines:
        if len(line) > each:
            raise PromptError(
                f"“{line[:40]}…” has {len(line)} characters; this page takes {name} of at most "
                f"{each}. Shorten it."
            )
    return lines


def read_prompt(value: object, name: str = "prompt") -> str:
    """A prompt to draw, with few enough parts joined by ``AND``. Raises PromptError."""
    words = read_text(value, name)
    parts = len(parts_of(parse(words).tree))
    if parts > MOST_PARTS:
        raise PromptError(
            f"{name} joins {parts:,} parts by AND; this app draws at most {MOST_PARTS}. "
            "Leave some out."
        )
    return words


def read_number(value: object, name: str) -> float:
    """A finite number. Raises OptionError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionError(f"{name} is {_kind(value)}; give a number.")
    return float(value)


def read_whole(value: object, name: str) -> int:
    """A whole number, which may come as a float. Raises OptionError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    given = read_number(value, name)
    if given != int(given):
        raise OptionError(f"{name} is {given:g}; give a whole number.")
    return int(given)


def _kind(value: object) -> str:
    """A value of the wrong kind, in a few words."""
    if value is None:
        return "empty"
    if isinstance(value, float):
        return f"{value:g}"
    return f"a {type(value).__name__}"
