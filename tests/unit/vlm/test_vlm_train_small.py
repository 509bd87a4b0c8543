"""The default settings on a handful of rows: every run trains, whatever its length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_training import conversations, tiny_vlm

from bridge.training import run_state
from bridge.training.optimization import rate_at
from bridge.vlm import TrainOptions, train_vlm


def test_the_defaults_train_on_nine_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "draw_curve", lambda *_, **__: None)
    vlm = tiny_vlm()
    assert isinstance(vlm.projector, torch.nn.Module)
    before = [p.clone() for p in vlm.projector.parameters()]
    done = train_vlm(vlm, conversations(tmp_path / "data"), tmp_path / "out", samples=0)
    assert len(done.log) == 2  # an epoch: eight rows, and the ninth with seven of the next
    moved = zip(before, vlm.projector.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in moved)


@pytest.mark.parametrize("steps", [1, 2, 3, 40])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 1.0])
def test_no_run_is_warm_up_alone(steps: int, warmup_ratio: float) -> None:
    options = TrainOptions(warmup_ratio=warmup_ratio)
    assert max(rate_at(step, steps, options.warmup_ratio) for step in range(steps)) == 1.0


def test_the_default_batch_is_no_larger_than_the_data() -> None:
    sizes = [(TrainOptions().rows_a_step(n), TrainOptions(stage=2).rows_a_step(n)) for n in SIZES]
    assert sizes == [(1, 1), (2, 2), (64, 64), (128, 128), (256, 128)]
    assert TrainOptions(batch_size=12).rows_a_step(3) == 12
    assert TrainOptions().n_steps(100) == 2 and TrainOptions(epochs=4).n_steps(1) == 4


SIZES = (1, 3, 127, 200, 558_128)
