"""A hidden folder to write in, which goes with the process that made it, however that ends.

The process holds a lock on it that the system takes away when the process is gone, killed or not.
So whoever comes next can tell what was left behind from what is being written, though containers
all have the process id 1. Names are random: they say nothing of the owner.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.bridge-[0-9a-f]{16}\.part")
_LEFT_SECONDS = 24 * 3600.0  # unchanged for so long it has no owner, where nothing can be locked


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``, gone at the block's end. Raises OSError, ValueError.

    On the same disk as ``folder``, so that what is whole is renamed into its place. Workplaces
    whose owner is gone are removed.
    """
    remove_left(folder)
    place, lock = _owned_place(folder)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        _release(lock)


def remove_left(folder: Path) -> None:
    """Remove the workplaces in ``folder`` whose owner is gone."""
    for place in _places(folder):
        with suppress(OSError):  # it has an owner, or belongs to another user
            lock = _lock(place)
            if lock is not None or time.time() - _last_change(place) > _LEFT_SECONDS:
                shutil.rmtree(place, ignore_errors=True)
            _release(lock)


def _places(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]


def _owned_place(folder: Path) -> tuple[Path, int | None]:
    while True:
        place = folder / f".bridge-{secrets.token_hex(8)}.part"
        place.mkdir(mode=0o700)
        # Before it is locked it looks like one that was left: another process may remove it.
        with suppress(BlockingIOError, FileNotFoundError):
            return place, _lock(place)


def _lock(place: Path) -> int | None:
    """A descriptor that holds the lock on a folder; None where the system or the disk has none.

    Raises BlockingIOError where another holds it, FileNotFoundError where the folder has gone.
    """
    if fcntl is None:
        return None
    found = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here = os.path.samestat(os.fstat(found), os.lstat(place))
    except (BlockingIOError, FileNotFoundError):
        os.close(found)
        raise
    except OSError:  # some network disks
        os.close(found)
        return None
    if not here:
        os.close(found)
        raise FileNotFoundError(place)
    return found


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _last_change(place: Path) -> float:
    return max(each.lstat().st_mtime for each in (place, *place.rglob("*")))
