"""All texts of a call as one batch of rows, each with a role.

A row goes through every tower: a prompt, a negative, a part of either, or the empty text that
fills up a prompt of fewer parts than another. An entry is a prompt or a negative again, and says
how its rows go together:

- compel's ``.blend()`` is the weighted sum of its parts' states, by weights that add up to 1
  unless the prompt says ``no_normalize``;
- compel's ``.and()`` sets them end to end, each as many windows as it fills; a part of weight w
  stands at ``e + w * (z - e)`` from the empty prompt's states. Shorter prompts and negatives are
  filled up with the empty prompt.

Pooled states are the weighted mean of the parts', or that of the whole prompt as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from bridge.prompt import Prompt, parse
from bridge.prompt.prompt import first_step
from bridge.prompt.syntax import Branch

Role = Literal["prompt", "negative_prompt"]
Each = TypeVar("Each")


@dataclass(frozen=True)
class ParsedTexts:
    """B texts of one role; ``later`` are those of the second and third tower's own. None for what
    was not given."""

    first: tuple[Prompt, ...] | None
    later: tuple[tuple[Prompt, ...] | None, ...] = (None, None)


@dataclass(frozen=True)
class Row:
    """One text on its way through the towers.

    Attributes:
        texts: what each tower reads.
        role: whether it is a prompt's or a negative's.
        strengths: of each LoRA of the call.
    """

    texts: tuple[Prompt, ...]
    role: Role
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A prompt or a negative.

    Attributes:
        role: which of the two.
        number: its place among those of its role.
        kind: ``one``, ``and`` (end to end), ``blend`` or ``sum`` (of weights as they are).
        weights: of its parts.
        rows: the rows of its parts.
        filling: the row of the empty text; None where no entry is an ``and``.
    """

    role: Role
    number: int
    kind: str
    weights: tuple[float, ...]
    rows: tuple[int, ...]
    filling: int | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.role} {self.number}"


@dataclass(frozen=True)
class Batch:
    """The rows of a call, and its B prompts followed by their negatives, if it has any."""

    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]

    @property
    def count(self) -> int:
        """B."""
        return sum(entry.role == "prompt" for entry in self.entries)

    @property
    def is_joined(self) -> bool:
        """Whether any entry has several parts, or one of a weight."""
        return any(entry.kind != "one" for entry in self.entries)

    def by_role(self, items: Sequence[Each]) -> tuple[Sequence[Each], Sequence[Each]]:
        """What belongs to the prompts, and what to the negatives; ``items``: one an entry."""
        return items[: self.count], items[self.count :]


def make_batch(
    prompts: ParsedTexts, negatives: ParsedTexts, strengths: Sequence[tuple[float, ...]]
) -> Batch:
    """The batch of B prompts and their negatives, if there are any; ``strengths``: of each
    prompt's LoRAs."""
    rows: list[Row] = []
    entries: list[Entry] = []
    sides: tuple[tuple[Role, ParsedTexts], ...] = (
        ("prompt", prompts),
        ("negative_prompt", negatives),
    )
    for role, texts in sides:
        for number, prompt in enumerate(texts.first or ()):
            parts, kind, weights = _parts(prompt)
            own = tuple(range(len(rows), len(rows) + len(parts)))
            entries.append(Entry(role, number, kind, weights, own))
            later = [None if some is None else some[number] for some in texts.later]
            rows += [
                Row((part, *(other or part for other in later)), role, strengths[number])
                for part in parts
            ]
    batch = Batch(tuple(rows), tuple(entries))
    return _filled(batch) if any(each.kind == "and" for each in entries) else batch


def _parts(prompt: Prompt) -> tuple[tuple[Prompt, ...], str, tuple[float, ...]]:
    """The parts of a prompt, each as a prompt of one part; how they go together; their weights."""
    if isinstance(prompt.tree, Branch):
        return (prompt,), "one", (1.0,)
    flat = first_step(prompt)
    parts = tuple(replace(prompt, spans=part.spans) for part in flat.parts)
    return parts, flat.kind, tuple(part.weight for part in flat.parts)


def _filled(batch: Batch) -> Batch:
    """With a row of the empty text for each role, since the roles may skip other layers."""
    empty, rows = parse("", batch.rows[0].texts[0].dialect), list(batch.rows)
    places: dict[Role, int] = {}
    for entry in batch.entries:
        if entry.role not in places:
            places[entry.role] = len(rows)
            # Dialects with such parts have no LoRA tags, so any prompt's strengths are its own.
            first = batch.rows[entry.rows[0]]
            rows.append(replace(first, texts=(empty,) * len(first.texts)))
    return Batch(
        tuple(rows), tuple(replace(each, filling=places[each.role]) for each in batch.entries)
    )
