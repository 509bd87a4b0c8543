"""What a model has no use for, refused before any tower loads."""

from __future__ import annotations

from torch import Tensor

from bridge.encoding.batch import Batch, ParsedTexts
from bridge.encoding.emphasis import EMPHASES
from bridge.encoding.model import TextModel
from bridge.encoding.options import TextRules
from bridge.encoding.planning import Plans, most_windows
from bridge.encoding.recipes import RECIPES
from bridge.encoding.sizes import SizeRequest
from bridge.errors import OptionError, PromptError, UnsupportedModelError
from bridge.prompt.syntax import parts_of
from bridge.towers import Layer

_COUNTS = {1: "one", 2: "two", 3: "three"}
# DeepFloyd IF has a UNet too, but reads T5.
_UNETS = tuple(
    name
    for name, recipe in RECIPES.items()
    if recipe.backbone == "unet" and all(use.length is None for use in recipe.towers)
)


def check_options(
    model: TextModel,
    rules: TextRules,
    sizes: SizeRequest,
    prompts: ParsedTexts,
    negatives: ParsedTexts,
) -> None:
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
            most = spec.layers + 1 + (use.layer or Layer()).index
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
        _check_later(model, number, prompts, negatives)
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
    own, negative = prompts.later[number - 2], negatives.later[number - 2]
    if own is None and negative is None:
        return
    name = f"prompt_{number}"
    if len(model.recipe.towers) < number:
        raise OptionError(
            f"{name} and negative_{name} need {_COUNTS[number]} towers; {model.recipe.name} has "
            f"{_COUNTS[len(model.recipe.towers)]}."
        )
    every = (*(prompts.first or ()), *(negatives.first or ()))
    if any(len(parts_of(each.tree)) > 1 for each in every):
        raise PromptError(f"{name} cannot go with a prompt of several parts; give one of them.")
    missing = negatives.first is None and (model.zeros_for_none or model.recipe.none_for_none)
    if negative is not None and missing:
        # diffusers drops it without a word where None means zeros or nothing.
        raise PromptError(f"negative_{name} was given without negative_prompt; give both.")


# ---------------------------------------------------------------- UNets alone


def is_unet(model: TextModel) -> bool:
    """Whether the model draws with a UNet that reads CLIP."""
    return model.recipe.name in _UNETS


def check_unet(model: TextModel, what: str) -> None:
    """Raises UnsupportedModelError unless the model draws with a UNet."""
    if not is_unet(model):
        raise UnsupportedModelError(
            f"{what} inside a UNet; {model.source} ({model.recipe.name}) has none. It works with "
            f"{', '.join(_UNETS)}."
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
    found = emphasis.key_bias(plans, most_windows(plans), rules.long_prompt)
    if found is not None and batch.is_joined:
        raise PromptError(f"{rules.emphasis} does not go with prompts of several parts.")
    return found
