"""Reading and writing small files: no torch, no weights."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError, OptionError, WeightsError, WriteError, quoted
from bridge.workplace import workplace

# No configuration, tokenizer or index comes near it; a longer file is not read to its end.
MOST_TEXT = 256 << 20


def check_regular(path: Path) -> None:
    """Refuse what is not a plain file before it is opened: a pipe or a device may never end.

    Raises:
        WeightsError: a pipe, a device, a folder; a missing file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing; the model folder is incomplete.") from error
    # ValueError: a NUL in the name. OSError: a name too long, a folder that may not be entered.
    except (OSError, ValueError) as error:
        raise WeightsError(f"{str(path)!r} cannot be read: {error}") from error
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{path} is not a regular file; bridge reads plain files only.")


def check_given(path: Path, what: str) -> None:
    """Refuse a path of the caller's that is not a plain file, in words about what it should be.

    Raises:
        WeightsError: a missing file, a folder, a pipe.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"There is no {what} {quoted(path)}; check the path.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise WeightsError(f"The {what} {quoted(path)} cannot be read: {why}.") from error
    if stat.S_ISDIR(mode):
        raise WeightsError(f"{quoted(path)} is a folder; give the path of the {what}.")
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{quoted(path)} is not a regular file; give the path of the {what}.")


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A file's text in UTF-8, of at most ``most`` bytes. Raises WeightsError."""
    check_regular(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise WeightsError(f"{path} is larger than {most:,} bytes, too large for its kind.")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} is not text in UTF-8 ({error.reason}).") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text; ``source`` names it in the error. Raises WeightsError."""
    try:
        return json.loads(text)
    # RecursionError: nested thousands deep. ValueError: no JSON, or a number of 5,000 digits.
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{source} cannot be read as JSON ({error}); fetch it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises WeightsError if it is missing or damaged."""
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds no JSON object; fetch it again.")
    return value


def home_path(given: str | os.PathLike[str]) -> Path:
    """A path with its ``~`` written out. (Path's own way raises for `~name` of nobody.)"""
    return Path(os.path.expanduser(given))


def default_cache() -> Path:
    """Where what is made once is kept: ``$BRIDGE_CACHE`` or ``~/.cache/bridge``."""
    chosen = os.environ.get("BRIDGE_CACHE")
    return home_path(chosen) if chosen else Path.home() / ".cache" / "bridge"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder to, which takes the place of ``path`` when the block ends.

    A reader sees the old one or the new one, never a part; after an error or a kill the old one
    stays. What a killed process left in the folder is removed. (An old folder must be empty.)

    Raises:
        WriteError: it cannot be written.
    """
    with ExitStack() as stack:
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                path.lstat()  # a name that cannot be is told before time is spent on its content
            place = stack.enter_context(workplace(path.parent))
        with full_disk_named(path):
            yield place / path.name
        with _named(path):
            (place / path.name).replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``path`` when the block ends: `whole` for folders."""
    with whole(path) as part:
        part.mkdir()
        yield part


@contextmanager
def filled_folder(folder: Path) -> Iterator[Path]:
    """A workplace in ``folder``, from which the block moves what is whole into it.

    The folder is made if need be, and is gone again if nothing comes into it.

    Raises:
        WriteError: it cannot be written to.
    """
    with ExitStack() as stack:
        with _named(folder):
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, folder)
            place = stack.enter_context(workplace(folder))
        with full_disk_named(folder):
            yield place


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part."""
    with whole(path) as part, _named(path):
        part.write_bytes(data)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Where a block finds no room on the disk, that is one WriteError that names ``path``.

    Whatever wrote: Rust's libraries (safetensors, tokenizers) have exceptions of their own.
    """
    try:
        yield
    except Exception as error:
        # Of a file within a workplace: the reader knows no other name than the outer one's.
        cause = error.__cause__ if isinstance(error, WriteError) else error
        if is_full_disk(cause) or isinstance(error, WriteError):
            raise _write_error(path, cause) from cause
        raise


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error says that there is no room for a file."""
    return _error_number(error) in _NO_ROOM


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What a block of system calls on ``path`` raises, as one WriteError that names it."""
    try:
        yield
    # ValueError: a NUL in the name.
    except (OSError, ValueError) as error:
        if isinstance(error, BridgeError):
            raise
        raise _write_error(path, error) from error


_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota on that disk is used up",
    errno.EFBIG: "it would be larger than the system allows a file to be",
}
_NO_PLACE = {
    errno.ENAMETOOLONG: "the name is too long for the system",
    errno.EEXIST: "a file stands where its folder should be",
    errno.ENOTDIR: "a file stands where its folder should be",
    errno.EISDIR: "a folder has that name",
    errno.ENOTEMPTY: "a folder has that name",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
}


def _write_error(path: Path, error: BaseException | None) -> WriteError:
    return WriteError(f"{str(path)!r} cannot be written: {_why(error)}")


def _why(error: BaseException | None) -> str:
    number = _error_number(error)
    if number in _NO_ROOM:
        return f"{_NO_ROOM[number]}; make room, or give another place"
    if isinstance(error, ValueError):
        return f"the name has a character that the system does not take ({error}); give another"
    told = _NO_PLACE.get(number or 0) or (isinstance(error, OSError) and error.strerror) or error
    return f"{told}; give another place"


def _error_number(error: BaseException | None) -> int | None:
    """The system's number of an error, also where a library of Rust tells it in words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


# ---------------------------------------------------------------- before any work


def check_output_file(path: Path, named: str = "output") -> None:
    """Refuse a file that could not be written before time is spent on it. Raises OptionError."""
    with _refused(path, named):
        if os.path.isdir(path):
            raise OptionError(f"{named} {str(path)!r} is a directory; give a file name")
        if not os.path.lexists(path.parent):
            raise OptionError(f"{named} {str(path)!r}: there is no directory {str(path.parent)!r}")
        _try_out(path.parent, path)


def check_output_folder(path: Path, named: str = "output") -> None:
    """Refuse a folder that could not be made or written to, as above."""
    with _refused(path, named):
        there = path.absolute()
        while not os.path.lexists(there):
            there = there.parent
        _try_out(there, path.absolute())


def _try_out(folder: Path, path: Path) -> None:
    """Make ``path``, and a page of data, in a workplace of ``folder``: modes do not tell of disks
    that are full or read-only, of names too long or of what root may."""
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    with workplace(folder) as place:
        (place / "page").write_bytes(bytes(4096))
        (place / "tree" / path.relative_to(folder)).mkdir(parents=True)


@contextmanager
def _refused(path: Path, named: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, BridgeError):
            raise
        raise OptionError(f"{named} {_write_error(path, error)}") from error


def hash_file(path: Path) -> str:
    """The first 16 hex digits of a file's sha256. Raises WeightsError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change, None for a file that is not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
