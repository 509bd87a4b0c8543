"""What a run says of itself: `log.json` (a row a step), `loss.png`, `samples.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bridge.curves import draw_curve
from bridge.errors import MissingDependencyError
from bridge.files import write_whole
from bridge.vlm.model import BridgeVLM
from bridge.vlm.train.rows import Row

_ANSWER_TOKENS = 48


@dataclass
class Journal:
    """The rows of a run so far, in ``folder``."""

    folder: Path
    log: list[dict[str, float]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def resume(self, step: int) -> None:
        """Read back what was written up to ``step``; a killed run may have written more."""
        self.log = _up_to(step, self.folder / "log.json")
        self.samples = _up_to(step, self.folder / "samples.json")

    def write(self) -> None:
        """The two JSON files, and the curve where matplotlib is installed."""
        write_whole(self.folder / "log.json", json.dumps(self.log).encode())
        shown = json.dumps(self.samples, ensure_ascii=False, indent=1)
        write_whole(self.folder / "samples.json", shown.encode())
        with suppress(MissingDependencyError):  # the rows say the same
            draw_curve(self.log, self.folder / "loss.png", self.folder.name, along="step")


@torch.inference_mode()
def ask_samples(vlm: BridgeVLM, rows: Sequence[Row], step: int) -> list[dict[str, Any]]:
    """What the model answers to each row's first question, beside what the row says."""
    told = []
    for row in rows:
        question, wanted = row.turns[0]
        pictures: Any = [picture.load() for picture in row.pictures]
        answer = vlm.answer(pictures, question, max_new_tokens=_ANSWER_TOKENS)
        told.append(
            {
                "step": step,
                "row": row.where,
                "question": question,
                "answer": answer,
                "wanted": wanted,
            }
        )
    return told


def askable(rows: Sequence[Row], count: int) -> list[Row]:
    """Up to ``count`` rows, spread over the data, all of whose pictures the first turn is about."""
    single = [row for row in rows if len(row.turns) == 1 or len(row.pictures) <= 1]
    return [single[at * len(single) // count] for at in range(min(count, len(single)))]


def _up_to(step: int, path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [row for row in json.loads(path.read_text(encoding="utf-8")) if row["step"] <= step]
