"""What the fuzzers tried, as results in the house's format and as the table of docs/fuzzing.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz_support import FIRST, TIMES, Run

from benchmarks.results import Row, report, wilson

BEGIN, END = "<!-- fuzz -->", "<!-- end of fuzz -->"


def results(runs: Sequence[tuple[Run, str]]) -> dict[str, Any]:
    """A row for each name: how many cases went wrong, of how many. ``runs`` are with the test
    file that each was made by; those of one name add up."""
    rows, hung, files = [], {}, {}
    for name in dict.fromkeys(run.row for run, _ in runs):
        own = [run for run, _ in runs if run.row == name]
        tried, failed = sum(run.tried for run in own), sum(_cases(run.failed) for run in own)
        hung[name] = sum(run.hung for run in own)
        files[name] = sorted({file for run, file in runs if run.row == name})
        if tried:
            low, high = (round(share * tried, 2) for share in wilson(failed, tried))
            rows.append(Row(name, failed, low, high, tried, "cases"))
    return report(f"make fuzz TIMES={TIMES} SEED={FIRST}", rows, hung=hung, files=files)


def _cases(failed: Sequence[str]) -> int:
    """How many cases the notes are of: one may fail in several ways, and each note has its seed."""
    return len({note.partition(":")[0] for note in failed})


def table(found: dict[str, Any]) -> str:
    """Lines of Markdown: the command and machine, and a line for each row."""
    lines = [f"`{found['command']}`, {found['machine']}, commit {found['commit'][:12]}:", ""]
    lines += ["| row | tried | went wrong | without an end | file |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for row in sorted(found["rows"], key=lambda row: str(row["name"])):
        files = ", ".join(f"`{file}`" for file in found["notes"]["files"][row["name"]])
        hung = found["notes"]["hung"][row["name"]]
        lines.append(f"| {row['name']} | {row['n']:,} | {row['value']:,} | {hung} | {files} |")
    return "\n".join(lines)


def put(page: Path, found: dict[str, Any]) -> None:
    """Write the table between the two markers of ``page``."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN, 1)
    _, after = rest.split(END, 1)
    text = f"{before}{BEGIN}\n{table(found)}\n{END}{after}"
    page.write_text(text, encoding="utf-8")
