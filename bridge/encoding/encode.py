"""From the texts of a call to its ``Conditioning``: plan, run the towers, join, align.

A negative is a row with a role (``planning``), so prompts and negatives take this way together, and
part at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridge.encoding.conditioning import Conditioning
from bridge.encoding.emphasis import EMPHASES
from bridge.encoding.joining import (
    Alignment,
    align,
    alignment_of,
    join_entries,
    join_towers,
    key_bias,
    part_states,
    prompt_masks,
)
from bridge.encoding.model import UNETS, TextModel, Towers
from bridge.encoding.options import ParsedTexts, Request, TextRules
from bridge.encoding.planning import (
    Batch,
    Joining,
    Plans,
    Row,
    make_batch,
    most_windows,
    plan_rows,
    plans_by_entry,
)
from bridge.encoding.recipes import TowerUse
from bridge.encoding.state_cache import StateCache
from bridge.encoding.tower_pass import check_joined, check_rows, encode_plans, tower_of
from bridge.encoding.trace import Drift, traces_of, warn_of_drifts
from bridge.errors import OptionError, PromptError, UnsupportedModelError
from bridge.prompt import parse
from bridge.prompt.foreign_marks import warn_of_marks
from bridge.prompt.token_plan import as_written
from bridge.towers import LAST, Layer

if TYPE_CHECKING:
    from bridge.adapters.foreign_tower import ForeignTower


@torch.no_grad()
def encode(
    model: TextModel,
    rules: TextRules,
    request: Request,
    cache: StateCache,
    towers: Towers | None = None,
) -> Conditioning:
    """Plan and encode. Errors as ``bridge.condition``.

    Args:
        model: the model, add-ons bound to it.
        rules, request: what is asked of it.
        cache: states that are known, and where those that are new are kept.
        towers: the model's, if this call has looked at them; else they load when all is planned.
    """
    check_options(model, rules, request)
    warn_of_marks(request.sources, rules.dialect.name)
    sizes = request.sizes.filled(model.default_size) if model.recipe.time_ids else None
    negatives = _negatives(model, rules, request)
    strengths = [model.addons.strengths(each) for each in request.tagged]
    batch = make_batch(request.prompts, negatives, strengths)
    plans, joinings = plan_rows(model, rules, batch)
    bias = unet_bias(model, rules, plans, batch)
    counts = request.counts or (1,) * batch.count
    alignment = alignment_of(model, rules, plans, batch, counts, joinings[0].length)
    if model.mapped is not None:
        skip = rules.clip_skip or rules.negative_clip_skip
        model.mapped.check(rules.emphasis, skip, bool(model.addons.towers), plans)
    towers = towers or model.load()
    states, pooled, drifts = _run_towers(model, towers, rules, batch.rows, plans, joinings, cache)
    if batch.is_joined:
        full = states.shape[1]
        own = [part_states(model, rules, plans, entry, full) for entry in batch.entries]
        whole = any(plan.raw is not None for tower in plans for plan in tower)
        states, pooled = join_entries(states, pooled, batch, own, whole)
        check_joined(batch, states)
    states, pooled = _without_empty(model, rules, batch, states, pooled)
    tensors = _tensors(model, batch, plans, alignment, states, pooled, bias)
    by_entry = plans_by_entry(plans, batch)
    eos = [
        module.config.eos_token_id if use.pooled else None
        for use, module in zip(model.recipe.towers, towers.modules, strict=True)
    ]
    traces = traces_of(eos, rules.long_prompt, by_entry, batch.entries, drifts)
    warn_of_drifts(traces, batch.entries)
    own_plans, negative_plans = batch.by_role(by_entry)
    own_traces, negative_traces = batch.by_role(traces)
    names = (use.component for use in model.recipe.towers)
    addons = (*model.swaps, *model.addons.account(request.tagged))
    return Conditioning(
        **tensors,
        add_time_ids=None
        if sizes is None
        else torch.tensor(
            [sizes.time_ids(model.wants_score)] * batch.count,
            dtype=states.dtype,
            device=states.device,
        ),
        plans=tuple(
            tuple(as_written(plan, each) for plan in row)
            for row, each in zip(own_plans, request.tagged, strict=True)
        ),
        negative_plans=tuple(negative_plans),
        recipe=model.recipe,
        fingerprints=dict(zip(names, towers.fingerprints, strict=True))
        | {each.label: each.hash for each in addons},
        sizes=sizes,
        addons=addons,
        traces=tuple(own_traces),
        negative_traces=tuple(negative_traces),
    )


def _negatives(model: TextModel, rules: TextRules, request: Request) -> ParsedTexts:
    """The negatives to encode; none where zeros or nothing stand for them.

    SDXL was trained with zeros in the place of an empty text. diffusers puts them where no negative
    is given and the pipeline's ``force_zeros_for_empty_prompt`` says so; ComfyUI encodes ``""``.
    """
    if request.negatives[0] is not None:
        return request.negatives
    zeros = model.zeros_for_none and rules.dialect.empty_negative != "encoded"
    if zeros or model.recipe.none_for_none:
        return request.negatives
    assert request.prompts[0] is not None
    empty = (parse("", rules.dialect.name),) * len(request.prompts[0])
    return (empty, *request.negatives[1:])


def _without_empty(
    model: TextModel, rules: TextRules, batch: Batch, states: Tensor, pooled: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The entries, with zeros for negatives that are the empty text, where the webui has them
    (``get_learned_conditioning`` in ``sd_models_xl.py``)."""
    if not model.zeros_for_none or rules.dialect.empty_negative != "zeros":
        return states, pooled
    kept = [
        entry.role == "prompt" or any(text.source for text in batch.rows[entry.rows[0]].texts)
        for entry in batch.entries
    ]
    if all(kept):
        return states, pooled
    factors = states.new_tensor([float(each) for each in kept])
    states = states * factors[:, None, None]
    return states, None if pooled is None else pooled * factors[:, None].to(pooled)


# ---------------------------------------------------------------- towers


def _run_towers(
    model: TextModel,
    towers: Towers,
    rules: TextRules,
    rows: Sequence[Row],
    plans: Plans,
    joinings: Sequence[Joining],
    cache: StateCache,
) -> tuple[Tensor, Tensor | None, list[Sequence[Drift | None]]]:
    """Token states ``(N, T, D)`` and pooled states ``(N, P)`` of N rows over all towers, and for
    each tower what emphasis did to each row. Raises NumbersError."""
    parts: list[tuple[TowerUse, Tensor]] = []
    pooled: list[Tensor] = []
    drifts: list[Sequence[Drift | None]] = []
    limits = []
    mapped = model.mapped
    readings = mapped.read(plans, towers.device) if mapped else {}
    for at, use in enumerate(model.recipe.towers):
        # Of what the pooled states are read instead; equal texts are encoded once.
        raw = [replace(plan, windows=(plan.raw,)) for plan in plans[at] if plan.raw is not None]
        every = [*plans[at], *raw]
        if mapped is not None:
            encoded = mapped.encode(use.component, every, joinings[at], readings, towers.device)
        else:
            layers = [_layer(use, rules, row) for row in rows]
            strengths = [row.strengths for row in rows]
            if raw:
                layers, strengths = layers * 2, strengths * 2
            tower = tower_of(model, towers, at)
            encoded = encode_plans(tower, every, layers, joinings[at], strengths, cache)
        dtype = towers.watches[at].dtype
        if use.layer is not None:
            parts.append((use, encoded.states[: len(rows)].to(dtype)))
        if use.pooled and encoded.pooled is not None:
            pooled.append(encoded.pooled[len(raw) :].to(dtype))
        limits.append(encoded.limits)
        drifts.append(encoded.drifts[: len(rows)] if use.layer else (None,) * len(rows))
    files = [*(each.source for each in model.addons.inversions)]
    files += [each.lora.source for each, _ in model.addons.loras]
    check_rows(plans, limits, rules.emphasis, _adapter_of(mapped), files)
    states = join_towers(parts, _zeros(model, rules))
    return states, torch.cat(pooled, dim=-1) if pooled else None, drifts


def _adapter_of(mapped: ForeignTower | None) -> str:
    """An adapter as messages call it; "" without one."""
    if mapped is None:
        return ""
    source = mapped.adapter.source
    return f"The adapter from {mapped.tower.name}{f' ({source})' if source else ''}"


def _layer(use: TowerUse, rules: TextRules, row: Row) -> Layer:
    """The layer that a row's states are taken from."""
    base = use.layer or LAST
    skip = rules.skip(row.role == "negative_prompt") if use.skips else 0
    return Layer(base.index - skip, base.norm) if skip else base


def _zeros(model: TextModel, rules: TextRules) -> tuple[int, int] | None:
    """What stands for an optional tower that is left out; ComfyUI puts nothing in its place."""
    if model.zeros is None:
        return None
    absent = model.zeros[0] if rules.dialect.fills_absent else 0
    return rules.max_sequence_length or absent, model.zeros[1]


# ---------------------------------------------------------------- tensors


def _tensors(
    model: TextModel,
    batch: Batch,
    plans: Plans,
    alignment: Alignment | None,
    states: Tensor,
    pooled: Tensor | None,
    bias: Tensor | None,
) -> dict[str, Any]:
    """The tensors of a ``Conditioning`` by their names, out of those of all entries."""
    states, bias = align(alignment, states, bias)
    found = _by_role(batch, "prompt_embeds", states)
    if pooled is not None:
        found |= _by_role(batch, "pooled_prompt_embeds", pooled)
    else:
        found |= {"pooled_prompt_embeds": None, "negative_pooled_prompt_embeds": None}
    if bias is not None:
        found |= _by_role(batch, "attention_bias", bias)
    if model.recipe.mask is not None:
        masks = prompt_masks(plans[0], batch, model.recipe.mask, states)
        found |= _by_role(batch, "prompt_attention_mask", masks)
    if batch.count < len(batch.entries):
        return found
    # No negatives were encoded: zeros stand for them, or nothing.
    for name in [name for name in found if name.startswith("negative_")]:
        own = found[name.removeprefix("negative_")]
        if own is not None and not model.recipe.none_for_none:
            found[name] = torch.zeros_like(own)
    if bias is not None and alignment is not None and alignment.hides:
        # Zeros have the extents of their prompts.
        found["negative_attention_bias"] = alignment.hidden(states)
    return found


def _by_role(batch: Batch, name: str, entries: Tensor) -> dict[str, Tensor | None]:
    own, negative = entries[: batch.count], entries[batch.count :]
    return {name: own, f"negative_{name}": negative if len(negative) else None}


# ---------------------------------------------------------------- what a model has no use for

_COUNTS = {1: "one", 2: "two", 3: "three"}


def check_options(model: TextModel, rules: TextRules, request: Request) -> None:
    """Refuse options that would be dropped or that reach past the tower's layers."""
    skipping = [
        pair for pair in zip(model.recipe.towers, model.specs, strict=True) if pair[0].skips
    ]
    skips = {"clip_skip": rules.clip_skip, "negative_clip_skip": rules.negative_clip_skip}
    for name, skip in skips.items():
        if skip and not skipping:
            raise OptionError(
                f"{name} needs a CLIP tower whose token states are used; {model.recipe.name} has "
                "none, so leave it out."
            )
        for use, spec in skipping:
            most = spec.layers + 1 + (use.layer or LAST).index
            if skip is not None and skip > most:
                raise OptionError(
                    f"{name}={skip} reaches past {use.component}, which has "
                    f"{spec.layers} layers; the recipe {model.recipe.name} allows 0 to {most}."
                )
    if rules.max_sequence_length is not None and not (
        model.zeros or any(use.length for use in model.recipe.towers)
    ):
        raise OptionError(
            f"max_sequence_length belongs to T5; {model.recipe.name} has no such tower, so leave "
            "it out."
        )
    for number in (2, 3):
        _check_later(model, number, request.prompts, request.negatives)
    sizes = request.sizes
    named = (sizes.original_size, sizes.crops_coords_top_left, sizes.target_size)
    if not model.recipe.time_ids and any(size is not None for size in named):
        raise OptionError(
            f"original_size, crops_coords_top_left and target_size belong to SDXL; "
            f"{model.recipe.name} is not conditioned on sizes, so leave them out."
        )


def _check_later(
    model: TextModel, number: int, prompts: ParsedTexts, negatives: ParsedTexts
) -> None:
    """Refuse a text of a later tower's own that would be dropped."""
    own, negative = prompts[number - 1], negatives[number - 1]
    if own is None and negative is None:
        return
    name = f"prompt_{number}"
    if len(model.recipe.towers) < number:
        raise OptionError(
            f"{name} and negative_{name} need {_COUNTS[number]} towers; {model.recipe.name} has "
            f"{_COUNTS[len(model.recipe.towers)]}."
        )
    missing = negatives[0] is None and (model.zeros_for_none or model.recipe.none_for_none)
    if negative is not None and missing:
        # diffusers drops it without a word where None means zeros or nothing.
        raise PromptError(f"negative_{name} was given without negative_prompt; give both.")


# ---------------------------------------------------------------- UNets alone


def check_unet(model: TextModel, what: str) -> None:
    """Raises UnsupportedModelError unless the model draws with a UNet."""
    if not model.is_unet:
        raise UnsupportedModelError(
            f"{what} inside a UNet; {model.source} ({model.recipe.name}) has none. It works with "
            f"{', '.join(UNETS)}."
        )


def unet_bias(model: TextModel, rules: TextRules, plans: Plans, batch: Batch) -> Tensor | None:
    """What an emphasis adds inside the UNet, ``(N, T')`` for N rows. Refuses weights that it has no
    meaning for."""
    emphasis = EMPHASES[rules.emphasis]
    every = [plan for tower in plans for plan in tower]
    for plan in every:
        emphasis.check(plan)
    if not emphasis.biases or not any(plan.is_weighted for plan in every):
        return None
    # T5 attends both ways, so that a bias would mean something else there.
    check_unet(model, f"The emphasis {rules.emphasis} acts beside or")
    if len({plan.limit for plan in every}) > 1:
        raise OptionError(
            f"{rules.emphasis} does not go with towers of unequal context; use another emphasis."
        )
    if not emphasis.in_unet:
        return None
    if batch.is_joined:
        raise PromptError(f"{rules.emphasis} does not go with prompts of several parts.")
    return key_bias(plans, most_windows(plans), rules.long_prompt)
