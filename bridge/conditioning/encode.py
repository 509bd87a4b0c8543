"""``bridge.condition``: prompts in, the tensors of a diffusers pipeline out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.kit import Kit, Towers, open_kit
from bridge.conditioning.passes import Wanted, encode_plans
from bridge.conditioning.result import Conditioning
from bridge.conditioning.sizes import check_length, check_pair, make_sizes
from bridge.conditioning.wording import Wording, read_wording
from bridge.errors import OptionError, PromptError
from bridge.prompt import (
    LongPrompt,
    TokenPlan,
    TruncationWarning,
    check_paired,
    check_prompts,
    normalised,
    plan_many,
)
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
        ``TruncationWarning``.

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
    _check_skip(clip_skip)
    high, wide = check_length(height, "height"), check_length(width, "width")
    original = check_pair(original_size, "original_size", 1)
    crop = check_pair(crops_coords_top_left, "crops_coords_top_left", 0)
    target = check_pair(target_size, "target_size", 1)
    out_device = None if device is None else resolve_device(device)
    out_dtype = check_dtype(dtype)

    kit = open_kit(model, device=out_device, dtype=out_dtype, revision=revision)
    _check_options(kit, clip_skip, seconds, negatives, negative_seconds, (original, crop, target))
    sizes = (
        make_sizes(high, wide, original, crop, target, kit.default_size)
        if kit.recipe.time_ids
        else None
    )
    if negatives is None and not kit.zeros_for_none:
        negatives = ("",) * count
    plans = _plans(kit, wording, prompts, seconds)
    negative_plans = () if negatives is None else _plans(kit, wording, negatives, negative_seconds)
    _warn_of_cuts(plans, "prompt")
    _warn_of_cuts(negative_plans, "negative_prompt")

    towers = kit.load()
    with torch.no_grad():
        embeds, pooled, negative, negative_pooled = _encode(
            kit, towers, wording, plans, negative_plans, clip_skip or 0
        )
    by_prompt = tuple(zip(*plans, strict=True))
    by_negative = tuple(zip(*negative_plans, strict=True)) if negative_plans else ()
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
    )
    return found.to(out_device or towers.device, out_dtype or embeds.dtype)


# ---------------------------------------------------------------- encoding


def _encode(
    kit: Kit,
    towers: Towers,
    wording: Wording,
    plans: tuple[tuple[TokenPlan, ...], ...],
    negative_plans: tuple[tuple[TokenPlan, ...], ...],
    skip: int,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Prompt and negative states joined over the towers, and the last tower's pooled states."""
    parts = []
    pooled: Tensor | None = None
    # diffusers gives the joined states the dtype of the last tower.
    dtype = towers.modules[-1].dtype
    count = len(plans[0])
    windows = max(len(p.windows) for row in (*plans, *negative_plans) for p in row)
    for i, use in enumerate(kit.recipe.towers):
        base = use.layer
        skipped = Layer(base.index - skip, base.norm)
        negatives = negative_plans[i] if negative_plans else ()
        encoded = encode_plans(
            use.architecture,
            towers.modules[i],
            [*(Wanted(p, skipped) for p in plans[i]), *(Wanted(p, base) for p in negatives)],
            windows,
            EMPHASES[wording.emphasis],
            wording.long_prompt,
            masked=kit.recipe.obeys_mask and kit.specs[i].attention_mask,
            device=towers.device,
        )
        parts.append(encoded.states.to(dtype))
        pooled = encoded.pooled if kit.recipe.pooled else None
    states = torch.cat(parts, dim=-1)
    embeds, negative = states[:count], states[count:]
    if negative_plans:
        if pooled is None:
            return embeds, None, negative, None
        return embeds, pooled[:count], negative, pooled[count:]
    zeros = None if pooled is None else torch.zeros_like(pooled)
    return embeds, pooled, torch.zeros_like(embeds), zeros


def _plans(
    kit: Kit, wording: Wording, texts: tuple[str, ...], second: tuple[str, ...] | None
) -> tuple[tuple[TokenPlan, ...], ...]:
    """For each tower, the plan of each text; ``second`` goes to the towers after the first."""
    first = [wording.parse(text) for text in texts]
    later = first if second is None else [wording.parse(text) for text in second]
    return tuple(
        tuple(
            normalised(plan, wording.token_normalization)
            for plan in plan_many(
                later if i else first, tokenizer, use.component, wording.long_prompt.split
            )
        )
        for i, (use, tokenizer) in enumerate(zip(kit.recipe.towers, kit.tokenizers, strict=True))
    )


def _warn_of_cuts(plans: tuple[tuple[TokenPlan, ...], ...], what: str) -> None:
    for index, one in enumerate(zip(*plans, strict=True)):
        # Towers that cut the same text say so once.
        cuts = {(plan.cut, plan.limit, plan.cut_tokens): plan.tower for plan in one if plan.cut}
        for (cut, limit, tokens), tower in cuts.items():
            quoted = cut if len(cut) <= _QUOTED else cut[:_QUOTED] + "…"
            warnings.warn(
                f"{what} {index}: {tokens} tokens do not fit the {limit} of {tower} and are cut "
                f"off: {quoted!r}",
                TruncationWarning,
                stacklevel=3,
            )


# ---------------------------------------------------------------- options


def _check_skip(clip_skip: object) -> None:
    if clip_skip is None:
        return
    if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or clip_skip < 0:
        raise OptionError(f"clip_skip must be a whole number from 0 up, not {clip_skip!r}.")


def _check_options(
    kit: Kit,
    clip_skip: int | None,
    seconds: tuple[str, ...] | None,
    negatives: tuple[str, ...] | None,
    negative_seconds: tuple[str, ...] | None,
    sizes: tuple[tuple[int, int] | None, ...],
) -> None:
    """Refuse options that would be dropped or that reach past the tower's layers."""
    for use, spec in zip(kit.recipe.towers, kit.specs, strict=True):
        most = spec.layers + 1 + use.layer.index
        if clip_skip is not None and clip_skip > most:
            raise OptionError(
                f"clip_skip={clip_skip} reaches past {use.component}, which has {spec.layers} "
                f"layers; the recipe {kit.recipe.name} allows 0 to {most}."
            )
    if len(kit.recipe.towers) < 2 and (seconds is not None or negative_seconds is not None):
        raise OptionError(
            f"prompt_2 and negative_prompt_2 need two towers; {kit.recipe.name} has one."
        )
    if negative_seconds is not None and negatives is None:
        # diffusers drops it without a word where None means zeros.
        raise PromptError("negative_prompt_2 was given without negative_prompt; give both.")
    if not kit.recipe.time_ids and any(size is not None for size in sizes):
        raise OptionError(
            f"original_size, crops_coords_top_left and target_size belong to SDXL; "
            f"{kit.recipe.name} is not conditioned on sizes, so leave them out."
        )
