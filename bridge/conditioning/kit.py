"""What conditioning needs of a model: its recipe, tokenizers and towers.

A kit is made of a folder in diffusers' layout or of a live pipeline. Making one reads configs
only; ``load()`` brings the towers.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bridge import store
from bridge.conditioning.recipes import Recipe, TowerUse, find_recipe
from bridge.conditioning.sizes import latent_scale
from bridge.errors import OptionError, UnknownModelError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.runtime import resolve_device
from bridge.towers import TEXT_TOWERS, TowerSpec, fingerprint, load_tower, read_spec
from bridge.towers.spec import spec_of_config

# What conditioning reads of a model; the rest of it is not fetched and not hashed.
_PATTERNS = (
    "model_index.json",
    "text_encoder*/*",
    "tokenizer*/*",
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
        recipe: its row of the table.
        specs: one for each tower of the recipe.
        tokenizers: one for each tower of the recipe.
        zeros_for_none: whether ``negative_prompt=None`` means zeros.
        default_size: ``(height, width)`` of the pictures it draws by default, if it says.
        wants_score: whether its sizes end in an aesthetic score (the SDXL refiner).
        load: brings the towers.
    """

    source: str
    recipe: Recipe
    specs: tuple[TowerSpec, ...]
    tokenizers: tuple[Any, ...]
    zeros_for_none: bool
    default_size: tuple[int, int] | None
    wants_score: bool
    load: Callable[[], Towers]


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

    Loads configs and tokenizers only. Args and errors as ``open_kit``.
    """
    kit = open_kit(model)
    names = (use.component for use in kit.recipe.towers)
    return list(zip(names, kit.tokenizers, strict=True))


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
    recipe = find_recipe(components, _activation(folder, components), str(folder))
    specs = tuple(read_spec(folder / u.component, u.architecture) for u in recipe.towers)
    return Kit(
        source=str(folder),
        recipe=recipe,
        specs=specs,
        tokenizers=tuple(
            _in_context(_tokenizer(folder / use.tokenizer), spec)
            for use, spec in zip(recipe.towers, specs, strict=True)
        ),
        zeros_for_none=recipe.zeros_for_none and bool(index.get(_FORCE_ZEROS, True)),
        default_size=_size_of_folder(folder),
        wants_score=bool(index.get("requires_aesthetics_score", False)),
        load=lambda: _load_towers(folder, recipe.towers, _state(folder, recipe), dtype, device),
    )


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


def _tokenizer(folder: Path) -> Any:
    files = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
    return _load_tokenizer(folder, tuple(_stamp(folder / name) for name in files))


@lru_cache(maxsize=16)
def _load_tokenizer(folder: Path, stamps: tuple[tuple[int, int] | None, ...]) -> Any:
    from transformers import CLIPTokenizer

    whole, vocabulary, merges, _ = stamps
    # Without these files transformers would make a tokenizer with an empty vocabulary.
    if whole is None and (vocabulary is None or merges is None):
        raise WeightsError(
            f"{folder} has neither tokenizer.json nor vocab.json with merges.txt; fetch it again."
        )
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    # The tokenizers library raises plain Exception for a damaged file.
    except Exception as error:
        raise WeightsError(
            f"The tokenizer in {folder} cannot be read ({type(error).__name__}: {error}); "
            "fetch it again."
        ) from error


def _in_context(tokenizer: Any, spec: TowerSpec) -> Any:
    """The tokenizer with the tower's context: that of Long-CLIP often still says 77.

    A copy that shares the vocabulary, since a live pipeline's own must not change.
    """
    if tokenizer.model_max_length == spec.context:
        return tokenizer
    fitting = copy.copy(tokenizer)
    fitting.model_max_length = spec.context
    return fitting


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change, None for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _state(folder: Path, recipe: Recipe) -> tuple[Any, ...]:
    """What changes when a tower's files do; part of the cache's key."""
    return tuple(
        (path.name, _stamp(path))
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
    """Drop the towers and tokenizers kept from earlier calls, to free their memory."""
    _load_towers.cache_clear()
    _load_tokenizer.cache_clear()


# ---------------------------------------------------------------- live pipeline


def _kit_of_pipeline(pipe: Any) -> Kit:
    parts = pipe.components
    components = {name: _class_of(part) for name, part in parts.items()}
    source = f"the live {type(pipe).__name__}"
    first = parts.get("text_encoder")
    activation = getattr(getattr(first, "config", None), "hidden_act", "") if first else ""
    recipe = find_recipe(components, activation, source)
    modules = tuple(parts[use.component] for use in recipe.towers)
    tokenizers = tuple(parts.get(use.tokenizer) for use in recipe.towers)
    if None in tokenizers:
        raise UnsupportedModelError(f"{source} has text towers without tokenizers; put them back.")
    specs = tuple(
        spec_of_config(module.config.to_dict(), use.architecture, source)
        for module, use in zip(modules, recipe.towers, strict=True)
    )
    unet_config = parts["unet"].config
    return Kit(
        source=source,
        recipe=recipe,
        specs=specs,
        tokenizers=tuple(_in_context(*pair) for pair in zip(tokenizers, specs, strict=True)),
        zeros_for_none=recipe.zeros_for_none and bool(pipe.config.get(_FORCE_ZEROS, True)),
        default_size=_picture_size(unet_config.sample_size, getattr(pipe, "vae_scale_factor", 8)),
        wants_score=bool(pipe.config.get("requires_aesthetics_score", False)),
        load=lambda: Towers(
            modules, tuple(fingerprint(module) for module in modules), pipe._execution_device
        ),
    )


def _class_of(part: Any) -> str | None:
    """The transformers class of a part, seen through torch.compile and subclasses."""
    if part is None:
        return None
    whole = getattr(part, "_orig_mod", part)
    names = [kind.__name__ for kind in type(whole).__mro__]
    return next((name for name in names if name in TEXT_TOWERS), names[0])
