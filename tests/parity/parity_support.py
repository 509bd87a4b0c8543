"""A count of cases that a peer's own code and ours read the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field


@dataclass
class Count:
    """One row of the table.

    Attributes:
        row: the peer and what is compared.
        tried: how many cases ran through both.
        differing: those that differ, in words.
        on_purpose: how many more differ by a rule that docs/conditioning.md names; these are
            not among ``tried``.
    """

    row: str
    tried: int = 0
    differing: list[str] = field(default_factory=list)
    on_purpose: dict[str, int] = field(default_factory=dict)

    def check(self, same: bool, case: str) -> None:
        """Note one case."""
        self.tried += 1
        if not same:
            self.differing.append(case[:400])

    def differs_by(self, rule: str) -> None:
        """Note a case that a documented difference decides."""
        self.on_purpose[rule] = self.on_purpose.get(rule, 0) + 1


Equal = Callable[[str], AbstractContextManager[Count]]
"""The fixture of conftest.py: from a row's name to its `Count`."""
