"""Reading and writing small files: no torch, no weights."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises WeightsError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing; the model folder is incomplete.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}); fetch it again.") from error
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
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
