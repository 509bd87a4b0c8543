"""docs/conditioning.md says of parity with other tools what was measured, and all of it."""

from __future__ import annotations

import json

from support.parity_table import RESULTS, parity_lines
from support.places import ROOT


def test_the_table_is_what_was_measured() -> None:
    text = (ROOT / "docs" / "conditioning.md").read_text(encoding="utf-8")
    for line in parity_lines():
        assert line in text, line


def test_every_row_was_equal_and_measured() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert len(rows) > 50
    assert all(row["value"] == row["n"] > 0 for row in rows)
