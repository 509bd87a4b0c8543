"""Which GPU a run is on. No GPU is needed: what is asked of torch is written down."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bridge.training.processes import accelerator_of


@pytest.mark.parametrize(
    ("device", "wanted"), [("cuda:1", [1, "run", "left"]), ("cuda", ["run"]), ("cpu", ["run"])]
)
def test_the_run_is_on_the_gpu_that_was_named(
    device: str, wanted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's own device is plain "cuda", which is whichever GPU is current."""
    done: list[Any] = []

    @contextmanager
    def current(named: torch.device) -> Any:
        done.append(named.index)
        yield
        done.append("left")

    monkeypatch.setattr(torch.cuda, "device", current)
    with accelerator_of(torch.device(device), "no") as accelerator:
        assert accelerator.num_processes == 1
        done.append("run")
    assert done == wanted
