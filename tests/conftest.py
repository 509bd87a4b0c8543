"""What every test shares: no hub, and the weights that ship."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import comparisons
from support.places import TESTS

# Set before any test module imports huggingface_hub, which reads them at import. Tests of the
# hub's own errors must see a missing network, and an empty cache, the same way everywhere.
_HUB = tempfile.TemporaryDirectory(prefix="bridge-tests-hub-")
os.environ["HF_HOME"] = _HUB.name
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# Fixtures that assert; their files import a constant of it before pytest takes it as a plugin.
pytest.register_assert_rewrite("support.app_pages", "support.app_calls")

COMPARISONS = pytest.StashKey[list[comparisons.Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--comparisons", type=Path, help="write what peers were compared by here")
    parser.addoption("--parity-results", type=Path, help="write what peers read the same here")
    parser.addoption("--fuzz-results", type=Path, help="write what the fuzzers tried here")
    parser.addoption("--fuzz-page", type=Path, help="put its table between this page's markers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``models`` the tests of the weights that ship, and those that ask for a folder."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if TESTS / "models" in item.path.parents or "embedded" in fixtures:
            item.add_marker("models")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COMPARISONS] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    path, rows = session.config.getoption("--comparisons"), session.config.stash[COMPARISONS]
    if path is not None and rows and not session.testsfailed:
        comparisons.write(path, rows)


@pytest.fixture
def compared(request: pytest.FixtureRequest) -> comparisons.Compared:
    """Assert that a tensor is a peer's up to a tolerance, and note it for the table.

    ``compared(feature, peer, found, wanted, tolerance)``; the tolerance is in units of the
    largest entry.
    """

    def check(
        feature: str, peer: str, found: torch.Tensor, wanted: torch.Tensor, tolerance: float
    ) -> None:
        difference = comparisons.relative(found, wanted)
        assert difference <= tolerance, (feature, peer, difference)
        row = comparisons.Comparison(feature, peer, difference)
        request.config.stash[COMPARISONS].append(row)

    return check


@pytest.fixture(scope="session")
def embedded() -> Callable[[str], Path]:
    """Give the folder of an embedded model, e.g. ``embedded("emoji-xl")``.

    A model that is not there fails the test: the weights are part of the repository, so a
    skip would hide that they are gone.
    """

    from bridge.embedded import weights_dir

    def folder(name: str) -> Path:
        found = weights_dir() / name
        if not found.is_dir():
            pytest.fail(f"{found} is missing; restore it with: git checkout -- weights")
        return found

    return folder
