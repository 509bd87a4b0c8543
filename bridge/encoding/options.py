"""The options of ``bridge.Encoder`` and of the verbs, declared and checked once for all doors.

Those of the *model* say what encodes and are given once. Those of the *text* say how texts become
states: an encoder has its own, and a call may say otherwise. Those of the *picture* are SDXL's
sizes. Beside them a call may have other texts for the later towers.

A call is checked and parsed here as far as no model is needed for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, Union, cast, get_args

import torch

from bridge.checks import choice, is_whole, keywords, spelt_out
from bridge.cleaning import CLEANINGS, Cleaning
from bridge.encoding.addons import Loras, TextualInversions
from bridge.encoding.emphasis import EMPHASES, EmphasisName
from bridge.errors import OptionError, PromptError
from bridge.prompt import (
    DIALECTS,
    LONG_PROMPTS,
    NORMALISATIONS,
    Dialect,
    LongPrompt,
    Prompt,
    check_paired,
    check_prompts,
    parse,
)
from bridge.prompt.dialect import Align, DialectName
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
from bridge.prompt.token_plan import Normalisation
from bridge.prompt.windows import RULES, Join, LongPromptName, Pooled, Uneven
from bridge.runtime import Dtype

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from bridge.adapters import Adapter
    from bridge.towers import TextTower

Texts = str | Sequence[str]
Model: TypeAlias = Union[str, os.PathLike[str], "DiffusionPipeline"]
"""An embedded name, a short name, a folder, a hub id, or a live pipeline."""
Tower: TypeAlias = Union[str, os.PathLike[str], "TextTower"]
Towers: TypeAlias = Tower | Sequence[Tower | None] | Mapping[str, Tower]
AdapterInput: TypeAlias = Union[str, os.PathLike[str], "Adapter"]
Each = TypeVar("Each")
Function = TypeVar("Function", bound=Callable[..., Any])

# Of options that are never None.
DEFAULTS = {"dialect": "a1111", "token_normalization": "none"}
# What T5 was trained on, and what diffusers' SD 3 and FLUX.1 pipelines allow.
_LONGEST = 512


# ---------------------------------------------------------------- declared


class ModelOptions(TypedDict, total=False):
    """What encodes, and where."""

    towers: Towers | None
    adapter: AdapterInput | None
    textual_inversions: TextualInversions | None
    loras: Loras | None
    device: torch.device | str | None
    dtype: Dtype | None
    revision: str | None


class TextOptions(TypedDict, total=False):
    """How texts become states."""

    dialect: DialectName
    emphasis: EmphasisName | None
    token_normalization: Normalisation
    long_prompt: LongPromptName | LongPrompt | None
    align: Align | None
    clean: Cleaning | None
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


class RegionCallOptions(TextOptions, SizeOptions, total=False):
    """``CallOptions`` of regions: a text of the later towers' own would be one for all of them."""


class RegionOptions(ModelOptions, RegionCallOptions, total=False):
    """``EncodeOptions`` of regions."""


@cache
def names_of(*options: type) -> frozenset[str]:
    """The names that option classes declare."""
    return frozenset(name for each in options for name in each.__annotations__)


@cache
def _elsewhere() -> Mapping[str, str]:
    """What is said of options that a function lacks and another has."""
    of_run = dict.fromkeys(
        (
            *("generator", "guidance_scale", "num_images_per_prompt", "num_inference_steps"),
            *("seed", "steps"),
        ),
        "it goes to the pipeline's call, or to bridge.generate",
    )
    return of_run | dict.fromkeys(names_of(EncodeOptions), "leave it out")


def takes(*options: type) -> Callable[[Function], Function]:
    """Spell out a function's ``**options`` in its signature, for ``help`` and editors; any other
    keyword is refused (``bridge.checks.keywords``)."""
    declared: dict[str, Any] = {}
    for each in options:
        declared |= each.__annotations__

    def spelt(function: Function) -> Function:
        more = [
            Parameter(
                name, Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name),
                annotation=kind.__forward_arg__,  # as it is written, for help
            )
            for name, kind in declared.items()
        ]  # fmt: skip
        return keywords(spelt_out(function, more), elsewhere=_elsewhere())

    return spelt


# ---------------------------------------------------------------- checked


@dataclass(frozen=True)
class TextRules:
    """The options of the text, checked. ``align`` and ``clean`` are None where the dialect's tool
    decides."""

    dialect: Dialect
    emphasis: EmphasisName
    token_normalization: Normalisation
    long_prompt: LongPrompt
    align: Align | None = None
    clean: Cleaning | None = None
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
    name = given.get("dialect", DEFAULTS["dialect"])
    choice(name, DIALECTS, "dialect")
    dialect = DIALECTS[name]
    emphasis = given.get("emphasis")
    chosen: Any = dialect.emphasis if emphasis is None else emphasis
    choice(chosen, EMPHASES, "emphasis")
    normalization = given.get("token_normalization", DEFAULTS["token_normalization"])
    choice(normalization, NORMALISATIONS, "token_normalization")
    align = given.get("align")
    if align is not None:
        choice(align, get_args(Align), "align")
    clean = given.get("clean")
    if clean is not None:
        choice(clean, CLEANINGS, "clean")
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
    if not given.keys() & names_of(SizeOptions):
        return NO_SIZES
    return SizeRequest(
        check_length(given.get("height"), "height"),
        check_length(given.get("width"), "width"),
        check_pair(given.get("original_size"), "original_size", 1),
        check_pair(given.get("crops_coords_top_left"), "crops_coords_top_left", 0),
        check_pair(given.get("target_size"), "target_size", 1),
    )


def _long_prompt(given: object, dialect: Dialect) -> LongPrompt:
    long = dialect.long_prompt if given is None else given
    if not isinstance(long, LongPrompt):
        choice(long, LONG_PROMPTS, "long_prompt")
        long = LONG_PROMPTS[cast(LongPromptName, long)]
    if long.split is not None:
        choice(long.split, RULES, "long_prompt.split")
    if not is_whole(long.backtrack, 0):
        raise OptionError(
            "long_prompt.backtrack must be a whole number of tokens from 0 up, not "
            f"{long.backtrack!r}."
        )
    choice(long.join, get_args(Join), "long_prompt.join")
    choice(long.pooled, get_args(Pooled), "long_prompt.pooled")
    choice(long.uneven, get_args(Uneven), "long_prompt.uneven")
    return long


def _skip(value: object, name: str) -> int | None:
    if value is None or is_whole(value, 0):
        return value
    raise OptionError(f"{name} must be a whole number from 0 up, not {value!r}.")


def _sequence(value: object) -> int | None:
    if value is None or is_whole(value, 1, _LONGEST):
        return value
    raise OptionError(
        f"max_sequence_length must be a whole number from 1 to {_LONGEST}, not {value!r}."
    )


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


# ---------------------------------------------------------------- sizes

# diffusers' default for the refiner, whose ids end in a score instead of the target size.
_AESTHETIC_SCORE = 6.0


@dataclass(frozen=True)
class Sizes:
    """Sizes as ``(height, width)``, the crop as ``(top, left)``.

    ``given`` says whether the caller named any of them. Only then do they go into a pipeline
    call: left alone, img2img and inpaint take them from their picture.
    """

    original_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int]
    given: bool

    def time_ids(self, wants_score: bool = False) -> tuple[float, ...]:
        """The row of ``add_time_ids`` for one prompt: six numbers, five with a score."""
        last = (_AESTHETIC_SCORE,) if wants_score else self.target_size
        return (*self.original_size, *self.crops_coords_top_left, *last)


@dataclass(frozen=True)
class SizeRequest:
    """The sizes that a call names; None for what it does not."""

    height: int | None = None
    width: int | None = None
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None

    def filled(self, default: tuple[int, int] | None) -> Sizes:
        """With what was not named, as diffusers has it: sizes default to height and width.

        Args:
            default: ``(height, width)`` that the model draws, if it says.

        Raises:
            OptionError: no size is given and the model states none.
        """
        if default is None and (self.height is None or self.width is None):
            if self.original_size is None or self.target_size is None:
                raise OptionError(
                    "The model does not say what size it draws; give height and width, or "
                    "original_size and target_size."
                )
            default = self.target_size
        fallback = default or (0, 0)
        picture = (self.height or fallback[0], self.width or fallback[1])
        return Sizes(
            self.original_size or picture,
            self.crops_coords_top_left or (0, 0),
            self.target_size or picture,
            given=self != NO_SIZES,
        )


NO_SIZES = SizeRequest()
"""None is named."""


def latent_scale(vae_config: Mapping[str, Any]) -> int | None:
    """How many pixels a latent is wide, from a VAE's config; None if it does not say.

    AutoencoderTiny names its channels by side, and may leave the common name out.
    """
    for key in ("block_out_channels", "decoder_block_out_channels"):
        blocks = vae_config.get(key)
        if isinstance(blocks, (list, tuple)) and blocks:
            return int(2 ** (len(blocks) - 1))
    return None


def check_length(value: object, what: str) -> int | None:
    """A height or width in pixels, or None. Raises OptionError."""
    if value is None:
        return None
    if not is_whole(value, 1):
        raise OptionError(f"{what} must be a whole number of pixels above 0, not {value!r}.")
    return value


def check_pair(value: object, what: str, least: int) -> tuple[int, int] | None:
    """A pair of whole numbers of at least ``least``, or None. Raises OptionError."""
    if value is None:
        return None
    whole = (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) == 2
        and all(is_whole(n, least) for n in value)
    )
    if not whole:
        raise OptionError(f"{what} must be two whole numbers of at least {least}, not {value!r}.")
    pair: Sequence[int] = value  # type: ignore[assignment]
    return int(pair[0]), int(pair[1])


# ---------------------------------------------------------------- calls


ParsedTexts: TypeAlias = tuple[tuple[Prompt, ...] | None, ...]
"""Of one role, B texts for the first tower, and those of the second's and the third's own; None for
what was not given."""


@dataclass(frozen=True)
class Request:
    """What a call asks for, parsed.

    Attributes:
        prompts, negatives: the texts.
        tagged: the prompts as they were written, LoRA tags included.
        counts: how many entries each prompt has, those of its ``AND``; more entries than these are
            the same prompts at later steps. Without it each is a prompt of its own.
        sizes: of the picture.
    """

    prompts: ParsedTexts
    negatives: ParsedTexts
    tagged: tuple[Tagged, ...]
    counts: tuple[int, ...] = ()
    sizes: SizeRequest = NO_SIZES

    @property
    def sources(self) -> Iterator[str]:
        """The texts: prompts as they were written, then all others."""
        yield from (each.source for each in self.tagged)
        for texts in (*self.prompts[1:], *self.negatives):
            yield from (each.source for each in texts or ())


Parse = Callable[[str, bool], Prompt]
"""A text, and whether it is a negative one."""


@dataclass(frozen=True)
class Call:
    """The texts and options of a call.

    Attributes:
        tagged: B prompts, their LoRA tags taken out.
        later: texts of the second's and the third tower's own; None for what was not given.
        negatives: those of the first, the second and the third tower, likewise.
        rules, sizes: the options.
    """

    tagged: tuple[Tagged, ...]
    later: tuple[tuple[str, ...] | None, ...]
    negatives: tuple[tuple[str, ...] | None, ...]
    rules: TextRules
    sizes: SizeRequest

    def parsed(self, parse: Parse) -> tuple[ParsedTexts, ParsedTexts]:
        """The prompts and the negatives. Raises PromptError."""

        def read(texts: Iterable[str] | None, negative: bool) -> tuple[Prompt, ...] | None:
            return None if texts is None else tuple(parse(text, negative) for text in texts)

        first = tuple(parse(each.text, False) for each in self.tagged)
        prompts = (first, *(read(texts, False) for texts in self.later))
        negatives = tuple(read(texts, True) for texts in self.negatives)
        for number, own in enumerate(zip(prompts[1:], negatives[1:], strict=True), 2):
            if own != (None, None) and any(map(_has_parts, (*first, *(negatives[0] or ())))):
                raise PromptError(
                    f"prompt_{number} cannot go with a prompt of several parts; give one of them."
                )
        return prompts, negatives

    def request(self) -> Request:
        """What is encoded of prompts that are one and the same at every step."""

        def parse(text: str, negative: bool) -> Prompt:
            return self.rules.parse(text, negative=negative)

        return Request(*self.parsed(parse), self.tagged, sizes=self.sizes)


def read_call(prompt: Texts, negative_prompt: Texts | None, options: Mapping[str, Any]) -> Call:
    """Check texts and options.

    Args:
        prompt, negative_prompt: as in ``bridge.condition``.
        options: ``CallOptions``.

    Raises:
        PromptError, OptionError: as ``bridge.condition``.
    """
    prompts = check_prompts(prompt)
    count = len(prompts)
    later = (
        check_paired(options.get(name) or None, count, name)
        for name in ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
    )
    second, third, *negatives = later
    first = check_paired(negative_prompt, count)
    rules, sizes = read_rules(options), read_sizes(options)
    tagged = tuple(rules.tagged(text) for text in prompts)
    return Call(tagged, (second, third), (first, *negatives), rules, sizes)


def is_apart(prompt: Prompt) -> bool:
    """Whether the noise predictions of its parts are to be summed. compel's ``.and()``, the other
    conjunction, sets their states end to end instead."""
    return DIALECTS[prompt.dialect].draws_parts_apart and isinstance(prompt.tree, Conjunction)


def _has_parts(prompt: Prompt) -> bool:
    return is_apart(prompt) or len(parts_of(prompt.tree)) > 1


def repeated(items: Sequence[Each], counts: Sequence[int]) -> tuple[Each, ...]:
    """Each item as often as its count says."""
    return tuple(p for p, n in zip(items, counts, strict=True) for _ in range(n))
