"""What a run leaves beside its weights, and reads back when it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import WeightsError
from bridge.training.run_state import Journal


def test_rows_behind_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    rows = [{"step": float(step), "loss": 1 / step} for step in range(1, 6)]
    (tmp_path / "log.json").write_text(str(rows).replace("'", '"'))
    journal = Journal(tmp_path)
    journal.resume(3)
    assert journal.log == rows[:3] and journal.samples == []


@pytest.mark.parametrize(
    "damage", ["", '[{"step": 1.0', '{"step": 1}', '[{"loss": 1}]', "[3]", "\0"]
)
def test_a_damaged_log_is_one_error_that_names_it(damage: str, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(damage)
    with pytest.raises(WeightsError, match=r"log\.json does not hold the rows .* delete it"):
        Journal(tmp_path).resume(3)
