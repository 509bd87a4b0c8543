"""Drawing as a stream: what happened so far, while a worker thread draws."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bridge
from bridge.diffusion.options import checked_options
from demos.limits import read_number, read_prompt, read_text, read_whole
from demos.models import Models

if TYPE_CHECKING:
    from PIL.Image import Image

# A preview costs a decode by the VAE; more often than this nobody sees the difference.
_PREVIEW_SECONDS = 0.25


@dataclass(frozen=True)
class Wish:
    """What was asked for, as it came: numbers may be floats, a seed None, anything of any kind."""

    prompt: str
    negative: str = ""
    seed: float | None = None
    steps: float = 20
    guidance: float = 3.0
    count: float = 1

    def options(self) -> dict[str, Any]:
        """The options of `bridge.generate`, the prompt too. Raises PromptError and OptionError."""
        return {
            "prompt": read_prompt(self.prompt),
            "negative_prompt": read_text(self.negative, "negative prompt").strip() or None,
            "seed": None if self.seed is None else read_whole(self.seed, "seed"),
            "steps": read_whole(self.steps, "steps"),
            "guidance_scale": read_number(self.guidance, "guidance"),
            "num_images": read_whole(self.count, "the number of pictures"),
        }


@dataclass(frozen=True)
class Progress:
    """Step ``step`` of ``steps`` is done (0 of 0: the model loads); how it looks so far."""

    step: int = 0
    steps: int = 0
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """The pictures. ``stopped`` after ``steps_done`` steps if somebody pressed Stop; ``warnings``
    as `bridge.generate` tells them."""

    images: list[Image]
    seeds: tuple[int, ...]
    seconds: float
    steps_done: int
    stopped: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Stops:
    """Who may be stopped: an event for each drawing, and whose browser session it is."""

    _sessions: dict[threading.Event, str] = field(default_factory=dict)

    def begin(self, session: str) -> threading.Event:
        """A new event for a drawing that begins."""
        event = threading.Event()
        self._sessions[event] = session
        return event

    def end(self, event: threading.Event) -> None:
        """The drawing is over; others of its session go on."""
        self._sessions.pop(event, None)

    def stop(self, session: str) -> None:
        """Ask all the session's drawings, if there are any, to end with what they have."""
        # A copy, since other sessions begin and end meanwhile.
        for event, whose in list(self._sessions.items()):
            if whose == session:
                event.set()


def draw(models: Models, wish: Wish, stop: threading.Event) -> Iterator[Progress | Drawn]:
    """Draw in a worker thread and yield what happens; the last is a `Drawn`.

    Only the newest progress is kept, so a slow reader never falls behind. Closing the
    iterator stops the worker at its next step. Raises what `bridge.generate` raises.
    """
    # Bad input is told before the models load.
    checked_options(**wish.options())
    reports: queue.SimpleQueue[Progress | Drawn | BaseException] = queue.SimpleQueue()
    worker = threading.Thread(
        target=_work, args=(models, wish, stop, reports), name="bridge-draw", daemon=True
    )
    yield Progress()
    worker.start()
    try:
        while True:
            report = _newest(reports)
            if isinstance(report, BaseException):
                raise report
            yield report
            if isinstance(report, Drawn):
                return
    finally:
        stop.set()


def _newest(reports: queue.SimpleQueue[Any]) -> Any:
    """Wait for a report, then skip to the newest one there is."""
    report = reports.get()
    while not reports.empty():
        report = reports.get()
    return report


def _work(
    models: Models, wish: Wish, stop: threading.Event, reports: queue.SimpleQueue[Any]
) -> None:
    shown: list[float] = [0.0]

    def on_step(preview: Any) -> bool:
        now = time.monotonic()
        if now - shown[0] >= _PREVIEW_SECONDS:
            shown[0] = now
            reports.put(Progress(preview.step, preview.steps, tuple(preview.images)))
        return not stop.is_set()

    try:
        pipeline = models.pipeline()
        began = time.monotonic()
        made = bridge.generate(model=pipeline, on_step=on_step, **wish.options())
        seconds = time.monotonic() - began
        reports.put(
            Drawn(made.images, made.seeds, seconds, made.steps_done, made.stopped, made.warnings)
        )
    except BaseException as error:
        reports.put(error)
