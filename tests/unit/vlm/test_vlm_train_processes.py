"""Two CPU processes over gloo train to the weights of one, with the same batch in all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_training import conversations, tiny_vlm
from support.two_processes import run_script

from bridge.training import run_state
from bridge.vlm import load_vlm, train_vlm

# Gradients are summed in another order; Adam divides by their size, so rounding in the smallest
# shows. A gradient that is wrong by a factor, or that lacks a process, is off by 1e-2 and more.
TOLERANCE = 1e-4
COMMON = {"steps": 4, "batch_size": 4, "samples": 0, "seed": 3}
RUNS: dict[str, dict[str, Any]] = {
    # One row a pass: the row without a picture meets one that has one.
    "stage1": {**COMMON, "stage": 1, "learning_rate": 1e-2, "micro_batch": 1},
    "stage2": {**COMMON, "stage": 2, "learning_rate": 1e-3, "store_features": False},
}


def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "draw_curve", lambda *_, **__: None)
    data, out = conversations(tmp_path / "data"), tmp_path / "two"
    out.mkdir()
    run_script("two_processes.py", data, out, json.dumps(RUNS))
    for name, options in RUNS.items():
        one = tiny_vlm()
        done = train_vlm(one, data, tmp_path / name, **options)
        log = json.loads((out / name / "log.json").read_text())
        assert len(log) == len(done.log)
        for found, want in zip(log, done.log, strict=True):
            # The gradient's norm too: Adam and clipping would hide a factor in it.
            assert found == pytest.approx(want, rel=TOLERANCE)
        two = load_vlm(out / name, device="cpu")
        assert two.projector is not None and one.projector is not None
        pairs = [
            (two.projector.state_dict(), one.projector.state_dict()),  # type: ignore[attr-defined]
            (two.llm.state_dict(), one.llm.state_dict()),
        ]
        for saved, trained in pairs:
            assert saved.keys() == trained.keys()
            for key, tensor in trained.items():
                # The folder's word tables have one more row, for <image>.
                apart = (saved[key][: len(tensor)] - tensor).abs().max()
                assert apart <= TOLERANCE * tensor.abs().max(), (name, key)
