"""A judge of pictures that shares no weights with the models: it matches sprites.

``Judge.look`` finds which sprites stand in a 128 x 128 picture, where, in which size, tint and
style, and on which background. It explains the picture greedily: the template that explains
most of what differs from the background is taken, its place cleared, until nothing is left.
What fits no template well enough is counted as unrecognised, so that mush earns nothing.

The thresholds are fixed numbers (``Limits``), chosen on the calibration scenes of
``judge_check.py``, which are not those it is scored on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from emoji_world.judge.survey import LEAST_ENERGY, Candidate, Survey, score
from emoji_world.judge.templates import HALF, LOOKS, Bank, SizeBank, Template, full_bank, smooth
from emoji_world.scenes import BACKGROUNDS, CANVAS, STYLES

MOST_OBJECTS = 8
_REACH = 4


@dataclass(frozen=True)
class Limits:
    """What counts as recognised (chosen with ``judge --calibrate``).

    fit: the least share of the difference from the background that a template must explain,
    both blurred by 3 pixels, for a painter's blur must not matter and its colours must;
    inside: the least correlation with the template inside its silhouette, means removed, both
    blurred by 2 pixels;
    blob: the least squared difference (see survey.py) that counts as unrecognised.
    """

    fit: float = 0.92
    inside: float = 0.74
    blob: float = 450_000.0


@dataclass(frozen=True)
class ObjectMatch:
    """One recognised object: its top left corner, side in pixels, and how well it fits (≤ 1)."""

    concept: int
    style: str
    size: str
    tint: str | None
    x: int
    y: int
    side: int
    fit: float
    inside: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.side / 2, self.y + self.side / 2


@dataclass(frozen=True)
class PictureContent:
    """What the judge sees; ``style`` is the vote of the objects (None without any), and
    ``unrecognised`` counts patches of foreground that no template fits (the whole picture is one
    when its background is none of the named ones)."""

    background: str | None
    style: str | None
    objects: tuple[ObjectMatch, ...]
    unrecognised: int

    def count(self, concept: int) -> int:
        return sum(thing.concept == concept for thing in self.objects)

    def of(self, concept: int) -> tuple[ObjectMatch, ...]:
        return tuple(thing for thing in self.objects if thing.concept == concept)


class Judge:
    """Looks at pictures with one bank of templates."""

    def __init__(self, bank: Bank | None = None, limits: Limits | None = None) -> None:
        self.bank = bank or full_bank()
        self.limits = limits or Limits()

    def look(self, picture: Image.Image | np.ndarray) -> PictureContent:
        """Judge one picture, 128 x 128 RGB (a PIL image or uint8 (128, 128, 3)).

        Raises:
            ValueError: the picture has another size.
        """
        pixels = np.asarray(
            picture.convert("RGB") if isinstance(picture, Image.Image) else picture
        ).astype(np.float32)
        if pixels.shape != (CANVAS, CANVAS, 3):
            raise ValueError(f"the judge looks at {CANVAS} x {CANVAS} RGB, not {pixels.shape}")
        background, colour = background_of(pixels)
        if background is None:
            return PictureContent(None, None, (), 1)
        left = smooth(pixels - colour)
        survey = Survey(self.bank, background)
        found: list[ObjectMatch] = []
        unrecognised = 0
        for _ in range(MOST_OBJECTS):
            best = self._best(left, survey)
            if best is None:
                break
            thing = self._describe(best, left, background)
            if thing.fit >= self.limits.fit and thing.inside >= self.limits.inside:
                found.append(thing)
            elif best.gain * HALF**2 >= self.limits.blob:
                unrecognised += 1
            self._clear(left, thing)
        return PictureContent(background, _vote(found), tuple(found), unrecognised)

    def _best(self, left: np.ndarray, survey: Survey) -> Candidate | None:
        """The template and place that explain most of ``left``, or None for too little."""
        shortlist = survey.shortlist(left)
        if not shortlist:
            return None
        blocks = _blocks(left, HALF)
        settled: list[Candidate] = []
        # Each size keeps its best place only: the others are the same thing seen askew.
        for bank in self.bank.sizes:
            here = [c for c in shortlist if c.bank is bank]
            if not here:
                continue
            rows = np.unique([c.row for c in here])
            templates = bank.half(rows, survey.colour).reshape(len(rows), -1)
            lead = max(here, key=score)
            for reach, step in ((2, 2), (1, 1)):
                lead = _settle(blocks, bank, lead, rows, templates, reach, step)
            settled.append(lead)
        best = max(settled, key=score)
        return best if best.gain * HALF**2 >= LEAST_ENERGY else None

    def _describe(self, best: Candidate, left: np.ndarray, background: str) -> ObjectMatch:
        shown: Template = self.bank.template(best.bank.size, best.row)
        colour = np.array(BACKGROUNDS[background], dtype=np.float32)
        expected = best.bank.half(np.array([best.row]), colour)[0]
        opacity = best.bank.opacity[best.row // len(LOOKS)][..., 0] > 127
        blocks = _blocks(left, HALF)
        around = [(_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)]
        wide = _window(blocks, best.bank, best.x, best.y, HALF * _MARGIN)
        inner = slice(_MARGIN, -_MARGIN)
        inside, whole = (
            [smooth(side, sigma)[inner, inner] for side in (wide, np.pad(expected, around))]
            for sigma in (_INSIDE_BLUR, _FIT_BLUR)
        )
        return ObjectMatch(
            concept=shown.concept,
            style=shown.style,
            size=shown.size,
            tint=shown.tint,
            x=best.x,
            y=best.y,
            side=best.bank.side,
            fit=_explained(*whole),
            inside=_agreement(*(side[opacity] for side in inside)),
        )

    def _clear(self, left: np.ndarray, thing: ObjectMatch) -> None:
        """Wipe the object, and a rim of 3 pixels for its blur, from what is left to explain."""
        template = Template(thing.concept, thing.style, thing.size, thing.tint)
        mask = np.pad(self.bank.opacity(template) > 0.05, _RIM)
        around = sliding_window_view(np.pad(mask, _RIM), (2 * _RIM + 1, 2 * _RIM + 1))
        spread: np.ndarray = np.asarray(around.any(axis=(-2, -1)))
        padded = np.pad(left, ((_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)))
        y, x = thing.y + _BORDER - _RIM, thing.x + _BORDER - _RIM
        padded[y : y + len(spread), x : x + len(spread)][spread] = 0
        left[:] = padded[_BORDER:-_BORDER, _BORDER:-_BORDER]


_RIM = 3
_BORDER = 20
_MARGIN = 6  # half-resolution pixels around a box, for its blur
# Blur at half resolution that makes 2 and 3 pixels in all with the 1 pixel of the templates.
_INSIDE_BLUR, _FIT_BLUR = 3**0.5 / HALF, 8**0.5 / HALF


def background_of(pixels: np.ndarray) -> tuple[str | None, np.ndarray]:
    """The background's name and its colour as drawn, float (3,).

    The rim of the picture votes, each pixel for the named background nearest to it; the colour
    is the median of those that voted so. None when too few pixels are near any background.
    """
    rim = np.ones(pixels.shape[:2], dtype=bool)
    rim[4:-4, 4:-4] = False
    names = list(BACKGROUNDS)
    colours = np.array([BACKGROUNDS[name] for name in names], dtype=np.float32)
    votes = pixels[rim]
    distance = np.linalg.norm(votes[:, None] - colours, axis=-1)
    nearest = np.where(distance.min(axis=1) < 32, distance.argmin(axis=1), len(names))
    counts = np.bincount(nearest, minlength=len(names) + 1)[: len(names)]
    winner = int(counts.argmax())
    if counts[winner] < 0.25 * len(votes):
        return None, np.zeros(3, dtype=np.float32)
    return names[winner], np.median(votes[nearest == winner], axis=0).astype(np.float32)


def _blocks(pixels: np.ndarray, block: int) -> np.ndarray:
    """Means over block x block pixels at every offset, padded so that windows may stick out
    by ``_BORDER``: entry (y, x) is the block whose corner is (y - _BORDER, x - _BORDER)."""
    padded = np.pad(pixels, ((_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)))
    height, width = padded.shape[0] - block + 1, padded.shape[1] - block + 1
    total = np.zeros((height, width, padded.shape[2]), dtype=np.float32)
    for down in range(block):
        for right in range(block):
            total += padded[down : down + height, right : right + width]
    return total / block**2


def _window(blocks: np.ndarray, bank: SizeBank, x: int, y: int, margin: int = 0) -> np.ndarray:
    """What stands in the box at (x, y), and ``margin`` pixels around it, at half resolution."""
    left, top, side = x + _BORDER - margin, y + _BORDER - margin, bank.side + 2 * margin
    return blocks[top : top + side : HALF, left : left + side : HALF]


def _settle(
    blocks: np.ndarray,
    bank: SizeBank,
    lead: Candidate,
    rows: np.ndarray,
    templates: np.ndarray,
    reach: int,
    step: int,
) -> Candidate:
    """The best of all templates (K, h·h·3) at all places within ``reach`` steps of the lead's."""
    low, high = -_REACH, CANVAS - bank.side + _REACH
    offsets = range(-reach * step, reach * step + 1, step)
    places = [
        (lead.x + right, lead.y + down)
        for down in offsets
        for right in offsets
        if low <= lead.x + right <= high and low <= lead.y + down <= high
    ]
    windows = np.stack([_window(blocks, bank, *place).ravel() for place in places])
    energy = np.einsum("nk,nk->n", windows, windows)
    gains = 2 * (windows @ templates.T) - np.einsum("kp,kp->k", templates, templates)
    scores = np.maximum(gains, 0) ** 2 / np.maximum(energy, 1e-6)[:, None]
    place, row = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return Candidate(
        bank,
        int(rows[row]),
        *places[place],
        fit=float(gains[place, row] / max(energy[place], 1e-6)),
        gain=float(gains[place, row]),
    )


def _explained(actual: np.ndarray, expected: np.ndarray) -> float:
    """The share of the squares of ``actual`` that ``expected`` explains."""
    return float(1 - ((actual - expected) ** 2).sum() / max(float((actual**2).sum()), 1e-6))


def _agreement(actual: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of two sets of pixels (N, 3) with each channel's mean removed; 1 for plain
    surfaces, which have nothing to agree about but the mean."""
    a, b = actual - actual.mean(axis=0), expected - expected.mean(axis=0)
    plain = 8.0**2 * len(expected)
    bottom = np.sqrt(((a**2).sum() + plain) * ((b**2).sum() + plain))
    return float(((a * b).sum() + plain) / bottom)


def _vote(found: list[ObjectMatch]) -> str | None:
    """The style most objects have; the better fitting wins a tie."""
    if not found:
        return None
    weight = {style: sum(1 + f.fit / 100 for f in found if f.style == style) for style in STYLES}
    return max(weight, key=lambda style: weight[style])
