"""What must agree in a file that claims to be an adapter: shapes of maps, words of the header."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.adapters.adapter import Adapter, TowerCard
from bridge.adapters.maps import TowerMap
from bridge.adapters.reading import KINDS, PLACE_WIDTH


def faults_of(adapter: Adapter) -> Iterator[str]:
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
