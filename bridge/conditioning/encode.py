"""``bridge.condition``: prompts in, the tensors of a diffusers pipeline out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.adapters.swap import with_towers
from bridge.conditioning.addons import fitted
from bridge.conditioning.alignment import Alignment, alignment_of, part_states
from bridge.conditioning.brought import Loras, TextualInversions, bring
from bridge.conditioning.drift import warn_of_drifts
from bridge.conditioning.kit import Kit, open_kit
from bridge.conditioning.limits import check_options
from bridge.conditioning.masks import masks_of
from bridge.conditioning.negatives import emptied, given
from bridge.conditioning.parts import split_parts
from bridge.conditioning.planning import (
    cut_to_states,
    lengths_of,
    levelled,
    plans_by_prompt,
    plans_of,
    warn_of_cuts,
)
from bridge.conditioning.request import ParsedTexts, Place, Texts, read_place
from bridge.conditioning.result import Conditioning
from bridge.conditioning.rows import encode_rows, join_rows, strengths_by_row
from bridge.conditioning.sizes import make_sizes
from bridge.conditioning.soundness import check_joined
from bridge.conditioning.trace import traces_of
from bridge.conditioning.unet_only import unet_biases
from bridge.conditioning.wording import Wording, read_wording
from bridge.embedded import DRAWING
from bridge.prompt import LongPrompt, Prompt, check_paired, check_prompts, parse
from bridge.prompt.loras import Tagged, as_written


def condition(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    model: Any = DRAWING,
    towers: Any = None,
    adapter: Any = None,
    prompt_2: Texts | None = None,
    negative_prompt_2: Texts | None = None,
    prompt_3: Texts | None = None,
    negative_prompt_3: Texts | None = None,
    dialect: str = "a1111",
    emphasis: str | None = None,
    token_normalization: str = "none",
    long_prompt: str | LongPrompt | None = None,
    align: str | None = None,
    clean: str | None = None,
    textual_inversions: TextualInversions | None = None,
    loras: Loras | None = None,
    clip_skip: int | None = None,
    negative_clip_skip: int | None = None,
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
        towers: other text towers than the model's own: a name, hub id, folder or open
            ``bridge.towers.TextTower``; a list, one for each of the model's (None leaves its own);
            or ``{"text_encoder": tower}``. A tower of the same kind and widths (a fine-tuned
            CLIP-L, Long-CLIP-L) takes the place of one as it is, with its own tokenizer; any
            other needs an ``adapter``. The model and its pipeline are not changed.
        adapter: a ``bridge.Adapter`` or its file, fitted on the one tower of ``towers`` for this
            model. The model's tokenizers still make the windows and give the places of weights;
            its towers are not run.
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
            prompts are truncated. T5 has one window.
        align: how prompts and negatives of unequal length come to one: ``repeat`` their states up
            to a common multiple, which leaves a UNet's cross-attention as it was, or fill the
            shorter up with windows of the ``empty`` prompt. Default: the dialect's own, ``repeat``
            for a1111 and comfy. See ``bridge.conditioning.alignment``.
        clean: how text is cleaned before it is tokenized: ``none``, ``ftfy``, ``whitespace``,
            ``lower`` or ``canonicalize``; see ``bridge.cleaning``. Default: the dialect's own;
            a1111 cleans what CLIP reads, by ``ftfy``, and by ``lower`` what a tower of open_clip
            reads (SD 2's, SDXL's second), the others nothing.
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
            the recipe's.
        negative_clip_skip: the same for the negative. Default: as the dialect's tool does it;
            ``plain`` keeps the recipe's layer as diffusers does, the others skip as many as for
            the prompt.
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
        WeightsError: an adapter that is damaged or was fitted on or for other towers.
        UnsupportedModelError: there is no recipe for it; a tower that cannot feed cross-attention.
        NumbersError: states that are not finite, or that weights made all zero.
    """
    prompts = check_prompts(prompt)
    count = len(prompts)
    negatives = check_paired(negative_prompt, count)
    seconds = check_paired(prompt_2 or None, count, "prompt_2")
    negative_seconds = check_paired(negative_prompt_2 or None, count, "negative_prompt_2")
    thirds = check_paired(prompt_3 or None, count, "prompt_3")
    negative_thirds = check_paired(negative_prompt_3 or None, count, "negative_prompt_3")
    wording = read_wording(dialect, emphasis, token_normalization, long_prompt, align, clean)
    place = read_place(
        clip_skip,
        height,
        width,
        device,
        dtype,
        original_size=original_size,
        crops_coords_top_left=crops_coords_top_left,
        target_size=target_size,
        max_sequence_length=max_sequence_length,
        negative_clip_skip=negative_clip_skip,
    )
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
    kit = fitted(with_towers(kit, towers, adapter, place.device), brought, dialect)
    return encode_texts(kit, wording, place, texts)


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
    negatives = given(kit, wording, texts.negatives, count)
    prompts, groups = split_parts(texts.prompts)
    negative_parts, negative_groups = split_parts(negatives or ())
    # The empty prompt comes last where parts are weighed from it and prompts filled up with it.
    ends = any(group.kind == "and" for group in (*groups, *negative_groups))
    filling = (parse("", wording.dialect),) if ends else ()
    most = place.max_sequence_length
    plans = plans_of(kit, wording, (*prompts, *filling), (texts.seconds, texts.thirds), most)
    negative_plans = (
        ()
        if negatives is None
        else plans_of(
            kit, wording, (*negative_parts, *filling),
            (texts.negative_seconds, texts.negative_thirds), most,
        )
    )  # fmt: skip
    plans, negative_plans = levelled(plans, negative_plans)
    biases = unet_biases(kit, wording, plans, negative_plans, (*groups, *negative_groups))
    warn_of_cuts(plans, "prompt", groups)
    warn_of_cuts(negative_plans, "negative_prompt", negative_groups)
    lengths = lengths_of(kit, plans, negative_plans, wording)
    plans = cut_to_states(plans, lengths, wording, "prompt")
    negative_plans = cut_to_states(negative_plans, lengths, wording, "negative_prompt")

    alignment = alignment_of(
        kit,
        wording,
        (plans, negative_plans),
        (groups, negative_groups),
        texts.counts or (1,) * len(groups),
        lengths[0].states,
    )
    if kit.mapped is not None:
        every = [(*own, *more) for own, more in zip_longest(plans, negative_plans, fillvalue=())]
        skip = place.clip_skip or place.negative_clip_skip
        kit.mapped.check(wording.emphasis, skip, bool(kit.addons.towers), every)
    towers = kit.load()
    with torch.no_grad():
        of_prompts = [kit.addons.strengths(each) for each in tagged]
        strengths = (
            strengths_by_row(of_prompts, groups),
            strengths_by_row(of_prompts, negative_groups),
        )
        both, drifts = encode_rows(
            kit, towers, wording, plans, negative_plans, lengths, place, strengths
        )
        full = both[0][0].shape[1]
        own, negative_own = (
            [part_states(kit, tower_plans, group, wording, full) for group in some]
            for tower_plans, some in ((plans, groups), (negative_plans, negative_groups))
        )
        length = max(
            sum(counts) if group.kind == "and" else full
            for group, counts in zip(
                (*groups, *negative_groups), (*own, *negative_own), strict=True
            )
        )
        whole = any(plan.raw is not None for tower in plans for plan in tower)
        embeds, pooled = join_rows(both[0], groups, own, ends, length, whole)
        check_joined(prompts, groups, embeds, "prompt")
        negative: Tensor | None = None
        negative_pooled: Tensor | None = None
        if negatives is not None:
            read = zip(negatives, *filter(None, (texts.negative_seconds,)), strict=True)
            negative, negative_pooled = emptied(
                kit,
                wording,
                join_rows(both[1], negative_groups, negative_own, ends, length, whole),
                [tuple(each.source for each in some) for some in read],
            )
            check_joined(negative_parts, negative_groups, negative, "negative_prompt")
        elif not kit.recipe.none_for_none:
            negative = torch.zeros_like(embeds)
            negative_pooled = None if pooled is None else torch.zeros_like(pooled)
        embeds, negative, biases = _aligned(alignment, embeds, negative, biases)
    by_prompt = plans_by_prompt(plans, groups)
    by_negative = plans_by_prompt(negative_plans, negative_groups) if negative_plans else ()
    traces = traces_of(kit, towers, wording, by_prompt, groups, drifts[0])
    negative_traces = traces_of(kit, towers, wording, by_negative, negative_groups, drifts[1])
    warn_of_drifts([trace.drifts for trace in traces], "prompt", 3)
    warn_of_drifts([trace.drifts for trace in negative_traces], "negative_prompt", 3)
    names = (use.component for use in kit.recipe.towers)
    addons = (*kit.swaps, *kit.addons.account(tagged))
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
        **masks_of(kit, plans, groups, negative_plans, negative_groups, length // full, embeds),
        addons=addons,
        **biases,
        traces=traces,
        negative_traces=negative_traces,
    )
    return found.to(place.device or towers.device, place.dtype)


def _aligned(
    alignment: Alignment | None,
    embeds: Tensor,
    negative: Tensor | None,
    biases: dict[str, Tensor],
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Prompts' and negatives' states and biases brought to one length."""
    if alignment is None:
        return embeds, negative, biases
    prompts = alignment.prompts
    # Negatives that are zeros have the extents of their prompts.
    negatives = alignment.negatives or prompts
    found = {
        name: alignment.bring(bias, negatives if name.startswith("negative") else prompts)
        for name, bias in biases.items()
    }
    if alignment.hides:
        for name, extents in (("attention_bias", prompts), ("negative_attention_bias", negatives)):
            hidden = alignment.hidden(extents, embeds)
            found[name] = found[name] + hidden if name in found else hidden
    return (
        alignment.bring(embeds, prompts),
        None if negative is None else alignment.bring(negative, negatives),
        found,
    )
