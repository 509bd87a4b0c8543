"""What every test shares: no hub, and the weights that ship."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Set before any test module imports huggingface_hub, which reads them at import. Tests of the
# hub's own errors must see a missing network the same way everywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import pytest


@pytest.fixture(scope="session")
def embedded() -> Callable[[str], Path]:
    """Give the folder of an embedded model, e.g. ``embedded("emoji-xl")``.

    A model that is not there fails the test: the weights are part of the repository, so a
    skip would hide that they are gone.
    """

    from bridge.store import weights_dir

    def folder(name: str) -> Path:
        found = weights_dir() / name
        if not found.is_dir():
            pytest.fail(f"{found} is missing; restore it with: git checkout -- weights")
        return found

    return folder
