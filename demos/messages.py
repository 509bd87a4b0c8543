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


def warning(text: str) -> str:
    """A line beside a result that may not be what was meant."""
    return f'<div class="bridge-warning" role="alert">{escape(_capital(text))}</div>'


def kept(text: str) -> str:
    """A line that says whose result is still shown. `demos.theme` pales what it stands above."""
    return f'<p class="bridge-note bridge-kept" role="status">{escape(text)}</p>'


def show_alert(elem_id: str) -> str:
    """JavaScript that brings a problem or warning in the element ``elem_id`` into view."""
    return scrolled(f"#{elem_id}:has([role=alert])", "nearest")


def scrolled(selector: str, block: str) -> str:
    """JavaScript that scrolls to the first element of ``selector``, if there is one."""
    return f"""() => document.querySelector('{selector}')?.scrollIntoView({{
      block: '{block}',
      behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'}})"""


def explain(error: Exception) -> str:
    """An exception as a `problem`.

    A BridgeError already speaks to its reader. Anything else is a fault of ours: the reader
    gets a plain sentence, and whoever runs the app the traceback.
    """
    if isinstance(error, BridgeError):
        return problem(_capital(str(error)))
    traceback.print_exception(error, file=sys.stderr)
    return problem(
        "Something went wrong inside bridge. The terminal that runs this app has the details; "
        "try again, or start the app anew."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
