"""The timing of prompts compares sides that give the same."""

from __future__ import annotations

import pytest
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline

from benchmarks import encode_speed


@pytest.mark.parametrize("build", [tiny_sd_pipeline, tiny_sdxl_pipeline])
def test_every_side_is_timed_and_gives_what_the_others_give(build: object) -> None:
    pipe = build()  # type: ignore[operator]
    rows = encode_speed.measure("encode/tiny", pipe, 3, 2)
    parts = ("bridge", "diffusers", "compel", "bridge_over_diffusers", "bridge_over_compel")
    assert [row.name for row in rows] == [f"encode/tiny/3/{part}" for part in parts]
    assert all(row.n == 2 and 0 < row.low <= row.value <= row.high for row in rows)


def test_sides_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = encode_speed.sides

    def spoilt(*args: object) -> dict[str, object]:
        made = inner(*args)  # type: ignore[arg-type]
        ours = made["bridge"]
        return made | {"compel": lambda: tuple(part + 0.1 for part in ours())}

    monkeypatch.setattr(encode_speed, "sides", spoilt)
    with pytest.raises(AssertionError, match="compel"):
        encode_speed.measure("encode/tiny", tiny_sd_pipeline(), 1, 1)
