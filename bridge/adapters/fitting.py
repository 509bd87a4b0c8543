"""``bridge.fit_adapter``: from paired prompts to the maps between two sets of towers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from bridge.adapters.adapter import Adapter, TowerCard
from bridge.adapters.maps import TowerMap
from bridge.adapters.pairs import BATCH, Batch, Native, Pairs, native_states
from bridge.adapters.reading import Places, groups_of, inputs_of
from bridge.adapters.regression import LinearMap, Moments, RandomFeatures, chosen_ridge, procrustes
from bridge.adapters.swap import open_tower
from bridge.adapters.training import train_resampler
from bridge.checks import is_whole, keywords
from bridge.embedded import DRAWING
from bridge.encoding.model import TextModel, open_model
from bridge.encoding.options import Model
from bridge.errors import OptionError
from bridge.progress import OnProgress, Progress, unwatched
from bridge.prompt import check_prompts
from bridge.runtime import resolve_device
from bridge.towers import Layer, TextTower

KindOfAdapter = Literal["ridge", "procrustes", "random-features", "resampler"]
KINDS_OF_ADAPTER = get_args(KindOfAdapter)
_LINEAR = ("ridge", "procrustes")
FEWEST = 32
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection", "CoCaText")
_MOST_LAYERS, _WIDEST = 6, 4096
_HELD = 8  # every eighth prompt is held out
_APART = 7  # padding places between two that are fitted on
FEATURES = 1024
_SCALED = 16  # batches that the features' scales are taken from


# For each component and kind of place: its random features, if any; the moments of pairs to fit
# on, and of those held out.
_Features = dict[str, dict[str, RandomFeatures]]
_Sums = dict[tuple[str, str], list[Moments]]


@keywords
def fit_adapter(
    tower: str | Path | TextTower,
    *,
    model: Model = DRAWING,
    prompts: Sequence[str],
    kind: KindOfAdapter = "ridge",
    layers: Layer | Sequence[Layer] | None = None,
    steps: int = 1500,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_progress: OnProgress | None = None,
) -> Adapter:
    """Fit what takes a foreign text tower's states to those that a model was trained with.

    The model's towers and the foreign one read the same prompts; no picture and no UNet takes
    part. A few hundred prompts are enough for towers of a few hundred channels; thousands, in the
    words that will be used, are better, and a wide tower needs more prompt tokens than channels.

    Args:
        tower: a name, hub id or folder for ``bridge.towers.open_text_tower``, or an open tower.
        model: as in ``bridge.condition``.
        prompts: texts, read as plain ones, at least 32 different. Each is cut off at the native
            context. One in eight is held out, to choose the penalty by and to score the map.
        kind: ``ridge`` (linear least squares, in closed form), ``procrustes`` (a turn and one
            scale, in closed form), ``random-features`` (ridge on the states and random features of
            them, in closed form) or ``resampler`` (a transformer trained on top of those).
        layers: the foreign layers whose states are taken side by side, the main one first, or
            that one alone; Procrustes takes that alone. Default: that of the model's recipe for
            a tower of CLIP's family, else the last with its norm; and others from the embeddings
            up, as far as all are 4096 wide at most.
        steps: of training, for the resampler: some 0.2 s each on two CPU cores.
        seed: of the training and of the random features.
        device: where it is done. Default: CUDA if there is one; a live pipeline's own.
        on_progress: called with a `bridge.progress.Progress`, which is a line as text: ``print``
            will do.

    Raises:
        OptionError: too few prompts, no such kind, a layer that the tower lacks, a tower whose
            token states were never trained for anything but ``resampler``.

    It also raises what ``bridge.condition`` and ``open_text_tower`` raise.
    """
    options = _read_options(kind, layers, steps, seed)
    texts = _read_prompts(prompts)
    place = None if device is None else resolve_device(device)
    native = open_model(model, device=place)
    # In full precision wherever it runs: rounded weights would be known by no CPU.
    foreign = open_tower(tower, place, torch.float32)
    if not foreign.feeds_cross_attention and kind != "resampler":
        raise OptionError(
            f"{foreign.name} was trained for its pooled state alone, so its token states cannot "
            'feed cross-attention by a closed form; fit_adapter(..., kind="resampler") trains one.'
        )
    pairs = Pairs(native, native.load(), foreign, options.layers_of(native, foreign))
    return _fit(pairs, texts, options, on_progress or unwatched)


@dataclass(frozen=True)
class _Options:
    """How an adapter is fitted, checked."""

    kind: str
    layers: tuple[Layer, ...] | None
    steps: int
    seed: int

    @property
    def is_linear(self) -> bool:
        return self.kind in _LINEAR

    def layers_of(self, model: TextModel, foreign: TextTower) -> tuple[Layer, ...]:
        """The foreign layers to take; Procrustes is a turn of one layer's states."""
        chosen = self.layers or default_layers(model, foreign)
        return chosen[:1] if self.kind == "procrustes" else chosen


def _read_options(
    kind: str, layers: Layer | Sequence[Layer] | None, steps: int, seed: int
) -> _Options:
    if kind not in KINDS_OF_ADAPTER:
        raise OptionError(f"No kind of adapter {kind!r}; there is: {', '.join(KINDS_OF_ADAPTER)}.")
    if not is_whole(steps, 1):
        raise OptionError(f"steps must be a whole number above 0, not {steps!r}.")
    if layers is None:
        return _Options(kind, None, steps, seed)
    layers = tuple(layers) if isinstance(layers, Sequence) else (layers,)
    if not layers or not all(isinstance(layer, Layer) for layer in layers):
        raise OptionError(
            f"layers must be one or more bridge.towers.Layer, not {layers}; leave them out for "
            "the recipe's own and others"
        )
    return _Options(kind, layers, steps, seed)


def _read_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    texts = tuple(dict.fromkeys(text for text in check_prompts(prompts) if text.strip()))
    if len(texts) < FEWEST:
        raise OptionError(
            f"An adapter is fitted on at least {FEWEST} different prompts, and here are "
            f"{len(texts)}; give some hundreds, in the words that will be used."
        )
    return texts


def _fit(pairs: Pairs, texts: Sequence[str], options: _Options, say: OnProgress) -> Adapter:
    native, towers, foreign = pairs.model, pairs.towers, pairs.foreign
    batches: Iterable[Batch] = _told(pairs.batches(texts), len(texts), say)
    features: _Features = {}
    if not options.is_linear:
        batches = list(batches)  # which are gone through more than once
        features = _features(_moments(batches[:_SCALED], {}), len(texts), options.seed)
    one = next(pairs.batches(texts[:1]))
    maps, explained = _closed_forms(
        options.kind,
        _moments(batches, features),
        native_states(native, towers, [""]),
        groups_of(next(iter(one.readings.values()))),
        features,
    )
    if options.kind == "resampler":
        for component in maps:
            data = [(batch.natives[component], batch.readings) for batch in batches]
            trained, scores = train_resampler(
                maps[component],
                data,
                _HELD,
                options.steps,
                options.seed,
                _counted(component, options.steps, say),
            )
            maps[component] = replace(maps[component], resampler=trained)
            explained[component] |= scores
    return Adapter(
        kind=options.kind,
        recipe=native.recipe.name,
        layers=pairs.layers,
        foreign=TowerCard.of(foreign.name, foreign.spec.width, foreign.module),
        natives={
            use.component: TowerCard.of(use.component, spec.width, module)
            for use, spec, module in zip(
                native.recipe.towers, native.specs, towers.modules, strict=True
            )
        },
        maps=maps,
        explained=explained,
        prompts=len(texts),
    ).to(torch.device("cpu"))


def default_layers(model: TextModel, foreign: TextTower) -> tuple[Layer, ...]:
    """The main layer first: the recipe's for a tower of CLIP's family, else the last with its norm.

    Then others, evenly from the embeddings to the last. Near its end a tower keeps what its own
    training asked of it; which word stands where is in its first layers (Tenney et al. 2019).
    """
    own = next((use.layer for use in model.recipe.towers if use.layer is not None), Layer())
    main = own if foreign.spec.architecture in _CLIP else Layer()
    last = foreign.spec.layers
    room = min(_MOST_LAYERS, max(1, _WIDEST // foreign.spec.width)) - 1
    steps = [round(at * last / max(1, room - 1)) for at in range(room)]
    indices = dict.fromkeys(step - last - 1 for step in steps)
    others = [Layer(index, index == -1) for index in indices if index != main.index]
    return (main, *others)


def _closed_forms(
    kind: str,
    sums: _Sums,
    empties: Mapping[str, Native],
    groups: Mapping[str, tuple[tuple[int, ...], ...]],
    features: _Features,
) -> tuple[dict[str, TowerMap], dict[str, dict[str, float]]]:
    """The linear maps of each native tower, and their R² on the prompts held out."""
    maps: dict[str, TowerMap] = {}
    explained: dict[str, dict[str, float]] = {}
    for component, empty in empties.items():
        linear: dict[str, LinearMap] = {}
        explained[component] = {}
        for part in ("content", "padding", "eos", "pooled"):
            if (component, part) in sums:
                fit, held = sums[component, part]
                # A prompt has one EOS and many states after it, of the same make.
                prior = linear.get("padding") if part == "eos" else None
                bent = features.get(component, {}).get(part)
                more = () if bent is None else ((len(bent.offset),),)
                linear[part], score = _solved(kind, fit, held, (*groups[part], *more), prior)
                explained[component][part] = round(score, 4)
        maps[component] = TowerMap(
            linear,
            empty.states[0],
            None if empty.pooled is None else empty.pooled[0],
            features.get(component, {}),
        )
    return maps, explained


def _told(batches: Iterable[Batch], prompts: int, on_progress: OnProgress) -> Iterator[Batch]:
    for batch in batches:
        read = min(batch.start + BATCH, prompts)
        on_progress(Progress("reading", read, prompts, "prompts"))
        yield batch


def _counted(component: str, steps: int, on_progress: OnProgress) -> Callable[[int], object]:
    return lambda done: on_progress(Progress(f"training {component}", done, steps, "steps"))


def _moments(batches: Iterable[Batch], features: _Features) -> _Sums:
    """The moments of all pairs, their inputs widened by ``features``."""
    sums: _Sums = {}
    for batch in batches:
        for component, native in batch.natives.items():
            _gather(sums, component, native, batch, features.get(component, {}))
    return sums


def _gather(
    sums: _Sums,
    component: str,
    native: Native,
    batch: Batch,
    features: Mapping[str, RandomFeatures],
) -> None:
    """Add a batch's pairs to the moments."""
    rows: dict[tuple[str, bool], list[tuple[Tensor, Tensor]]] = {}
    for at, each in enumerate(native.windows):
        if not each.text.text:
            continue
        number = batch.start + at
        held = number % _HELD == _HELD - 1
        places, reading = Places.of(each.window), batch.readings[each.text.text]
        for kind, inputs in inputs_of(places, each.text, reading).items():
            target = native.states[at, places[kind].start : places[kind].stop]
            # Neighbours in padding are much alike, so a few of each prompt are enough.
            some = slice(number % _APART, None, _APART) if kind == "padding" else slice(None)
            rows.setdefault((kind, held), []).append((inputs[some], target[some]))
        if native.pooled is not None:
            pair = (reading.summary[None], native.pooled[at : at + 1])
            rows.setdefault(("pooled", held), []).append(pair)
    for (kind, held), pairs in rows.items():
        x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
        x = features[kind](x) if kind in features else x
        both = sums.setdefault((component, kind), [_none(x, y), _none(x, y)])
        both[held] = both[held] + Moments.of(x, y)


def _features(sums: _Sums, prompts: int, seed: int) -> _Features:
    """Random features for each native tower and kind of place, no more than there are prompts."""
    inputs = {key: fit + held for key, (fit, held) in sums.items()}
    found: _Features = {}
    for (component, part), own in inputs.items():
        if part in ("eos", "padding"):
            # EOS is shrunk towards padding, so both have the same; of padding there may be none.
            own = inputs[component, "eos"] + inputs[component, "padding"]
        drawn = RandomFeatures.drawn(own, min(FEATURES, prompts), seed)
        found.setdefault(component, {})[part] = drawn
    return found


def _none(x: Tensor, y: Tensor) -> Moments:
    return Moments.of(x[:0], y[:0])


def _solved(
    kind: str,
    fit: Moments,
    held: Moments,
    groups: Sequence[Sequence[int]],
    prior: LinearMap | None,
) -> tuple[LinearMap, float]:
    """The map in float32, and its R² on what was held out."""
    if not fit.count or not held.count:
        # No prompt leaves room for padding, say: the mean of what there is.
        both = fit + held
        mean = both.y / max(both.count, 1)
        return LinearMap(torch.zeros_like(both.xy).float(), mean.float()), 0.0
    if kind == "procrustes":
        found = procrustes(fit, groups[0][0])
        score = found.explained(held)
    else:
        found, score, _ = chosen_ridge(fit, held, groups, prior)
    return LinearMap(found.weight.float(), found.bias.float()), score
