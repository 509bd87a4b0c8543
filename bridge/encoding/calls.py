"""A call of an encoder, checked and parsed as far as no model is needed for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bridge.encoding.batch import ParsedTexts
from bridge.encoding.encode import Request
from bridge.encoding.options import (
    CallOptions,
    TextRules,
    Texts,
    check_names,
    names_of,
    read_rules,
    read_sizes,
)
from bridge.encoding.sizes import SizeRequest
from bridge.errors import PromptError
from bridge.prompt import DIALECTS, Prompt, check_paired, check_prompts
from bridge.prompt.prompt import Tagged
from bridge.prompt.syntax import Conjunction

Each = TypeVar("Each")
Parse = Callable[[str, bool], Prompt]
"""A text, and whether it is a negative one."""


@dataclass(frozen=True)
class Call:
    """The texts and options of a call.

    Attributes:
        tagged: B prompts, their LoRA tags taken out.
        negatives: B texts, or None.
        later, later_negatives: of the second and the third tower.
        rules, sizes: the options.
    """

    tagged: tuple[Tagged, ...]
    negatives: tuple[str, ...] | None
    later: tuple[tuple[str, ...] | None, ...]
    later_negatives: tuple[tuple[str, ...] | None, ...]
    rules: TextRules
    sizes: SizeRequest

    def prompts(self, parse: Parse) -> ParsedTexts:
        """The prompts, parsed. Raises PromptError."""
        first = tuple(parse(each.text, False) for each in self.tagged)
        later = tuple(_parsed(some, parse, False) for some in self.later)
        if any(some is not None for some in later) and any(map(is_apart, first)):
            raise PromptError(
                "prompt_2 and prompt_3 cannot go with a prompt of several parts; give one of them."
            )
        return ParsedTexts(first, later)

    def negative_prompts(self, parse: Parse) -> ParsedTexts:
        """The negatives, parsed. Raises PromptError."""
        later = tuple(_parsed(some, parse, True) for some in self.later_negatives)
        return ParsedTexts(_parsed(self.negatives, parse, True), later)

    def request(self) -> Request:
        """What is encoded of prompts that are one and the same at every step."""

        def parse(text: str, negative: bool) -> Prompt:
            return self.rules.parse(text, negative=negative)

        return Request(
            self.prompts(parse), self.negative_prompts(parse), self.tagged, sizes=self.sizes
        )


def read_call(
    door: str,
    prompt: Texts,
    negative_prompt: Texts | None,
    options: Mapping[str, Any],
    known: Collection[str] | None = None,
) -> Call:
    """Check texts and options.

    Args:
        door: what the caller called, for messages.
        prompt, negative_prompt: as in ``bridge.condition``.
        options: ``CallOptions``.
        known: the options that have a meaning at this door; all, if it is not given.

    Raises:
        PromptError, OptionError: as ``bridge.condition``.
        TypeError: a name that no door has.
    """
    check_names(options, names_of(CallOptions) if known is None else known, door)
    prompts = check_prompts(prompt)
    count = len(prompts)
    later, later_negatives = (
        tuple(
            check_paired(options.get(name) or None, count, name)
            for name in (f"{sign}prompt_2", f"{sign}prompt_3")
        )
        for sign in ("", "negative_")
    )
    negatives = check_paired(negative_prompt, count)
    rules, sizes = read_rules(options), read_sizes(options)
    tagged = tuple(rules.tagged(text) for text in prompts)
    return Call(tagged, negatives, later, later_negatives, rules, sizes)


def is_apart(prompt: Prompt) -> bool:
    """Whether the noise predictions of its parts are to be summed. compel's ``.and()``, the other
    conjunction, sets their states end to end instead."""
    return DIALECTS[prompt.dialect].draws_parts_apart and isinstance(prompt.tree, Conjunction)


def repeated(items: Sequence[Each], counts: Sequence[int]) -> tuple[Each, ...]:
    """Each item as often as its count says."""
    return tuple(p for p, n in zip(items, counts, strict=True) for _ in range(n))


def _parsed(
    texts: tuple[str, ...] | None, parse: Parse, negative: bool
) -> tuple[Prompt, ...] | None:
    return None if texts is None else tuple(parse(text, negative) for text in texts)
