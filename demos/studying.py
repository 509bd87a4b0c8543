"""Studying as a stream: what is read and drawn, while a worker thread compares phrasings."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bridge
from bridge.diffusion.options import checked_options, default_guidance
from bridge.errors import OptionError, PromptError
from bridge.lab.readings import TEXTS
from bridge.lab.variants import ORIGINAL, Settings, Variant, own, read_variants
from bridge.progress import Progress
from bridge.prompt import DIALECTS, check_prompts
from demos.limits import read_prompt, read_text, read_whole
from demos.models import TOWERS, Models

if TYPE_CHECKING:
    from bridge.lab import Study

# What one press may ask for: a minute or so of two cores.
MOST_CHARACTERS = 400
MOST_PHRASINGS = 300
MOST_DRAWN = 12
MOST_OWN = MOST_PHRASINGS * MOST_CHARACTERS

# How long a press on Stop may go unseen while another study runs.
_LOOK_UP_SECONDS = 0.2

CHOICES = {
    "whole model": "whole",
    "tower 1 alone": "text_encoder",
    "tower 2 alone": "text_encoder_2",
    "pooled alone": "pooled",
}
"""What draws, in words, and as `bridge.study` names it."""

Pieces = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Inquiry:
    """What was asked, as the form gives it: own phrasings one a line, numbers maybe as floats."""

    prompt: str
    own: str = ""
    operations: Sequence[str] = ()
    towers: Sequence[str] = TOWERS
    draws: bool = False
    heat: bool = True
    choices: Sequence[str] = ("whole",)
    steps: float = 8
    seed: float | None = 0

    @property
    def most(self) -> int:
        """How many phrasings this page takes on, the prompt among them."""
        return MOST_DRAWN if self.draws else MOST_PHRASINGS

    @property
    def first_seed(self) -> int:
        """The seed of pictures and shuffles; an emptied box means 0. Raises OptionError."""
        return 0 if self.seed is None else read_whole(self.seed, "seed")

    @property
    def step_count(self) -> int:
        """The steps of each picture. Raises OptionError."""
        return read_whole(self.steps, "steps")

    def variants(self) -> list[Variant]:
        """The phrasings beside the prompt.

        Raises PromptError and OptionError for what cannot be read or is too much.
        """
        (prompt,) = check_prompts(read_prompt(self.prompt))
        if not prompt.strip():
            raise PromptError("The prompt is empty; write one to compare phrasings of.")
        lines = read_text(self.own, "the phrasings of your own", MOST_OWN).splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        if len(lines) >= MOST_PHRASINGS:
            raise OptionError(
                f"These are {1 + len(lines)} phrasings with the prompt, and this page takes at "
                f"most {MOST_PHRASINGS}; leave some out. (bridge.study has no such bound.)"
            )
        for line in (prompt, *lines):
            if len(line) > MOST_CHARACTERS:
                raise OptionError(
                    f"“{line[:40]}…” has {len(line)} characters; this page takes phrasings of at "
                    f"most {MOST_CHARACTERS}."
                )
        ready = own(lines) if lines else []
        for line in lines:
            read_prompt(line, "a phrasing")
        if not self.operations and not ready:
            raise OptionError(
                "There is nothing to compare with; tick a kind of variant, or write phrasings of "
                "your own."
            )
        made = read_variants([*self.operations, *ready], prompt, Settings(seed=self.first_seed))
        if not made:
            raise OptionError(
                "The ticked variants find nothing to change in this prompt; tick others, or write "
                "phrasings of your own."
            )
        return made


@dataclass(frozen=True)
class Step:
    """Part ``step`` of ``steps`` goes on (0 of 0: models load)."""

    line: str = "Getting ready…"
    step: int = 0
    steps: int = 0


@dataclass(frozen=True, eq=False)
class Studied:
    """The study, and how each tower's tokenizer splits each plain text: ``pieces[tower][text]``."""

    study: Study
    pieces: Mapping[str, Pieces]
    seconds: float


class Stopped(Exception):
    """Somebody pressed Stop."""


def study(models: Models, asked: Inquiry, stop: threading.Event) -> Iterator[Step | Studied]:
    """Study in a worker thread and yield what happens; the last is a `Studied`.

    Closing the iterator stops the worker at its next picture. Raises what `bridge.study` raises,
    and Stopped.
    """
    variants = checked(asked)
    reports: queue.SimpleQueue[Step | Studied | Exception] = queue.SimpleQueue()
    worker = threading.Thread(
        target=_work,
        args=(models, asked, variants, stop, reports),
        name="bridge-study",
        daemon=True,
    )
    yield Step()
    worker.start()
    try:
        while True:
            report = reports.get()
            if isinstance(report, Exception):
                raise report
            yield report
            if isinstance(report, Studied):
                return
    finally:
        stop.set()


def checked(asked: Inquiry) -> list[Variant]:
    """The variants of a study that this page takes on; loads nothing.

    Raises PromptError and OptionError.
    """
    variants = asked.variants()
    if not asked.towers:
        raise OptionError("No tower is ticked, so nobody reads; tick at least one.")
    if asked.draws and not asked.choices:
        raise OptionError(
            "Nothing is ticked that draws; tick “whole model”, or leave pictures out."
        )
    checked_options(
        asked.prompt, None, seed=asked.first_seed, steps=asked.step_count, guidance_scale=1.0,
        num_images=1,
    )  # fmt: skip
    count, most = 1 + len(variants), asked.most
    if count > most:
        raise OptionError(
            f"These are {count} phrasings with the prompt, and this page takes at most {most}"
            f"{' with pictures' if asked.draws else ''}; tick fewer variants"
            f"{', or leave pictures out' if asked.draws else ''}. (bridge.study has no such bound.)"
        )
    return variants


def _work(
    models: Models,
    asked: Inquiry,
    variants: list[Variant],
    stop: threading.Event,
    reports: queue.SimpleQueue[Any],
) -> None:
    steps = len(asked.towers)
    if asked.draws:
        steps += (1 + len(variants)) * len(asked.choices)
    done = 0

    def on_progress(now: Progress) -> None:
        nonlocal done
        if stop.is_set():
            raise Stopped
        if now.unit == TEXTS and now.done:
            return  # a tower is one step here, in however many passes it reads
        done += 1
        reports.put(Step(str(now), done, steps))

    try:
        drawing: dict[str, Any] = {}
        _check_there("tower", asked.towers, models.tower_names())
        if asked.draws:
            _check_there("part that draws", asked.choices, models.choices())
            drawing = {
                "model": models.watched_pipeline(),
                "image_tower": models.image_tower(),
                "choices": list(asked.choices),
                "steps": asked.step_count,
                "guidance_scale": default_guidance(models.draws),
                "seeds": asked.first_seed,
                "heat": asked.heat,
            }
        towers = [models.text_towers()[name] for name in asked.towers]
        # One at a time: heat maps watch the one pipeline that studies have, and a tokenizer is
        # set to cut for one reader and not for another.
        with _turn(models.studying, stop):
            began = time.monotonic()
            found = bridge.study(
                asked.prompt, towers=towers, variants=variants, seed=asked.first_seed,
                on_progress=on_progress, **drawing,
            )  # fmt: skip
            texts = [v.text for v in variants if not DIALECTS[v.dialect].has_weights]
            texts = list(dict.fromkeys([asked.prompt, *texts]))
            pieces = {tower.name: _split(tower, texts) for tower in towers}
        reports.put(Studied(found, pieces, time.monotonic() - began))
    except Exception as error:
        reports.put(error)


def _check_there(what: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise OptionError for a name that the drawing model does not have."""
    for name in wanted:
        if name not in there:
            raise OptionError(
                f"The model that draws has no {what} {name!r}; it has {', '.join(there)}."
            )


@contextmanager
def _turn(studying: threading.Lock, stop: threading.Event) -> Iterator[None]:
    """Hold ``studying``; while others do, wait. Raises Stopped if Stop is pressed meanwhile."""
    while not studying.acquire(timeout=_LOOK_UP_SECONDS):
        if stop.is_set():
            raise Stopped
    try:
        yield
    finally:
        studying.release()


def _split(tower: Any, texts: list[str]) -> Pieces:
    batch = tower.tokenize(texts)
    return {
        text: tuple(text[span[0] : span[1]] for span in batch.offsets[row] if span)
        for row, text in enumerate(texts)
    }


def heat_words(found: Study) -> list[str]:
    """The words that there are heat maps of, the prompt's first."""
    words: dict[str, None] = {}
    for drawn in sorted(found.drawn, key=lambda each: each.variant.operation != ORIGINAL):
        words |= dict.fromkeys(drawn.heat)
    return list(words)
