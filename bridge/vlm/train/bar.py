"""A bar over what a run goes through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ProgressBar:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, shown: bool) -> None:
        self._hidden = None if shown else True  # None: tqdm shows itself on a terminal only
        self._bar: Any = None

    def __call__(self, items: Iterable[Any], what: str) -> Iterable[Any]:
        from tqdm import tqdm

        self._bar = tqdm(items, desc=what, disable=self._hidden, leave=False)
        return self._bar

    def show(self, **figures: str) -> None:
        self._bar.set_postfix(figures, refresh=False)
