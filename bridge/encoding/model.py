"""The text side of a model: its recipe, tokenizers and towers, and what they are read from.

A source is a folder in diffusers' layout or a live pipeline. It owns what outlives a call: opening
one reads configs and tokenizers, its towers load when they are first asked for, and ``close`` lets
them go. Folders that are open twice share their towers.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from bridge import store
from bridge.checks import keywords
from bridge.encoding.addons import NO_ADDONS, AddOn, AddOns
from bridge.encoding.options import Model, latent_scale
from bridge.encoding.pipeline_state import (
    calls_per_step,
    check_one_dtype,
    execution_device,
    is_offloaded,
)
from bridge.encoding.recipes import RECIPES, Recipe, TowerUse, find_recipe
from bridge.encoding.state_cache import DEFAULT_BYTES, StateCache
from bridge.errors import OptionError, UnknownModelError, UnsupportedModelError, WeightsError
from bridge.files import read_json, stamp
from bridge.kept import on_release
from bridge.prompt import Reader
from bridge.prompt.token_plan import check_tokenizer
from bridge.runtime import resolve_device
from bridge.towers import (
    TEXT_TOWERS,
    TOKENIZERS,
    TowerSpec,
    load_tokenizer,
    load_tower,
    read_spec,
    reading,
    spec_of_config,
)
from bridge.towers.watch import Watch, watched

if TYPE_CHECKING:
    from bridge.adapters.foreign_tower import ForeignTower

# What conditioning reads of a model; the rest of it is not fetched and not hashed.
_PATTERNS = (
    "model_index.json",
    "text_encoder*/*",
    "tokenizer*/*",
    "transformer/config.json",
    "unet/config.json",
    "vae/config.json",
)
_KEPT_FOLDERS = 2
# DeepFloyd IF has a UNet too, but reads T5.
UNETS = tuple(
    name
    for name, recipe in RECIPES.items()
    if recipe.backbone == "unet" and all(use.length is None for use in recipe.towers)
)
"""The recipes of UNets that read CLIP."""
next_number = count().__next__
"""A number for a reading of a model, which no other has."""
_Parts: TypeAlias = tuple[tuple[str, Any], ...]
_FORCE_ZEROS = "force_zeros_for_empty_prompt"


@dataclass(frozen=True)
class Towers:
    """Loaded modules, one for each tower of the recipe, as one call sees them.

    Attributes:
        modules: they.
        place: where they run; of a live pipeline, how to find out.
    """

    modules: tuple[Any, ...]
    place: torch.device | Callable[[], torch.device]

    @cached_property
    def device(self) -> torch.device:
        """Where they run."""
        return self.place() if callable(self.place) else self.place

    @cached_property
    def watches(self) -> tuple[Watch, ...]:
        """The watch of each module, which looks at it when this is first asked."""
        found = tuple(map(watched, self.modules))
        for watch in found:
            watch.look()
        return found

    @cached_property
    def versions(self) -> tuple[int, ...]:
        """Of each module, as that look found it."""
        return tuple(watch.version for watch in self.watches)

    @property
    def are_unchanged(self) -> bool:
        """Whether no look since has found another version."""
        return self.versions == tuple(watch.version for watch in self.watches)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of each module."""
        pairs = zip(self.watches, self.versions, strict=True)
        return tuple(watch.fingerprint(version) for watch, version in pairs)


@dataclass(frozen=True)
class TextModel:
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
        number: of this reading of a model, which no other has.
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
    mapped: ForeignTower | None = None
    number: int = field(default_factory=next_number)

    @property
    def is_unet(self) -> bool:
        """Whether it draws with a UNet that reads CLIP."""
        return self.recipe.name in UNETS

    def readers(self, length: int | None = None, clean: str | None = None) -> tuple[Reader, ...]:
        """How each tower reads text; ``length`` is the caller's ``max_sequence_length``, ``clean``
        the caller's too."""
        concepts = self.addons.concepts or ((),) * len(self.tokenizers)
        return tuple(
            Reader(
                tokenizer,
                (length or use.length) if use.length else None,
                use.lower,
                own,
                least=() if length else use.least,
                clean=clean,
            )
            for use, tokenizer, own in zip(
                self.recipe.towers, self.tokenizers, concepts, strict=True
            )
        )


# ---------------------------------------------------------------- sources


class FolderSource:
    """A folder in diffusers' layout.

    Args:
        folder: the folder.
        device, dtype: where and how precisely its towers run.
        cache: bytes of states that are kept.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, cache: int = DEFAULT_BYTES
    ) -> None:
        self._folder, self._device, self._dtype = folder, device, dtype
        self._towers: Towers | None = None
        self._lock = threading.Lock()
        self.cache = StateCache(cache)
        self.state = _state(folder)
        with reading(f"{folder}: the model cannot load"):
            self._model = _of_folder(folder, self._load)

    def model(self) -> TextModel:
        """The model as it was opened."""
        return self._model

    def calls_per_step(self) -> int:
        """How often a solver calls the model in a step, where none is known."""
        return 1

    def check_dtypes(self) -> None:
        """Nothing: its towers load in one dtype, and are for whatever draws with the result."""

    def at(self, device: torch.device | None, dtype: torch.dtype | None) -> FolderSource:
        """The same folder with towers elsewhere, or of another precision."""
        return FolderSource(
            self._folder, device or self._device, dtype or self._dtype, self.cache.limit
        )

    def close(self) -> None:
        """Let the towers go; they load again when they are next asked for."""
        self._towers = None
        self.cache.clear()

    def _load(self) -> Towers:
        with self._lock:
            if self._towers is None:
                uses = self._model.recipe.towers
                self._towers = _shared_towers(
                    self._folder, uses, _state(self._folder), self._dtype, self._device
                )
            return replace(self._towers)


class PipelineSource:
    """A live pipeline, read anew where a part of it was replaced.

    Args:
        pipe: the pipeline.
        cache: bytes of states that are kept.
        weak: hold it weakly, for those who hold the source by the pipeline.
    """

    def __init__(self, pipe: Any, cache: int = DEFAULT_BYTES, *, weak: bool = False) -> None:
        self._pipe: Callable[[], Any] = weakref.ref(pipe) if weak else lambda: pipe
        self.cache = StateCache(cache)
        self._reading = self._read(pipe)

    def model(self) -> TextModel:
        """The model as the pipeline is now."""
        pipe = self._pipe()
        # One attribute, so that no thread sees the parts of one reading beside another's model.
        parts, about, model, _ = self._reading
        if about != _settings(pipe, parts) or any(
            getattr(pipe, name, None) is not part for name, part in parts
        ):
            self._reading = self._read(pipe)
            return self._reading[2]
        return model

    def calls_per_step(self) -> int:
        """How often its solver calls the model in a step."""
        return calls_per_step(self._pipe())

    def check_dtypes(self) -> None:
        """Raises OptionError where the pipeline cannot draw what its towers say."""
        recipe = self._reading[2].recipe
        if recipe.name in UNETS:
            check_one_dtype(self._pipe(), recipe.towers[-1].component)

    def at(self, device: torch.device | None, dtype: torch.dtype | None) -> PipelineSource:
        """Itself: a live pipeline keeps its device and dtype, and the result is moved."""
        return self

    def close(self) -> None:
        """Let go of the states; the pipeline is its owner's."""
        self.cache.clear()

    def _read(self, pipe: Any) -> tuple[_Parts, tuple[object, ...], TextModel, bool]:
        parts = tuple(pipe.components.items())
        within = any(map(is_offloaded, _modules(parts)))
        return parts, _settings(pipe, parts), _of_pipeline(pipe, self._load), within

    def _load(self) -> Towers:
        pipe = self._pipe()
        parts, _, model, within = self._reading
        modules = tuple(getattr(pipe, use.component) for use in model.recipe.towers)
        return Towers(modules, lambda: execution_device(pipe, _modules(parts), within))


Source: TypeAlias = FolderSource | PipelineSource

# What the verbs keep from one call to the next. A pipeline's source goes with the pipeline.
_folders: OrderedDict[tuple[object, ...], FolderSource] = OrderedDict()
_pipelines: weakref.WeakKeyDictionary[Any, PipelineSource] = weakref.WeakKeyDictionary()
_keeping = threading.RLock()


def open_source(
    model: Any,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    cache: int = DEFAULT_BYTES,
) -> Source:
    """A source of one's own. Args and errors as ``kept_source``."""
    folder = _folder_of(model, revision)
    if folder is None:
        return PipelineSource(model, cache)
    return FolderSource(folder, device or resolve_device(), dtype or torch.float32, cache)


def kept_source(
    model: Any,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> Source:
    """The source of a name, folder, hub id or live pipeline that is kept for later calls.

    The last two folders are kept until their files change; a pipeline's as long as the pipeline.

    Raises:
        UnknownModelError, HubError, WeightsError: as ``bridge.store.resolve``.
        UnsupportedModelError: no recipe fits.
        OptionError: a revision for a live pipeline.
    """
    folder = _folder_of(model, revision)
    with _keeping:
        if folder is None:
            if model not in _pipelines:
                _pipelines[model] = PipelineSource(model, weak=True)
            return _pipelines[model]
        key = (folder, device or resolve_device(), dtype or torch.float32)
        source = _folders.pop(key, None)
        if source is None or source.state != _state(folder):
            source = FolderSource(*key)
        _folders[key] = source
        if len(_folders) > _KEPT_FOLDERS:
            _folders.popitem(last=False)
        return source


@keywords
def open_model(
    model: Model,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> TextModel:
    """The text side of a model; no tower is loaded yet.

    Args:
        model: a name, folder, hub id or live pipeline, as for ``bridge.condition``.
        device, dtype: of a folder's towers.
        revision: branch, tag or commit of a hub id.

    Raises:
        UnknownModelError, HubError, WeightsError: no such model, or a damaged one.
        UnsupportedModelError: no recipe fits.
        OptionError: a revision for a live pipeline.
    """
    return kept_source(model, device=device, dtype=dtype, revision=revision).model()


@keywords
def tokenizers_of(model: Model) -> list[tuple[str, Any]]:
    """``(tower name, tokenizer)`` pairs of a model, for ``bridge.prompt.plan_report``.

    A ``bridge.prompt.Reader`` stands in a tokenizer's place where its tower needs one (T5).
    Loads configs and tokenizers only. Args and errors as ``open_model``.
    """
    opened = open_model(model)
    # CLIP's tokenizers need no one to say how they are used.
    plain = Reader(None)
    return [
        (use.component, reader.tokenizer if replace(reader, tokenizer=None) == plain else reader)
        for use, reader in zip(opened.recipe.towers, opened.readers(), strict=True)
    ]


def _release() -> None:
    with _keeping:
        kept: list[Source] = [*_folders.values(), *_pipelines.values()]
        for source in kept:
            source.close()
        _folders.clear()
        _pipelines.clear()


on_release(_release)


def _folder_of(model: Any, revision: str | None) -> Path | None:
    """The folder of a name, hub id or folder; None for a live pipeline."""
    if isinstance(model, (str, os.PathLike)):
        return store.resolve(model, revision=revision, allow_patterns=_PATTERNS)
    if not isinstance(getattr(model, "components", None), Mapping):
        raise UnknownModelError(
            f"model must be a name, a folder, a hub id or a diffusers pipeline, not "
            f"{type(model).__name__}."
        )
    if revision is not None:
        raise OptionError(f"revision={revision!r} has no meaning for a live pipeline.")
    return None


# ---------------------------------------------------------------- folder


def _of_folder(folder: Path, load: Callable[[], Towers]) -> TextModel:
    if not (folder / "model_index.json").is_file():
        raise UnsupportedModelError(
            f"{folder} has no model_index.json, so it is not a diffusers pipeline and bridge has "
            "no conditioning recipe for it. Pass the folder that holds model_index.json."
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
    model = TextModel(
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
        load=load,
        zeros=None
        if missing is None
        else _zeros(missing, read_json(folder / "transformer" / "config.json")),
    )
    for use, reader in zip(recipe.towers, model.readers(), strict=True):
        check_tokenizer(reader, str(folder / use.component))
    return model


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


def _state(folder: Path) -> tuple[object, ...]:
    """What changes when a file that conditioning reads does."""
    return tuple(
        (str(path), stamp(path)) for pattern in _PATTERNS for path in sorted(folder.glob(pattern))
    )


_loaded: weakref.WeakValueDictionary[tuple[object, ...], Towers] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def _shared_towers(
    folder: Path,
    uses: tuple[TowerUse, ...],
    state: tuple[object, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Towers:
    """The towers of a folder, loaded once for all who hold them."""
    key = (folder, uses, state, dtype, device)
    with _loading:
        towers = _loaded.get(key)
        if towers is None:
            towers = Towers(
                tuple(
                    load_tower(use.architecture, folder / use.component, dtype=dtype, device=device)
                    for use in uses
                ),
                device,
            )
            _loaded[key] = towers
        return towers


# ---------------------------------------------------------------- live pipeline


def _modules(parts: _Parts) -> list[nn.Module]:
    return [part for _, part in parts if isinstance(part, nn.Module)]


def _settings(pipe: Any, parts: _Parts) -> tuple[object, ...]:
    """What may change in a part that stays the same: sizes of vocabularies, settings."""
    found: list[object] = [pipe.config, tuple(getattr(pipe, "_callback_tensor_inputs", ()))]
    for name, part in parts:
        if part is None:
            continue
        if name.startswith("tokenizer"):
            found.append((len(part), part.model_max_length, part.pad_token))
        elif name.startswith("text_encoder"):
            found.append(dict(vars(part.config)))
        elif name in ("unet", "transformer"):
            found.append(part.config)  # frozen, and replaced where a setting changes
    return tuple(found)


def _of_pipeline(pipe: Any, load: Callable[[], Towers]) -> TextModel:
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
    return TextModel(
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
        load=load,
        zeros=None if missing is None else _zeros(missing, parts["transformer"].config),
    )


def _class_of(part: Any) -> str | None:
    """The transformers class of a part, seen through torch.compile and subclasses."""
    if part is None:
        return None
    whole = getattr(part, "_orig_mod", part)
    names = [kind.__name__ for kind in type(whole).__mro__]
    return next((name for name in names if name in TEXT_TOWERS), names[0])
