"""An adapter as one safetensors file: its maps, and in the header what it was fitted on and for.

Tensors are named ``<component>.<kind of place>.weight`` and so on; the header's
``bridge_adapter`` entry is JSON with the kind, the recipe, and both sides' fingerprints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bridge.conditioning.adapters.adapter import Adapter, TowerCard
from bridge.conditioning.adapters.features import RandomFeatures
from bridge.conditioning.adapters.maps import TowerMap
from bridge.conditioning.adapters.regression import LinearMap
from bridge.conditioning.adapters.resampler import Resampler
from bridge.errors import WeightsError
from bridge.files import write_whole
from bridge.towers import Layer

FORMAT = 2
_HEADER = "bridge_adapter"
_RESAMPLER = "resampler."


def save_adapter(adapter: Adapter, path: str | os.PathLike[str]) -> Path:
    """Write ``adapter`` to ``path``, whole or not at all, and return the path."""
    account = {
        "format": FORMAT,
        "kind": adapter.kind,
        "recipe": adapter.recipe,
        "layers": [[layer.index, layer.norm] for layer in adapter.layers],
        "foreign": asdict(adapter.foreign),
        "natives": {name: asdict(card) for name, card in adapter.natives.items()},
        "resamplers": {
            name: each.resampler.shape
            for name, each in adapter.maps.items()
            if each.resampler is not None
        },
        "explained": {name: dict(shares) for name, shares in adapter.explained.items()},
        "prompts": adapter.prompts,
    }
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors_of(adapter).items()}
    target = Path(path)
    write_whole(target, save(tensors, {_HEADER: json.dumps(account, ensure_ascii=False)}))
    return target


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read what ``Adapter.save`` wrote; its tensors are on the CPU.

    Raises:
        WeightsError: a file that is missing, damaged, of another format or no adapter.
    """
    source = Path(path)
    try:
        with safe_open(source, "pt") as opened:
            header = (opened.metadata() or {}).get(_HEADER)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        account = None if header is None else json.loads(header)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{source} cannot be read as an adapter: {error}") from error
    if not isinstance(account, dict):
        raise WeightsError(
            f"{source} is a safetensors file, but no adapter of text towers saved by bridge."
        )
    if account.get("format") != FORMAT:
        raise WeightsError(
            f"{source} is of format {account.get('format')!r}; this bridge reads {FORMAT}. Fit "
            "the adapter again, or use the bridge that wrote it."
        )
    try:
        return Adapter(
            kind=account["kind"],
            recipe=account["recipe"],
            layers=tuple(Layer(*layer) for layer in account["layers"]),
            foreign=TowerCard(**account["foreign"]),
            natives={name: TowerCard(**card) for name, card in account["natives"].items()},
            maps={
                name: _map(_below(tensors, name + "."), account["resamplers"].get(name))
                for name in account["natives"]
            },
            explained=account["explained"],
            prompts=account["prompts"],
            source=str(source),
        )
    # torch raises RuntimeError for tensors of another shape.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{source} is damaged: {type(error).__name__} {error}.") from error


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


def _map(tensors: Mapping[str, Tensor], shape: Mapping[str, Any] | None) -> TowerMap:
    linear, features = _below(tensors, "linear."), _below(tensors, "features.")
    resampler = None
    if shape is not None:
        resampler = Resampler(**shape)
        resampler.load_state_dict(_below(tensors, _RESAMPLER))
        resampler.eval().requires_grad_(False)
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
