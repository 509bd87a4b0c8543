"""The table of docs/conditioning.md: how many cases the tools' own code reads as bridge does."""

from __future__ import annotations

import json

from support.places import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "parity.json"


def parity_lines() -> list[str]:
    """A line a row of what ``make parity`` measured."""
    table = json.loads(RESULTS.read_text(encoding="utf-8"))
    found = []
    for row in table["rows"]:
        left_out = sum(table["notes"]["on_purpose"].get(row["name"], {}).values()) or ""
        found.append(f"| {row['name']} | {row['value']} of {row['n']} | {left_out} |")
    return found
