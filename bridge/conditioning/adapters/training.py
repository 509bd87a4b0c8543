"""Training the resampler: regression to the native towers' whitened states, in minutes on a CPU."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bridge.conditioning.adapters.maps import Sought, TowerMap
from bridge.conditioning.adapters.pairs import Native
from bridge.conditioning.adapters.reading import KINDS, Places, Reading
from bridge.conditioning.adapters.resampler import Resampler, memory_of

_BATCH = 16
_RATE = 1e-3
_WARMUP = 50
_SAMPLES = 20_000  # states that the whitening is taken from
_Example = tuple[Sought, Reading, Tensor, Tensor | None]


def train_resampler(
    base: TowerMap,
    data: Sequence[tuple[Native, Mapping[str, Reading]]],
    held: int,
    steps: int,
    seed: int,
) -> tuple[Resampler, dict[str, float]]:
    """Train what adds to ``base``.

    AdamW at 1e-3 with a cosine to 0. A window has one word for many places of padding, so each
    kind of place has an equal say in the loss.

    Args:
        base: the closed form.
        data: batches of native states with the foreign readings of their texts.
        held: every so many prompts one is left out, and scored at the end.

    Returns:
        The resampler, and its mean square error in whitened coordinates on the prompts left out,
        for each kind of place (``error/content`` ...), beside that of the closed form.
    """
    examples = [
        (sought, readings[sought.text.text], states, pooled)
        for native, readings in data
        for sought, states, pooled in zip(
            native.sought,
            native.states,
            native.pooled if native.pooled is not None else [None] * len(native.sought),
            strict=True,
        )
        if sought.text.text
    ]
    left_out = examples[held - 1 :: held]
    used = [each for at, each in enumerate(examples) if at % held != held - 1]
    # The caller's own random numbers go on as if nothing had been drawn.
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        model = _made(base, used)
        _trained(model, base, used, steps, random.Random(seed))
    model.eval().requires_grad_(False)
    return model, _scores(model, base, left_out or used)


def _made(base: TowerMap, examples: Sequence[_Example]) -> Resampler:
    length, width = base.empty.shape
    pooled = 0 if base.empty_pooled is None else len(base.empty_pooled)
    model = Resampler(length, width, pooled, examples[0][1].states.shape[1]).to(base.empty.device)
    states = torch.cat([each[2] for each in examples[: max(1, _SAMPLES // length)]])
    memory = torch.cat([each[1].states[: each[1].last + 1] for each in examples[:_SAMPLES]])
    own = [each[3] for each in examples if each[3] is not None]
    model.measure(states, torch.stack(own) if own and pooled else None, memory)
    return model


def _trained(
    model: Resampler, base: TowerMap, examples: Sequence[_Example], steps: int, rng: random.Random
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(steps):
        batch = rng.sample(examples, min(_BATCH, len(examples)))
        loss = torch.stack([*_errors(model, base, batch)[0].values()]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _errors(
    model: Resampler, base: TowerMap, batch: Sequence[_Example]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean square errors by kind of place, whitened: of the model, and of the closed form."""
    sought, own, states, pooled = zip(*batch, strict=True)
    linear, linear_pooled = base(sought, {s.text.text: r for s, r in zip(sought, own, strict=True)})
    white, white_pooled = model.whitened(linear, linear_pooled, *memory_of(own))
    wanted, start = model.whiten(torch.stack(states)), model.whiten(linear)
    places = [Places.of(each.window) for each in sought]
    found: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    for kind in KINDS:
        mask = torch.zeros(white.shape[:2], dtype=torch.bool, device=white.device)
        for row, here in zip(mask, places, strict=True):
            row[here[kind].start : here[kind].stop] = True
        if mask.any():
            found[kind] = (white[mask] - wanted[mask]).square().mean()
            before[kind] = (start[mask] - wanted[mask]).square().mean()
    if white_pooled is not None and linear_pooled is not None:
        scale = model.pooled_scale
        target = torch.stack([p for p in pooled if p is not None]) / scale
        found["pooled"] = (white_pooled - target).square().mean()
        before["pooled"] = (linear_pooled / scale - target).square().mean()
    return found, before


@torch.no_grad()
def _scores(model: Resampler, base: TowerMap, examples: Sequence[_Example]) -> dict[str, float]:
    """The mean whitened square errors on examples, of the model and of the closed form."""
    sums: dict[str, list[float]] = {}
    for start in range(0, len(examples), _BATCH):
        part = examples[start : start + _BATCH]
        found, before = _errors(model, base, part)
        for kind, error in found.items():
            sums.setdefault(f"error/{kind}", []).append(float(error))
            sums.setdefault(f"error of ridge/{kind}", []).append(float(before[kind]))
    return {name: round(sum(errors) / len(errors), 4) for name, errors in sums.items()}
