"""A count of hostile cases: how many were tried, which failed, and how to make one of them again.

A case is made from a `random.Random` whose seed is its number, so a failure names all that is
needed to repeat it. A plain test run takes the counts as they stand (a minute in all);
``BRIDGE_FUZZ_TIMES=60``, as `make fuzz` sets it, tries sixty times as many.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FrameType

TIMES = int(os.environ.get("BRIDGE_FUZZ_TIMES", "1"))
FIRST = int(os.environ.get("BRIDGE_FUZZ_SEED", "0"))


class Hang(BaseException):
    """A case took longer than its wall. Not an Exception: no ``except Exception`` swallows it."""


@dataclass
class Run:
    """One row of the table: what was tried, how often, and what failed."""

    row: str
    cases: int
    tried: int = 0
    hung: int = 0
    failed: list[str] = field(default_factory=list)
    seed: int = FIRST

    def draws(self) -> Iterator[random.Random]:
        """A generator of random numbers for each case, by the seed that a failure is told with."""
        for number in range(self.cases * TIMES):
            self.seed = FIRST + number
            self.tried += 1
            yield random.Random(f"{self.row}/{self.seed}")

    def fail(self, what: str) -> None:
        """Note that the present case failed; ``what`` says how."""
        self.failed.append(f"seed {self.seed}: {what[:400]}")

    def expect(self, holds: bool, what: str) -> None:
        """Note a failure unless ``holds``."""
        if not holds:
            self.fail(what)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """A generous wall: a block that takes longer is ended and counted as hung.

        In the main thread only, where signals arrive.
        """
        assert threading.current_thread() is threading.main_thread()

        def ring(number: int, frame: FrameType | None) -> None:
            raise Hang

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        except Hang:
            self.hung += 1
            self.fail(f"no end within {seconds} s")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


Fuzz = Callable[[str, int], AbstractContextManager[Run]]
"""The fixture of conftest.py: from a row's name and its count of cases to its `Run`."""


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """``data`` damaged in one way: flipped bits, cut short, a stretch lost or doubled, noise."""
    kind = rng.randrange(6)
    at = rng.randrange(len(data) + 1)
    if kind == 0:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:at]
    upto = min(len(data), at + rng.choice((1, 4, 64)))
    if kind == 2:
        return data[:at] + data[upto:]
    if kind == 3:
        return data[:upto] + data[at:]
    if kind == 4:
        return data[:at] + rng.randbytes(rng.choice((1, 8, 100))) + data[upto:]
    return rng.randbytes(rng.choice((0, 1, 7, 8, 9, 200)))
