"""No room on the disk is one error that names the file; what was there before stays."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.small_writers import Writer, writers
from support.tiny_training import conversations

from bridge.cli import main
from bridge.errors import BridgeError, WriteError
from bridge.files import whole, write_whole


@pytest.fixture(scope="module")
def all_writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Writer]:
    return {each.name: each for each in writers(tmp_path_factory.mktemp("writers"))}


def without_room(room: int, do: Callable[[], Any]) -> tuple[bool | None, str]:
    """Whether ``do`` raised a BridgeError (None: nothing was raised), and its words, where no file
    may be longer than ``room`` bytes. The error is the system's EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        return None, str(do())
    except Exception as error:
        return isinstance(error, BridgeError), f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


NAMES = (
    "adapter",
    "conditioning",
    "study",
    "cache of a study",
    "manifest",
    "checkpoint of a training",
    "journal of a training",
    "projector",
    "vlm",
    "convert",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [3, 20, 4000])
def test_no_room_for_a_file(
    all_writers: dict[str, Writer], name: str, room: int, tmp_path: Path
) -> None:
    writer = all_writers[name]
    writer.write(tmp_path, 1)
    before = {*tmp_path.rglob("*")}
    is_ours, words = without_room(room, lambda: writer.write(tmp_path, 2))
    if room > 20 and is_ours is None:
        pytest.skip("there was room enough")
    assert is_ours, words
    assert str(tmp_path) in words and "larger than the system allows" in words, words
    assert "make room" in words and ".part" not in words, words
    assert writer.read(tmp_path) == 1
    left = {path.name for path in {*tmp_path.rglob("*")} - before}
    assert left <= {"2.json"}  # the model that a manifest is written of


def test_a_command_says_it_in_a_line(
    all_writers: dict[str, Writer], tmp_path: Path, capfd: Any
) -> None:
    writer = all_writers["encode"]
    writer.write(tmp_path, 1)
    capfd.readouterr()
    _, words = without_room(5000, lambda: writer.write(tmp_path, 2))
    assert words.startswith("AssertionError")  # the writer's own: its status is not 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"bridge: error: '{tmp_path / 'encoded'}' cannot be written: it would")


def test_what_a_library_of_rust_says_is_understood(tmp_path: Path) -> None:
    """A full disk, as safetensors and tokenizers tell it."""
    with pytest.raises(WriteError, match=r"a\.bin' cannot be written: the disk is full; make room"):  # noqa: SIM117
        with whole(tmp_path / "a.bin"):
            raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


def test_other_errors_of_a_block_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-source"), whole(tmp_path / "a.bin"):
        (tmp_path / "no-such-source").read_bytes()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("n" * 300, "the name is too long"),
        ("a\0b", "a character that the system does not take"),
        ("file/b", "a file stands where its folder should be"),
        ("/proc/nowhere/b", "No such file"),
        ("folder", "a folder has that name"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "file").write_text("a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b").touch()
    with pytest.raises(WriteError, match=why) as raised:
        write_whole(tmp_path / place, b"new")
    assert repr(str(tmp_path / place)) in str(raised.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


# ---------------------------------------------------------------- before any work

NOWHERE = {
    "n" * 260: "the name is too long",
    "a\0b": "a character that the system does not take",
    "file/b": "a file stands where its folder should be",
    "/proc/b": "No such file",
}
# The model does not exist, so whatever loads first would say so.
COMMANDS = {
    "draw": ["draw", "a cat", "-m", "none", "-n", "10", "-o", "PLACE.png"],
    "encode": ["encode", "file", "-m", "none", "-o", "PLACEfolder"],
    "convert": ["convert", "none", "PLACEfolder", "--to", "hf"],
    "study": ["study", "a cat", "-t", "none", "-o", "PLACE.html"],
    "study's cache": ["study", "a cat", "-t", "none", "--cache", "PLACEfolder"],
    "training": ["train-vlm", "data/talk.json", "-m", "none", "-o", "PLACEfolder"],
    "training's features": [
        *("train-vlm", "data/talk.json", "-m", "none", "-o", "out"),
        *("--feature-folder", "PLACEfolder"),
    ],
}


@pytest.mark.parametrize("place", NOWHERE)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_is_tried_before_anything_loads(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a cat")
    conversations(tmp_path / "data")
    assert main([each.replace("PLACE", place) for each in COMMANDS[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert NOWHERE[place] in line, line
    assert line.startswith(("bridge: error: output ", "bridge: error: cache ", FEATURES)), line
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "file"]


FEATURES = "bridge: error: feature folder "
