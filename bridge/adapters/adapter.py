"""An adapter: what makes a foreign text tower feed a model that was trained with others.

Its file is one of safetensors: tensors are named ``<component>.<kind of place>.weight`` and so on,
and the header's ``bridge_adapter`` entry is JSON with the kind, the recipe, and both sides'
fingerprints.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bridge.adapters.maps import TowerMap
from bridge.adapters.reading import KINDS, PLACE_WIDTH
from bridge.adapters.regression import LinearMap, RandomFeatures
from bridge.adapters.resampler import Resampler
from bridge.checks import keywords
from bridge.encoding.addons import AddOn
from bridge.errors import WeightsError
from bridge.files import check_given, parse_json, write_whole
from bridge.schema import read_as
from bridge.towers import Layer, fingerprint
from bridge.towers.tensors import check_finite, load_tensors

FORMAT = 2
_HEADER = "bridge_adapter"
_RESAMPLER = "resampler."
# A resampler of more layers takes minutes to build, from a file of no size.
_MOST_LAYERS = 64
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TowerCard:
    """How a tower is known again.

    Attributes:
        name: what it was called.
        width: of its token states.
        fingerprints: dtype -> its fingerprint in that dtype, so that a pipeline in half precision
            knows the tower that was loaded in full.
    """

    name: str
    width: int
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, name: str, width: int, module: Any) -> TowerCard:
        own = {str(next(module.parameters()).dtype): fingerprint(module)}
        cast = {str(dtype): fingerprint(module, dtype) for dtype in _DTYPES}
        return cls(name, width, cast | own)

    def knows(self, module: Any) -> bool:
        """Whether the module is this tower."""
        return fingerprint(module) in self.fingerprints.values()

    @property
    def short(self) -> str:
        """Its name and fingerprint, for messages."""
        return f"{self.name} ({next(iter(self.fingerprints.values()))})"


@keywords
@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Maps from one foreign tower to the native towers of one model.

    ``bridge.fit_adapter`` makes it, ``save`` writes it, ``bridge.load_adapter`` reads it, and
    ``bridge.condition(prompt, model=..., towers=..., adapter=...)`` uses it. It holds no module
    of the model's and changes none.

    Attributes:
        kind: ``ridge``, ``procrustes``, ``random-features`` or ``resampler``.
        recipe: the model's recipe.
        layers: the foreign layers whose states it takes, the main one first.
        foreign: the foreign tower.
        natives: the model's towers by component.
        maps: what stands for each of them.
        explained: for each of them and each kind of place, R² on the prompts held out of fitting.
        prompts: how many prompts it was fitted on.
        source: its file, if it has one.
    """

    kind: str
    recipe: str
    layers: tuple[Layer, ...]
    foreign: TowerCard
    natives: Mapping[str, TowerCard]
    maps: Mapping[str, TowerMap]
    explained: Mapping[str, Mapping[str, float]]
    prompts: int
    source: str = "fitted in this session"

    def __repr__(self) -> str:
        return (
            f"Adapter({self.kind}, {self.foreign.name} to {self.recipe}'s "
            f"{', '.join(self.natives)}, {self.prompts} prompts)"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all, and return its path."""
        return save_adapter(self, path)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of its tensors."""
        digest = hashlib.sha256(f"{self.kind}{self.recipe}{self.layers}".encode())
        for name, tensor in sorted(tensors_of(self).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def account(self) -> AddOn:
        """What a conditioning's report says of it."""
        return AddOn(
            "adapter", f"{self.foreign.name} by {self.kind}", self.source, self.hash,
            (*self.natives,),
        )  # fmt: skip

    def to(self, device: torch.device) -> Adapter:
        """The same on another device."""
        return replace(self, maps={name: each.to(device) for name, each in self.maps.items()})

    def check_foreign(self, tower: Any) -> None:
        """Raise WeightsError unless ``tower`` is the one that it was fitted on."""
        if not self.foreign.knows(tower.module):
            raise WeightsError(
                f"The adapter ({self.source}) was fitted on the tower {self.foreign.short}, and "
                f"this is {tower.name} ({tower.fingerprint()}). Give that tower, or fit an "
                "adapter for this one with bridge.fit_adapter."
            )

    def check_natives(self, recipe: str, source: str, modules: Mapping[str, Any]) -> None:
        """Raise WeightsError unless the model has the towers that it was fitted for."""
        fault = None
        if recipe != self.recipe or {*modules} != {*self.natives}:
            fault = f"{source} is {recipe} with {', '.join(modules)}"
        else:
            strange = [name for name, m in modules.items() if not self.natives[name].knows(m)]
            if strange:
                now = ", ".join(f"{name} ({fingerprint(modules[name])})" for name in strange)
                fault = f"{source} has another {now}"
        if fault is not None:
            made_for = ", ".join(card.short for card in self.natives.values())
            raise WeightsError(
                f"The adapter from {self.foreign.short} ({self.source}) was fitted for "
                f"{self.recipe} with {made_for}, and {fault}. Fit one for this model with "
                "bridge.fit_adapter."
            )


# ---------------------------------------------------------------- its file


@dataclass(frozen=True)
class _Resampler:
    """The arguments of a ``Resampler``."""

    length: int
    width: int
    pooled: int
    memory: int
    hidden: int
    layers: int
    heads: int

    def opened(self, tensors: Mapping[str, Tensor]) -> Resampler:
        """The module with its tensors. Raises ValueError."""
        numbers = (self.length, self.width, self.memory, self.hidden, self.layers, self.heads)
        if min(numbers) < 1 or self.pooled < 0 or self.layers > _MOST_LAYERS:
            raise ValueError(f"a resampler of {self}")
        if self.hidden % self.heads:
            raise ValueError(f"a resampler of {self.heads} heads for {self.hidden} numbers")
        # On no device: what the header says may be larger than the memory.
        with torch.device("meta"):
            module = Resampler(**asdict(self))
        module.load_state_dict(dict(tensors), assign=True)
        module.eval().requires_grad_(False)
        return module


@dataclass(frozen=True)
class _Header:
    """What the header says, as JSON. ``layers`` are ``Layer`` by index and norm."""

    kind: str
    recipe: str
    layers: tuple[tuple[int, bool], ...]
    foreign: TowerCard
    natives: Mapping[str, TowerCard]
    resamplers: Mapping[str, _Resampler]
    explained: Mapping[str, Mapping[str, float]]
    prompts: int
    format: int = FORMAT


def save_adapter(adapter: Adapter, path: str | os.PathLike[str]) -> Path:
    """Write ``adapter`` to ``path``, whole or not at all, and return the path."""
    header = _Header(
        kind=adapter.kind,
        recipe=adapter.recipe,
        layers=tuple((layer.index, layer.norm) for layer in adapter.layers),
        foreign=adapter.foreign,
        natives=dict(adapter.natives),
        resamplers={
            name: _Resampler(**each.resampler.shape)
            for name, each in adapter.maps.items()
            if each.resampler is not None
        },
        explained={name: dict(shares) for name, shares in adapter.explained.items()},
        prompts=adapter.prompts,
    )
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors_of(adapter).items()}
    target = Path(path)
    write_whole(target, save(tensors, {_HEADER: json.dumps(asdict(header), ensure_ascii=False)}))
    return target


@keywords
def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read what ``Adapter.save`` wrote; its tensors are on the CPU.

    Raises:
        WeightsError: a file that is missing, damaged, of another format or no adapter.
    """
    source = Path(path)
    check_given(source, "adapter file")
    tensors, metadata = load_tensors(source)
    if _HEADER not in metadata:
        raise WeightsError(
            f"{source} is a safetensors file, but no adapter of text towers saved by bridge."
        )
    account = parse_json(metadata[_HEADER], f"{source}: its header")
    if not isinstance(account, dict):
        raise WeightsError(f"{source} is damaged: its header is no JSON object.")
    if account.get("format") != FORMAT:
        raise WeightsError(
            f"{source} is of format {account.get('format')!r}; this bridge reads {FORMAT}. Fit "
            "the adapter again, or use the bridge that wrote it."
        )
    check_finite(source, tensors.items())
    try:
        header = read_as(_Header, account)
    except ValueError as error:
        raise WeightsError(f"{source} is damaged: its header{error}.") from error
    try:
        adapter = Adapter(
            kind=header.kind,
            recipe=header.recipe,
            layers=tuple(Layer(*layer) for layer in header.layers),
            foreign=header.foreign,
            natives=header.natives,
            maps={
                name: _map(_below(tensors, name + "."), header.resamplers.get(name))
                for name in header.natives
            },
            explained=header.explained,
            prompts=header.prompts,
            source=str(source),
        )
    # torch raises RuntimeError for tensors of another shape.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{source} is damaged: {type(error).__name__} {error}.") from error
    strange = {*tensors} - {*tensors_of(adapter)}
    if strange:
        raise WeightsError(f"{source} is damaged: {min(strange)!r} belongs to none of its towers.")
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if dtypes != {"torch.float32"}:
        raise WeightsError(f"{source} is damaged: it is of {', '.join(sorted(dtypes))}.")
    fault = next(_faults_of(adapter), None)
    if fault is not None:
        raise WeightsError(f"{source} is damaged: {fault}.")
    return adapter


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """All tensors of an adapter by their names in the file."""
    found: dict[str, Tensor] = {}
    for component, each in adapter.maps.items():
        own = {"empty": each.empty}
        if each.empty_pooled is not None:
            own["empty_pooled"] = each.empty_pooled
        for kind, linear in each.linear.items():
            own |= {f"linear.{kind}.weight": linear.weight, f"linear.{kind}.bias": linear.bias}
        for kind, features in each.features.items():
            own |= {f"features.{kind}.{name}": tensor for name, tensor in vars(features).items()}
        if each.resampler is not None:
            own |= {_RESAMPLER + n: t for n, t in each.resampler.state_dict().items()}
        found |= {f"{component}.{name}": tensor for name, tensor in own.items()}
    return found


def _map(tensors: Mapping[str, Tensor], shape: _Resampler | None) -> TowerMap:
    linear, features = _below(tensors, "linear."), _below(tensors, "features.")
    resampler = None if shape is None else shape.opened(_below(tensors, _RESAMPLER))
    return TowerMap(
        linear={
            kind: LinearMap(linear[f"{kind}.weight"], linear[f"{kind}.bias"])
            for kind in _kinds(linear)
        },
        empty=tensors["empty"],
        empty_pooled=tensors.get("empty_pooled"),
        features={
            kind: RandomFeatures(**_below(features, f"{kind}.")) for kind in _kinds(features)
        },
        resampler=resampler,
    )


def _kinds(tensors: Mapping[str, Tensor]) -> list[str]:
    return [*dict.fromkeys(name.partition(".")[0] for name in tensors)]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


# ---------------------------------------------------------------- what must agree in it


def _faults_of(adapter: Adapter) -> Iterator[str]:
    """What in an adapter's shapes is not as the words of its header say."""
    if not adapter.layers or not adapter.natives:
        yield "it has no layers or no towers"
    for name, own in adapter.maps.items():
        yield from (f"{name}: {fault}" for fault in _of_map(own, adapter, adapter.natives[name]))


def _of_map(own: TowerMap, adapter: Adapter, native: TowerCard) -> Iterator[str]:
    width, count = adapter.foreign.width, len(adapter.layers)
    if own.empty.ndim != 2 or own.empty.shape[1] != native.width:
        yield f"empty is {tuple(own.empty.shape)} for states {native.width} wide"
        return
    pooled = None if own.empty_pooled is None else tuple(own.empty_pooled.shape)
    if pooled is not None and len(pooled) != 1:
        yield f"empty_pooled is {pooled}"
        return
    out = {**dict.fromkeys(KINDS, native.width), **({"pooled": pooled[0]} if pooled else {})}
    if own.linear.keys() != out.keys() or not own.features.keys() <= out.keys():
        yield f"it has maps of {', '.join(own.linear)} for {', '.join(out)}"
        return
    # As ``inputs_of`` makes them; only how wide the foreign pooled state is stays open.
    tail = width * (1 + 2 * count) + 2 * PLACE_WIDTH
    least = {"content": count * width + PLACE_WIDTH, "eos": tail, "padding": tail,
             "pooled": 2 * count * width}  # fmt: skip
    beyond = set()
    for kind, linear in own.linear.items():
        features = own.features.get(kind)
        if linear.weight.ndim != 2 or linear.weight.shape[1] != out[kind]:
            yield f"the map of {kind} is {tuple(linear.weight.shape)} to states {out[kind]} wide"
            return
        if tuple(linear.bias.shape) != (out[kind],):
            yield f"the offset of {kind} is {tuple(linear.bias.shape)}, for {out[kind]}"
        taken = len(linear.weight)
        if features is not None:
            shapes = [tuple(tensor.shape) for tensor in vars(features).values()]
            taken, drawn = features.weight.shape if features.weight.ndim == 2 else (0, 0)
            wanted = [(taken,), (taken,), (taken, drawn), (drawn,)]
            if shapes != wanted or len(linear.weight) != taken + drawn:
                yield f"the features of {kind} are {shapes}, which do not go together"
        if kind == "content":
            if taken != least[kind]:
                yield f"the map of content takes {taken} numbers, not {least[kind]}"
        else:
            beyond.add(taken - least[kind])
    if len(beyond) > 1 or min(beyond) < 0:
        yield f"its maps do not take what {count} layers {width} wide give"
    if own.resampler is not None:
        shape = own.resampler.shape
        said = (shape["length"], shape["width"], shape["pooled"], shape["memory"])
        there = (*own.empty.shape, pooled[0] if pooled else 0, count * width)
        if said != there:
            yield f"its resampler is for {said}, and the maps for {there}"
