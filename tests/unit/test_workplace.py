"""What a dead process left is removed; what a living one writes is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.places import ROOT

from bridge import workplace as module
from bridge.files import filled_folder, whole, whole_folder, write_whole
from bridge.workplace import workplace

WRITER = """
import sys
from pathlib import Path
from bridge.files import whole_folder
with whole_folder(Path(sys.argv[1])) as part:
    (part / "half").write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


def writing(target: Path) -> subprocess.Popen[str]:
    """A process that has begun to write ``target``, and goes on until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.stdout.close()
    return process


def test_the_living_are_left_alone_and_the_dead_are_tidied(tmp_path: Path) -> None:
    dead, living = writing(tmp_path / "dead"), writing(tmp_path / "living")
    dead.kill()
    dead.wait()
    assert len(list(tmp_path.iterdir())) == 2
    write_whole(tmp_path / "other", b"new")
    assert len(list(tmp_path.iterdir())) == 2  # the living one's, and the new file
    living.communicate()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["living", "other"]
    assert (tmp_path / "living" / "half").read_text() == "half"


def test_what_only_looks_like_a_workplace_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / f".bridge-{'0' * 16}.part").symlink_to(tmp_path / "kept")
    (tmp_path / f".bridge-{'1' * 16}.part").write_text("a file")
    (tmp_path / ".other.part").mkdir()
    before = {*tmp_path.rglob("*")}
    with workplace(tmp_path):
        pass
    assert {*tmp_path.rglob("*")} == before


def test_without_locks_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, and network disks: a day without change, in the deepest of its folders too."""
    monkeypatch.setattr(module, "fcntl", None)
    old, new = (tmp_path / f".bridge-{digit * 16}.part" for digit in "01")
    for place in (old, new):
        (place / "folder").mkdir(parents=True)
        (place / "folder" / "file").touch()
    day = time.time() - 25 * 3600
    for path in (old, old / "folder", old / "folder" / "file", new, new / "folder"):
        os.utime(path, (day, day))
    write_whole(tmp_path / "file", b"new")
    assert sorted(each.name for each in tmp_path.iterdir()) == [new.name, "file"]


def test_a_workplace_taken_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may tidy up between the making and the locking."""
    lock, places = module._lock, []

    def slow(place: Path) -> int | None:
        places.append(place)
        if len(places) == 1:
            module.remove_left(place.parent)
        return lock(place)

    monkeypatch.setattr(module, "_lock", slow)
    with whole(tmp_path / "file") as part:
        part.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    assert len({*places}) == 2 and [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_mode_is_that_of_any_new_file_or_folder(tmp_path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    write_whole(tmp_path / "file", b"")
    with whole_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_folder_that_nothing_came_into_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), filled_folder(tmp_path / "new") as place:
        (place / "half").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_name_as_long_as_the_system_takes(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 255), b"new")
    assert [len(each.name) for each in tmp_path.iterdir()] == [255]
