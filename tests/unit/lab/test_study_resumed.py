"""A study that was cut off, wherever, and taken up again is the one that was not, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_sdxl_pipeline

import bridge

# Words whose order by length or alphabet is another than in the prompt, of maps of one size.
PROMPT = "the red cat left of two apples"
OPTIONS: dict[str, Any] = {
    "variants": {"mine": ["a photo of an apple dog"], "said": ["two red dogs"]},
    "seeds": (1, 2),
    "steps": 1,
    "guidance_scale": 3.0,
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = tiny_sdxl_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def whole(pipe: Any) -> tuple[str, str]:
    return told(bridge.study(PROMPT, model=pipe, **OPTIONS))


def told(study: Any) -> tuple[str, str]:
    """The report, and the tables with the heat maps' numbers."""
    maps = [{word: each.tolist() for word, each in one.heat.items()} for one in study.drawn]
    return study.html(), repr((study.to_dict(), maps))


def cut_off(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the process, as it seems, when ``after`` files have been written."""
    written = []
    replace = Path.replace

    def counted(self: Path, target: Any) -> Any:
        written.append(target)
        if len(written) > after:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)


@pytest.mark.parametrize("after", [0, 7, 43, 60, 94, 97, 100, 102, 104])
def test_a_study_that_was_cut_off_is_the_same(
    pipe: Any, whole: tuple[str, str], tmp_path: Path, after: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off(patch, after)
        bridge.study(PROMPT, model=pipe, cache=tmp_path, **OPTIONS)
    assert told(bridge.study(PROMPT, model=pipe, cache=tmp_path, **OPTIONS)) == whole
    # And once more, of all that is kept.
    assert told(bridge.study(PROMPT, model=pipe, cache=tmp_path, **OPTIONS)) == whole
