"""The options of ``bridge.Encoder`` and of the verbs, declared and checked once for all doors.

Those of the *model* say what encodes and are given once. Those of the *text* say how texts become
states: an encoder has its own, and a call may say otherwise. Those of the *picture* are SDXL's
sizes. Beside them a call may have other texts for the later towers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict, TypeVar

import torch

from bridge.cleaning import CLEANINGS
from bridge.encoding.addon_inputs import Loras, TextualInversions
from bridge.encoding.emphasis import EMPHASES
from bridge.encoding.sizes import SizeRequest, check_length, check_pair
from bridge.errors import OptionError, PromptError
from bridge.prompt import DIALECTS, LONG_PROMPTS, NORMALISATIONS, Dialect, LongPrompt, Prompt, parse
from bridge.prompt.prompt import Tagged, refuse_tags, take_tags
from bridge.prompt.syntax import (
    Alternation,
    Blend,
    Branch,
    Conjunction,
    Schedule,
    parts_of,
    prompt_error,
    walk,
)
from bridge.prompt.windows import RULES

Texts = str | Sequence[str]
Function = TypeVar("Function", bound=Callable[..., Any])

UNEVEN = ("fill", "zeros", "cut")
"""What is done with towers of unequal context (``planning``)."""
_ALIGNS = ("repeat", "empty")
_JOINS = ("concat", "first_eos", "no_bos_between", "average")
_POOLED = ("first", "last", "mean")
# What T5 was trained on, and what diffusers' SD 3 and FLUX.1 pipelines allow.
_LONGEST = 512


# ---------------------------------------------------------------- declared


class ModelOptions(TypedDict, total=False):
    """What encodes, and where."""

    towers: Any
    adapter: Any
    textual_inversions: TextualInversions | None
    loras: Loras | None
    device: torch.device | str | None
    dtype: torch.dtype | str | None
    revision: str | None


class TextOptions(TypedDict, total=False):
    """How texts become states."""

    dialect: str
    emphasis: str | None
    token_normalization: str
    long_prompt: str | LongPrompt | None
    align: str | None
    clean: str | None
    clip_skip: int | None
    negative_clip_skip: int | None
    max_sequence_length: int | None


class SizeOptions(TypedDict, total=False):
    """SDXL's micro-conditioning."""

    height: int | None
    width: int | None
    original_size: Sequence[int] | None
    crops_coords_top_left: Sequence[int] | None
    target_size: Sequence[int] | None


class LaterTexts(TypedDict, total=False):
    """Texts of the second and third tower's own."""

    prompt_2: Texts | None
    negative_prompt_2: Texts | None
    prompt_3: Texts | None
    negative_prompt_3: Texts | None


class CallOptions(TextOptions, SizeOptions, LaterTexts, total=False):
    """What a call of an encoder takes beside its prompts."""


class EncodeOptions(ModelOptions, CallOptions, total=False):
    """What a verb takes beside its prompts and its model."""


def names_of(*options: type) -> frozenset[str]:
    """The names that option classes declare."""
    return frozenset(name for each in options for name in each.__annotations__)


def takes(*options: type) -> Callable[[Function], Function]:
    """Spell out a function's ``**options`` in its signature, for ``help`` and editors."""
    declared: dict[str, Any] = {}
    for each in options:
        declared |= each.__annotations__
    defaults = {"dialect": "a1111", "token_normalization": "none"}

    def spelt(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY,
                              default=defaults.get(name), annotation=kind)
            for name, kind in declared.items()
        ]  # fmt: skip
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *more]
        )
        return function

    return spelt


def check_names(given: Iterable[str], known: Collection[str], door: str) -> None:
    """Refuse keywords that a door has not.

    Raises:
        OptionError: an option of other doors that has no meaning at this one.
        TypeError: any other name, as Python does where arguments are spelt out.
    """
    for name in given:
        if name in known:
            continue
        if name in names_of(EncodeOptions):
            raise OptionError(f"{name} has no meaning for {door}; leave it out.")
        near = get_close_matches(name, known, 1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{door}() got an unexpected keyword argument {name!r}{hint}")


# ---------------------------------------------------------------- checked


@dataclass(frozen=True)
class TextRules:
    """The options of the text, checked. ``align`` and ``clean`` are None where the dialect's tool
    decides."""

    dialect: Dialect
    emphasis: str
    token_normalization: str
    long_prompt: LongPrompt
    align: str | None = None
    clean: str | None = None
    clip_skip: int | None = None
    negative_clip_skip: int | None = None
    max_sequence_length: int | None = None

    def skip(self, negative: bool) -> int:
        """The layers that are skipped for a prompt, or for a negative."""
        own = self.negative_clip_skip
        if not negative or (own is None and self.dialect.skips_negative):
            return self.clip_skip or 0
        return own or 0

    def tagged(self, text: str) -> Tagged:
        """A prompt without its LoRA tags, which are A1111's alone. Raises PromptError."""
        return take_tags(text, self.dialect.name)

    def parse(self, text: str, *, negative: bool = False, apart: bool = False) -> Prompt:
        """A prompt that is one and the same at every step.

        Args:
            text: the prompt.
            negative: it is a negative one.
            apart: parts that are drawn apart (A1111's ``AND``) are welcome.

        Raises:
            PromptError: the dialect refuses it, it changes from step to step, it has parts that
                are not welcome, or it still has a LoRA tag.
        """
        prompt = self._parsed(text, negative)
        tree = prompt.tree
        if isinstance(tree, Conjunction) and self.dialect.draws_parts_apart and not apart:
            if len(tree.parts) == 1:
                raise _refused_weight(prompt, tree.parts[0])
            raise _refused_parts(prompt, tree, "each is drawn apart; use bridge.compose")
        for part in parts_of(tree):
            for node, _ in walk(part.children):
                if isinstance(node, (Schedule, Alternation)):
                    raise _refused(
                        prompt, "changes from step to step; use bridge.schedule",
                        node.start, node.end,
                    )  # fmt: skip
        return prompt

    def read(self, text: str, *, negative: bool = False) -> Prompt:
        """A prompt that may change from step to step, and whose parts, if it has several, are
        drawn apart (A1111's ``AND``). Raises PromptError."""
        prompt = self._parsed(text, negative)
        if isinstance(prompt.tree, (Conjunction, Blend)) and not self.dialect.draws_parts_apart:
            raise _refused_parts(prompt, prompt.tree, "they are joined; use bridge.condition")
        return prompt

    def _parsed(self, text: str, negative: bool) -> Prompt:
        refuse_tags(text, self.dialect.name)
        return parse(text, self.dialect.name, negative=negative)


def read_rules(given: Mapping[str, Any]) -> TextRules:
    """Check ``TextOptions`` and fill in the dialect's own. Raises OptionError."""
    name = given.get("dialect", "a1111")
    check_choice(name, DIALECTS, "dialect")
    dialect = DIALECTS[name]
    emphasis = given.get("emphasis")
    chosen = dialect.emphasis if emphasis is None else emphasis
    check_choice(chosen, EMPHASES, "emphasis")
    normalization = given.get("token_normalization", "none")
    check_choice(normalization, NORMALISATIONS, "token_normalization")
    align = given.get("align")
    if align is not None:
        check_choice(align, _ALIGNS, "align")
    clean = given.get("clean")
    if clean is not None:
        check_choice(clean, CLEANINGS, "clean")
    return TextRules(
        dialect,
        chosen,
        normalization,
        _long_prompt(given.get("long_prompt"), dialect),
        align,
        clean,
        _skip(given.get("clip_skip"), "clip_skip"),
        _skip(given.get("negative_clip_skip"), "negative_clip_skip"),
        _sequence(given.get("max_sequence_length")),
    )


def read_sizes(given: Mapping[str, Any]) -> SizeRequest:
    """Check ``SizeOptions``. Raises OptionError."""
    return SizeRequest(
        check_length(given.get("height"), "height"),
        check_length(given.get("width"), "width"),
        check_pair(given.get("original_size"), "original_size", 1),
        check_pair(given.get("crops_coords_top_left"), "crops_coords_top_left", 0),
        check_pair(given.get("target_size"), "target_size", 1),
    )


def check_choice(value: object, names: Iterable[str], what: str) -> None:
    """Refuse what is none of ``names``; the nearest is named. Raises OptionError."""
    names = tuple(names)
    if value in names:
        return
    near = get_close_matches(str(value), names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"No {what} {value!r}; there is: {', '.join(names)}.{hint}")


def _long_prompt(given: object, dialect: Dialect) -> LongPrompt:
    long = dialect.long_prompt if given is None else given
    if not isinstance(long, LongPrompt):
        check_choice(long, LONG_PROMPTS, "long_prompt")
        long = LONG_PROMPTS[str(long)]
    if long.split is not None:
        check_choice(long.split, RULES, "long_prompt.split")
    back = long.backtrack
    if isinstance(back, bool) or not isinstance(back, int) or back < 0:
        raise OptionError(
            f"long_prompt.backtrack must be a whole number of tokens from 0 up, not {back!r}."
        )
    check_choice(long.join, _JOINS, "long_prompt.join")
    check_choice(long.pooled, _POOLED, "long_prompt.pooled")
    check_choice(long.uneven, UNEVEN, "long_prompt.uneven")
    return long


def _skip(value: Any, name: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise OptionError(f"{name} must be a whole number from 0 up, not {value!r}.")
    found: int | None = value
    return found


def _sequence(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and 1 <= value <= _LONGEST):
        raise OptionError(
            f"max_sequence_length must be a whole number from 1 to {_LONGEST}, not {value!r}."
        )
    found: int | None = value
    return found


# ---------------------------------------------------------------- refused prompts


def _refused_parts(prompt: Prompt, tree: Conjunction | Blend, why: str) -> PromptError:
    second = tree.parts[min(1, len(tree.parts) - 1)]
    return _refused(prompt, f"has several parts, and {why}", second.start, second.end)


def _refused_weight(prompt: Prompt, only: Branch) -> PromptError:
    weight = prompt.source[only.end :].strip()
    return _refused(
        prompt,
        f"ends in {weight!r}, which is read as its weight in a picture of several prompts; if none "
        "is meant, put a word after it, else use bridge.compose",
        only.end,
        len(prompt.source),
    )


def _refused(prompt: Prompt, what: str, start: int, end: int) -> PromptError:
    return prompt_error(
        f'This prompt {what}. (dialect="plain" takes all characters as they are.)',
        prompt.source,
        start,
        end,
    )
