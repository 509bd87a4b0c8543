"""Every script of examples/ runs as it stands, with the weights that ship and no network."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from support.places import ROOT

# What a script says, and what it writes where it was started.
EXAMPLES: dict[str, tuple[str, set[str]]] = {
    "ask_a_picture": ("a cat: without some part its last word loses ", {"apples.png", "where.png"}),
    "condition_a_pipeline": ("emphasis in text_encoder", {"pipeline.png"}),
    "dialects_side_by_side": ("comfy [('red', 1.21)]", {"dialects.png"}),
    "lora_by_tag": ("moved by [0.0, ", {"lora.png", "loras"}),
    "prompts_that_change": ("cat and dog until the steps (7, 12)", {"changing.png"}),
    "search_pictures": ("a.png: key (", {"album", "album.safetensors"}),
    "study_phrasing": ("token_centred", {"study.html", "study.csv"}),
    "train_a_projector": ("a tree -> a tree", {"joined"}),
    "tune_a_clip": ("after: 8 of 8", {"tuned"}),
    "two_text_towers": ("kendall_tau", set()),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES}


@pytest.mark.models
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said, written = EXAMPLES[name]
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert said in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == written


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_what_it_does(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""') and len(text.splitlines()) <= 40
