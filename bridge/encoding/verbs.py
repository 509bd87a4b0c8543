"""The verbs of conditioning: ``condition``, ``schedule``, ``compose``, ``regional``.

Each is a call of the encoder that is kept for its model: of a live pipeline as long as the
pipeline lives, of the last two folders until their files change. Texts and options are checked
before a model is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from bridge.embedded import DRAWING
from bridge.encoding.composition import Composition, read_composition
from bridge.encoding.conditioning import Conditioning
from bridge.encoding.encoder import Encoder, split_options
from bridge.encoding.options import EncodeOptions, Model, RegionOptions, Texts, read_call, takes
from bridge.encoding.prompt_schedule import PromptSchedule, read_schedule, steps_of
from bridge.encoding.regions import Region, RegionalConditioning, read_regional
from bridge.prompt.prompt import Rule


@takes(EncodeOptions)
def condition(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    model: Model = DRAWING,
    **options: Unpack[EncodeOptions],
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
        model: an embedded name, a short name (``sd15``, ``sd21``, ``sdxl``), a hub id, a
            folder in diffusers' layout, or a live pipeline, which is used as it is (its towers,
            device and dtype) and not changed. ``bridge.encoding.RECIPES`` are the kinds.
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
            ``bridge.encoding.emphasis.EMPHASES``. Default: the dialect's own.
        token_normalization: how weights are adjusted before: ``none``, ``length``, ``mean`` or
            ``length+mean``.
        long_prompt: what is done with prompts longer than a tower's context, a name of
            ``bridge.prompt.LONG_PROMPTS`` or a ``LongPrompt``. Default: the dialect's own; plain
            prompts are truncated. T5 has one window.
        align: how prompts and negatives of unequal length come to one: ``repeat`` their states up
            to a common multiple, which leaves a UNet's cross-attention as it was, or fill the
            shorter up with windows of the ``empty`` prompt. Default: the dialect's own, ``repeat``
            for a1111 and comfy. See ``bridge.encoding.joining``.
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
        an ``OffManifoldWarning``. Marks of another tool that the dialect reads as text raise a
        ``DialectWarning``.

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
    own, more = split_options(options)
    call = read_call(prompt, negative_prompt, more)
    request = call.request()
    return Encoder.over_kept(model, own).run(call, request)


@takes(EncodeOptions)
def schedule(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    steps: int | None = None,
    num_inference_steps: int | None = None,
    model: Model = DRAWING,
    rule: Rule = "new",
    **options: Unpack[EncodeOptions],
) -> PromptSchedule:
    """Encode prompts and negatives for a run of ``steps`` steps.

    Args:
        steps, num_inference_steps: of the run, by bridge's name or by diffusers'. Of a live
            pipeline whose solver calls the model twice a step, ``when`` counts those calls,
            fractions of them too.
        rule: how the numbers in ``[from:to:when]`` are read: ``new``, with a point a fraction of
            the steps, else a step; ``old``, below 1 a fraction.

    The other options are those of ``bridge.condition``, and so are the errors.
    """
    own, more = split_options(options)
    asked = read_schedule(
        read_call(prompt, negative_prompt, more), steps_of(steps, num_inference_steps), rule
    )
    return Encoder.over_kept(model, own).run_schedule(asked)


@takes(EncodeOptions)
def compose(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    model: Model = DRAWING,
    **options: Unpack[EncodeOptions],
) -> Composition:
    """Encode prompts of several parts, ``a cat AND a dog :0.7``, in one pass a tower.

    A prompt without ``AND`` is one part of weight 1. Negatives have no parts, as in
    stable-diffusion-webui. Prompts that change from step to step go to ``bridge.schedule``, which
    reads ``AND`` too.

    ::

        both = bridge.compose("a cat AND a dog :0.7", model=pipe)
        with bridge.inject(pipe, both) as kwargs:
            image = pipe(**kwargs).images[0]

    The options are those of ``bridge.condition``, and so are the errors.
    """
    own, more = split_options(options)
    call = read_call(prompt, negative_prompt, more)
    asked = read_composition(call)
    return Encoder.over_kept(model, own).run_composition(asked)


@takes(RegionOptions)
def regional(
    prompt: str,
    regions: Sequence[Region],
    negative_prompt: str | None = None,
    *,
    base_weight: float = 0.0,
    model: Model = DRAWING,
    **options: Unpack[RegionOptions],
) -> RegionalConditioning:
    """Encode a base prompt and the prompts of regions, in one pass a tower.

    ::

        plan = bridge.regional(
            "a meadow", [Region("a cat", box=(0, 0, 0.5, 1)), Region("a dog", box=(0.5, 0, 1, 1))]
        )
        with bridge.inject(pipe, plan) as kwargs:
            image = pipe(**kwargs).images[0]

    Args:
        prompt: what is drawn where no region is.
        regions: at least one; the module's docstring has the rule for overlaps.
        base_weight: the base prompt's share inside the regions, 0 to 1.

    The other options are those of ``bridge.condition``; a region in pixels is in those of
    ``height`` and ``width``, by default the model's own.

    Raises:
        OptionError: no region, a region outside the picture, or a share that is none.

    It also raises what ``bridge.condition`` raises.
    """
    own, more = split_options(options)
    asked = read_regional(prompt, regions, negative_prompt, base_weight, more)
    return Encoder.over_kept(model, own).run_regional(asked)
