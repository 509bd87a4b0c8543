"""Options of ``condition`` that a model must have a use for, refused before any tower loads."""

from __future__ import annotations

from bridge.conditioning.kit import Kit
from bridge.conditioning.request import ParsedTexts, Place
from bridge.errors import OptionError, PromptError
from bridge.prompt import Prompt
from bridge.prompt.tree import parts_of
from bridge.towers import Layer

_COUNTS = {1: "one", 2: "two", 3: "three"}


def check_options(kit: Kit, place: Place, texts: ParsedTexts) -> None:
    """Refuse options that would be dropped or that reach past the tower's layers."""
    skipping = [pair for pair in zip(kit.recipe.towers, kit.specs, strict=True) if pair[0].skips]
    skips = {"clip_skip": place.clip_skip, "negative_clip_skip": place.negative_clip_skip}
    for name, skip in skips.items():
        if skip and not skipping:
            raise OptionError(
                f"{name} needs a CLIP tower whose token states are used; {kit.recipe.name} has "
                "none, so leave it out."
            )
        for use, spec in skipping:
            most = spec.layers + 1 + (use.layer or Layer()).index
            if skip is not None and skip > most:
                raise OptionError(
                    f"{name}={skip} reaches past {use.component}, which has "
                    f"{spec.layers} layers; the recipe {kit.recipe.name} allows 0 to {most}."
                )
    if place.max_sequence_length is not None and not (
        kit.zeros or any(use.length for use in kit.recipe.towers)
    ):
        raise OptionError(
            f"max_sequence_length belongs to T5; {kit.recipe.name} has no such tower, so leave "
            "it out."
        )
    _check_later(kit, texts, 2, texts.seconds, texts.negative_seconds)
    _check_later(kit, texts, 3, texts.thirds, texts.negative_thirds)
    sizes = (place.original_size, place.crop, place.target_size)
    if not kit.recipe.time_ids and any(size is not None for size in sizes):
        raise OptionError(
            f"original_size, crops_coords_top_left and target_size belong to SDXL; "
            f"{kit.recipe.name} is not conditioned on sizes, so leave them out."
        )


def _check_later(
    kit: Kit,
    texts: ParsedTexts,
    number: int,
    own: tuple[Prompt, ...] | None,
    negative: tuple[Prompt, ...] | None,
) -> None:
    """Refuse a text of a later tower's own that would be dropped."""
    if own is None and negative is None:
        return
    name = f"prompt_{number}"
    if len(kit.recipe.towers) < number:
        raise OptionError(
            f"{name} and negative_{name} need {_COUNTS[number]} towers; {kit.recipe.name} has "
            f"{_COUNTS[len(kit.recipe.towers)]}."
        )
    if any(len(parts_of(p.tree)) > 1 for p in (*texts.prompts, *(texts.negatives or ()))):
        raise PromptError(f"{name} cannot go with a prompt of several parts; give one of them.")
    missing = texts.negatives is None and (kit.zeros_for_none or kit.recipe.none_for_none)
    if negative is not None and missing:
        # diffusers drops it without a word where None means zeros or nothing.
        raise PromptError(f"negative_{name} was given without negative_prompt; give both.")
