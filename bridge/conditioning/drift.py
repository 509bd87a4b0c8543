"""How far emphasis takes states from those that the tower gave: its figures and the warning.

A UNet has only ever seen states as a tower gives them. On the embedded towers (64 captions,
penultimate layers) the length of a word's state is 0.78 to 1.75 times the median in the first and
0.62 to 1.95 times in the second, whatever the word, and the mean of a prompt's states lies within
0.05 standard deviations of the prompts' mean. One word of weight 1.2 becomes up to 1.20 times as
long by a1111 and 1.25 by comfy or compel, of 1.5 up to 1.50 and 1.71, of 2 up to 1.99 and 2.54,
of 3 up to 2.98 and 4.29. The limits are at or beyond what any word or prompt is by itself: weights
up to 1.5 are silent.

A1111's emphasis multiplies all states by ``mean(z) / mean(w z)``, also those of weight 1, so that
BOS and padding move with the words: by 0.95 to 1.00 at a weight of 1.5, 0.83 to 0.99 at 3. Where
the mean of the weighed states is near zero or of the other sign, all of the prompt explodes or
turns round (webui issues 14874 and 13791); the figure ``rest`` shows it. The embedded towers'
states were shifted in training so that they have a mean to keep.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.errors import OffManifoldWarning
from bridge.prompt import TokenPlan

LENGTH_LIMIT = 2.0
"""How many times longer or shorter a state may become."""
MEAN_LIMIT = 0.05
"""How far a window's mean may move, in standard deviations of its entries."""


@dataclass(frozen=True)
class Drift:
    """What emphasis did to one tower's states of one prompt, before windows are joined.

    Attributes:
        tower: the tower's name, with the part of the prompt if it has several.
        length: the length of a weighted state over its length before, where it is furthest from 1.
        mean: how far the mean of a window moved, in standard deviations of its entries.
        rest: by what the states of weight 1, BOS and padding among them, were multiplied (their
            projection on what they were); A1111's restoring of the mean, and 1 under most others.
    """

    tower: str
    length: float
    mean: float
    rest: float

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is beyond its limit, in words; nothing in the usual case."""
        found = []
        if not _within(self.length):
            found.append(f"a weighted state is {self.length:.3g} times as long as it was")
        if not abs(self.mean) <= MEAN_LIMIT:
            found.append(f"the mean moved by {self.mean:+.2g} standard deviations")
        if not _within(self.rest):
            found.append(f"states of weight 1 were multiplied by {self.rest:.3g}")
        return tuple(found)


def figures_of(plan: TokenPlan, states: Tensor, weighed: Tensor) -> Tensor:
    """The figures of a ``Drift`` as a tensor ``(3,)`` on the states' device.

    Args:
        plan: a weighted plan of k windows.
        states, weighed: ``(k, T, D)``, before emphasis and after.
    """
    before, after = states.float(), weighed.float()
    weights = torch.tensor(
        [window.weights for window in plan.windows], device=before.device, dtype=torch.float32
    )
    content = weights != 1
    lengths = after.norm(dim=-1) / before.norm(dim=-1)
    # Neither [content] nor [argmax]: on a GPU both wait for the tower to be done.
    furthest = lengths.log().abs().masked_fill(~content, -1).argmax()
    mean = (after.mean((1, 2)) - before.mean((1, 2))) / before.std((1, 2))
    ones = (~content)[..., None]
    rest = (after * before * ones).sum((1, 2)) / (before * before * ones).sum((1, 2))
    return torch.stack(
        [
            lengths.take(furthest),
            mean.take(mean.abs().argmax()),
            rest.take((rest - 1).abs().argmax()),
        ]
    )


def drifts_of(plans: Sequence[TokenPlan], figures: Sequence[Tensor]) -> tuple[Drift | None, ...]:
    """The drift of each plan; ``figures`` are those of the weighted ones, in order."""
    # One transfer from the device for all.
    rows = iter(torch.stack(list(figures)).tolist() if figures else [])
    return tuple(Drift(plan.tower, *next(rows)) if plan.is_weighted else None for plan in plans)


def off_manifold(drifts: Sequence[Drift], what: str) -> str:
    """One sentence if the prompt that is called ``what`` has left the manifold in any tower."""
    told = [f"{d.tower}: {', '.join(d.reasons)}" for d in drifts if d.reasons]
    if not told:
        return ""
    return (
        f"{what}: its weights go beyond what the model has seen ({'; '.join(told)}), so pictures "
        "may come out broken. Weights nearer to 1, or another emphasis, keep them whole."
    )


def warn_of_drifts(drifts: Sequence[Sequence[Drift]], what: str, stacklevel: int) -> None:
    """One ``OffManifoldWarning`` for each prompt that has left the manifold in any tower."""
    for index, of_prompt in enumerate(drifts):
        told = off_manifold(of_prompt, f"{what} {index}")
        if told:
            warnings.warn(told, OffManifoldWarning, stacklevel=stacklevel + 1)


def _within(ratio: float) -> bool:
    return math.isfinite(ratio) and 1 / LENGTH_LIMIT <= ratio <= LENGTH_LIMIT
