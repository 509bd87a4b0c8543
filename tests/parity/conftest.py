"""What parity tests share: the fixture ``equal``, and the table of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peers
import pytest
from parity_support import Count, Equal

import benchmarks.torchvision_names  # noqa: F401 - before a peer imports torchvision
from benchmarks.results import Row, report, save

COUNTS = pytest.StashKey[list[Count]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Minutes of the peers' own work are no part of `make test`, whichever are installed."""
    if not peers.STRICT and "PEERS" not in os.environ:
        here = Path(__file__).parent
        why = pytest.mark.skip(reason="make parity runs the peers' own code")
        for item in items:
            if here in item.path.parents:
                item.add_marker(why)


@pytest.fixture
def equal(request: pytest.FixtureRequest) -> Equal:
    """``with equal("webui: parser") as count: for prompt in ...: count.check(same, prompt)``

    The test fails at the block's end if a case differs that is not among the named differences.
    """

    @contextmanager
    def start(row: str) -> Iterator[Count]:
        count = Count(row)
        request.config.stash.setdefault(COUNTS, []).append(count)
        yield count
        assert not count.differing, (
            f"{len(count.differing)} of {count.tried} differ from {row}:\n"
            + "\n".join(count.differing[:20])
        )

    return start


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--parity-results")
    counts = session.config.stash.get(COUNTS, [])
    if path is None or not counts:
        return
    rows = [
        Row(count.row, equal, equal, equal, count.tried, "equal")
        for count in counts
        for equal in [count.tried - len(count.differing)]
    ]
    on_purpose = {count.row: count.on_purpose for count in counts if count.on_purpose}
    save(path, report("make parity", rows, peers=peers.versions(), on_purpose=on_purpose))
