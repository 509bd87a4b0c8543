"""The table of docs/fuzzing.md: made of what is committed, and every row of it explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fuzz_support import Run
from fuzz_table import BEGIN, END, put, results, table
from support.places import ROOT

PAGE = ROOT / "docs" / "fuzzing.md"


def test_runs_of_one_name_add_up(tmp_path: Path) -> None:
    runs = [(Run("a row", 3), "tests/one.py"), (Run("a row", 2), "tests/two.py")]
    for run, _ in runs:
        for _ in run.draws():
            if run.tried == 1:
                run.fail("once")
                run.fail("and in another way")
                run.hung += 1
    found = results(runs)
    (row,) = found["rows"]
    assert row["name"] == "a row" and row["n"] == sum(run.tried for run, _ in runs) >= 5
    assert row["value"] == 2 and row["low"] < 2 and row["unit"] == "cases"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put(page, found)
    text = page.read_text()
    assert f"| a row | {row['n']} | 2 | 2 | `tests/one.py`, `tests/two.py` |" in text
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")


def test_the_page_has_the_table_of_the_results() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "fuzz.json").read_text("utf-8"))
    text = PAGE.read_text("utf-8")
    assert f"{BEGIN}\n{table(found)}\n{END}" in text


def test_every_fuzzer_is_explained() -> None:
    sources = [path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    rows = {row for text in sources for row in re.findall(r"\bfuzz\(\s*[\"'](.+?)[\"'],", text)}
    explained = PAGE.read_text("utf-8").partition("## What each row tries")[2]
    assert rows and all(f"| {row} |" in explained for row in rows)
