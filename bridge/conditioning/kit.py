"""What conditioning needs of a model: its recipe, tokenizers and towers.

A kit is made of a folder in diffusers' layout or of a live pipeline. Making one reads configs
only; ``load()`` brings the towers.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridge import store
from bridge.conditioning.account import AddOn
from bridge.conditioning.adapters.opened import forget_opened
from bridge.conditioning.addons import NO_ADDONS, AddOns
from bridge.conditioning.brought import forget_brought
from bridge.conditioning.offloading import execution_device
from bridge.conditioning.recipes import Recipe, TowerUse, find_recipe
from bridge.conditioning.sizes import latent_scale
from bridge.errors import (
    OptionError,
    UnknownModelError,
    UnsupportedModelError,
    WeightsError,
)
from bridge.files import read_json, stamp
from bridge.prompt import Reader
from bridge.prompt.plan import check_tokenizer
from bridge.runtime import resolve_device
from bridge.towers import (
    TEXT_TOWERS,
    TOKENIZERS,
    TowerSpec,
    fingerprint,
    forget_tokenizers,
    load_tokenizer,
    load_tower,
    read_spec,
    reading,
    spec_of_config,
)

if TYPE_CHECKING:
    from bridge.conditioning.adapters.mapped import Mapped

# What conditioning reads of a model; the rest of it is not fetched and not hashed.
_PATTERNS = (
    "model_index.json",
    "text_encoder*/*",
    "tokenizer*/*",
    "transformer/config.json",
    "unet/config.json",
    "vae/config.json",
)


@dataclass(frozen=True)
class Towers:
    """Loaded modules, one for each tower of the recipe, and where they run."""

    modules: tuple[Any, ...]
    fingerprints: tuple[str, ...]
    device: torch.device


@dataclass(frozen=True)
class Kit:
    """Everything about a model that conditioning depends on.

    Attributes:
        source: what the model is called in messages.
        recipe: its row of the table, without the optional towers that the model lacks.
        specs: one for each tower of the recipe.
        tokenizers: one for each tower of the recipe.
        zeros_for_none: whether ``negative_prompt=None`` means zeros.
        default_size: ``(height, width)`` of the pictures it draws by default, if it says.
        wants_score: whether its sizes end in an aesthetic score (the SDXL refiner).
        load: brings the towers.
        zeros: ``(length, width)`` of the zeros that stand for an optional tower it lacks.
        addons: textual inversions and LoRAs that act in them.
        swaps: the account of towers that stand in the place of its own.
        mapped: a foreign tower with the adapter that takes its states to those of all of them.
    """

    source: str
    recipe: Recipe
    specs: tuple[TowerSpec, ...]
    tokenizers: tuple[Any, ...]
    zeros_for_none: bool
    default_size: tuple[int, int] | None
    wants_score: bool
    load: Callable[[], Towers]
    zeros: tuple[int, int] | None = None
    addons: AddOns = NO_ADDONS
    swaps: tuple[AddOn, ...] = ()
    mapped: Mapped | None = None

    def readers(self, length: int | None = None) -> tuple[Reader, ...]:
        """How each tower reads text; ``length`` is the caller's ``max_sequence_length``."""
        concepts = self.addons.concepts or ((),) * len(self.tokenizers)
        return tuple(
            Reader(
                tokenizer,
                (length or use.length) if use.length else None,
                use.lower,
                own,
                least=() if length else use.least,
            )
            for use, tokenizer, own in zip(
                self.recipe.towers, self.tokenizers, concepts, strict=True
            )
        )


def open_kit(
    model: Any,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> Kit:
    """The kit of a name, folder, hub id or live pipeline; no tower is loaded yet.

    Raises:
        UnknownModelError, HubError, WeightsError: as ``bridge.store.resolve``.
        UnsupportedModelError: no recipe fits.
        OptionError: a revision for a live pipeline.
    """
    if isinstance(model, (str, os.PathLike)):
        folder = store.resolve(model, revision=revision, allow_patterns=_PATTERNS)
        with reading(f"{folder}: the model cannot load"):
            return _kit_of_folder(folder, device or resolve_device(), dtype or torch.float32)
    if not isinstance(getattr(model, "components", None), Mapping):
        raise UnknownModelError(
            f"model must be a name, a folder, a hub id or a diffusers pipeline, not "
            f"{type(model).__name__}."
        )
    if revision is not None:
        raise OptionError(f"revision={revision!r} has no meaning for a live pipeline.")
    return _kit_of_pipeline(model)


def tokenizers_of(model: Any) -> list[tuple[str, Any]]:
    """``(tower name, tokenizer)`` pairs of a model, for ``bridge.prompt.plan_report``.

    A ``bridge.prompt.Reader`` stands in a tokenizer's place where its tower needs one (T5).
    Loads configs and tokenizers only. Args and errors as ``open_kit``.
    """
    kit = open_kit(model)
    # CLIP's tokenizers need no one to say how they are used.
    plain = Reader(None)
    return [
        (use.component, reader.tokenizer if replace(reader, tokenizer=None) == plain else reader)
        for use, reader in zip(kit.recipe.towers, kit.readers(), strict=True)
    ]


# ---------------------------------------------------------------- folder


def _kit_of_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Kit:
    if not (folder / "model_index.json").is_file():
        raise UnsupportedModelError(
            f"{folder} has no model_index.json, so it is no diffusers pipeline and bridge has no "
            "conditioning recipe for it. Pass the folder that holds model_index.json."
        )
    index = read_json(folder / "model_index.json")
    components = {
        name: value[1]
        for name, value in index.items()
        if isinstance(value, (list, tuple)) and len(value) == 2
    }
    row = find_recipe(
        components,
        _activation(folder, components),
        str(folder),
        (str(index.get("_class_name", "")),),
    )
    recipe, missing = _without_missing(row, components)
    specs = tuple(read_spec(folder / u.component, u.architecture) for u in recipe.towers)
    kit = Kit(
        source=str(folder),
        recipe=recipe,
        specs=specs,
        tokenizers=tuple(
            in_context(load_tokenizer(folder / use.tokenizer, TOKENIZERS[use.architecture]), spec)
            for use, spec in zip(recipe.towers, specs, strict=True)
        ),
        zeros_for_none=recipe.zeros_for_none and bool(index.get(_FORCE_ZEROS, True)),
        default_size=_size_of_folder(folder),
        wants_score=bool(index.get("requires_aesthetics_score", False)),
        load=lambda: _load_towers(folder, recipe.towers, _state(folder, recipe), dtype, device),
        zeros=None
        if missing is None
        else _zeros(missing, read_json(folder / "transformer" / "config.json")),
    )
    for use, reader in zip(recipe.towers, kit.readers(), strict=True):
        check_tokenizer(reader, str(folder / use.component))
    return kit


def _without_missing(
    row: Recipe, components: Mapping[str, str | None]
) -> tuple[Recipe, TowerUse | None]:
    """The row without the optional tower that a model lacks, and that tower."""
    missing = next((use for use in row.towers if components.get(use.component) is None), None)
    there = tuple(use for use in row.towers if use is not missing)
    return (row if missing is None else replace(row, towers=there)), missing


def _zeros(missing: TowerUse, config: Mapping[str, Any]) -> tuple[int, int]:
    """Shape of what stands for a tower left out, from the transformer's config."""
    return missing.length or 0, int(config["joint_attention_dim"])


_FORCE_ZEROS = "force_zeros_for_empty_prompt"


def _activation(folder: Path, components: Mapping[str, str | None]) -> str:
    if components.get("text_encoder") not in TEXT_TOWERS:
        return ""
    return str(read_json(folder / "text_encoder" / "config.json").get("hidden_act", "quick_gelu"))


def _size_of_folder(folder: Path) -> tuple[int, int] | None:
    try:
        sample = read_json(folder / "unet" / "config.json").get("sample_size")
        vae = read_json(folder / "vae" / "config.json")
    except WeightsError:
        # A folder of text towers alone is enough for conditioning; the caller then gives a size.
        return None
    return _picture_size(sample, latent_scale(vae) or 8)


def _picture_size(sample: Any, scale: int) -> tuple[int, int] | None:
    if sample is None:
        return None
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return int(height) * scale, int(width) * scale


def in_context(tokenizer: Any, spec: TowerSpec) -> Any:
    """The tokenizer with the tower's context: that of Long-CLIP often still says 77.

    A copy that shares the vocabulary, since a live pipeline's own must not change.
    """
    if tokenizer.model_max_length == spec.context:
        return tokenizer
    fitting = copy.copy(tokenizer)
    fitting.model_max_length = spec.context
    return fitting


def _state(folder: Path, recipe: Recipe) -> tuple[Any, ...]:
    """What changes when a tower's files do; part of the cache's key."""
    return tuple(
        (path.name, stamp(path))
        for use in recipe.towers
        for path in sorted((folder / use.component).glob("*"))
    )


@lru_cache(maxsize=2)
def _load_towers(
    folder: Path,
    uses: tuple[TowerUse, ...],
    state: tuple[Any, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Towers:
    modules = tuple(
        load_tower(use.architecture, folder / use.component, dtype=dtype, device=device)
        for use in uses
    )
    return Towers(modules, tuple(fingerprint(module) for module in modules), device)


def forget_towers() -> None:
    """Drop the towers, tokenizers and LoRAs kept from earlier calls, to free their memory."""
    _load_towers.cache_clear()
    forget_tokenizers()
    forget_opened()
    forget_brought()


# ---------------------------------------------------------------- live pipeline


def _kit_of_pipeline(pipe: Any) -> Kit:
    parts = pipe.components
    components = {name: _class_of(part) for name, part in parts.items()}
    source = f"the live {type(pipe).__name__}"
    first = parts.get("text_encoder")
    activation = getattr(getattr(first, "config", None), "hidden_act", "") if first else ""
    kinds = [kind.__name__ for kind in type(pipe).__mro__]
    row = find_recipe(components, activation, source, kinds)
    if not {*row.swapped} <= {*getattr(pipe, "_callback_tensor_inputs", ())}:
        row = replace(row, swapped=())  # of SD 3, text-to-image alone lets all of it be changed
    recipe, missing = _without_missing(row, components)
    modules = tuple(parts[use.component] for use in recipe.towers)
    tokenizers = tuple(parts.get(use.tokenizer) for use in recipe.towers)
    if None in tokenizers:
        raise UnsupportedModelError(f"{source} has text towers without tokenizers; put them back.")
    specs = tuple(
        spec_of_config(module.config.to_dict(), use.architecture, source)
        for module, use in zip(modules, recipe.towers, strict=True)
    )
    return Kit(
        source=source,
        recipe=recipe,
        specs=specs,
        tokenizers=tuple(in_context(*pair) for pair in zip(tokenizers, specs, strict=True)),
        zeros_for_none=recipe.zeros_for_none and bool(pipe.config.get(_FORCE_ZEROS, True)),
        default_size=_picture_size(
            parts["unet"].config.sample_size, getattr(pipe, "vae_scale_factor", 8)
        )
        if recipe.backbone == "unet"
        else None,
        wants_score=bool(pipe.config.get("requires_aesthetics_score", False)),
        load=lambda: Towers(
            modules, tuple(fingerprint(module) for module in modules), execution_device(pipe)
        ),
        zeros=None if missing is None else _zeros(missing, parts["transformer"].config),
    )


def _class_of(part: Any) -> str | None:
    """The transformers class of a part, seen through torch.compile and subclasses."""
    if part is None:
        return None
    whole = getattr(part, "_orig_mod", part)
    names = [kind.__name__ for kind in type(whole).__mro__]
    return next((name for name in names if name in TEXT_TOWERS), names[0])
