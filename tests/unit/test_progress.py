"""Long work says how far it is: in a line written over, or in lines now and then."""

from __future__ import annotations

import io
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.tiny_models import tiny_sd_pipeline
from support.tiny_training import conversations, tiny_vlm
from support.tiny_vlm import tiny_llava

import bridge
from bridge.cli import main
from bridge.progress import Progress, ProgressLine, about


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def run(stream: io.StringIO, steps: int, seconds: float, first: int = 0) -> str:
    """What is shown of steps that take so long each."""
    clock = Clock()
    with ProgressLine(stream, clock) as show:
        show(Progress("study", first, steps, "readings"))
        for done in range(first + 1, steps + 1):
            clock.now += seconds
            show(Progress("study", done, steps, "readings"))
    return stream.getvalue()


def test_a_log_has_a_line_now_and_then() -> None:
    lines = run(io.StringIO(), 123, 1.6).splitlines()
    assert lines[0] == "bridge: study: 7 of 123 readings, about 3 minutes left"
    assert lines[4] == "bridge: study: 35 of 123 readings, about 2 minutes left"
    assert len(lines) == 17  # 197 seconds, ten and a little more between two lines
    assert lines[-1] == "bridge: study: 119 of 123 readings, about 6 seconds left"


def test_a_log_of_a_short_run_stays_empty() -> None:
    assert run(io.StringIO(), 99, 0.1) == ""


def test_loading_is_no_part_of_a_run() -> None:
    clock, stream = Clock(), io.StringIO()
    with ProgressLine(stream, clock) as show:
        clock.now += 60
        show(Progress("drawing", 1, 1, "steps"))
    assert stream.getvalue() == ""


def test_slow_things_have_a_line_each() -> None:
    assert len(run(io.StringIO(), 5, 40.0).splitlines()) == 5


def test_a_terminal_has_one_line_which_goes() -> None:
    shown = run(Terminal(), 3, 30.0)
    parts = shown.split("\r\033[K")
    assert parts == [
        "",
        "study: 0 of 3 readings\r",
        "study: 1 of 3 readings, about 60 seconds left\r",
        "study: 2 of 3 readings, about 30 seconds left\r",
        "study: 3 of 3 readings\r",
        "",
    ]


def test_a_terminal_is_not_flooded() -> None:
    assert run(Terminal(), 10_000, 0.001).count("\r\033[K") < 110


def test_a_line_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert max(map(len, run(Terminal(), 3, 30.0).split("\r\033[K"))) == 20  # with its \r


def test_what_was_done_before_tells_nothing_of_the_time() -> None:
    last = run(io.StringIO(), 100, 20.0, first=90).splitlines()[0]
    assert last == "bridge: study: 91 of 100 readings, about 3 minutes left"


def test_each_stage_has_its_own_time() -> None:
    clock, stream = Clock(), io.StringIO()
    with ProgressLine(stream, clock) as show:
        show(Progress("reading", 1, 2, "texts"))
        clock.now += 1000
        show(Progress("drawing", 0, 10, "pictures"))
        clock.now += 20
        show(Progress("drawing", 1, 10, "pictures", "loss 0.5"))
    assert stream.getvalue().splitlines() == [
        "bridge: drawing: 0 of 10 pictures",
        "bridge: drawing: 1 of 10 pictures, loss 0.5, about 3 minutes left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "3 seconds"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (3000, "50 minutes"),
        (7000, "2 hours"),
    ],
)
def test_times_are_round(seconds: float, words: str) -> None:
    assert about(seconds) == f"about {words}"


# ---------------------------------------------------------------- who says it


def test_every_long_command_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_sd_pipeline("sd15").save_pretrained("sd")
    source = str(tiny_llava(tmp_path))
    bridge.vlm.save_vlm(tiny_vlm(), "vlm")
    data = str(conversations(tmp_path / "data"))
    Path("prompts.txt").write_text("a cat\na dog\ntwo cats\n")
    study = ["study", "a red cat", "--variants", "case"]
    training = ["train-vlm", data, "-m", "vlm", "-o", "trained", "--samples", "0"]
    for command, stages in (
        (["encode", "prompts.txt", "-m", "sd", "-o", "out"], ["encoding: 0 of 3 prompts"]),
        (["draw", "a cat", "-m", "sd", "--steps", "3", "-o", "a.png"], ["drawing: 1 of 3 steps"]),
        ([*study, "-t", "emoji-1"], ["emoji-1 reads: 0 of "]),
        ([*study, "-m", "sd", "--steps", "1"], ["text_encoder reads: 0 of ", "drawing: 1 of 4 v"]),
        (["convert", source, "llava", "--to", "llava"], ["converting: 1 tensors"]),
        ([*training, "--steps", "2"], ["image features: ", "training: 1 of 2 steps, loss "]),
    ):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(command) == 0, terminal.getvalue()
        shown = terminal.getvalue().split("\r\033[K")
        for stage in stages:
            assert any(line.startswith(stage) for line in shown), (stage, shown)
        assert shown[-1] == "", shown


def test_fitting_an_adapter_says_how_far_it_is() -> None:
    words = (["red", "two", "left", "photo"], ["cat", "dog", "apple"], ["of", "in", "and"], "ab")
    prompts = [" ".join(each) for each in itertools.product(*words)]
    said: list[Progress] = []
    pipe, tower = tiny_sd_pipeline("sd15"), tiny_sd_pipeline("sd15", seed=1)
    foreign = bridge.towers.TextTower.from_modules(tower.text_encoder, tower.tokenizer, name="t")
    bridge.fit_adapter(
        foreign, model=pipe, prompts=prompts, kind="resampler", steps=3, on_progress=said.append
    )
    lines = [str(each) for each in said]
    assert lines[:3] == [f"reading: {done} of 72 prompts" for done in (32, 64, 72)]
    assert lines[-1] == "training text_encoder: 3 of 3 steps"
