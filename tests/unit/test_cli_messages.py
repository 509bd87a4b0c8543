"""What the bridge command says of wrong input: one line that names it and says what to do.

Each is met by a person who tries the command for the first time. None may speak in the system's
numbers, name another command's help, run all the same, or leave a file behind.
"""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import bridge
from bridge.cli import main
from bridge.vlm import packaged

LONG = "n" * 300


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one thing of each kind, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("hello")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "pairs").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pairs" / "a.png")
    (tmp_path / "pairs" / "a.txt").write_text("a black square")
    return tmp_path


TRAIN = ["train-vlm", "-o", "out", "-m", "emoji-llava"]

CASES: list[tuple[list[str], str]] = [
    # -- prompts from a file
    (["encode", "none.txt", "-o", "out"], "no such file of prompts: 'none.txt'; give a text file"),
    (["encode", "file/x", "-o", "out"], "no such file of prompts: 'file/x'; give"),
    (["encode", "folder", "-o", "out"], "'folder' is no file of prompts; give a text file"),
    (["encode", "", "-o", "out"], "'' is no file of prompts; give a text file"),
    (["encode", LONG, "-o", "out"], "cannot be read: File name too long; give a text file"),
    (["encode", "latin.txt", "-o", "out"], "'latin.txt' is no UTF-8 text .*; save it as UTF-8"),
    (["study", "a cat", "--own", "none.txt"], "no such file of prompts: 'none.txt'; give"),
    # -- places to write
    (["encode", "prompts.txt", "-o", "file"], "output 'file' .*a file stands where .*; give"),
    (["encode", "prompts.txt", "-o", "file/x"], "output 'file/x' .*a file stands .*; give"),
    (["encode", "prompts.txt", "-o", ""], "argument -o/--output: the path is empty; give a name"),
    (["encode", "prompts.txt", "-o", LONG], "output .* the name is too long .*; give another"),
    (["draw", "a cat", "-o", ""], "argument -o/--output: the path is empty; give a name"),
    (["draw", "a cat", "-o", f"{LONG}.png"], "output .* the name is too long .*; give another"),
    (["draw", "a cat", "-n", "2", "-o", f"{'n' * 250}.png"], "the name is too long .*; give"),
    (["convert", "emoji-llava", "", "--to", "llava"], "output: the path is empty; give a name"),
    # -- what is brought along
    (["draw", "a", "--embedding", "x.safetensors"], "no textual-inversion file 'x.safetensors';"),
    (["draw", "a", "--embedding", "folder"], "'folder' is a folder; give the path of the textual"),
    (["draw", "a", "--embedding", LONG], "textual-inversion file .* cannot be read: File name too"),
    (["draw", "a", "--embedding", ""], "textual_inversions has an empty path; give a file"),
    (["draw", "a", "--lora", "x.safetensors"], "There is no LoRA file 'x.safetensors'; check"),
    (["draw", "a", "--lora", LONG], "LoRA file .* cannot be read: File name too long"),
    (["draw", "a", "--lora", ""], "loras has an empty path; give a file"),
    (["draw", "a", "--tower", "emoji-1", "--adapter", "x"], "There is no adapter file 'x'; check"),
    # -- models
    (["draw", "a", "-m", LONG], "No model 'n+…': it is no known name and no folder"),
    (["ask", "pairs/a.png", "-m", LONG], "No model 'n+…': it is no known name and no folder"),
    (["tokens", "a", "-m", LONG], "No model 'n+…': it is no known name and no folder"),
    (["encode", "prompts.txt", "-o", "out", "--tower", LONG], "No model 'n+…'"),
    (["draw", "a", "-m", "emoji-sd"], "No model 'emoji-sd': did you mean 'emoji-xl'"),
    (["draw", "a", "-m", "~nobody-of-that-name/x"], "No model '~nobody-of-that-name/x'"),
    # -- pictures
    (["ask", "none.png"], "no such image file: 'none.png'"),
    (["ask", LONG], "cannot be read: File name too long; give another path"),
    (["ask", "folder"], "'folder' is a directory; give the path of an image file"),
    # -- data and tables
    ([*TRAIN, ""], "data is an empty path; give a file"),
    (
        [*TRAIN, "none.json"],
        "no such file or folder of training data: 'none",
    ),
    (
        [*TRAIN, LONG],
        "no such file or folder of training data: 'n+…'",
    ),
    (
        [*TRAIN, "file"],
        "'file' is not training data; give .json, .jsonl, .csv, .tsv, .parquet or .tar",
    ),
    (["train-vlm", "pairs", "-o", "out"], "give --model, or --vision and --llm, to say what is"),
    (["train-vlm", "pairs", "-o", "file", "-m", "emoji-llava"], "'file'.*; give"),
    (["train-vlm", "pairs", "-o", "out", "-m", LONG], "No model 'n+…'"),
    (["study", "a", "--variants", "language", "--names", "none.json"], "names cannot be read: no"),
    (["study", "a", "-o", "file"], "output 'file' must end in one of .html"),
    (["study", "a", "-o", "folder/none/x.csv"], "there is no directory 'folder/none'"),
    (["study", "a", "-t", LONG], "No model 'n+…'"),
    (["study", "a", "--variants", "none"], "'none'"),
    (["study", "a", "--cache", "file"], "'file'.*; give"),
    (["convert", "none", "out", "--to", "hf"], "No model 'none': .*Embedded models: emoji-xl"),
    (["convert", "file", "out", "--to", "hf"], "'file' is a file; bridge loads folders"),
    (["convert", "folder", "out", "--to", "hf"], "folder has no config.json; give a LLaVA"),
    (["convert", LONG, "out", "--to", "hf"], "No model 'n+…'"),
    (["convert", "emoji-llava", "file", "--to", "llava"], "output 'file' is there already; give"),
    (["convert", "emoji-llava", LONG, "--to", "llava"], "the name is too long .*; give"),
    (["convert", "emoji-llava", "file/x", "--to", "llava"], "a file stands where .*; give"),
    # -- words of the command line
    (["draw", "a cat", "--foo"], r"unrecognized arguments: --foo \(see `bridge draw --help`\)"),
    (["models", "--foo"], r"unrecognized arguments: --foo \(see `bridge models --help`\)"),
    (["study", ""], "prompt is empty; say what to study, such as"),
    (["study", "a cat", " "], "prompt is empty; say what to study, such as"),
]


@pytest.mark.parametrize(("arguments", "wanted"), CASES, ids=lambda value: str(value)[:60])
def test_one_line_says_it(place: Path, capsys: Any, arguments: list[str], wanted: str) -> None:
    before = sorted(place.rglob("*"))
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert re.search(wanted, said), said
    assert said.startswith("bridge: error: ") and len(said.splitlines()) == 1
    assert "Errno" not in said and "internal" not in said and len(said) < 700
    assert sorted(place.rglob("*")) == before


def test_a_tag_without_its_lora(capsys: Any) -> None:
    for options in ([], ["--lora", "folder"]):
        assert main(["draw", f"<lora:{LONG}:1>a cat", *options]) == 2
        line = capsys.readouterr().err.splitlines()[0]
        assert re.search(r"only a folder without any, so there is no 'n+…'; give its file", line)


def test_nothing_on_standard_input(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["ask", "-"]) == 2
    assert "Standard input is empty; send it a picture" in capsys.readouterr().err


def test_a_tower_is_no_language_model(capsys: Any) -> None:
    parts = ["--vision", "emoji-clip", "--llm", "emoji-clip"]
    assert main(["train-vlm", "pairs", "-o", "out", *parts]) == 2
    said = capsys.readouterr().err
    assert re.search(
        "emoji-clip is not a model for AutoModelForCausalLM, which loads language", said
    )
    assert len(said.splitlines()) == 1 and len(said) < 700


def test_a_model_without_its_extra_is_not_ready(
    capsys: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(packaged.PACKAGED["gemma-270m"], module="no_such_package_anywhere")
    monkeypatch.setitem(packaged.PACKAGED, "gemma-270m", row)
    monkeypatch.setenv("BRIDGE_CACHE", str(place / "cache"))
    assert main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "needs bridge[gemma]" in lines["emoji-gemma"]
    assert "ready" in lines["emoji-llava"] and "emoji-sd" not in lines


def test_every_name_that_an_error_proposes_ships() -> None:
    with pytest.raises(bridge.BridgeError) as caught:
        bridge.load_pipeline("emoji-none")
    named = re.search(r"Embedded models: ([^;]*);", str(caught.value))
    assert named is not None
    weights = bridge.embedded.weights_dir()
    assert all((weights / name).is_dir() for name in named[1].split(", "))
