"""An adapter as one safetensors file: its maps, and in the header what it was fitted on and for.

Tensors are named ``<component>.<kind of place>.weight`` and so on; the header's
``bridge_adapter`` entry is JSON with the kind, the recipe, and both sides' fingerprints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from bridge.adapters.adapter import Adapter, TowerCard
from bridge.adapters.faults import faults_of
from bridge.adapters.features import RandomFeatures
from bridge.adapters.maps import TowerMap
from bridge.adapters.regression import LinearMap
from bridge.adapters.resampler import Resampler
from bridge.errors import WeightsError
from bridge.files import check_given, parse_json, write_whole
from bridge.schema import read_as
from bridge.towers import Layer
from bridge.towers.tensors import check_finite, load_tensors

FORMAT = 2
_HEADER = "bridge_adapter"
_RESAMPLER = "resampler."


# A resampler of more layers takes minutes to build, from a file of no size.
_MOST_LAYERS = 64


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
    fault = next(faults_of(adapter), None)
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
