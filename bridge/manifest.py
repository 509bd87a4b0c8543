"""The sha256 of every file that ships: ``manifest.json`` beside the weights. No torch.

``python -m bridge.manifest write`` makes it, ``python -m bridge.manifest check`` verifies it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from bridge.console import ends_with_its_reader
from bridge.embedded import weights_dir
from bridge.errors import BridgeError, WeightsError, first_line
from bridge.files import write_whole

MANIFEST = "manifest.json"


def read_manifest(weights: Path | None = None) -> dict[str, dict[str, Any]]:
    """The manifest's ``{"model/file": {"sha256", "bytes"}}``. Raises WeightsError."""
    path = (weights or weights_dir()) / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        for entry in files.values():
            int(entry["bytes"]), str(entry["sha256"])
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path} is missing, so the embedded weights cannot be checked. Restore it with "
            f"`git checkout {_shown(path)}`, or point BRIDGE_WEIGHTS at a complete weights folder."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}). "
            f"Restore it with `git checkout {_shown(path)}`."
        ) from error
    return dict(files)


def check_embedded(
    name: str, *, weights: Path | None = None, allow_patterns: Sequence[str] | None = None
) -> int:
    """Check one embedded model's files against the manifest; how many were hashed.

    Every file's size is compared; the sha256 only of those wanted, and once per process for
    each (path, size, time of change). Files that an index refers to in another model's folder
    are checked too. Raises WeightsError naming the first bad file.
    """
    root = weights or weights_dir()
    files = read_manifest(root)
    own = [path for path in files if path.startswith(f"{name}/")]
    if not own:
        raise WeightsError(
            f"{root / MANIFEST} lists no files of {name!r}, so it does not ship here. Models that "
            f"do: {', '.join(sorted({p.split('/')[0] for p in files})) or 'none'}."
        )
    wanted = [p for p in own if _is_wanted(p[len(name) + 1 :], allow_patterns)]
    for relative in own:
        _check_size(root, relative, int(files[relative]["bytes"]))
    borrowed = [p for p in _referred(root, wanted) if p in files]
    for relative in borrowed:
        _check_size(root, relative, int(files[relative]["bytes"]))
    hashed = sorted({*wanted, *borrowed})
    for relative in hashed:
        _check_hash(root, relative, str(files[relative]["sha256"]))
    return len(hashed)


def embedded_state(name: str) -> str:
    """ "ready", "missing" or "damaged", by the files' sizes alone; hashes wait for the loading."""
    if not (weights_dir() / name).is_dir():
        return "missing"
    try:
        check_embedded(name, allow_patterns=())
    except WeightsError:
        return "damaged"
    return "ready"


def verified(name: str, allow_patterns: Sequence[str] | None) -> Path:
    """The folder of an embedded model whose files were checked. Raises as ``check_embedded``."""
    root = weights_dir()
    check_embedded(name, weights=root, allow_patterns=allow_patterns)
    return root / name


def _is_wanted(inside: str, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(fnmatch(inside, pattern) for pattern in patterns)


def _referred(root: Path, files: Iterable[str]) -> Iterator[str]:
    """Files that safetensors indexes among ``files`` point at, relative to the weights folder."""
    for relative in files:
        if not relative.endswith(".safetensors.index.json"):
            continue
        try:
            shards = set(json.loads((root / relative).read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise _damaged(root, relative, f"it is no index ({first_line(error)})") from error
        for shard in sorted(shards):
            target = os.path.normpath(PurePosixPath(relative).parent / shard)
            yield Path(target).as_posix()


def _check_size(root: Path, relative: str, expected: int) -> None:
    path = root / relative
    try:
        found = path.stat().st_size
    except OSError as error:
        raise _damaged(root, relative, "it is missing") from error
    if found != expected:
        raise _damaged(root, relative, f"it has {found} bytes where {expected} were expected")


def _check_hash(root: Path, relative: str, expected: str) -> None:
    path = root / relative
    try:
        seen = path.stat()
        found = _sha256(str(path.resolve()), seen.st_size, seen.st_mtime_ns)
    except OSError as error:
        raise _damaged(root, relative, f"it cannot be read ({error.strerror})") from error
    if found != expected:
        raise _damaged(
            root, relative, f"its sha256 is {found[:12]}… where {expected[:12]}… was expected"
        )


def _damaged(root: Path, relative: str, what: str) -> WeightsError:
    path = root / relative
    return WeightsError(
        f"Weights file {path} does not agree with {MANIFEST}: {what}. "
        f"Restore it with `git checkout {_shown(path)}`."
    )


def _shown(path: Path) -> str:
    """``weights/...`` for files of the clone, the full path for others."""
    repository = Path(__file__).parent.parent
    absolute = path.absolute()
    return str(absolute.relative_to(repository) if absolute.is_relative_to(repository) else path)


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, changed_ns: int) -> str:
    """The sha256 of a file; size and time of change are part of the cache's key only."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(weights: Path | None = None) -> Path:
    """Write ``manifest.json`` for all model folders under ``weights`` and return its path.

    Texts (``*.md``), hidden and temporary files are left out. The file is replaced in one step,
    so a reader never sees half a manifest. Raises WeightsError if there is nothing to list.
    """
    root = weights or weights_dir()
    files = {
        path.relative_to(root).as_posix(): {
            "sha256": _sha256(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns),
            "bytes": path.stat().st_size,
        }
        for path in sorted(root.glob("*/**/*"))
        if path.is_file() and _is_listed(path.relative_to(root))
    }
    if not files:
        raise WeightsError(f"{root} holds no model files, so there is no manifest to write.")
    target = root / MANIFEST
    text = json.dumps({"files": files}, indent=1, sort_keys=True) + "\n"
    write_whole(target, text.encode())
    return target


def _is_listed(relative: Path) -> bool:
    hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
    return not hidden and relative.suffix not in (".md", ".tmp", ".lock")


@ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """``python -m bridge.manifest write|check [--weights FOLDER]``."""
    parser = argparse.ArgumentParser(prog="python -m bridge.manifest", description=__doc__)
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("--weights", type=Path, default=None, help="default: the embedded weights")
    options = parser.parse_args(argv)
    root = options.weights or weights_dir()
    try:
        if options.action == "write":
            path = write_manifest(root)
            print(f"{path}: {len(read_manifest(root))} files")
            return 0
        names = sorted({path.split("/")[0] for path in read_manifest(root)})
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return max(_check_aloud(name, root) for name in names)


def _check_aloud(name: str, root: Path) -> int:
    """0 if the model's files agree with the manifest, else 1; prints which it is."""
    try:
        print(f"{name}: {check_embedded(name, weights=root)} files agree")
    except BridgeError as error:
        print(f"error: {name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
