"""A count of cases that a peer's own code and ours read the same, and ours of an a1111 prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import corpus
import torch
from support.comparisons import relative

import bridge
from bridge.errors import PromptError
from bridge.prompt import at_step, parse

# Of the largest entry: the same modules in float32, whose sums come in another order where several
# windows run in one batch, or where attention is another function.
TOLERANCE = 1e-5


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


def plain(kind: str, count: int) -> Iterator[str]:
    """Prompts of the corpus that make a single conditioning; the parser's row has the others."""
    for prompt in corpus.draw(kind, count):
        read = at_step(parse(prompt, "a1111"), 1, 20)
        if len(read.parts) == 1 and read.parts[0].weight == 1:
            yield prompt


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and relative(found, wanted) <= TOLERANCE


def conditioned(prompt: str, negative: str, **options: Any) -> Any:
    """Ours; None where the prompt changes from step to step, which is another row's."""
    try:
        return bridge.condition(prompt, negative, **options)
    except PromptError as error:
        if "changes from step to step" in str(error):
            return None
        raise
