"""A prompt, read in its dialect, and what it says over the steps of a run.

Steps count from 1, and say what is drawn at each. stable-diffusion-webui compiles a schedule with a
count from 1 (``get_learned_conditioning_prompt_schedules``, ``modules/prompt_parser.py`` at commit
28bd8e1: the side before holds while ``step <= when``, and an alternation's first option at step 1),
but its sampler looks that schedule up with a count from 0 (``sd_samplers_cfg_denoiser.py``). So
``[cat:dog:0.5]`` draws cat at 11 steps of 20, and ``[cat|dog]`` draws cat, cat, dog, cat, dog, ...;
so it is here. The web UI's count is of calls of the model: a solver that calls it twice a step has
twice as many "steps".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from bridge.checks import keywords
from bridge.errors import OptionError
from bridge.prompt.dialect import DIALECTS, DialectName
from bridge.prompt.dialects.a1111_tags import LoraTag
from bridge.prompt.syntax import (
    Alternation,
    Blend,
    Branch,
    Choose,
    Conjunction,
    Edit,
    Schedule,
    Span,
    Tree,
    check_text,
    parts_of,
    prompt_error,
    walk,
)

Rule = Literal["new", "old"]
"""How a ``when`` is counted. ``new`` (the web UI since 1.6): with a point a fraction of the steps,
else a step. ``old``: below 1 a fraction, else a step."""


@dataclass(frozen=True)
class Prompt:
    """A checked prompt.

    Attributes:
        source: the text as written.
        dialect: the dialect it was read in.
        spans: the flat weighted text at the first step. Of a conjunction or blend these are the
            spans of all its parts, one after the other; ``at_step`` has them apart.
        tree: its syntax. It follows from source and dialect, so it takes no part in comparison.
    """

    source: str
    dialect: DialectName
    spans: tuple[Span, ...]
    tree: Tree = field(compare=False, repr=False)

    def __str__(self) -> str:
        """The prompt as its dialect writes it."""
        return self.source


@keywords
def parse(text: str, dialect: DialectName = "a1111", *, negative: bool = False) -> Prompt:
    """Read ``text`` in a dialect.

    Args:
        text: the prompt.
        dialect: one of ``DIALECTS``.
        negative: it is a negative prompt. A1111 reads no ``AND`` and no part weights in those; the
            other dialects read them alike.

    Raises:
        PromptError: text that cannot be encoded, or that the dialect's own tool raises an error
            for; each dialect's module says which.
        OptionError: a dialect that does not exist.
    """
    check_text(text)
    tree = DIALECTS[dialect].parse(text, negative)
    spans = DIALECTS[dialect].spans
    flat = tuple(span for part in parts_of(tree) for span in spans(part, text, _first))
    return Prompt(text, dialect, flat, tree)


@dataclass(frozen=True)
class Tagged:
    """A prompt as written, the text that is left without its tags, those of LoRAs, and where in the
    source all that was taken out stood."""

    source: str
    text: str
    tags: tuple[LoraTag, ...] = ()
    taken: tuple[tuple[int, int], ...] = ()


def take_tags(source: str, dialect: DialectName = "a1111") -> Tagged:
    """Take the tags out of a prompt; other dialects than A1111's have none.

    Raises:
        PromptError: a tag that cannot be read.
    """
    check_text(source)
    find = DIALECTS[dialect].find_tags
    if find is None or "<" not in source:
        return Tagged(source, source)
    tags, taken = find(source)
    borders = [0, *(at for place in taken for at in place), len(source)]
    text = "".join(source[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True))
    return Tagged(source, text, tags, taken)


def refuse_tags(source: str, dialect: DialectName = "a1111") -> None:
    """Raise PromptError if a text that can have no LoRA tags has one."""
    find = DIALECTS[dialect].find_tags
    if find is None or "<" not in source:
        return
    for tag in find(source)[0]:
        raise prompt_error(
            "A LoRA tag belongs into the prompt, from where it acts on its negative and on all "
            "towers; move it there.", source, tag.start, tag.end,
        )  # fmt: skip


# ---------------------------------------------------------------- over the steps of a run


@dataclass(frozen=True)
class Part:
    """One of the prompts that are encoded apart, flat, with its weight."""

    spans: tuple[Span, ...]
    weight: float = 1.0

    @property
    def text(self) -> str:
        """Its text without weights."""
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True)
class Flat:
    """A prompt at one step: its parts, and how they go together.

    ``kind`` is ``one``; ``and`` (A1111: noise predictions are added; compel: states are set end to
    end); ``blend`` (states are averaged) or ``sum`` (states are added, weights as they are).
    """

    parts: tuple[Part, ...]
    kind: Literal["one", "and", "blend", "sum"] = "one"


@dataclass(frozen=True)
class Interval:
    """What holds up to and with ``last_step``, from the step after the interval before."""

    last_step: int
    flat: Flat


@keywords
def at_step(prompt: Prompt, step: int, steps: int, rule: Rule = "new") -> Flat:
    """The prompt that is drawn at ``step`` of ``steps``, both counted from 1.

    Raises:
        OptionError: a step outside the run, or a rule that does not exist.
        PromptError: weights that are not finite.
    """
    check_run(steps, rule)
    if not 1 <= step <= steps:
        raise OptionError(f"Step {step} is outside the run; it has steps 1 to {steps}.")
    compiled = max(1, step - 1)
    return _flat(prompt.tree, prompt.source, prompt.dialect, _chooser(compiled, steps, rule))


def last_steps(prompt: Prompt, steps: int, rule: Rule = "new") -> list[int]:
    """Each step after which what is drawn may change, and the last of the run, ascending.

    Raises:
        OptionError: no steps, or a rule that does not exist.
    """
    check_run(steps, rule)
    ends = {steps}
    for part in parts_of(prompt.tree):
        for node, _ in walk(part.children):
            if isinstance(node, Alternation):
                ends.update(range(1, steps + 1))
            elif isinstance(node, Schedule):
                ends.add(_last_step(node, steps, rule))
    return sorted({min(end + 1, steps) for end in ends if end >= 1})


@keywords
def intervals(prompt: Prompt, steps: int, rule: Rule = "new") -> tuple[Interval, ...]:
    """The prompt over a run: one interval up to each of its ``last_steps``.

    As in the web UI, neighbours may say the same, as in ``[a:a:3]``.

    Raises:
        OptionError: no steps, or a rule that does not exist.
        PromptError: weights that are not finite.
    """
    ends = last_steps(prompt, steps, rule)
    return tuple(Interval(end, at_step(prompt, end, steps, rule)) for end in ends)


def first_step(prompt: Prompt) -> Flat:
    """The prompt at the first step of a run so long that no fraction of it is less than a step."""
    return _flat(prompt.tree, prompt.source, prompt.dialect, _first)


def _flat(tree: Tree, source: str, dialect: DialectName, choose: Choose) -> Flat:
    spans = DIALECTS[dialect].spans
    parts = tuple(Part(spans(part, source, choose), part.weight) for part in parts_of(tree))
    match tree:
        case Conjunction():
            return Flat(parts, "and")
        case Blend():
            return Flat(parts, "blend" if tree.normalize else "sum")
        case _:
            return Flat(parts)


def _chooser(step: int, steps: int, rule: Rule) -> Choose:
    def choose(edit: Edit) -> Branch:
        if isinstance(edit, Alternation):
            return edit.options[(step - 1) % len(edit.options)]
        return edit.before if step <= _last_step(edit, steps, rule) else edit.after

    return choose


def _first(edit: Edit) -> Branch:
    if isinstance(edit, Alternation):
        return edit.options[0]
    when = float(edit.when)
    return edit.before if (when > 0 if "." in edit.when else when >= 1) else edit.after


def _last_step(edit: Schedule, steps: int, rule: Rule) -> int:
    """The last step at which the side before holds; below 1 it never does."""
    when = float(edit.when)
    fraction = "." in edit.when if rule == "new" else when < 1
    # Clamped before it is cut to an integer, for a huge number of steps is infinite.
    return int(max(-1.0, min(float(steps), when * steps if fraction else when)))


def check_run(steps: int, rule: str) -> None:
    """Raise OptionError for a run without steps, or a rule that does not exist."""
    if steps < 1:
        raise OptionError(f"A run has at least one step, not {steps}.")
    if rule not in get_args(Rule):
        raise OptionError(f"No rule of schedules {rule!r}; there is: {', '.join(get_args(Rule))}.")
