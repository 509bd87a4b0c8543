"""``bridge.condition``: prompts in, the tensors of a diffusers pipeline out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.drift import Drift, warn_of_drifts
from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.kit import Kit, Towers, open_kit
from bridge.conditioning.parts import Group, join_parts, join_pooled_parts, split_parts
from bridge.conditioning.passes import Wanted, encode_plans
from bridge.conditioning.result import Conditioning
from bridge.conditioning.sizes import check_length, check_pair, make_sizes
from bridge.conditioning.trace import Trace, trace_of
from bridge.conditioning.uneven import beyond, common_length, joined_length
from bridge.conditioning.wording import Wording, read_wording
from bridge.errors import OptionError, PromptError
from bridge.prompt import (
    LongPrompt,
    Prompt,
    TokenPlan,
    TruncationWarning,
    check_paired,
    check_prompts,
    normalised,
    parse,
    plan_many,
)
from bridge.prompt.tree import parts_of
from bridge.runtime import check_dtype, resolve_device
from bridge.towers import Layer

Texts = str | Sequence[str]
_QUOTED = 120


def condition(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    model: Any = "emoji-xl",
    prompt_2: Texts | None = None,
    negative_prompt_2: Texts | None = None,
    dialect: str = "a1111",
    emphasis: str | None = None,
    token_normalization: str = "none",
    long_prompt: str | LongPrompt | None = None,
    clip_skip: int | None = None,
    height: int | None = None,
    width: int | None = None,
    original_size: Sequence[int] | None = None,
    crops_coords_top_left: Sequence[int] | None = None,
    target_size: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> Conditioning:
    """Encode prompts and negatives as the model's own diffusers pipeline would.

    Each tower runs one batched forward pass, whatever the number of prompts and negatives;
    equal texts are encoded once. The result is that of ``encode_prompt`` up to the rounding of
    another batch size.

    Args:
        prompt: one text or B texts. The empty text is legal.
        negative_prompt: one text for all prompts, or one for each. None means what the model's
            pipeline means: ``""`` for Stable Diffusion 1 and 2; zeros for SDXL if its
            ``force_zeros_for_empty_prompt`` is set, else ``""``.
        model: an embedded name, a recipe name (``sd15``, ``sd21``, ``sdxl``), a hub id, a
            folder in diffusers' layout, or a live pipeline, which is used as it is (its towers,
            device and dtype) and not changed.
        prompt_2: another text for SDXL's second tower; an empty one means ``prompt``, as in
            diffusers.
        negative_prompt_2: another negative for SDXL's second tower.
        dialect: how prompts are read: ``a1111``, ``comfy``, ``compel``, or ``plain``, where no
            character has a meaning of its own, as in diffusers.
        emphasis: the formula that weights act by, a name of
            ``bridge.conditioning.emphasis.EMPHASES``. Default: the dialect's own.
        token_normalization: how weights are adjusted before: ``none``, ``length``, ``mean`` or
            ``length+mean``.
        long_prompt: what is done with prompts longer than a tower's context, a name of
            ``bridge.prompt.LONG_PROMPTS`` or a ``LongPrompt``. Default: the dialect's own; plain
            prompts are truncated. Prompts, negatives and towers of fewer windows are filled up
            with windows of the empty prompt, as in stable-diffusion-webui.
        clip_skip: layers to skip from the end, as diffusers counts them: 1 is the layer before
            the recipe's. It acts on the prompt; the negative keeps the recipe's layer.
        height, width: of the picture to draw, in pixels; SDXL is conditioned on them. Models
            without sizes ignore them.
        original_size, crops_coords_top_left, target_size: SDXL's micro-conditioning, as
            ``(height, width)`` and ``(top, left)``.
        device: where a folder's towers run and the result lies. Default: CUDA if there is one;
            for a live pipeline its own, and another device moves the result only.
        dtype: the dtype of a folder's towers and of the result. Default ("auto") float32; for
            a live pipeline its own, and another dtype casts the result only.
        revision: branch, tag or commit of a hub id.

    Returns:
        Conditioning with tensors of B rows. Text that is cut off is in the report and raises a
        ``TruncationWarning``; so is emphasis that takes states far from what the towers give, with
        an ``OffManifoldWarning``.

    Raises:
        PromptError: input that is no valid text, an empty list, lists of unequal length, a
            prompt that its dialect refuses, or one that changes from step to step.
        OptionError: an option out of range or without meaning for the model.
        UnknownModelError, HubError, WeightsError: the model is not to be had.
        UnsupportedModelError: there is no recipe for it.
    """
    prompts = check_prompts(prompt)
    count = len(prompts)
    negatives = check_paired(negative_prompt, count)
    seconds = check_paired(prompt_2 or None, count, "prompt_2")
    negative_seconds = check_paired(negative_prompt_2 or None, count, "negative_prompt_2")
    wording = read_wording(dialect, emphasis, token_normalization, long_prompt)
    place = read_place(
        clip_skip, height, width, original_size, crops_coords_top_left, target_size, device, dtype
    )
    kit = open_kit(model, device=place.device, dtype=place.dtype, revision=revision)

    def parsed(some: tuple[str, ...] | None, negative: bool) -> tuple[Prompt, ...] | None:
        if some is None:
            return None
        return tuple(wording.parse(text, negative=negative) for text in some)

    texts = ParsedTexts(
        tuple(wording.parse(text) for text in prompts),
        parsed(negatives, True),
        parsed(seconds, False),
        parsed(negative_seconds, True),
    )
    return encode_texts(kit, wording, place, texts)


@dataclass(frozen=True)
class ParsedTexts:
    """Parsed prompts, and what goes with each: negatives, and the second tower's own texts."""

    prompts: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...] | None = None
    seconds: tuple[Prompt, ...] | None = None
    negative_seconds: tuple[Prompt, ...] | None = None


@dataclass(frozen=True)
class Place:
    """Checked options that say for which picture, from which layer, and where to."""

    clip_skip: int | None
    height: int | None
    width: int | None
    original_size: tuple[int, int] | None
    crop: tuple[int, int] | None
    target_size: tuple[int, int] | None
    device: torch.device | None
    dtype: torch.dtype | None


def read_place(
    clip_skip: int | None,
    height: int | None,
    width: int | None,
    original_size: Sequence[int] | None,
    crops_coords_top_left: Sequence[int] | None,
    target_size: Sequence[int] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> Place:
    """Check the options of ``condition``. Raises OptionError."""
    _check_skip(clip_skip)
    return Place(
        clip_skip,
        check_length(height, "height"),
        check_length(width, "width"),
        check_pair(original_size, "original_size", 1),
        check_pair(crops_coords_top_left, "crops_coords_top_left", 0),
        check_pair(target_size, "target_size", 1),
        None if device is None else resolve_device(device),
        check_dtype(dtype),
    )


def encode_texts(kit: Kit, wording: Wording, place: Place, texts: ParsedTexts) -> Conditioning:
    """Plan and encode parsed prompts. Errors as ``condition``."""
    count = len(texts.prompts)
    _check_options(kit, place, texts)
    sizes = (
        make_sizes(
            place.height,
            place.width,
            place.original_size,
            place.crop,
            place.target_size,
            kit.default_size,
        )
        if kit.recipe.time_ids
        else None
    )
    negatives = texts.negatives
    if negatives is None and not kit.zeros_for_none:
        negatives = (parse("", wording.dialect),) * count
    prompts, groups = split_parts(texts.prompts)
    negative_parts, negative_groups = split_parts(negatives or ())
    length = max(group.length for group in (*groups, *negative_groups))
    # The empty prompt comes last where shorter prompts are filled up with it.
    filling = (parse("", wording.dialect),) if length > 1 else ()
    plans = _plans(kit, wording, (*prompts, *filling), texts.seconds)
    negative_plans = (
        ()
        if negatives is None
        else _plans(kit, wording, (*negative_parts, *filling), texts.negative_seconds)
    )
    _warn_of_cuts(plans, "prompt", groups)
    _warn_of_cuts(negative_plans, "negative_prompt", negative_groups)
    windows, states = _lengths(plans, negative_plans, wording)
    plans = _cut_to_states(plans, states, wording, "prompt")
    negative_plans = _cut_to_states(negative_plans, states, wording, "negative_prompt")

    towers = kit.load()
    with torch.no_grad():
        both, drifts = _encode(
            kit, towers, wording, plans, negative_plans, windows, states, place.clip_skip or 0
        )
        embeds, pooled = _join(both[0], groups, length)
        if negatives is None:
            negative = torch.zeros_like(embeds)
            negative_pooled = None if pooled is None else torch.zeros_like(pooled)
        else:
            negative, negative_pooled = _join(both[1], negative_groups, length)
    by_prompt = _by_prompt(plans, groups)
    by_negative = _by_prompt(negative_plans, negative_groups) if negative_plans else ()
    traces = _traces(kit, towers, wording, by_prompt, groups, drifts[0])
    negative_traces = _traces(kit, towers, wording, by_negative, negative_groups, drifts[1])
    warn_of_drifts([trace.drifts for trace in traces], "prompt", 3)
    warn_of_drifts([trace.drifts for trace in negative_traces], "negative_prompt", 3)
    names = (use.component for use in kit.recipe.towers)
    found = Conditioning(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
        add_time_ids=None
        if sizes is None
        else torch.tensor([sizes.time_ids(kit.wants_score)] * count, dtype=embeds.dtype),
        plans=by_prompt,
        negative_plans=by_negative,
        recipe=kit.recipe,
        fingerprints=dict(zip(names, towers.fingerprints, strict=True)),
        sizes=sizes,
        traces=traces,
        negative_traces=negative_traces,
    )
    return found.to(place.device or towers.device, place.dtype or embeds.dtype)


# ---------------------------------------------------------------- encoding


Rows = tuple[Tensor, Tensor | None]
"""Token states (N, T, D), and pooled states (N, P) where the recipe has them."""

Drifts = list[tuple[Drift | None, ...]]
"""For each tower, the drift of each row."""


def _encode(
    kit: Kit,
    towers: Towers,
    wording: Wording,
    plans: tuple[tuple[TokenPlan, ...], ...],
    negative_plans: tuple[tuple[TokenPlan, ...], ...],
    windows: list[int],
    length: int,
    skip: int,
) -> tuple[tuple[Rows, Rows], tuple[Drifts, Drifts]]:
    """The plans' states joined over the towers, and the last tower's pooled states; the same of
    the negatives, without rows if there are none. And the drifts of both."""
    parts = []
    pooled: Tensor | None = None
    # diffusers gives the joined states the dtype of the last tower.
    dtype = towers.modules[-1].dtype
    count = len(plans[0])
    drifts: tuple[Drifts, Drifts] = ([], [])
    for i, use in enumerate(kit.recipe.towers):
        base = use.layer
        skipped = Layer(base.index - skip, base.norm)
        negatives = negative_plans[i] if negative_plans else ()
        encoded = encode_plans(
            use.architecture,
            towers.modules[i],
            [*(Wanted(p, skipped) for p in plans[i]), *(Wanted(p, base) for p in negatives)],
            windows[i],
            EMPHASES[wording.emphasis],
            wording.long_prompt,
            length=length,
            masked=kit.recipe.obeys_mask and kit.specs[i].attention_mask,
            device=towers.device,
        )
        parts.append(encoded.states.to(dtype))
        pooled = encoded.pooled if kit.recipe.pooled else None
        drifts[0].append(encoded.drifts[:count])
        drifts[1].append(encoded.drifts[count:])
    states = torch.cat(parts, dim=-1)
    if pooled is None:
        return ((states[:count], None), (states[count:], None)), drifts
    return ((states[:count], pooled[:count]), (states[count:], pooled[count:])), drifts


def _lengths(
    plans: tuple[tuple[TokenPlan, ...], ...],
    negative_plans: tuple[tuple[TokenPlan, ...], ...],
    wording: Wording,
) -> tuple[list[int], int]:
    """How many windows each tower brings its plans to, the same for towers of one context; and the
    length that all come to."""
    long = wording.long_prompt
    most: dict[int, int] = {}
    for plan in (p for row in (*plans, *negative_plans) for p in row):
        most[plan.limit] = max(most.get(plan.limit, 1), len(plan.windows))
    lengths = [joined_length(windows, limit, long.join) for limit, windows in most.items()]
    return [most[row[0].limit] for row in plans], common_length(lengths, long.uneven)


def _traces(
    kit: Kit,
    towers: Towers,
    wording: Wording,
    by_prompt: tuple[tuple[TokenPlan, ...], ...],
    groups: tuple[Group, ...],
    drifts: Drifts,
) -> tuple[Trace, ...]:
    """The trace of each prompt; ``by_prompt`` as ``_by_prompt`` gives it."""
    eos = towers.modules[-1].config.eos_token_id if kit.recipe.pooled else None
    return tuple(
        trace_of(
            plans,
            [of_tower[row] for row in group.rows for of_tower in drifts],
            len(drifts),
            wording.long_prompt,
            eos,
        )
        for plans, group in zip(by_prompt, groups, strict=False)
    )


def _join(rows: Rows, groups: tuple[Group, ...], length: int) -> Rows:
    """Rows of prompts out of those of their parts."""
    states, pooled = rows
    joined = join_parts(states, groups, states[-1] if length > 1 else None, length)
    return joined, None if pooled is None else join_pooled_parts(pooled, groups)


def _by_prompt(
    plans: tuple[tuple[TokenPlan, ...], ...], groups: tuple[Group, ...]
) -> tuple[tuple[TokenPlan, ...], ...]:
    """For each prompt the plan of each tower; of a prompt of several parts, those of each part."""

    def named(plan: TokenPlan, group: Group, part: int) -> TokenPlan:
        if len(group.rows) == 1:
            return plan
        return replace(plan, tower=f"{plan.tower}, part {part}")

    return tuple(
        tuple(
            named(tower[row], group, part)
            for part, row in enumerate(group.rows, 1)
            for tower in plans
        )
        for group in groups
    )


def _plans(
    kit: Kit, wording: Wording, first: tuple[Prompt, ...], second: tuple[Prompt, ...] | None
) -> tuple[tuple[TokenPlan, ...], ...]:
    """For each tower, the plan of each prompt; ``second`` goes to the towers after the first."""
    later = first if second is None else second
    return tuple(
        tuple(
            normalised(plan, wording.token_normalization)
            for plan in plan_many(
                later if i else first, tokenizer, use.component, wording.long_prompt.split
            )
        )
        for i, (use, tokenizer) in enumerate(zip(kit.recipe.towers, kit.tokenizers, strict=True))
    )


def _warn_of_cuts(
    plans: tuple[tuple[TokenPlan, ...], ...], what: str, groups: tuple[Group, ...]
) -> None:
    for index, group in enumerate(groups):
        # Towers that cut the same text say so once.
        cuts = {
            (plan.cut, plan.limit, plan.cut_tokens): plan.tower
            for tower in plans
            for plan in (tower[row] for row in group.rows)
            if plan.cut
        }
        for (cut, limit, tokens), tower_name in cuts.items():
            warnings.warn(
                f"{what} {index}: {tokens} tokens do not fit the {limit} of {tower_name} and are "
                f"cut off: {_quoted(cut)}",
                TruncationWarning,
                stacklevel=4,
            )


def _cut_to_states(
    plans: tuple[tuple[TokenPlan, ...], ...], states: int, wording: Wording, what: str
) -> tuple[tuple[TokenPlan, ...], ...]:
    """The plans with what is lost where a tower of longer context is cut to one of shorter."""

    def cut(plan: TokenPlan, index: int) -> TokenPlan:
        lost = beyond(plan, states, wording.long_prompt.join)
        if not lost:
            return plan
        text = plan.source[lost[0].start : lost[-1].end]
        warnings.warn(
            f"{what} {index}: {len(lost)} tokens of {plan.tower} come after the {states} states "
            f"that all towers have and are cut off: {_quoted(text)}. Other rules for towers of "
            "unequal context keep them, such as LongPrompt(..., uneven='fill').",
            TruncationWarning,
            stacklevel=6,
        )
        return replace(plan, cut=text, cut_start=lost[0].start, cut_tokens=len(lost))

    return tuple(tuple(cut(plan, i) for i, plan in enumerate(tower)) for tower in plans)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")


# ---------------------------------------------------------------- options


def _check_skip(clip_skip: object) -> None:
    if clip_skip is None:
        return
    if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or clip_skip < 0:
        raise OptionError(f"clip_skip must be a whole number from 0 up, not {clip_skip!r}.")


def _check_options(kit: Kit, place: Place, texts: ParsedTexts) -> None:
    """Refuse options that would be dropped or that reach past the tower's layers."""
    for use, spec in zip(kit.recipe.towers, kit.specs, strict=True):
        most = spec.layers + 1 + use.layer.index
        if place.clip_skip is not None and place.clip_skip > most:
            raise OptionError(
                f"clip_skip={place.clip_skip} reaches past {use.component}, which has "
                f"{spec.layers} layers; the recipe {kit.recipe.name} allows 0 to {most}."
            )
    two = texts.seconds is not None or texts.negative_seconds is not None
    if len(kit.recipe.towers) < 2 and two:
        raise OptionError(
            f"prompt_2 and negative_prompt_2 need two towers; {kit.recipe.name} has one."
        )
    if two and any(len(parts_of(p.tree)) > 1 for p in (*texts.prompts, *(texts.negatives or ()))):
        raise PromptError("prompt_2 cannot go with a prompt of several parts; give one of them.")
    if texts.negative_seconds is not None and texts.negatives is None:
        # diffusers drops it without a word where None means zeros.
        raise PromptError("negative_prompt_2 was given without negative_prompt; give both.")
    sizes = (place.original_size, place.crop, place.target_size)
    if not kit.recipe.time_ids and any(size is not None for size in sizes):
        raise OptionError(
            f"original_size, crops_coords_top_left and target_size belong to SDXL; "
            f"{kit.recipe.name} is not conditioned on sizes, so leave them out."
        )
