"""What a prompt says, apart from any tokenizer: text spans, each with its place in the source.

Only the ``plain`` dialect is here: the whole text is one span of weight 1 and no character has
a meaning of its own. Other dialects give more spans of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.errors import OptionError
from bridge.prompt.check import check_text

DIALECTS = ("plain",)


@dataclass(frozen=True)
class Span:
    """A piece of text at ``source[start:end]`` that carries one weight."""

    text: str
    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """A checked prompt: its source, its dialect and the spans that are to be encoded."""

    source: str
    dialect: str
    spans: tuple[Span, ...]

    def __str__(self) -> str:
        """The prompt as its dialect writes it."""
        return self.source


def parse(text: str, dialect: str = "plain") -> Prompt:
    """Read ``text`` in a dialect.

    Raises:
        PromptError: text that cannot be encoded.
        OptionError: a dialect that does not exist.
    """
    check_text(text)
    if dialect not in DIALECTS:
        raise OptionError(f"No prompt dialect {dialect!r}; there is: {', '.join(DIALECTS)}.")
    return Prompt(text, dialect, (Span(text, 0, len(text)),) if text else ())
