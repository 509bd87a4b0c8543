"""What a command writes where: the line that repeats it, the file's name, and how far it came."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bridge
import bridge.diffusion
from benchmarks import adapters, compositional, emphasis
from benchmarks.results import command_of, results_file
from bridge.embedded import weights_dir

DRAW = "--model emoji-xl --n 200 --steps 20 --guidance 3 --seed 0"


def line(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the results of a command of compositional.py name as their command."""
    told: list[str] = []
    name = text.split()[0]
    monkeypatch.setitem(compositional.COMMANDS, name, lambda args: told.append(args.command))
    assert compositional.main(shlex.split(text)) == 0
    return told[0].removeprefix("python benchmarks/compositional.py ")


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("draw", f"draw {DRAW}"),
        ("draw --seed 0 --budget 60 --out x", f"draw {DRAW} --budget 60"),
        ("judge --model other", "judge --model other --n 200"),
        ("clip --clip a 'b c'", "clip --clip a 'b c' --seed 0"),
        ("languages --device cpu", "languages --seed 0 --device cpu"),
        (
            "emphasis",
            "emphasis --model emoji-xl --steps 20 --guidance 3 --seed 0 --pairs 16",
        ),
        ("app", "app"),
    ],
)
def test_a_command_names_what_its_figures_rest_on(
    typed: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line(typed, monkeypatch) == named
    again = compositional.parser().parse_args(shlex.split(named))
    assert line(named, monkeypatch) == named and again.what == typed.split()[0]


def test_each_of_all_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for name in compositional.COMMANDS.keys() - {"all"}:
        monkeypatch.setitem(
            compositional.COMMANDS, name, lambda args: told.append(args.command.split()[2])
        )
    assert compositional.main(["all"]) == 0
    assert told == [name for name in compositional.COMMANDS if name != "all"]


def test_a_command_of_any_parser() -> None:
    parser = argparse.ArgumentParser(prog="python -m x")
    parser.add_argument("--budgets", nargs="*", type=float, default=[20, 40])
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--cache")
    for typed in ("", "--budgets 1 2.5", "--budgets", "--slow"):
        args = parser.parse_args(typed.split())
        assert command_of(parser, args) == f"python -m x {typed}".strip()
    args = parser.parse_args(["--cache", "y"])
    assert command_of(parser, args, ["budgets"]) == "python -m x --budgets 20 40"


def test_results_of_another_model_have_its_name(tmp_path: Path) -> None:
    def name(*models: str) -> str:
        shipped = ("emoji-xl", "emoji-llava")
        return results_file(tmp_path, "some-thing.json", *zip(models, shipped, strict=False)).name

    own = weights_dir() / "emoji-xl"
    for same in ("emoji-xl", str(own), f"{own}/../emoji-xl/"):
        assert name(same) == "some-thing.json"
    (tmp_path / "v1.5").mkdir()
    assert name(str(tmp_path / "v1.5")) == name("owner/v1.5") == "some-thing-v1.5.json"
    assert name("emoji-xl", "other") == "some-thing-other.json"
    assert name("one", "other") == "some-thing-one-other.json"
    assert results_file(tmp_path, "x.webp").parent == tmp_path


class Cut(Exception):
    """The machine goes away."""


def cut_off(after: int, given: Any) -> Any:
    """A function that gives ``given`` so many times and then no more."""
    left = iter(range(after))

    def give(*_: object, **__: object) -> Any:
        if next(left, None) is None:
            raise Cut
        return given

    return give


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bridge.diffusion, "load_pipeline", lambda *_, **__: SimpleNamespace(device="cpu")
    )
    for module in (adapters, emphasis):
        monkeypatch.setattr(module, "Judge", lambda: None)


def args_of(tmp_path: Path, *typed: str) -> argparse.Namespace:
    args = compositional.parser().parse_args([*typed, "--out", str(tmp_path)])
    args.command = " ".join(typed)
    return args


@pytest.mark.usefixtures("no_models")
def test_emphasis_cut_off_keeps_whole_formulas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = len(emphasis.WEIGHTS)
    monkeypatch.setattr(emphasis, "_found", cut_off(3 * weights - 1, [(True, False)] * 16))
    with pytest.raises(Cut):
        emphasis.run_emphasis(args_of(tmp_path, "emphasis"))
    table = json.loads((tmp_path / "emphasis.json").read_text())
    assert table["notes"]["done"].startswith("2 of ")
    assert len(table["rows"]) == 2 * 2 * weights
    assert [path.name for path in tmp_path.iterdir()] == ["emphasis.json"]


@pytest.mark.usefixtures("no_models")
def test_adapters_cut_off_say_how_many_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "open_tower", lambda *_: None)
    monkeypatch.setattr(adapters, "missed_shares", lambda *_: {})
    monkeypatch.setattr(adapters, "_right", cut_off(1 + 3, [True] * 6))
    monkeypatch.setattr(bridge, "fit_adapter", lambda *_, **__: SimpleNamespace(explained={}))
    args = args_of(tmp_path, "adapters", "--adapter-prompts", "1", "--captions", "5")
    with pytest.raises(Cut):
        adapters.run_adapters(args)
    notes = json.loads((tmp_path / "adapters.json").read_text())["notes"]
    assert notes["done"] == "3 of 12 adapters" and len(notes["explained"]) == 3
