"""How far long work is, and how a command shows it. No torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` things are done. As text it is a line.

    Attributes:
        what: the stage of the work, "drawing" or "clip-l reads".
        done: how many things of this stage are done.
        total: of how many; None where that is not known.
        unit: what they are: "texts", "steps".
        figures: what else there is to say, such as the loss.
    """

    what: str
    done: int
    total: int | None
    unit: str
    figures: str = ""

    def __str__(self) -> str:
        count = f"{self.done}" if self.total is None else f"{self.done} of {self.total}"
        return f"{self.what}: {count} {self.unit}" + (f", {self.figures}" if self.figures else "")


OnProgress = Callable[[Progress], object]


def unwatched(now: Progress) -> None:
    """Where nobody asked."""


class ProgressLine:
    """Shows progress on a terminal as one line written over and over, elsewhere as a line now and
    then: the log of a long run tells that it lives, a short one's stays empty.

    ``with ProgressLine(sys.stderr) as show: ... show(Progress(...))``
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._live = stream.isatty()
        self._every = 0.1 if self._live else 10.0  # seconds between lines
        self._shown_at: float | None = None  # or when the work began: models may load before it
        self._shown = False
        self._stage = ""
        self._begun, self._begun_at = 0, 0.0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live and self._shown:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def __call__(self, now: Progress) -> None:
        at = self._clock()
        is_new = now.what != self._stage
        if is_new:
            self._stage, self._begun, self._begun_at = now.what, now.done, at
        if self._shown_at is None:
            self._shown_at = at
        if at - self._shown_at < self._every and not (is_new and self._live):
            return
        self._shown_at, self._shown = at, True
        line = f"{now}{self._left(now, at)}"
        if self._live:
            room = shutil.get_terminal_size().columns - 1  # what wraps cannot be written over
            print(f"\r\033[K{line:.{room}}", end="\r", file=self._stream, flush=True)
        else:
            print(f"bridge: {line}", file=self._stream, flush=True)

    def _left(self, now: Progress, at: float) -> str:
        done = now.done - self._begun  # a run that goes on has not done the rest in this time
        if now.total is None or done < 1:
            return ""
        seconds = (at - self._begun_at) / done * (now.total - now.done)
        return f", {about(seconds)} left" if seconds >= 2 else ""


def about(seconds: float) -> str:
    """A time in one round number."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"about {round(seconds / size)} {unit}"
    return f"about {round(seconds)} seconds"
