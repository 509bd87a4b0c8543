"""The prompt dialects: all that one dialect is, in one object.

A dialect is a tool's way with a prompt: its grammar, and what the tool does by default with what
the grammar gives. ``bridge.encoding`` reads the defaults here and has no table of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bridge.checks import did_you_mean
from bridge.errors import OptionError
from bridge.prompt.dialects import a1111, comfy, compel, plain
from bridge.prompt.dialects.a1111_tags import LoraTag, find_tags
from bridge.prompt.syntax import Branch, Choose, Span, Tree, Written
from bridge.prompt.windows import LongPromptName

DialectName = Literal["plain", "a1111", "comfy", "compel"]
Align = Literal["repeat", "empty"]
"""How prompts and negatives come to one length (``bridge.encoding.joining``)."""
FindTags: TypeAlias = Callable[[str], tuple[tuple[LoraTag, ...], tuple[tuple[int, int], ...]]]


@dataclass(frozen=True)
class Dialect:
    """One dialect.

    Attributes:
        name: its name.
        parse: text, and whether it is a negative prompt, to a tree.
        spans: a part of the tree, the text and a choice of edits to flat weighted text.
        write: parts of flat weighted text, and how they go together (``Flat.kind``), to a text that
            reads so. Not every text can be written in every dialect (compel cannot weigh ``c++``),
            so a caller that must know reads the result back.
        emphasis: its tool's formula, a name of ``bridge.encoding.EMPHASES``.
        long_prompt: its tool's way with long prompts, a name of ``bridge.prompt.LONG_PROMPTS``.
        align: how its tool brings prompts and negatives to one length
            (``bridge.encoding.joining``).
        skips_negative: whether clip skip acts on the negative as on the prompt (all but diffusers).
        find_tags: the LoRA tags of a text (``<lora:name:0.8>``) and the places of all tags; None
            where nothing is a tag.
        has_parts: whether several prompts can be written as one, each with its weight.
        draws_parts_apart: whether ``AND`` adds up noise predictions, each part drawn apart; else
            the parts' states are joined.
        inversions: how textual inversions are found: taught to the tokenizer as ``words``; as
            ``runs`` of the tokens of their names; where they are ``marked`` (``embedding:name``).
        padding_is_text: whether the word that a tokenizer pads with ("!" in SDXL's second) is text
            where it is written. diffusers, and compel by its tokenizers, read it as padding.
        cleans: whether its tool cleans texts that CLIP reads (``bridge.cleaning``).
        pools_source: whether pooled states are those of the text as written, with its marks.
        fills_absent: whether zeros stand in the place of an optional tower that is left out.
        empty_negative: what stands for an empty negative of a model that was trained with zeros
            (SDXL): what the ``pipeline`` does where none is given; ``zeros`` where it is the
            empty text, too; the empty text is ``encoded`` always.
    """

    name: DialectName
    parse: Callable[[str, bool], Tree]
    spans: Callable[[Branch, str, Choose], tuple[Span, ...]]
    write: Callable[[Written, str], str]
    emphasis: str = "none"
    long_prompt: LongPromptName = "truncate"
    align: Align = "empty"
    skips_negative: bool = False
    find_tags: FindTags | None = None
    has_parts: bool = False
    draws_parts_apart: bool = False
    inversions: Literal["words", "runs", "marked"] = "words"
    padding_is_text: bool = False
    cleans: bool = False
    pools_source: bool = False
    fills_absent: bool = True
    empty_negative: Literal["pipeline", "zeros", "encoded"] = "pipeline"

    @property
    def has_weights(self) -> bool:
        """Whether its grammar weighs words."""
        return self.emphasis != "none"


_ALL = (
    Dialect("plain", plain.parse, plain.spans, plain.write),
    Dialect(
        "a1111",
        a1111.parse,
        a1111.spans,
        a1111.write,
        emphasis="a1111",
        long_prompt="a1111",
        align="repeat",
        skips_negative=True,
        find_tags=find_tags,
        has_parts=True,
        draws_parts_apart=True,
        inversions="runs",
        padding_is_text=True,
        cleans=True,
        empty_negative="zeros",
    ),
    Dialect(
        "comfy",
        comfy.parse,
        comfy.spans,
        comfy.write,
        emphasis="comfy",
        long_prompt="comfy",
        align="repeat",
        skips_negative=True,
        inversions="marked",
        padding_is_text=True,
        fills_absent=False,
        empty_negative="encoded",
    ),
    Dialect(
        "compel",
        compel.parse,
        compel.spans,
        compel.write,
        emphasis="compel",
        long_prompt="compel",
        has_parts=True,
        skips_negative=True,
        pools_source=True,
    ),
)


class _Dialects(dict[DialectName, Dialect]):
    """The dialects by name; one that does not exist is an OptionError."""

    def __missing__(self, name: str) -> Dialect:
        hint = did_you_mean(str(name), self)
        raise OptionError(f"No prompt dialect {name!r}; there is: {', '.join(self)}.{hint}")


DIALECTS = _Dialects((each.name, each) for each in _ALL)
"""The dialects by name; ``DIALECTS[name]`` raises OptionError where there is none."""
