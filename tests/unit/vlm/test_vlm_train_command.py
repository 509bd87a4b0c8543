"""`bridge train-vlm` from a shell: what it refuses, before any model loads, and what it says."""

from __future__ import annotations

import argparse
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.tiny_training import conversations, tiny_vlm

from bridge.cli import main
from bridge.vlm import TrainOptions, load_vlm, pair, save_vlm, train_vlm
from bridge.vlm.train.options import add_arguments

# No such models: what is refused with them was refused before one was looked for.
NONE = ["--vision", "no/tower", "--llm", "no/llm"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.json", *NONE], "no such file or folder of training data: 'none.json'"),
        (["data/talk.json"], "give --model, or --vision and --llm"),
        (["data/talk.json", "--vision", "a"], "give --model, or --vision and --llm"),
        (["data/talk.json", "-m", "a", *NONE], "give --model, or --vision and --llm"),
        (["data/talk.json", "-m", "a", "--projector", "linear"], "--projector and --select-layer"),
        (["data/talk.json", *NONE, "--stage", "3"], "invalid choice"),
        (["data/talk.json", *NONE, "--lora", "4"], "lora is for stage 2"),
        (["data/talk.json", *NONE, "--steps", "0"], "steps is 0"),
        (["data/talk.json", *NONE, "--micro-batch", "3"], "not a multiple of micro_batch 3"),
        (["data", *NONE], "0.png has no caption"),
    ],
)
def test_refusals(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    conversations(tmp_path / "data", 2)
    assert main(["train-vlm", *arguments, "-o", "out", "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_pairing_of_folders_is_trained(tmp_path: Path, capsys: Any) -> None:
    """The parts of two saved models, a projector that stock LLaVA has not, then stage 2 of it."""
    data = str(conversations(tmp_path / "data", 4))
    for name, tower in (("a", "siglip"), ("b", "clip")):
        save_vlm(tiny_vlm(tower=tower), tmp_path / name)
    parts = ["--vision", str(tmp_path / "a"), "--llm", str(tmp_path / "b")]
    parts += ["--projector", "average_pool"]
    common = ["--batch-size", "4", "--steps", "2", "--samples", "0", "--device", "cpu"]
    common += ["--learning-rate", "0.01", "--json"]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert main(["train-vlm", data, "-o", one, *parts, *common]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["output"] == one and record["steps"] == 2
    assert record["first_loss"] > 0 and record["last_loss"] > 0
    vlm = load_vlm(one, device="cpu")
    assert type(vlm.vision).__name__ == "SiglipVisionModel" and vlm.n_soft_tokens(32, 32) == 4
    more = ["--stage", "2", "--no-store-features", *common]
    assert main(["train-vlm", data, "-o", two, "-m", one, *more]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == two
    assert not (tmp_path / "two" / "features").exists()
    assert load_vlm(two, device="cpu").answer(tmp_path / "data" / "0.png", "what?") is not None


def test_options_are_called_as_in_python() -> None:
    taken = (
        inspect.signature(train_vlm).parameters.keys() | inspect.signature(pair).parameters.keys()
    )
    taken |= {field.name for field in fields(TrainOptions)}
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    own = {action.dest for action in parser._actions} - {"help"}
    assert own - taken == set()
