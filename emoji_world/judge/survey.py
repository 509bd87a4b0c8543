"""Where may something stand, and what? A quick look over the whole picture, at 4-pixel blocks.

Every box of every size at every fourth pixel is compared with every template on a few main
components; the most promising places are compared again on all components. What is kept
between two looks at one picture is the score of the places where nothing has changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from emoji_world.judge.templates import COARSE, Bank, SizeBank, pool
from emoji_world.scenes import BACKGROUNDS

# A squared difference summed over a sprite's pixels and channels, below which there is nothing
# to see: about 7 grey levels over a small sprite's box.
LEAST_ENERGY = 150_000.0
_FEW = 16  # components of the first comparison
_PLACES = 24  # places a size that the second comparison sees
_SHORTLIST = 48  # templates a size
_CHUNK = 32  # places compared at once: their scores stay in the processor's cache


@dataclass(frozen=True)
class Candidate:
    """A template at a place; ``gain`` is the squared difference it explains, ``fit`` its share
    of all there is in the box."""

    bank: SizeBank
    row: int
    x: int
    y: int
    fit: float
    gain: float


def score(candidate: Candidate) -> float:
    """Explaining much, weighed by explaining it well: a big template that half fits two small
    things must not beat the right one of either."""
    return candidate.gain * max(candidate.fit, 0.0)


class Survey:
    """The look over one picture; ``shortlist`` may be asked again after a part was cleared."""

    def __init__(self, bank: Bank, background: str) -> None:
        self.colour = np.array(BACKGROUNDS[background], dtype=np.float32)
        self._sizes = [_SizeSurvey(b, *bank.projected(b, background)) for b in bank.sizes]

    def shortlist(self, left: np.ndarray) -> list[Candidate]:
        """The likeliest templates near the likeliest place, best first; empty when nothing is
        left. ``left`` is the difference from the background, float (128, 128, 3)."""
        coarse = pool(left, COARSE)
        likely = [c for survey in self._sizes for c in survey.likely(coarse)]
        if not likely:
            return []
        likely.sort(key=score, reverse=True)
        chosen: dict[tuple[str, int], Candidate] = {}
        taken = dict.fromkeys((survey.bank.size for survey in self._sizes), 0)
        for candidate in likely:
            key = (candidate.bank.size, candidate.row)
            if key in chosen or taken[key[0]] == _SHORTLIST:
                continue
            if _same_place(likely[0], candidate):
                chosen[key] = candidate
                taken[key[0]] += 1
        return list(chosen.values())


class _SizeSurvey:
    """The places of one size and what each scored when last seen."""

    def __init__(self, bank: SizeBank, templates: np.ndarray, lengths: np.ndarray) -> None:
        self.bank = bank
        # The last component carries -|template|², so that one product gives the gain.
        self._all = np.concatenate([2 * templates, -lengths[:, None]], axis=1)
        self._few = np.ascontiguousarray(self._all[:, -_FEW - 1 :].T)
        self._all = np.ascontiguousarray(self._all.T)
        self._energy: np.ndarray | None = None
        self._scores = np.zeros(0, dtype=np.float32)

    def likely(self, coarse: np.ndarray) -> list[Candidate]:
        """The best templates at the best places."""
        bank, n = self.bank, self.bank.side // COARSE
        windows = sliding_window_view(coarse, (n, n), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
        columns = windows.shape[1]
        flat = windows.reshape(-1, n * n * 3)
        energy = np.einsum("pk,pk->p", flat, flat)
        visible = energy * COARSE**2 >= LEAST_ENERGY / 2
        if self._energy is None:
            self._scores = np.zeros(len(energy), dtype=np.float32)
            changed = visible
        else:
            changed = visible & (energy != self._energy)
        self._energy = energy
        self._scores[~visible] = 0
        (places,) = np.nonzero(changed)
        on_basis = _with_one(flat[places] @ bank.basis)
        few = on_basis[:, -_FEW - 1 :]
        for start in range(0, len(places), _CHUNK):
            part = places[start : start + _CHUNK]
            gains = (few[start : start + _CHUNK] @ self._few).max(axis=1)
            self._scores[part] = np.maximum(gains, 0) ** 2 / energy[part]
        best = np.argsort(self._scores)[-_PLACES:]
        best = best[self._scores[best] > 0]
        if not len(best):
            return []
        gains = _with_one(flat[best] @ bank.basis) @ self._all
        scores = np.maximum(gains, 0) ** 2 / energy[best, None]
        take = min(4 * _SHORTLIST, scores.size)
        top = np.argpartition(scores.ravel(), -take)[-take:]
        return [
            Candidate(
                bank,
                int(row),
                int(best[i] % columns) * COARSE,
                int(best[i] // columns) * COARSE,
                float(gains[i, row] / energy[best[i]]),
                float(gains[i, row]),
            )
            for i, row in zip(*np.unravel_index(top, scores.shape), strict=True)
            if gains[i, row] > 0
        ]


def _with_one(on_basis: np.ndarray) -> np.ndarray:
    return np.concatenate([on_basis, np.ones((len(on_basis), 1), dtype=np.float32)], axis=1)


def _same_place(a: Candidate, b: Candidate) -> bool:
    """Whether two boxes show the same thing: their centres lie within a third of a side."""
    reach = max(a.bank.side, b.bank.side) / 3
    ax, ay = a.x + a.bank.side / 2, a.y + a.bank.side / 2
    bx, by = b.x + b.bank.side / 2, b.y + b.bank.side / 2
    return abs(ax - bx) <= reach and abs(ay - by) <= reach
