"""Files are whole or not there, and nothing is left beside them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bridge.files import whole, write_whole


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    write_whole(target, b"old")
    with whole(target) as part:
        part.write_bytes(b"new")
        assert part.parent.parent == target.parent and target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_whole(target, b"old")
    with pytest.raises(OSError, match="disk is full"), whole(target) as part:
        part.write_bytes(b"ne")
        raise OSError("the disk is full")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:1])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk is full"):
        write_whole(tmp_path / "a.json", b"new")
    assert not list(tmp_path.iterdir())


def test_two_threads_do_not_share_a_part(tmp_path: Path) -> None:
    target = tmp_path / "a"
    both = threading.Barrier(2)
    parts = []

    def save(text: str) -> None:
        with whole(target) as part:
            parts.append(part)
            part.write_text(text)
            both.wait()
            assert part.read_text() == text
            both.wait()

    threads = [threading.Thread(target=save, args=(text,)) for text in ("one", "two")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(parts)) == 2 and target.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [target]
