"""From the texts of a call to token plans: one batch of rows, each with a role.

A row goes through every tower: a prompt, a negative, a part of either, or the empty text that
fills up a prompt of fewer parts than another. An entry is a prompt or a negative again, and says
how its rows go together:

- compel's ``.blend()`` is the weighted sum of its parts' states, by weights that add up to 1
  unless the prompt says ``no_normalize``;
- compel's ``.and()`` sets them end to end, each as many windows as it fills; a part of weight w
  stands at ``e + w * (z - e)`` from the empty prompt's states. Shorter prompts and negatives are
  filled up with the empty prompt.

Pooled states are the weighted mean of the parts', or that of the whole prompt as it is written.

A UNet takes one sequence, in which place j joins place j of every tower. So the sequences of
towers of unequal context, such as Long-CLIP-L's 248 beside bigG's 77, must be brought to one
length (Long-CLIP's issue 7 asks how). The rules, by name:

=========  ====================================================================================
``fill``   to the longest, with the states of the tower's own empty window, end to end and cut
           off at the length; no text is lost, and no place has states that its tower never
           gives (the default)
``zeros``  to the longest, with zeros; what issue 7 tried
``cut``    to the shortest; what ComfyUI's SDXL does. Text beyond it is lost, and said to be
=========  ====================================================================================

Before that, each tower deals the prompt to windows of its own context: 300 tokens are two windows
of 248 in one tower and five of 77 in the other. The fourth way is to make the contexts equal:
``bridge.towers.stretch_positions``, as the authors of Long-CLIP did for their SDXL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from bridge.encoding.emphasis import EMPHASES, Emphasis
from bridge.encoding.model import TextModel
from bridge.encoding.options import ParsedTexts, TextRules
from bridge.errors import quoted, warn
from bridge.prompt import (
    LongPrompt,
    Prompt,
    Token,
    TokenPlan,
    TruncationWarning,
    normalised,
    parse,
    plan_many,
)
from bridge.prompt.prompt import first_step
from bridge.prompt.syntax import Branch

Role = Literal["prompt", "negative_prompt"]
Each = TypeVar("Each")


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
        for number, prompt in enumerate(texts[0] or ()):
            parts, kind, weights = _parts(prompt)
            own = tuple(range(len(rows), len(rows) + len(parts)))
            entries.append(Entry(role, number, kind, weights, own))
            later = [None if some is None else some[number] for some in texts[1:]]
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


# ---------------------------------------------------------------- plans and lengths

WINDOWED = ("concat", "first_eos")
"""The joins in which windows that fill up a sequence are its end, so that it can go without."""
Plans = tuple[tuple[TokenPlan, ...], ...]
"""For each tower, the plan of each row."""


@dataclass(frozen=True)
class Joining:
    """How a tower's states become sequences.

    Attributes:
        emphasis: the formula for plans that are weighted.
        long: how windows become one sequence.
        windows: how many windows every plan is brought to with empty prompts.
        length: how many states a plan is brought to, by the rule ``long.uneven``.
    """

    emphasis: Emphasis
    long: LongPrompt
    windows: int
    length: int


def plan_rows(model: TextModel, rules: TextRules, batch: Batch) -> tuple[Plans, list[Joining]]:
    """For each tower, the plan of each row, and how its states become sequences.

    What is cut off gives a ``TruncationWarning``.
    """
    plans = tuple(
        tuple(
            normalised(plan, rules.token_normalization)
            for plan in plan_many(
                [row.texts[at] for row in batch.rows],
                reader,
                use.component,
                rules.long_prompt,
                raw=rules.dialect.pools_source and use.pooled and use.layer is not None,
            )
        )
        for at, (use, reader) in enumerate(
            zip(
                model.recipe.towers,
                model.readers(rules.max_sequence_length, rules.clean),
                strict=True,
            )
        )
    )
    _warn_of_cuts(plans, batch)
    every = [own for use, own in zip(model.recipe.towers, plans, strict=True) if use.length is None]
    most, common = _most_by_context(every), common_states(every, rules.long_prompt)
    joinings = [
        Joining(
            # Pooled states are not weighted, so a tower without token states needs no copies.
            EMPHASES[rules.emphasis if use.layer else "none"],
            rules.long_prompt,
            most[own[0].limit] if use.length is None else 1,
            common if use.length is None else own[0].limit,
        )
        for use, own in zip(model.recipe.towers, plans, strict=True)
    ]
    return _cut_to_states(plans, joinings, rules.long_prompt, batch), joinings


def plans_by_entry(plans: Plans, batch: Batch) -> tuple[tuple[TokenPlan, ...], ...]:
    """For each entry the plan of each tower; of one of several parts, those of each part."""

    def named(plan: TokenPlan, parts: int, part: int) -> TokenPlan:
        return plan if parts == 1 else replace(plan, tower=f"{plan.tower}, part {part}")

    return tuple(
        tuple(
            named(tower[row], len(entry.rows), part)
            for part, row in enumerate(entry.rows, 1)
            for tower in plans
        )
        for entry in batch.entries
    )


def most_windows(plans: Plans) -> int:
    """How many windows all are brought to."""
    return max(len(plan.windows) for tower in plans for plan in tower)


def common_states(towers: Sequence[Sequence[TokenPlan]], long: LongPrompt) -> int:
    """The states that plans of several towers make together; 0 without plans."""
    sizes = [
        joined_length(windows, context, long.join)
        for context, windows in _most_by_context(towers).items()
    ]
    return (min if long.uneven == "cut" else max)(sizes, default=0)


def joined_length(windows: int, context: int, join: str) -> int:
    """How many states ``joining.join_windows`` makes of windows."""
    if windows == 1 or join == "average":
        return context
    if join == "no_bos_between":
        return windows * (context - 2) + 2
    return windows * context


def beyond(plan: TokenPlan, length: int, join: str) -> tuple[Token, ...]:
    """The content tokens whose states come after the first ``length``."""
    step = {"average": 0, "no_bos_between": plan.limit - 2}.get(join, plan.limit)
    return tuple(
        token
        for number, window in enumerate(plan.windows)
        for place, token in enumerate(window.tokens)
        if not token.special and number * step + place >= length
    )


def _most_by_context(towers: Iterable[Sequence[TokenPlan]]) -> dict[int, int]:
    """The most windows that a plan fills, for towers of each context."""
    most: dict[int, int] = {}
    for own in towers:
        for plan in own:
            most[plan.limit] = max(most.get(plan.limit, 1), len(plan.windows))
    return most


def _warn_of_cuts(plans: Plans, batch: Batch) -> None:
    for entry in batch.entries:
        # Towers that cut the same text say so once.
        cuts = {
            (plan.cut, plan.limit, plan.cut_tokens): plan.tower
            for tower in plans
            for plan in (tower[row] for row in entry.rows)
            if plan.cut
        }
        for (cut, limit, tokens), tower_name in cuts.items():
            warn(
                TruncationWarning,
                f"{entry.name}: {tokens} tokens do not fit the {limit} of {tower_name} and are "
                f"cut off: {quoted(cut, 120)}",
            )


def _cut_to_states(
    plans: Plans, joinings: Sequence[Joining], long: LongPrompt, batch: Batch
) -> Plans:
    """The plans with what is lost where a tower of longer context is cut to one of shorter."""
    if long.uneven != "cut":
        return plans
    names = {row: entry.name for entry in batch.entries for row in entry.rows}

    def cut(plan: TokenPlan, states: int, row: int) -> TokenPlan:
        lost = beyond(plan, states, long.join)
        if not lost:
            return plan
        text = plan.source[lost[0].start : lost[-1].end]
        warn(
            TruncationWarning,
            f"{names[row]}: {len(lost)} tokens of {plan.tower} come after the {states} states "
            f"that all towers have and are cut off: {quoted(text, 120)}. Other rules for towers of "
            "unequal context keep them, such as LongPrompt(..., uneven='fill').",
        )
        return replace(plan, cut=text, cut_start=lost[0].start, cut_tokens=len(lost))

    return tuple(
        tuple(cut(plan, each.length, row) for row, plan in enumerate(tower))
        for tower, each in zip(plans, joinings, strict=True)
    )
