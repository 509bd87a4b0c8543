"""Training the resampler: regression to the native towers' whitened states, in minutes on a CPU."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.adapters.maps import TowerMap
from bridge.adapters.pairs import Native
from bridge.adapters.reading import KINDS, ForeignStates, NativeWindow, Places, aligned_batch
from bridge.adapters.resampler import Resampler, memory_of
from bridge.runtime import building

_BATCH = 16
_RATE = 1e-3
_WARMUP = 0.05  # of the steps
_SAMPLED = 1000  # prompts that the whitening is taken from


@dataclass(frozen=True, eq=False)
class _Example:
    """One prompt: its native window, the foreign states, the native states ``(T, D)`` and pooled
    state ``(P,)`` wanted, and what the closed form gives in their place."""

    target: NativeWindow
    reading: ForeignStates
    states: Tensor
    pooled: Tensor | None
    base: Tensor
    base_pooled: Tensor | None


def train_resampler(
    base: TowerMap,
    data: Sequence[tuple[Native, Mapping[str, ForeignStates]]],
    held: int,
    steps: int,
    seed: int,
    on_step: Callable[[int], object] = lambda done: None,
    hidden: int = 192,
) -> tuple[Resampler, dict[str, float]]:
    """Train what adds to ``base``.

    AdamW at 1e-3 with a cosine to 0. A window has one word for many places of padding, so each
    kind of place has an equal say in the loss. In the end what is added is shrunk by the factor
    that is best on the prompts left out: a run too short or on too few prompts is no worse there
    than the closed form.

    Args:
        base: the closed form.
        data: batches of native states with the foreign readings of their texts.
        held: every so many prompts one is left out, and scored at the end.
        on_step: called after each step with how many are done.
        hidden: the resampler's width.

    Returns:
        The resampler, and its mean square error in whitened coordinates on the prompts left out,
        for each kind of place (``error/content`` ...), beside that of the closed form.
    """
    examples = [each for native, readings in data for each in _examples(base, native, readings)]
    left_out = examples[held - 1 :: held]
    used = [each for at, each in enumerate(examples) if at % held != held - 1]
    # The caller's own random numbers go on as if nothing had been drawn.
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        model = _made(base, used, hidden)
        _trained(model, used, steps, random.Random(seed), on_step)
    model.eval().requires_grad_(False)
    model.shrink(*_shares(model, left_out or used))
    return model, _scores(model, left_out or used)


def _examples(
    base: TowerMap, native: Native, readings: Mapping[str, ForeignStates]
) -> list[_Example]:
    """Those prompts of a batch that have content."""
    states, pooled = base(native.windows, readings)
    return [
        _Example(
            target,
            readings[target.text.text],
            native.states[at],
            None if native.pooled is None else native.pooled[at],
            states[at],
            None if pooled is None else pooled[at],
        )
        for at, target in enumerate(native.windows)
        if target.text.text
    ]


def _made(base: TowerMap, examples: Sequence[_Example], hidden: int) -> Resampler:
    length, width = base.empty.shape
    pooled = 0 if base.empty_pooled is None else len(base.empty_pooled)
    memory_width = examples[0].reading.states.shape[1]
    with building():
        model = Resampler(length, width, pooled, memory_width, hidden).to(base.empty.device)
    few = examples[:_SAMPLED]
    places = [Places.of(each.target.window) for each in few]
    states = torch.cat(
        [each.states[p.content.start : p.eos.stop] for each, p in zip(few, places, strict=True)]
    )
    memory = torch.cat([each.reading.states[: each.reading.last + 1] for each in few])
    own = [each.pooled for each in examples if each.pooled is not None]
    model.measure(states, torch.stack(own) if own and pooled else None, memory)
    return model


def _trained(
    model: Resampler,
    examples: Sequence[_Example],
    steps: int,
    rng: random.Random,
    on_step: Callable[[int], object],
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1.0, _WARMUP * steps))
        return rise * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(steps):
        batch = rng.sample(examples, min(_BATCH, len(examples)))
        pairs = _whitened(model, batch)
        errors = [(found - wanted).square().mean() for wanted, _, found in pairs.values()]
        loss = torch.stack(errors).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1)


def _whitened(
    model: Resampler, batch: Sequence[_Example]
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each kind of place, in whitened coordinates: what is wanted, what the closed form gives,
    what the model makes of it."""
    windows, own = [each.target for each in batch], [each.reading for each in batch]
    linear = torch.stack([each.base for each in batch])
    linear_pooled = _stacked([each.base_pooled for each in batch])
    aligned = aligned_batch(windows, own)
    white, white_pooled = model.whitened(linear, linear_pooled, aligned, *memory_of(own))
    wanted = model.whiten(torch.stack([each.states for each in batch]))
    start = model.whiten(linear)
    places = [Places.of(each.window) for each in windows]
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for kind in KINDS:
        mask = torch.zeros(white.shape[:2], dtype=torch.bool, device=white.device)
        for row, here in zip(mask, places, strict=True):
            row[here[kind].start : here[kind].stop] = True
        if mask.any():
            found[kind] = wanted[mask], start[mask], white[mask]
    target = _stacked([each.pooled for each in batch])
    if white_pooled is not None and linear_pooled is not None and target is not None:
        scale = model.pooled_scale
        found["pooled"] = target / scale, linear_pooled / scale, white_pooled
    return found


def _stacked(pooled: Sequence[Tensor | None]) -> Tensor | None:
    given = [each for each in pooled if each is not None]
    return torch.stack(given) if given else None


@torch.no_grad()
def _shares(model: Resampler, examples: Sequence[_Example]) -> tuple[float, float]:
    """The shares in [0, 1] of what the model adds to states and to pooled states that bring it
    nearest to what is wanted: least squares, each kind of place alike."""
    sums = {kind: [0.0, 0.0] for kind in (*KINDS, "pooled")}
    for start in range(0, len(examples), _BATCH):
        pairs = _whitened(model, examples[start : start + _BATCH])
        for kind, (wanted, before, after) in pairs.items():
            added = after - before
            # A mean, as in the loss: one kind has many more places than another.
            sums[kind][0] += float((added * (wanted - before)).mean())
            sums[kind][1] += float(added.square().mean())

    def share(kinds: Sequence[str]) -> float:
        along, size = (sum(sums[kind][at] for kind in kinds) for at in (0, 1))
        return min(1.0, max(0.0, along / size)) if size else 1.0

    return share(KINDS), share(["pooled"])


@torch.no_grad()
def _scores(model: Resampler, examples: Sequence[_Example]) -> dict[str, float]:
    """The mean whitened square errors on examples, of the model and of the closed form."""
    sums: dict[str, list[float]] = {}
    for start in range(0, len(examples), _BATCH):
        pairs = _whitened(model, examples[start : start + _BATCH])
        for kind, (wanted, before, after) in pairs.items():
            for name, given in (("error", after), ("error of closed form", before)):
                error = float((given - wanted).square().mean())
                sums.setdefault(f"{name}/{kind}", []).append(error)
    return {name: round(sum(errors) / len(errors), 4) for name, errors in sums.items()}
