"""Curves are drawn without a say in how the program's own figures are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bridge.pictures import draw_curve


def test_the_programs_backend_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    log = [{"step": n, "loss": 1 / n, "norm": float(n)} for n in range(1, 5)]
    draw_curve(log, tmp_path / "loss.png", "a run", along="step")
    assert matplotlib.get_backend() == "svg"
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (640, 240) and len(picture.convert("L").getcolors(256) or ()) > 10
