"""The trace of a prompt: where its pooled state was read, and how far emphasis took its states from
those that the tower gave.


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
states were shifted so that they have a mean to keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, zip_longest
from typing import Any

import torch
from torch import Tensor

from bridge.encoding.planning import Entry
from bridge.errors import OffManifoldWarning, quoted, warn
from bridge.markup import Markup, fill, joined
from bridge.prompt import LongPrompt, TokenPlan

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
        word: the text of the state that ``length`` is of; "" in files of an older bridge.
    """

    tower: str
    length: float
    mean: float
    rest: float
    word: str = ""

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
    """The figures of a ``Drift`` and the place of its word, counted over all windows, as a tensor
    ``(4,)`` on the states' device.

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
            furthest.float(),
        ]
    )


def drifts_of(plans: Sequence[TokenPlan], figures: Sequence[Tensor]) -> tuple[Drift | None, ...]:
    """The drift of each plan; ``figures`` are those of the weighted ones, in order."""
    # One transfer from the device for all.
    rows = iter(torch.stack(list(figures)).tolist() if figures else [])
    return tuple(_drift(plan, *next(rows)) if plan.is_weighted else None for plan in plans)


def _drift(plan: TokenPlan, length: float, mean: float, rest: float, place: float) -> Drift:
    number, at = divmod(int(place), len(plan.windows[0].ids))
    token = plan.windows[number].tokens[at]
    word = plan.source[token.start : token.end] or token.piece
    return Drift(plan.tower, length, mean, rest, word)


def off_manifold(drifts: Sequence[Drift], what: str) -> str:
    """One sentence if the prompt that is called ``what`` has left the manifold in any tower."""
    told = [f"{d.tower}: {', '.join(d.reasons)}" for d in drifts if d.reasons]
    if not told:
        return ""
    return (
        f"{what}: its weights go beyond what the model has seen ({'; '.join(told)}), so pictures "
        "may come out broken. Weights nearer to 1, or another emphasis, keep them whole."
    )


def _within(ratio: float) -> bool:
    return math.isfinite(ratio) and 1 / LENGTH_LIMIT <= ratio <= LENGTH_LIMIT


def warn_of_drifts(traces: Sequence[Trace], entries: Sequence[Entry]) -> None:
    """One ``OffManifoldWarning`` for each entry that has left the manifold in any tower."""
    for trace, entry in zip(traces, entries, strict=True):
        told = off_manifold(trace.drifts, entry.name)
        if told:
            warn(OffManifoldWarning, told)


# Configs from before transformers#24773 say 2 for any vocabulary.
_OLD_EOS = 2


@dataclass(frozen=True)
class PooledSource:
    """One state that a pooled state is made of.

    Attributes:
        tower: the tower's name, with the part of the prompt if it has several.
        window: the window, from 0.
        windows: how many windows the prompt has.
        place: the state's place in the window, from 0; BOS is at 0.
        piece: the token there. Not EOS where an old config meets added tokens of higher ids.
    """

    tower: str
    window: int
    windows: int
    place: int
    piece: str

    def text(self) -> str:
        window = f"window {self.window + 1} of {self.windows}"
        return f"{self.tower}, {window}, {self.piece} at {self.place}"


@dataclass(frozen=True)
class Trace:
    """``pooled`` is empty where the recipe has no pooled state, ``drifts`` where nothing is
    weighted."""

    pooled: tuple[PooledSource, ...] = ()
    drifts: tuple[Drift, ...] = ()

    def lines(self) -> list[str]:
        """The trace in words, a line for each thing."""
        pooled = [f"pooled state: {source.text()}" for source in self.pooled]
        return pooled + [_drift_line(drift) for drift in self.drifts]

    def html(self) -> str:
        """The trace as an HTML fragment; warnings have ``role="alert"``."""
        return str(self.__html__())

    def __html__(self) -> Markup:
        alerts = [False] * len(self.pooled) + [bool(drift.reasons) for drift in self.drifts]
        alarm = Markup(' role="alert"')
        return joined(
            fill('<p class="bridge-trace"{}>{}</p>', alarm if alert else "", line)
            for line, alert in zip(self.lines(), alerts, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain values, ready for JSON."""
        return {
            "pooled": [asdict(source) for source in self.pooled],
            "drifts": [{**asdict(d), "reasons": list(d.reasons)} for d in self.drifts],
        }


def traces_of(
    eos: Sequence[int | None],
    long: LongPrompt,
    by_entry: Sequence[Sequence[TokenPlan]],
    entries: Sequence[Entry],
    drifts: Sequence[Sequence[Drift | None]],
) -> tuple[Trace, ...]:
    """The trace of each entry.

    Args:
        eos: for each tower the ``eos_token_id`` of its config; None where it is not pooled.
        long: whose windows are pooled.
        by_entry: as ``planning.plans_by_entry`` gives it.
        entries: the entries.
        drifts: for each tower, of each row.
    """
    found = []
    for plans, entry in zip(by_entry, entries, strict=True):
        own = (of_tower[row] for row in entry.rows for of_tower in drifts)
        pooled = (
            source
            for plan, eos_id in zip(plans, cycle(eos), strict=False)
            if eos_id is not None
            for source in _sources(plan, long, eos_id)
        )
        moved = (
            replace(drift, tower=plan.tower)
            for plan, drift in zip(plans, own, strict=True)
            if drift is not None
        )
        found.append(Trace(tuple(pooled), tuple(moved)))
    return tuple(found)


def pooled_place(ids: Sequence[int], eos: int) -> int:
    """Where transformers' CLIP reads the pooled state: the first EOS; the highest id if the config
    says 2, as old ones do for any vocabulary."""
    if eos == _OLD_EOS:
        return max(range(len(ids)), key=ids.__getitem__)
    return ids.index(eos) if eos in ids else 0


def _sources(plan: TokenPlan, long: LongPrompt, eos: int) -> list[PooledSource]:
    windows = plan.windows if plan.raw is None else (plan.raw,)
    count = len(windows)
    chosen = {"first": [0], "last": [count - 1]}.get(long.pooled, range(count))
    found = []
    for number in chosen:
        window = windows[number]
        place = pooled_place(window.ids, eos)
        piece = window.tokens[place].piece if place < window.used else "padding"
        found.append(PooledSource(plan.tower, number, count, place, piece))
    return found


def _drift_line(drift: Drift) -> str:
    word = f" ({quoted(drift.word, 40)})" if drift.word else ""
    line = (
        f"emphasis in {drift.tower}: length ×{drift.length:.3g}{word}, mean {drift.mean:+.3f} sd, "
        f"rest ×{drift.rest:.3g}"
    )
    return f"{line}: off the manifold, {', '.join(drift.reasons)}" if drift.reasons else line


# ---------------------------------------------------------------- in words


def remarks_of(
    plans: Sequence[Sequence[TokenPlan]], traces: Sequence[Trace], what: str
) -> Iterator[str]:
    """A sentence for each loss of each prompt, which is called ``what``, with its number if there
    are several; in the usual case nothing."""
    # Files of an older bridge have no traces.
    for index, (towers, trace) in enumerate(zip_longest(plans, traces, fillvalue=None)):
        name = what if len(plans) == 1 else f"{what} {index}"
        # Towers that cut the same text say so once.
        cuts = {(plan.cut, plan.cut_tokens): plan.tower for plan in towers or () if plan.cut}
        for (cut, tokens), tower in cuts.items():
            yield f"{name}: {tokens} tokens do not fit {tower} and are cut off: {quoted(cut, 120)}"
        if trace is not None:
            yield from filter(None, [off_manifold(trace.drifts, name)])
