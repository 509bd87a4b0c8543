"""What the app says in words: one line of HTML that a screen reader announces."""

from __future__ import annotations

import sys
import traceback
from html import escape

from bridge.errors import BridgeError


def note(text: str) -> str:
    """A quiet line, such as what was drawn and how long it took."""
    return f'<p class="bridge-note" role="status">{escape(text)}</p>'


def problem(text: str) -> str:
    """A line that says what went wrong and what to do, and below it the place, if shown."""
    line, _, place = text.partition("\n")
    shown = f"<pre>{escape(place)}</pre>" if place else ""
    return f'<div class="bridge-problem" role="alert">{escape(line)}{shown}</div>'


def explain(error: Exception) -> str:
    """An exception as a `problem`.

    A BridgeError already speaks to its reader. Anything else is a fault of ours: the reader
    gets a plain sentence, and whoever runs the app the traceback.
    """
    if isinstance(error, BridgeError):
        text = str(error)
        return problem(text[:1].upper() + text[1:])
    traceback.print_exception(error, file=sys.stderr)
    return problem(
        "Something went wrong inside bridge. The terminal that runs this app has the details; "
        "try again, or start the app anew."
    )
