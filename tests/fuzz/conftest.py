"""What the fuzzers share: the fixture ``fuzz``, and the table of a session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fuzz_support import Fuzz, Run
from fuzz_table import put, results

from benchmarks.results import commit, save

ROWS = pytest.StashKey[list[tuple[Run, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    commit()  # as the code is now, whatever happens to the tree meanwhile


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """``with fuzz("row of the table", cases) as run: for rng in run.draws(): ...``

    The test fails at the block's end if a case did. Blocks of one row add up in the table.
    """

    @contextmanager
    def start(row: str, cases: int) -> Iterator[Run]:
        run = Run(row, cases)
        file = request.path.relative_to(request.config.rootpath).as_posix()
        request.config.stash.setdefault(ROWS, []).append((run, file))
        yield run
        assert not run.failed, f"{len(run.failed)} of {run.tried}:\n" + "\n".join(run.failed[:20])

    return start


def pytest_sessionfinish(session: pytest.Session) -> None:
    runs = session.config.stash.get(ROWS, [])
    path: Path | None = session.config.getoption("--fuzz-results")
    page: Path | None = session.config.getoption("--fuzz-page")
    if not runs or (path is None and page is None):
        return
    found = results(runs)
    if path is not None:
        save(path, found)
    if page is not None:
        put(page, found)
