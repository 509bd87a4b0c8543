"""The steps of a run, from the first or from where it stopped, and what is written between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import NumbersError
from bridge.progress import OnProgress, Progress
from bridge.training.run_state import CHECKPOINT, Journal, kept_step


def _nothing(done: int, last: bool) -> None:
    """Where nothing is asked between steps."""


@dataclass(frozen=True, eq=False)
class Loop:
    """A run of ``steps`` steps.

    Attributes:
        take: one step, by its number from 0; gives what is logged of it, ``loss`` among it.
        save: writes the run's state after so many steps.
        between: called after each step with how many are done and whether it was the last:
            samples, evaluations.
        save_every: steps between checkpoints.
        accelerator: of the processes that run it; the main one writes.
    """

    steps: int
    take: Callable[[int], dict[str, float]]
    save: Callable[[int], None]
    save_every: int
    accelerator: Any
    between: Callable[[int, bool], None] = _nothing

    def run(self, journal: Journal, start: int, on_progress: OnProgress) -> None:
        """Take the steps from ``start`` on.

        Raises NumbersError where a step's numbers are not finite; the log is written, and the last
        checkpoint stays.
        """
        for step in range(start, self.steps):
            try:
                journal.log.append(self.take(step))
            except NumbersError:
                if self.accelerator.is_main_process:
                    journal.write()
                raise
            done, last = step + 1, step + 1 == self.steps
            loss = f"loss {journal.log[-1]['loss']:.4f}"
            on_progress(Progress("training", done, self.steps, "steps", loss))
            self.between(done, last)
            if last or done % self.save_every == 0:
                if self.accelerator.is_main_process:
                    journal.write()
                    self.save(done)
                self.accelerator.wait_for_everyone()


def check_step(step: int, loss: float, norm: float, folder: Path) -> None:
    """Refuse numbers that would spoil the weights, before they are changed.

    Args:
        step: from 0.
        loss: of the batch.
        norm: of its gradient.
        folder: the run's.

    Raises:
        NumbersError: one of the two is not finite; the message says from where a run can go on.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    kept = kept_step(folder / CHECKPOINT)
    left = (
        f"{folder / CHECKPOINT} holds the run as it was after step {kept}"
        if kept
        else "no checkpoint was written before it"
    )
    raise NumbersError(
        f"step {step + 1} has a loss of {loss:g} and a gradient of norm {norm:g}, so training "
        f"stopped; {left}. Look at the rows of that step, or begin in another folder with a lower "
        "learning_rate"
    )
