"""A prompt, read: its text, its dialect, its tree, and the flat spans that are to be encoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.prompt.check import check_text
from bridge.prompt.dialect import DIALECTS, dialect_of
from bridge.prompt.schedule import spans_at_first_step
from bridge.prompt.spans import Span
from bridge.prompt.tree import Tree

__all__ = ["DIALECTS", "Prompt", "Span", "parse"]


@dataclass(frozen=True)
class Prompt:
    """A checked prompt.

    Attributes:
        source: the text as written.
        dialect: the dialect it was read in.
        spans: the flat weighted text at the first step. Of a conjunction or blend these are the
            spans of all its parts, one after the other; ``schedule.at_step`` has them apart.
        tree: its syntax. It follows from source and dialect, so it takes no part in comparison.
    """

    source: str
    dialect: str
    spans: tuple[Span, ...]
    tree: Tree = field(compare=False, repr=False)

    def __str__(self) -> str:
        """The prompt as its dialect writes it."""
        return self.source


def parse(text: str, dialect: str = "a1111", *, negative: bool = False) -> Prompt:
    """Read ``text`` in a dialect.

    Args:
        text: the prompt.
        dialect: one of ``DIALECTS``.
        negative: it is a negative prompt. A1111 reads no ``AND`` and no part weights in those; the
            other dialects read them alike.

    Raises:
        PromptError: text that cannot be encoded, or that the dialect's own tool raises an error
            for; each dialect's module says which.
        OptionError: a dialect that does not exist.
    """
    check_text(text)
    tree = dialect_of(dialect).parse(text, negative)
    return Prompt(text, dialect, spans_at_first_step(tree, text, dialect), tree)
