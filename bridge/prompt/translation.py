"""A prompt in another dialect, with a list of all that its meaning loses on the way.

What is written is the flat text of the first step, with the weights multiplied out, so that
nesting means the same under every dialect's rule. It is then read back in the new dialect and held
against the original, character by character: a change of weight that is not listed did not happen.
Blanks are not compared; tokenizers do not see them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bridge.checks import keywords
from bridge.errors import quoted
from bridge.prompt.dialect import DIALECTS, DialectName
from bridge.prompt.prompt import Flat, Part, Prompt, first_step, parse
from bridge.prompt.syntax import Alternation, Runs, Schedule, parts_of, walk, written_number

Kind = Literal["weight", "schedule", "alternation", "break", "conjunction", "blend", "text"]

# Weights nearer than this are one weight written with fewer digits.
_SAME = 1e-6


@dataclass(frozen=True)
class Loss:
    """What ``source[start:end]`` of the original loses, or what of it changes."""

    kind: Kind
    start: int
    end: int
    message: str


@dataclass(frozen=True)
class Translation:
    """A prompt in its new dialect, and its losses in the order of the original."""

    prompt: Prompt
    losses: tuple[Loss, ...]


@keywords
def translate(prompt: Prompt, dialect: DialectName) -> Translation:
    """``prompt`` in another dialect. Into its own it stays as it is.

    Schedules and alternations keep their first step. A1111's ``BREAK`` and compel's ``.and()``
    are the same where no weight is on it. What no dialect shares (``AND``, ``.blend()``) becomes
    the nearest there is.

    Raises:
        OptionError: a dialect that does not exist.
        PromptError: weights that are not finite.
    """
    if dialect == prompt.dialect:
        return Translation(prompt, ())
    flat = first_step(prompt)
    parts = [(_windows(part), part.weight) for part in flat.parts]
    written = parse(DIALECTS[dialect].write(parts, flat.kind), dialect)
    losses = [*_structure(flat, prompt, dialect), *_compare(flat, first_step(written))]
    return Translation(written, tuple(sorted(losses, key=lambda loss: (loss.start, loss.end))))


def _windows(part: Part) -> list[Runs]:
    """The runs of equal weight of a part, window by window."""
    windows: list[list[tuple[list[str], float]]] = [[]]
    for span in part.spans:
        window = windows[-1]
        if span.breaks:
            windows.append([])
        elif not window or window[-1][1] != span.weight:
            window.append(([span.text], span.weight))
        else:
            # Texts that are tokenized apart must not become one word.
            window[-1][0].extend(("" if span.joined else " ", span.text))
    return [[("".join(pieces), weight) for pieces, weight in window] for window in windows]


def _structure(flat: Flat, prompt: Prompt, dialect: DialectName) -> Iterator[Loss]:
    """The losses that follow from the tree alone."""
    tree = prompt.tree
    for part in parts_of(tree):
        for node, _ in walk(part.children):
            if isinstance(node, Schedule):
                yield Loss("schedule", node.start, node.end,
                           "the schedule is lost; its first step is kept")  # fmt: skip
            elif isinstance(node, Alternation):
                yield Loss("alternation", node.start, node.end,
                           "the alternation is lost; its first option is kept")  # fmt: skip
    if not DIALECTS[dialect].has_parts:
        for span in (s for part in flat.parts for s in part.spans if s.breaks):
            yield Loss("break", span.start, span.end,
                       "BREAK is lost; the text goes on in the same window")  # fmt: skip
    if tree.end < len(prompt.source.rstrip()):
        yield Loss("text", tree.end, len(prompt.source),
                   "compel ignores what stands after .and(), so it is left out")  # fmt: skip
    message = _combination(flat, prompt, dialect)
    if message is not None:
        kind: Kind = "blend" if flat.kind in ("blend", "sum") else "conjunction"
        yield Loss(kind, tree.start, tree.end, message)


def _combination(flat: Flat, prompt: Prompt, dialect: DialectName) -> str | None:
    """What becomes of several prompts, or of one with a weight."""
    if flat.kind == "one":
        return None
    weights = [part.weight for part in flat.parts]
    if not DIALECTS[dialect].has_parts:
        if len(weights) == 1:
            return f"the prompt's own weight {written_number(weights[0])} is lost"
        return "its prompts are set one after the other, in one text without their weights"
    if DIALECTS[prompt.dialect].draws_parts_apart:
        return "AND adds up noise predictions; .and() sets the states end to end"
    if flat.kind != "and":
        return ".blend() mixes the states of its prompts; AND adds up their noise predictions"
    if all(weight == 1.0 for weight in weights):
        return None
    return ".and() becomes BREAK, which has no weights"


def _compare(old: Flat, new: Flat) -> Iterator[Loss]:
    """Weights and characters that differ."""
    before, after = list(_characters(old)), list(_characters(new))
    same = _common(before, after)
    tail = _common(
        before[: same - 1 if same else None : -1], after[: same - 1 if same else None : -1]
    )
    changed = before[same : len(before) - tail], after[same : len(after) - tail]
    pairs = [*zip(before[:same], after[:same], strict=True)]
    if tail:
        pairs += zip(before[-tail:], after[-tail:], strict=True)
    yield from _weights(pairs)
    if changed[0] or changed[1]:
        lost, found = ("".join(c for c, _, _ in side) for side in changed)
        here = changed[0] or before[same - 1 : same] or [("", 1.0, 0)]
        yield Loss("text", here[0][2], here[-1][2] + 1,
                   f"the text changes from {quoted(lost, 40)} to {quoted(found, 40)}")  # fmt: skip


_Character = tuple[str, float, int]


def _characters(flat: Flat) -> Iterator[_Character]:
    """The characters that are not blank, each with its weight and its place in the source."""
    for part in flat.parts:
        for span in part.spans:
            for i, char in enumerate(span.text):
                if not char.isspace():
                    yield char, span.weight, span.start + i


def _common(a: list[_Character], b: list[_Character]) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x[0] != y[0]), min(len(a), len(b)))


def _weights(pairs: list[tuple[_Character, _Character]]) -> Iterator[Loss]:
    """One loss for each stretch of characters whose weight changes alike."""
    start = end = -1
    change: tuple[float, float] | None = None
    for (_, old, at), (_, new, _) in pairs:
        now = None if abs(old - new) <= _SAME * max(1.0, abs(old)) else (old, new)
        if now == change:
            end = at + 1
            continue
        if change is not None:
            yield _weight_loss(start, end, change)
        start, end, change = at, at + 1, now
    if change is not None:
        yield _weight_loss(start, end, change)


def _weight_loss(start: int, end: int, change: tuple[float, float]) -> Loss:
    old, new = (f"{weight:.4g}" for weight in change)
    return Loss("weight", start, end, f"weight changes from {old} to {new}")
