"""HTML out of templates. Every value that is put in is escaped here, and nowhere else.

A template is a literal in the source, never an f-string: ``fill("<b>{}</b>", name)``. What was made
so may be put into another template as it is; so may an object with ``__html__``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

__all__ = ["Markup", "fill", "joined"]


def fill(template: str, /, *values: Any, **named: Any) -> Markup:
    """The template with its values escaped, in ``str.format``'s notation."""
    return Markup(template).format(*values, **named)


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    """The parts end to end; text among them is escaped. ``between`` is a literal."""
    return Markup(between).join(parts)
