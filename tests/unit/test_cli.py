"""The bridge command, in process and once as a program."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.tiny_models import PICTURE_SIZE, tiny_sd_pipeline
from support.tiny_vlm import tiny_llava

import bridge
from bridge.cli import main
from bridge.diffusion import generate
from bridge.manifest import write_manifest
from bridge.vlm import describe

PROMPT = "two red apples left of a cat"


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli") / "tiny-sd"
    tiny_sd_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llava(tmp_path_factory.mktemp("cli")))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def failure(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int = 2) -> str:
    """Run a command that must fail, and give its single line."""
    assert main(arguments) == status
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("bridge: ")
    assert "Traceback" not in captured.err
    return lines[0]


# -- draw ---------------------------------------------------------------------------------


def test_draw_writes_the_picture_of_the_library(sd: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.png"
    options = ["--seed", "3", "--steps", "2", "--negative", "a dog", "--guidance", "4"]
    assert main(["draw", PROMPT, "-m", sd, "-o", str(out), *options, "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}  seed 3\n"
    assert captured.err == ""
    want = generate(
        PROMPT, negative_prompt="a dog", model=sd, seed=3, steps=2, guidance_scale=4, device="cpu"
    )
    assert Image.open(out).tobytes() == want.images[0].tobytes()
    assert os.listdir(tmp_path) == ["out.png"]


def test_draw_takes_towers_and_a_dialect(sd: str, tmp_path: Path, capsys: Any) -> None:
    other = tiny_sd_pipeline(seed=3)
    other.text_encoder.save_pretrained(tmp_path / "tower")
    other.tokenizer.save_pretrained(tmp_path / "tower")
    options = ["--seed", "3", "--steps", "1", "--device", "cpu", "--dialect", "plain"]
    command = ["draw", "(a cat)", "-m", sd, *options]
    assert main([*command, "-o", "p.png", "--tower", str(tmp_path / "tower")]) == 0
    want = generate(
        "(a cat)", model=sd, seed=3, steps=1, dialect="plain", towers=tmp_path / "tower"
    )
    assert Image.open("p.png").tobytes() == want.images[0].tobytes()
    capsys.readouterr()
    adapter = ["--adapter", "no.safetensors"]
    assert "no.safetensors" in failure(capsys, [*command, "-o", "q.png", *adapter])
    assert not Path("q.png").exists()


def test_draw_several_and_json(sd: str, tmp_path: Path, capsys: Any) -> None:
    arguments = ["draw", PROMPT, "-m", sd, "-n", "2", "--steps", "1", "--seed", "8", "--json"]
    assert main([*arguments, "-o", "pair.webp"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["images"] == ["pair-1.webp", "pair-2.webp"]
    assert record["seeds"] == [8, 9]
    assert record["prompt"] == PROMPT
    for name in record["images"]:
        assert Image.open(tmp_path / name).size == (PICTURE_SIZE, PICTURE_SIZE)


def test_draw_names_the_file_after_the_seed(sd: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["draw", PROMPT, "-m", sd, "--steps", "1", "--width", "40", "--height", "48"]) == 0
    (path,) = tmp_path.glob("bridge-*.png")
    assert capsys.readouterr().out == f"{path.name}  seed {path.stem.split('-')[1]}\n"
    assert Image.open(path).size == (40, 48)


def test_draw_replaces_a_file_in_one_step(sd: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.png"
    out.write_bytes(b"old")
    failure(capsys, ["draw", "", "-m", sd, "-o", "out.png"])
    assert out.read_bytes() == b"old"
    assert main(["draw", PROMPT, "-m", sd, "-o", "out.png", "--steps", "1"]) == 0
    assert Image.open(out).format == "PNG"
    assert os.listdir(tmp_path) == ["out.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_cut_prompt_is_noted_in_one_line(sd: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "long.txt").write_text("cat " * 100)
    command = ["encode", str(tmp_path / "long.txt"), "-m", sd, "-o", str(tmp_path / "out")]
    assert main([*command, "--dialect", "plain"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bridge: note: prompt 0: 25 tokens do not fit the 77")


def test_a_watcher_sees_the_steps(sd: str, monkeypatch: Any) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["draw", PROMPT, "-m", sd, "--steps", "2", "-o", "o.png"]) == 0
    assert "drawing: 1 of 2 steps\r" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([""], "empty"),
        (["a\0b"], "NUL"),
        ([PROMPT, "--steps", "0"], "steps is 0"),
        ([PROMPT, "--steps", "many"], "--steps"),
        ([PROMPT, "--guidance", "nan"], "guidance_scale"),
        ([PROMPT, "--seed", "-4"], "seed"),
        ([PROMPT, "-n", "0"], "num_images"),
        ([PROMPT, "--width", "100"], "multiple of 8"),
        ([PROMPT, "--device", "gpu9"], "gpu9"),
        ([PROMPT, "--dtype", "int8"], "int8"),
        ([PROMPT, "-o", "out.gif"], "must end in"),
        ([PROMPT, "-o", "no/such/out.png"], "no directory"),
        ([PROMPT, "-o", "folder.png"], "is a directory"),
        ([PROMPT, "-m", "emoji-xxl"], "emoji-xl"),
        ([PROMPT, "-m", "."], "model_index.json"),
        ([PROMPT, "--colour", "red"], "--colour"),
    ],
)
def test_draw_refuses(
    sd: str, tmp_path: Path, capsys: Any, arguments: list[str], match: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    line = failure(capsys, ["draw", "-m", sd, *arguments])
    assert match in line
    assert os.listdir(tmp_path) == ["folder.png"]


def test_no_permission_to_write(sd: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def refused(*_: Any) -> None:  # root, as tests may be, may write anywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refused)
    assert "permission" in failure(capsys, ["draw", PROMPT, "-m", sd, "-o", "out.png"])


# -- ask ----------------------------------------------------------------------------------


def test_ask_prints_the_answer(llava: str, photo: Path, capsys: Any) -> None:
    question = "what is on the left?"
    assert main(["ask", str(photo), question, "-m", llava, "--max-new-tokens", "8"]) == 0
    captured = capsys.readouterr()
    want = describe(photo, question, model=llava, max_new_tokens=8)
    assert captured.out == want + "\n"
    assert captured.err == ""
    assert main(["ask", str(photo), "-m", llava, "--max-new-tokens", "8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["question"] == "describe the picture."
    assert record["answer"] == describe(photo, model=llava, max_new_tokens=8)


def test_ask_reads_standard_input(llava: str, photo: Path, capsys: Any, monkeypatch: Any) -> None:
    stream = io.TextIOWrapper(io.BytesIO(photo.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert main(["ask", "-", "how many?", "-m", llava, "--max-new-tokens", "4"]) == 0
    want = describe(photo, "how many?", model=llava, max_new_tokens=4)
    assert capsys.readouterr().out == want + "\n"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["none.png", "what?"], "no such image"),
        (["notes.txt", "what?"], "not an image"),
        (["photo.png", " "], "empty"),
        (["photo.png", "what </s>?"], "control token"),
        (["photo.png", "zq " * 300], "positions"),
        (["photo.png", "what?", "--max-new-tokens", "0"], "max_new_tokens"),
        (["photo.png", "what?", "-m", "emoji-lava"], "emoji-llava"),
        ([], "image"),
    ],
)
def test_ask_refuses(
    llava: str, photo: Path, tmp_path: Path, capsys: Any, arguments: list[str], match: str
) -> None:
    (tmp_path / "notes.txt").write_text("dear diary")
    assert match in failure(capsys, ["ask", "-m", llava, *arguments])


# -- tokens, models, and the rest ---------------------------------------------------------


def test_tokens(sd: str, capsys: Any) -> None:
    assert main(["tokens", PROMPT, "-m", sd]) == 0
    assert capsys.readouterr().out.startswith("text_encoder: 9 of 77 tokens: ")
    assert main(["tokens", PROMPT, "-m", sd, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == PROMPT
    assert record["towers"][0]["limit"] == 77
    assert "NUL" in failure(capsys, ["tokens", "a\0", "-m", sd])


def test_encode_writes_a_file_a_prompt_and_goes_on(sd: str, tmp_path: Path, capsys: Any) -> None:
    from bridge.encoding import load_conditioning

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a (cat:1.3)\n\n  two 🎈 \n", encoding="utf-8")
    out = tmp_path / "out"
    command = ["encode", str(prompts), "-o", str(out), "-m", sd, "--negative", "ugly"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}: 2 encoded, 0 were there\n"
    index = json.loads((out / "index.json").read_text())
    assert [row["prompt"] for row in index["files"]] == ["a (cat:1.3)", "two 🎈"]
    first = out / index["files"][0]["file"]
    wanted = bridge.condition("a (cat:1.3)", "ugly", model=sd)
    found = load_conditioning(first, model=sd)
    assert torch.equal(found.prompt_embeds, wanted.prompt_embeds)
    assert torch.equal(found.negative_prompt_embeds, wanted.negative_prompt_embeds)

    stamp = first.stat().st_mtime_ns
    (out / index["files"][1]["file"]).unlink()  # as if it had been interrupted
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 1
    assert first.stat().st_mtime_ns == stamp
    assert main([*command, "--emphasis", "comfy"]) == 0  # other settings are other files
    assert capsys.readouterr().out.endswith("2 encoded, 0 were there\n")


def test_encode_makes_again_what_a_changed_file_made(sd: str, tmp_path: Path, capsys: Any) -> None:
    word = tmp_path / "zig.safetensors"
    (tmp_path / "one").write_text("a zig")
    command = ["encode", "one", "-o", "out", "-m", sd, "--embedding", str(word)]

    def made() -> int:
        assert main([*command, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["made"]

    save_file({"emb_params": torch.ones(1, 32)}, word)
    assert (made(), made()) == (1, 0)
    save_file({"emb_params": torch.ones(2, 32)}, word)
    assert made() == 1
    os.utime(Path(sd) / "text_encoder" / "config.json", ns=(0, 0))
    assert made() == 1


def test_prompts_are_utf8_with_or_without_a_mark(sd: str, capsys: Any, monkeypatch: Any) -> None:
    Path("marked").write_bytes(b"\xef\xbb\xbfa cat")
    assert main(["encode", "marked", "-o", "out", "-m", sd, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["prompt"] == "a cat"
    Path("latin").write_bytes(b"\xff")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    for source, named in (("latin", "the file 'latin'"), ("-", "standard input")):
        line = failure(capsys, ["encode", source, "-o", "out", "-m", sd])
        assert f"{named} is no UTF-8 text" in line


def test_encode_refuses(sd: str, tmp_path: Path, capsys: Any) -> None:
    out = ["-o", str(tmp_path / "out"), "-m", sd]
    assert "no such file" in failure(capsys, ["encode", str(tmp_path / "none"), *out]).lower()
    (tmp_path / "empty").write_text("\n \n")
    assert "no prompt in it" in failure(capsys, ["encode", str(tmp_path / "empty"), *out])
    (tmp_path / "one").write_text("a cat")
    assert "No dialect" in failure(
        capsys, ["encode", str(tmp_path / "one"), *out, "--dialect", "b1111"]
    ).replace("prompt dialect", "dialect")


def test_a_bad_prompt_is_shown_with_a_caret(sd: str, capsys: Any) -> None:
    assert main(["tokens", "a (cat:nan)", "-m", sd, "--dialect", "comfy"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["a (cat:nan)", "       ^^^"]


def test_models(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("BRIDGE_WEIGHTS", str(tmp_path))
    for name in ("emoji-clip-2", "emoji-clip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    write_manifest(tmp_path)
    (tmp_path / "emoji-clip" / "config.json").write_text("")
    assert main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"emoji-xl", "emoji-llava", "sd15", "sdxl"} <= set(lines)
    assert "ready" in lines["emoji-clip-2"]
    assert "damaged" in lines["emoji-clip"]
    assert "missing" in lines["emoji-xl"]
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert {row["kind"] for row in rows} == {"embedded", "short name"}
    assert {row["state"] for row in rows} == {"ready", "damaged", "missing", "on the hub"}


def test_version_and_help(capsys: Any) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bridge {bridge.__version__}\n"
    for arguments in (["--help"], ["draw", "--help"], ["ask", "-h"]):
        assert main(arguments) == 0
        assert "usage: bridge" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["paint"], ["--wrong"]])
def test_a_wrong_command_line_is_one_line(capsys: Any, arguments: list[str]) -> None:
    assert "--help" in failure(capsys, arguments)


def test_debug_shows_the_traceback(sd: str) -> None:
    with pytest.raises(bridge.BridgeError):
        main(["draw", "", "-m", sd, "--debug"])


def test_a_fault_of_ours_is_one_line_too(sd: str, capsys: Any, monkeypatch: Any) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("bridge.cli.write_picture", breaks)
    arguments = ["draw", PROMPT, "-m", sd, "--steps", "1"]
    assert "internal error: ZeroDivisionError: oh" in failure(capsys, arguments, 1)
    with pytest.raises(ZeroDivisionError):
        main([*arguments, "--debug"])


def test_interrupt(sd: str, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert main(["draw", PROMPT, "-m", sd, "--steps", "1", "-o", "o.png"]) == 130
    assert os.listdir(tmp_path) == []


def run_module(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(bridge.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def test_as_a_program(sd: str, tmp_path: Path) -> None:
    done = run_module("draw", PROMPT, "-m", sd, "--steps", "1", "-o", "p.png", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["images"] == ["p.png"]
    assert Image.open(tmp_path / "p.png").size == (PICTURE_SIZE, PICTURE_SIZE)


def test_errors_as_a_program() -> None:
    done = run_module("draw", "")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_light_start() -> None:
    """Help and a bad option load neither torch nor the libraries on top of it."""
    code = (
        "import sys; from bridge.cli import main; main(['--help']); main(['models']);"
        "heavy = {'torch', 'transformers', 'diffusers', 'numpy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    root = Path(bridge.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
