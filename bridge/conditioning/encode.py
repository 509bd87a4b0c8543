"""``bridge.condition``: prompts in, the tensors of a diffusers pipeline out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress, repeat
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.addons import fitted
from bridge.conditioning.bands import join_towers
from bridge.conditioning.brought import Loras, TextualInversions, bring
from bridge.conditioning.drift import Drift, warn_of_drifts
from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.kit import Kit, Towers, open_kit
from bridge.conditioning.limits import check_options, check_sequence, check_skip
from bridge.conditioning.masks import prompt_masks
from bridge.conditioning.parts import Group, join_parts, join_pooled_parts, split_parts
from bridge.conditioning.passes import Wanted, encode_plans
from bridge.conditioning.result import Conditioning
from bridge.conditioning.sizes import check_length, check_pair, make_sizes
from bridge.conditioning.trace import Trace, trace_of
from bridge.conditioning.unet_only import check_unet
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
from bridge.prompt.loras import Tagged, as_written
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
    prompt_3: Texts | None = None,
    negative_prompt_3: Texts | None = None,
    dialect: str = "a1111",
    emphasis: str | None = None,
    token_normalization: str = "none",
    long_prompt: str | LongPrompt | None = None,
    textual_inversions: TextualInversions | None = None,
    loras: Loras | None = None,
    clip_skip: int | None = None,
    max_sequence_length: int | None = None,
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
            pipeline means: ``""`` for most; zeros for SDXL if its
            ``force_zeros_for_empty_prompt`` is set, else ``""``; zeros for CogView3-Plus; no
            negative at all for FLUX.1.
        model: an embedded name, a recipe name (``sd15``, ``sd21``, ``sdxl``), a hub id, a
            folder in diffusers' layout, or a live pipeline, which is used as it is (its towers,
            device and dtype) and not changed. ``bridge.conditioning.RECIPES`` are the kinds.
        prompt_2, prompt_3: other texts for the second tower (SDXL, SD 3, FLUX.1) and the third
            (SD 3's T5); an empty one means ``prompt``, as in diffusers.
        negative_prompt_2, negative_prompt_3: the same of the negatives.
        dialect: how prompts are read: ``a1111``, ``comfy``, ``compel``, or ``plain``, where no
            character has a meaning of its own, as in diffusers.
        emphasis: the formula that weights act by, a name of
            ``bridge.conditioning.emphasis.EMPHASES``. Default: the dialect's own.
        token_normalization: how weights are adjusted before: ``none``, ``length``, ``mean`` or
            ``length+mean``.
        long_prompt: what is done with prompts longer than a tower's context, a name of
            ``bridge.prompt.LONG_PROMPTS`` or a ``LongPrompt``. Default: the dialect's own; plain
            prompts are truncated. Prompts, negatives and towers of fewer windows are filled up
            with windows of the empty prompt, as in stable-diffusion-webui. T5 has one window.
        textual_inversions: embedding files, as one path, a list of paths, or ``{word: path}``.
            The word of a file that is given without one is its own, or else its stem. A file of
            several vectors takes as many tokens.
        loras: LoRA files whose text part acts on every prompt and its negative, as a path,
            ``(path, strength)``, a list of these, or ``{name: path}``; of a folder only those
            that a prompt names. In the a1111 dialect ``<lora:name:0.8>`` sets the strength for
            its prompt. Prompts of different strengths still go through a tower together. The
            UNet's part is left to the pipeline (``load_lora_weights``). A LoRA that a live
            pipeline has loaded acts in its towers already: leave it out here.
        clip_skip: layers to skip from the end, as diffusers counts them: 1 is the layer before
            the recipe's. It acts on the prompt; the negative keeps the recipe's layer.
        max_sequence_length: how many tokens T5 is given, 1 to 512, ``</s>`` included; longer
            prompts are cut off. Default: the pipeline's own (256 for SD 3, 512 for FLUX.1).
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
            prompt that its dialect refuses, one that changes from step to step, a tag that names
            no LoRA.
        OptionError: an option out of range or without meaning for the model.
        UnknownModelError, HubError, WeightsError: the model is not to be had.
        WeightsError: an embedding or LoRA that is damaged or made for another model.
        UnsupportedModelError: there is no recipe for it.
    """
    prompts = check_prompts(prompt)
    count = len(prompts)
    negatives = check_paired(negative_prompt, count)
    seconds = check_paired(prompt_2 or None, count, "prompt_2")
    negative_seconds = check_paired(negative_prompt_2 or None, count, "negative_prompt_2")
    thirds = check_paired(prompt_3 or None, count, "prompt_3")
    negative_thirds = check_paired(negative_prompt_3 or None, count, "negative_prompt_3")
    wording = read_wording(dialect, emphasis, token_normalization, long_prompt)
    place = read_place(
        clip_skip, height, width, original_size, crops_coords_top_left, target_size, device, dtype,
        max_sequence_length,
    )  # fmt: skip
    tagged = tuple(wording.tagged(text) for text in prompts)
    brought = bring(textual_inversions, loras, tagged)
    kit = open_kit(model, device=place.device, dtype=place.dtype, revision=revision)

    def parsed(some: tuple[str, ...] | None, negative: bool) -> tuple[Prompt, ...] | None:
        if some is None:
            return None
        return tuple(wording.parse(text, negative=negative) for text in some)

    texts = ParsedTexts(
        tuple(wording.parse(each.text) for each in tagged),
        parsed(negatives, True),
        parsed(seconds, False),
        parsed(negative_seconds, True),
        parsed(thirds, False),
        parsed(negative_thirds, True),
        tagged,
    )
    return encode_texts(fitted(kit, brought), wording, place, texts)


@dataclass(frozen=True)
class ParsedTexts:
    """Parsed prompts, and what goes with each: negatives, texts of the later towers' own, and the
    prompts as they were written, LoRA tags included."""

    prompts: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...] | None = None
    seconds: tuple[Prompt, ...] | None = None
    negative_seconds: tuple[Prompt, ...] | None = None
    thirds: tuple[Prompt, ...] | None = None
    negative_thirds: tuple[Prompt, ...] | None = None
    tagged: tuple[Tagged, ...] = ()


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
    max_sequence_length: int | None = None


def read_place(
    clip_skip: int | None,
    height: int | None,
    width: int | None,
    original_size: Sequence[int] | None,
    crops_coords_top_left: Sequence[int] | None,
    target_size: Sequence[int] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    max_sequence_length: int | None = None,
) -> Place:
    """Check the options of ``condition``. Raises OptionError."""
    check_skip(clip_skip)
    check_sequence(max_sequence_length)
    return Place(
        clip_skip,
        check_length(height, "height"),
        check_length(width, "width"),
        check_pair(original_size, "original_size", 1),
        check_pair(crops_coords_top_left, "crops_coords_top_left", 0),
        check_pair(target_size, "target_size", 1),
        None if device is None else resolve_device(device),
        check_dtype(dtype),
        max_sequence_length,
    )


def encode_texts(kit: Kit, wording: Wording, place: Place, texts: ParsedTexts) -> Conditioning:
    """Plan and encode parsed prompts. Errors as ``condition``."""
    count = len(texts.prompts)
    tagged = texts.tagged or tuple(Tagged(p.source, p.source) for p in texts.prompts)
    check_options(kit, place, texts)
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
    if negatives is None and not (kit.zeros_for_none or kit.recipe.none_for_none):
        negatives = (parse("", wording.dialect),) * count
    prompts, groups = split_parts(texts.prompts)
    negative_parts, negative_groups = split_parts(negatives or ())
    length = max(group.length for group in (*groups, *negative_groups))
    # The empty prompt comes last where shorter prompts are filled up with it.
    filling = (parse("", wording.dialect),) if length > 1 else ()
    most = place.max_sequence_length
    plans = _plans(kit, wording, (*prompts, *filling), (texts.seconds, texts.thirds), most)
    negative_plans = (
        ()
        if negatives is None
        else _plans(
            kit, wording, (*negative_parts, *filling),
            (texts.negative_seconds, texts.negative_thirds), most,
        )
    )  # fmt: skip
    biases = _biases(kit, wording, plans, negative_plans, (*groups, *negative_groups))
    _warn_of_cuts(plans, "prompt", groups)
    _warn_of_cuts(negative_plans, "negative_prompt", negative_groups)
    lengths = _lengths(kit, plans, negative_plans, wording)
    plans = _cut_to_states(plans, lengths, wording, "prompt")
    negative_plans = _cut_to_states(negative_plans, lengths, wording, "negative_prompt")

    towers = kit.load()
    with torch.no_grad():
        of_prompts = [kit.addons.strengths(each) for each in tagged]
        strengths = (_by_row(of_prompts, groups), _by_row(of_prompts, negative_groups))
        both, drifts = _encode(
            kit, towers, wording, plans, negative_plans, lengths, place, strengths
        )
        embeds, pooled = _join(both[0], groups, length)
        negative: Tensor | None = None
        negative_pooled: Tensor | None = None
        if negatives is not None:
            negative, negative_pooled = _join(both[1], negative_groups, length)
        elif not kit.recipe.none_for_none:
            negative = torch.zeros_like(embeds)
            negative_pooled = None if pooled is None else torch.zeros_like(pooled)
    by_prompt = _by_prompt(plans, groups)
    by_negative = _by_prompt(negative_plans, negative_groups) if negative_plans else ()
    traces = _traces(kit, towers, wording, by_prompt, groups, drifts[0])
    negative_traces = _traces(kit, towers, wording, by_negative, negative_groups, drifts[1])
    warn_of_drifts([trace.drifts for trace in traces], "prompt", 3)
    warn_of_drifts([trace.drifts for trace in negative_traces], "negative_prompt", 3)
    names = (use.component for use in kit.recipe.towers)
    addons = kit.addons.account(tagged)
    found = Conditioning(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
        add_time_ids=None
        if sizes is None
        else torch.tensor([sizes.time_ids(kit.wants_score)] * count, dtype=embeds.dtype),
        plans=tuple(
            tuple(as_written(plan, each) for plan in row)
            for row, each in zip(by_prompt, tagged, strict=True)
        ),
        negative_plans=by_negative,
        recipe=kit.recipe,
        fingerprints=dict(zip(names, towers.fingerprints, strict=True))
        | {each.label: each.hash for each in addons},
        sizes=sizes,
        **_masks(kit, plans, groups, negative_plans, negative_groups, length, embeds),
        addons=addons,
        **biases,
        traces=traces,
        negative_traces=negative_traces,
    )
    return found.to(place.device or towers.device, place.dtype)


def _biases(
    kit: Kit,
    wording: Wording,
    plans: Plans,
    negative_plans: Plans,
    groups: tuple[Group, ...],
) -> dict[str, Tensor]:
    """What an emphasis adds inside the UNet. Refuses weights that it has no meaning for."""
    emphasis = EMPHASES[wording.emphasis]
    every = [plan for tower in (*plans, *negative_plans) for plan in tower]
    for plan in every:
        emphasis.check(plan)
    if not emphasis.biases or not any(plan.is_weighted for plan in every):
        return {}
    # T5 attends both ways, so that a bias would mean something else there.
    check_unet(kit, f"The emphasis {wording.emphasis} acts beside or")
    windows = _most_windows(plans, negative_plans)
    if len({plan.limit for plan in every}) > 1:
        raise OptionError(
            f"{wording.emphasis} does not go with towers of unequal context; use another emphasis."
        )
    found = emphasis.key_bias(plans, windows, wording.long_prompt)
    opposed = emphasis.key_bias(negative_plans, windows, wording.long_prompt)
    if found is None and opposed is None:
        return {}
    if any(group.kind != "one" for group in groups):
        raise PromptError(f"{wording.emphasis} does not go with prompts of several parts.")
    one = found if found is not None else opposed
    assert one is not None
    none = torch.zeros_like(one)
    return {
        "attention_bias": none if found is None else found,
        "negative_attention_bias": none if opposed is None else opposed,
    }


# ---------------------------------------------------------------- encoding


def _masks(
    kit: Kit,
    plans: Plans,
    groups: tuple[Group, ...],
    negative_plans: Plans,
    negative_groups: tuple[Group, ...],
    length: int,
    embeds: Tensor,
) -> dict[str, Tensor]:
    """The attention masks of a recipe that has them; its one tower's padding is what is hidden."""
    kind = kit.recipe.mask
    if kind is None:
        return {}
    return {
        "prompt_attention_mask": prompt_masks(plans[0], groups, length, kind, embeds),
        "negative_prompt_attention_mask": prompt_masks(
            negative_plans[0], negative_groups, length, kind, embeds
        ),
    }


Plans = tuple[tuple[TokenPlan, ...], ...]
"""For each tower, the plan of each part of the prompts; empty where there are no prompts."""
Strengths = Sequence[tuple[float, ...]]
"""For each row, the strength of each LoRA."""

Rows = tuple[Tensor, Tensor | None]
"""Token states (N, T, D), and pooled states (N, P) where the recipe has them."""

Drifts = list[tuple[Drift | None, ...]]
"""For each tower, the drift of each row."""


def _encode(
    kit: Kit,
    towers: Towers,
    wording: Wording,
    plans: Plans,
    negative_plans: Plans,
    lengths: Sequence[Lengths],
    place: Place,
    strengths: tuple[Strengths, Strengths],
) -> tuple[tuple[Rows, Rows], tuple[Drifts, Drifts]]:
    """The plans' states joined over the towers, and their pooled states; the same of the
    negatives, without rows if there are none. And the drifts of both. ``strengths``: of each plan's
    LoRAs."""
    parts, pooled_parts = [], []
    count = len(plans[0])
    drifts: tuple[Drifts, Drifts] = ([], [])
    for i, use in enumerate(kit.recipe.towers):
        base = use.layer or Layer()
        skip = (place.clip_skip or 0) if use.skips else 0
        skipped = Layer(base.index - skip, base.norm)
        negatives = negative_plans[i] if negative_plans else ()
        encoded = encode_plans(
            use.architecture,
            towers.modules[i],
            [
                *map(Wanted, plans[i], repeat(skipped), strengths[0]),
                *map(Wanted, negatives, repeat(base), strengths[1]),
            ],
            lengths[i].windows,
            # Pooled states are not weighted, so a tower without token states needs no copies.
            EMPHASES[wording.emphasis if use.layer else "none"],
            wording.long_prompt,
            length=lengths[i].states,
            masked=use.masked or (kit.recipe.obeys_mask and kit.specs[i].attention_mask),
            device=towers.device,
            addons=kit.addons.towers[i] if kit.addons.towers else None,
        )
        of_rows = encoded.drifts if use.layer else (None,) * len(encoded.drifts)
        drifts[0].append(of_rows[:count])
        drifts[1].append(of_rows[count:])
        if use.layer is not None:
            parts.append((use, encoded.states.to(towers.modules[i].dtype)))
        if use.pooled and encoded.pooled is not None:
            pooled_parts.append(encoded.pooled)
    zeros = kit.zeros and (place.max_sequence_length or kit.zeros[0], kit.zeros[1])
    states = join_towers(parts, zeros)
    if not pooled_parts:
        return ((states[:count], None), (states[count:], None)), drifts
    pooled = torch.cat(pooled_parts, dim=-1)
    return ((states[:count], pooled[:count]), (states[count:], pooled[count:])), drifts


@dataclass(frozen=True)
class Lengths:
    """What one tower brings all plans to: so many windows, and in the end so many states."""

    windows: int
    states: int


def _lengths(kit: Kit, plans: Plans, negative_plans: Plans, wording: Wording) -> list[Lengths]:
    """For each tower. Those of one context have the same windows; those that stand beside each
    other come to one length. T5 has one window and its own length."""
    long = wording.long_prompt
    windowed = [use.length is None for use in kit.recipe.towers]
    most: dict[int, int] = {}
    for tower in (tower for some in (plans, negative_plans) for tower in compress(some, windowed)):
        for plan in tower:
            most[plan.limit] = max(most.get(plan.limit, 1), len(plan.windows))
    sizes = [joined_length(windows, limit, long.join) for limit, windows in most.items()]
    common = common_length(sizes, long.uneven) if sizes else 0
    return [
        Lengths(most[row[0].limit], common) if inside else Lengths(1, row[0].limit)
        for inside, row in zip(windowed, plans, strict=True)
    ]


def _traces(
    kit: Kit,
    towers: Towers,
    wording: Wording,
    by_prompt: tuple[tuple[TokenPlan, ...], ...],
    groups: tuple[Group, ...],
    drifts: Drifts,
) -> tuple[Trace, ...]:
    """The trace of each prompt; ``by_prompt`` as ``_by_prompt`` gives it."""
    eos = [
        module.config.eos_token_id if use.pooled else None
        for use, module in zip(kit.recipe.towers, towers.modules, strict=True)
    ]
    return tuple(
        trace_of(
            plans,
            [of_tower[row] for row in group.rows for of_tower in drifts],
            wording.long_prompt,
            eos,
        )
        for plans, group in zip(by_prompt, groups, strict=False)
    )


def _most_windows(*plans: tuple[tuple[TokenPlan, ...], ...]) -> int:
    """How many windows all are brought to."""
    return max(len(plan.windows) for some in plans for tower in some for plan in tower)


def _join(rows: Rows, groups: tuple[Group, ...], length: int) -> Rows:
    """Rows of prompts out of those of their parts."""
    states, pooled = rows
    joined = join_parts(states, groups, states[-1] if length > 1 else None, length)
    return joined, None if pooled is None else join_pooled_parts(pooled, groups)


def _by_row(
    of_prompts: Sequence[tuple[float, ...]],
    groups: tuple[Group, ...],
) -> Strengths:
    """The LoRAs' strengths of every row of plans, from those of the prompts.

    A row after those of all groups is the empty prompt that fills up prompts of fewer parts.
    Dialects that have those have no tags, so any prompt's strengths are its own.
    """
    found = [own for group, own in zip(groups, of_prompts, strict=False) for _ in group.rows]
    return [*found, of_prompts[0]]


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
    kit: Kit,
    wording: Wording,
    first: tuple[Prompt, ...],
    later: tuple[tuple[Prompt, ...] | None, ...],
    length: int | None,
) -> Plans:
    """For each tower, the plan of each prompt; ``later`` are other texts for those after the
    first, ``length`` is the caller's ``max_sequence_length``."""
    texts = (first, *(first if other is None else other for other in later))
    return tuple(
        tuple(
            normalised(plan, wording.token_normalization)
            for plan in plan_many(own, reader, use.component, wording.long_prompt.split)
        )
        for use, reader, own in zip(kit.recipe.towers, kit.readers(length), texts, strict=False)
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


def _cut_to_states(plans: Plans, lengths: Sequence[Lengths], wording: Wording, what: str) -> Plans:
    """The plans with what is lost where a tower of longer context is cut to one of shorter."""

    def cut(plan: TokenPlan, states: int, index: int) -> TokenPlan:
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

    return tuple(
        tuple(cut(plan, each.states, i) for i, plan in enumerate(tower))
        for tower, each in zip(plans, lengths, strict=False)
    )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")
