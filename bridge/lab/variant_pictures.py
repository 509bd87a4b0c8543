"""Pictures of variants: the same seeds for each, each tower choice, drawn once and kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridge.diffusion.drawing import own_copy
from bridge.diffusion.heat import HeatMaps, heat_maps
from bridge.diffusion.hooks import unet_of
from bridge.encoding import condition
from bridge.encoding.model import TextModel
from bridge.errors import OffManifoldWarning, OptionError, UnsupportedModelError
from bridge.lab.cache import Cache
from bridge.lab.cache_keys import key_of, pipeline_key
from bridge.lab.study_inputs import DrawSettings, Subject
from bridge.lab.tower_choices import WHOLE, TowerSwap, ablated
from bridge.lab.variants.variant import Variant
from bridge.lab.variants.words import SMALL_WORDS, split_words
from bridge.progress import OnProgress, Progress
from bridge.prompt import TruncationWarning

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_WORDS = 6


@dataclass(frozen=True, eq=False)
class VariantPicture:
    """One picture. ``heat`` has the map of each word ``(h, w)``, where there are maps."""

    variant: Variant
    choice: str
    seed: int
    image: Image
    heat: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Renderer:
    """A model and how it is drawn with.

    Attributes:
        pipe: the pipeline, which stays as it is.
        text_model: its conditioning.
        settings: how to draw.
        swaps: choices that draw with another tower, by the tower's name.
        cache: where pictures are kept.
        heat: whether heat maps are wanted.
    """

    pipe: Any
    text_model: TextModel
    settings: DrawSettings
    swaps: Mapping[str, TowerSwap]
    cache: Cache
    heat: bool = True

    @cached_property
    def key(self) -> str:
        """``pipeline_key`` of the pipeline."""
        return pipeline_key(self.pipe)


def draw_variants(
    renderer: Renderer,
    subjects: Sequence[Subject],
    choices: Sequence[str],
    on_progress: OnProgress,
) -> list[tuple[str, VariantPicture]]:
    """``(prompt, picture)`` of all, in the order of the variants; equal texts are drawn once."""
    found = []
    done: dict[tuple[str, str, str], list[VariantPicture]] = {}
    total = sum(len(subject.variants) for subject in subjects) * len(choices)
    for subject in subjects:
        for variant in subject.variants:
            for choice in choices:
                key = (variant.text, variant.dialect, choice)
                if key not in done:
                    done[key] = draw_variant(renderer, variant, choice)
                found += [(subject.prompt, replace(each, variant=variant)) for each in done[key]]
                drawn = len(found) // len(renderer.settings.seeds)
                on_progress(Progress("drawing", drawn, total, "variants"))
    return found


def draw_variant(renderer: Renderer, variant: Variant, choice: str) -> list[VariantPicture]:
    """A picture for each seed, all in one batch; those in the cache are not drawn again.

    Also the heat maps of the words that name something, unless parts of the conditioning are taken
    away, if the model is one whose cross-attention can be watched.
    """
    settings, cache, swapped = renderer.settings, renderer.cache, renderer.swaps.get(choice)
    what = {
        "model": renderer.key,
        "tower": swapped and swapped.key,
        "text": variant.text,
        "dialect": variant.dialect,
        "choice": choice,
        "settings": settings.arguments(),
    }
    keys = {seed: key_of(**what, seed=seed) for seed in settings.seeds}
    whole = choice == WHOLE or swapped is not None
    wants_heat = renderer.heat and whole and _has_heat(renderer.pipe)
    found: dict[int, tuple[Image, dict[str, Tensor]]] = {}
    for seed, key in keys.items():
        image = cache.picture(key)
        heat = _kept_maps(cache, key, variant) if wants_heat else {}
        if image is not None and heat is not None:
            found[seed] = image, heat
    missing = [seed for seed in settings.seeds if seed not in found]
    if missing:
        words = _words_of(variant) if wants_heat else []
        images, maps = _draw(renderer, variant, choice, missing, words)
        with cache.batch([keys[seed] for seed in missing]) as batch:
            for seed, image, heat in zip(missing, images, maps, strict=True):
                if wants_heat:
                    # A word may be any text, and safetensors keeps a name for itself.
                    own = {f"word {word}": each for word, each in heat.items()}
                    cache.keep_tensors(keys[seed], own, batch)
                cache.keep_picture(keys[seed], image, batch)
                found[seed] = image, heat
    return [VariantPicture(variant, choice, seed, *found[seed]) for seed in settings.seeds]


def _draw(
    renderer: Renderer,
    variant: Variant,
    choice: str,
    seeds: Sequence[int],
    words: Sequence[str],
) -> tuple[list[Image], list[dict[str, Tensor]]]:
    """A picture for each seed, with its maps of ``words``."""
    own = own_copy(renderer.pipe)
    settings, swapped = renderer.settings, renderer.swaps.get(choice)
    with warnings.catch_warnings():
        # A study cuts prompts and weighs words on purpose; the table says how far.
        warnings.simplefilter("ignore", TruncationWarning)
        warnings.simplefilter("ignore", OffManifoldWarning)
        cond = condition(
            variant.text,
            model=own,
            dialect=variant.dialect,
            height=settings.height,
            width=settings.width,
            **(swapped.arguments if swapped else {}),
        )

    if not swapped:
        cond = ablated(cond, renderer.text_model, choice)
    with heat_maps(own, cond) if words else nullcontext() as heat:
        images = own(
            **cond.kwargs(len(seeds)),
            **settings.arguments(),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images
    return images, [_maps(heat, words, at) for at in range(len(seeds))]


def _maps(heat: HeatMaps | None, words: Sequence[str], image: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if heat is None:
        return found
    heat.keys(image=image)  # what is wrong with all of them does not depend on one word
    for word in words:
        try:
            found[word] = heat.of(word, image=image)
        except OptionError:  # a word that was cut off has no keys
            continue
    return found


def _kept_maps(cache: Cache, key: str, variant: Variant) -> dict[str, Tensor] | None:
    """The maps in the order of their words; a file has an order of its own."""
    found = cache.tensors(key)
    if found is None:
        return None
    named = {word: found.get(f"word {word}") for word in _words_of(variant)}
    return {word: own for word, own in named.items() if own is not None}


def _words_of(variant: Variant) -> list[str]:
    """The first words of a variant that name something."""
    words = split_words(variant.text).words
    named = [w for w in words if w.lower() not in SMALL_WORDS and not w.isdecimal()]
    return list(dict.fromkeys(named))[:_MOST_WORDS]


def _has_heat(pipe: Any) -> bool:
    try:
        unet_of(pipe)
    except UnsupportedModelError:
        return False
    # Of the class: a pipeline that has not drawn yet cannot say whether it is guided.
    return hasattr(type(pipe), "do_classifier_free_guidance")
