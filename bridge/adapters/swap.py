"""Other text towers in a model: which fit as they are, which need an adapter, which cannot.

===============  ============================================================================
``native``       the model's own tower, by its weights, in whatever precision
``same-width``   another tower of its kind and widths (a fine-tuned CLIP-L, Long-CLIP-L): its
                 states go to the UNet as they are, with its own tokenizer and context
``adapter``      another kind or width: its states mean nothing to the UNet until an adapter
                 maps them (``bridge.fit_adapter``)
``incompatible``  trained for its pooled state alone (Multilingual CLIP): it has no token states
                 that cross-attention could use, but what a trained adapter makes of them
===============  ============================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bridge.adapters.adapter import Adapter, load_adapter
from bridge.adapters.foreign_tower import ForeignTower
from bridge.checks import keywords
from bridge.embedded import DRAWING
from bridge.encoding.addons import AddOn
from bridge.encoding.model import TextModel, Towers, in_context, next_number, open_model
from bridge.encoding.options import Model
from bridge.encoding.recipes import TowerUse
from bridge.errors import OptionError, UnsupportedModelError
from bridge.files import stamp
from bridge.kept import kept
from bridge.towers import (
    TEXT_TOWERS,
    TextTower,
    TowerSpec,
    find_source,
    fingerprint,
    open_text_tower,
)
from bridge.towers.watch import watched

NATIVE, SAME_WIDTH, ADAPTER, INCOMPATIBLE = "native", "same-width", "adapter", "incompatible"
_HOW = (
    'Fit one: adapter = bridge.fit_adapter(tower, model=..., prompts=[...], kind="ridge"), and '
    "pass it as adapter=."
)


@dataclass(frozen=True)
class Swap:
    """How a tower goes into a model.

    Attributes:
        label: ``native``, ``same-width``, ``adapter`` or ``incompatible``.
        components: the model's towers in whose place it goes.
        reason: why, in words.
    """

    label: str
    components: tuple[str, ...]
    reason: str


@keywords
def label_swap(
    tower: str | os.PathLike[str] | TextTower, model: Model | TextModel = DRAWING
) -> Swap:
    """How a text tower goes into a model: the table above.

    Args:
        tower: as in ``bridge.towers.open_text_tower``, or an open tower.
        model: as in ``bridge.condition``, or the ``TextModel`` of one.
    """
    opened = model if isinstance(model, TextModel) else open_model(model)
    loaded = opened.load()
    return _label(open_tower(tower, *_place_of(loaded)), opened, loaded)


def with_towers(
    model: TextModel,
    towers: Any,
    adapter: Any,
    device: torch.device | None = None,
) -> TextModel:
    """The model with other towers; its own stay as they are.

    Args:
        model: the model's.
        towers: a tower, a list of one for each of the model's towers (None leaves its own), or
            ``{component: tower}``; a tower is a name, folder, hub id or ``TextTower``.
        adapter: an ``Adapter`` or its file; without ``towers`` the tower is that of its name.
        device: where a tower is opened, if it is not open.

    Raises:
        OptionError: what is no tower, a component that the model lacks, a tower that does not
            fit without an adapter.
        UnsupportedModelError: a tower that cannot feed cross-attention.
        WeightsError: an adapter for other towers.
    """
    if towers is None and adapter is None:
        return model
    if adapter is not None:
        return _with_adapter(model, towers, read_adapter(adapter), device)
    loaded = model.load()
    given = _by_component(model, towers, loaded)
    modules, specs, tokenizers = list(loaded.modules), list(model.specs), list(model.tokenizers)
    uses = list(model.recipe.towers)
    accounts = []
    for at, use in enumerate(model.recipe.towers):
        if use.component not in given:
            continue
        tower = open_tower(given[use.component], loaded.device, loaded.modules[at].dtype)
        fault = _misfit(tower.spec, use, model.specs[at])
        if fault is not None:
            raise _refused(tower, model, f"{use.component}: {fault}")
        _check_place(tower, loaded.modules[at].dtype, loaded.device)
        uses[at] = replace(use, architecture=tower.spec.architecture)
        modules[at], specs[at] = tower.module, tower.spec
        tokenizers[at] = in_context(tower.tokenizer, tower.spec)
        mark = watched(tower.module).fingerprint()
        label = (
            NATIVE if _is_native(tower, use, model.specs[at], loaded.modules[at]) else SAME_WIDTH
        )
        accounts.append(
            AddOn(f"{label} tower", tower.name, tower.spec.source, mark, (use.component,))
        )
    return replace(
        model,
        recipe=replace(model.recipe, towers=tuple(uses)),
        specs=tuple(specs),
        tokenizers=tuple(tokenizers),
        load=lambda: Towers(tuple(modules), loaded.device),
        swaps=tuple(accounts),
        number=next_number(),
    )


def _with_adapter(
    model: TextModel, towers: Any, adapter: Adapter, device: torch.device | None
) -> TextModel:
    if isinstance(towers, (Mapping, Sequence)) and not isinstance(towers, str):
        raise OptionError(
            "With an adapter, towers is the one foreign tower that it was fitted on, not "
            f"{type(towers).__name__}."
        )
    loaded = model.load()
    names = [use.component for use in model.recipe.towers]
    adapter.check_natives(
        model.recipe.name, model.source, dict(zip(names, loaded.modules, strict=True))
    )
    tower = open_tower(adapter.foreign.name if towers is None else towers, device)
    adapter.check_foreign(tower)
    return replace(
        model, mapped=ForeignTower(adapter, tower), swaps=(adapter.account(),), number=next_number()
    )


def read_adapter(given: Any) -> Adapter:
    """An ``Adapter``, or that of a file. Raises OptionError, and what ``load_adapter`` does."""
    if isinstance(given, Adapter):
        return given
    if isinstance(given, (str, os.PathLike)):
        return load_adapter(given)
    raise OptionError(
        f"adapter takes an Adapter or its file, not {type(given).__name__} ({given!r:.60})."
    )


def _by_component(model: TextModel, towers: Any, loaded: Towers) -> dict[str, Any]:
    """Which tower goes where."""
    names = [use.component for use in model.recipe.towers]
    if isinstance(towers, Mapping):
        strange = [str(name) for name in towers if name not in names]
        if strange:
            raise OptionError(
                f"{model.source} ({model.recipe.name}) has no {', '.join(strange)}; its towers are "
                f"{', '.join(names)}."
            )
        return {name: each for name, each in towers.items() if each is not None}
    if isinstance(towers, Sequence) and not isinstance(towers, str):
        if len(towers) > len(names):
            raise OptionError(
                f"{len(towers)} towers were given, and {model.source} ({model.recipe.name}) has "
                f"{len(names)}: {', '.join(names)}."
            )
        return {name: each for name, each in zip(names, towers, strict=False) if each is not None}
    tower = open_tower(towers, *_place_of(loaded))
    swap = _label(tower, model, loaded)
    if swap.label in (ADAPTER, INCOMPATIBLE):
        raise _refused(tower, model, swap.reason)
    return {swap.components[0]: towers}


def _label(tower: TextTower, model: TextModel, loaded: Towers) -> Swap:
    own = [use.component for use in model.recipe.towers]
    for use, spec, module in zip(model.recipe.towers, model.specs, loaded.modules, strict=True):
        if _is_native(tower, use, spec, module):
            return Swap(NATIVE, (use.component,), f"it is the model's own {use.component}")
    if not tower.feeds_cross_attention:
        return Swap(
            INCOMPATIBLE, (), "it was trained for its pooled state alone, and cannot feed "
            "cross-attention without a trained adapter",
        )  # fmt: skip
    faults = {
        use.component: _misfit(tower.spec, use, spec)
        for use, spec in zip(model.recipe.towers, model.specs, strict=True)
    }
    fitting = tuple(name for name, fault in faults.items() if fault is None)
    if fitting:
        return Swap(SAME_WIDTH, fitting, f"it has the kind and widths of {fitting[0]}")
    return Swap(ADAPTER, (*own,), "; ".join(f"{name}: {why}" for name, why in faults.items()))


def _is_native(tower: TextTower, use: TowerUse, spec: TowerSpec, module: Any) -> bool:
    """Whether a tower is the model's own.

    By its weights, since the same ones are published under classes with and without a projection
    (``clip-l`` is SDXL's first tower with one); the projection counts where the model takes the
    pooled state.
    """
    # Cheap, and all that there is to compare by where parameters are offloaded.
    if fingerprint(module, _dtype(tower.module)) == tower.fingerprint():
        return True
    kind = (tower.spec.layers, tower.spec.activation)
    return kind == (spec.layers, spec.activation) and _same_weights(
        _weights(tower.module, use.pooled), _weights(module, use.pooled)
    )


def _weights(module: Any, projection: bool) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("text_model."): parameter.detach()
        for name, parameter in module.named_parameters()
        if projection or not name.startswith("text_projection")
    }


def _same_weights(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Equal in the narrower of the two precisions. Offloaded weights are equal to none."""
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape
        and not a[name].is_meta
        and not b[name].is_meta
        and _equal(a[name], b[name])
        for name in a
    )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(a.to(narrow), b.to(narrow).to(a.device))


def _misfit(tower: TowerSpec, use: TowerUse, native: TowerSpec) -> str | None:
    """Why a tower cannot stand in a native one's place as it is; None if it can."""
    if tower.architecture not in TEXT_TOWERS:
        return f"a {tower.architecture} is of another kind than {native.architecture}"
    pooled = use.pooled and tower.pooled_width != native.pooled_width
    if (tower.architecture == "T5EncoderModel") != (native.architecture == "T5EncoderModel") or (
        use.pooled and tower.architecture != native.architecture
    ):
        return f"a {tower.architecture} is of another kind than {native.architecture}"
    if tower.width != native.width:
        return f"its states are {tower.width} wide, not {native.width}"
    if pooled:
        return f"its pooled state is {tower.pooled_width} wide, not {native.pooled_width}"
    return None


def _refused(tower: TextTower, model: TextModel, why: str) -> OptionError | UnsupportedModelError:
    where = f"The tower {tower.name} does not fit {model.source} ({model.recipe.name}) as it is"
    if not tower.feeds_cross_attention:
        return UnsupportedModelError(
            f"{where}: it was trained for its pooled state alone, and cannot feed cross-attention "
            'without a trained adapter. Train one: bridge.fit_adapter(..., kind="resampler").'
        )
    return OptionError(f"{where}: {why}. It needs an adapter. {_HOW}")


def _place_of(loaded: Towers) -> tuple[torch.device, torch.dtype]:
    """Where and how precisely a tower that stands beside the model's own is opened."""
    return loaded.device, loaded.modules[0].dtype


def _check_place(tower: TextTower, dtype: torch.dtype, device: torch.device) -> None:
    own = _dtype(tower.module)
    if (own, tower.device.type) != (dtype, device.type):
        raise OptionError(
            f"The tower {tower.name} is {own} on {tower.device}, and the model's "
            f"own are {dtype} on {device}; open it with that dtype and device."
        )


def _dtype(module: Any) -> torch.dtype:
    found: torch.dtype = next(module.parameters()).dtype
    return found


def open_tower(
    tower: Any, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> TextTower:
    """The tower of a name, hub id or folder; an open one as it is.

    Raises:
        OptionError: what is none of these.

    It also raises what ``bridge.towers.open_text_tower`` raises.
    """
    if isinstance(tower, TextTower):
        return tower
    if not isinstance(tower, (str, os.PathLike)):
        raise OptionError(
            "towers takes a name, a folder, a TextTower, a list of these or {component: tower}, "
            f"not {type(tower).__name__} ({tower!r:.60})."
        )
    source = os.fspath(tower)
    files = sorted(find_source(source)[1].glob("*"))
    return _opened(source, tuple((file.name, stamp(file)) for file in files), device, dtype)


@kept(2)
def _opened(
    source: str, state: object, device: torch.device | None, dtype: torch.dtype | None
) -> TextTower:
    return open_text_tower(source, device=device, dtype=dtype)
