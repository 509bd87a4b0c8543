"""Reading and writing small files: no torch, no weights."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError

# No configuration, tokenizer or index comes near it; a longer file is not read to its end.
MOST_TEXT = 256 << 20


def check_regular(path: Path) -> None:
    """Refuse what is not a plain file before it is opened: a pipe or a device may never end.

    Raises WeightsError, for a missing file too.
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


def default_cache() -> Path:
    """Where what is made once is kept: ``$BRIDGE_CACHE`` or ``~/.cache/bridge``."""
    return Path(os.environ.get("BRIDGE_CACHE", Path.home() / ".cache" / "bridge"))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new name beside ``path`` to write to, which takes its place when the block is done.

    A reader sees the old file or the new one, never a part; after an error the old one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random: two threads may write the same file.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part."""
    with whole(path) as part:
        part.write_bytes(data)


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
