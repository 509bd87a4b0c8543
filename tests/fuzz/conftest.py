"""What the fuzzers share: the fixture ``fuzz``, and the table of a session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fuzz_support import Fuzz, Run

ROWS = pytest.StashKey[list[Run]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """``with fuzz("row of the table", cases) as run: for rng in run.draws(): ...``

    The test fails at the block's end if a case did. Blocks of one row add up in the table.
    """

    @contextmanager
    def start(row: str, cases: int) -> Iterator[Run]:
        run = Run(row, cases)
        request.config.stash.setdefault(ROWS, []).append(run)
        yield run
        assert not run.failed, f"{len(run.failed)} of {run.tried}:\n" + "\n".join(run.failed[:20])

    return start


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--fuzz-results")
    runs = session.config.stash.get(ROWS, [])
    if path is None or not runs:
        return
    rows: dict[str, dict[str, int]] = {}
    for run in runs:
        row = rows.setdefault(run.row, {"tried": 0, "failed": 0, "hung": 0})
        row["tried"] += run.tried
        row["failed"] += len(run.failed)
        row["hung"] += run.hung
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
