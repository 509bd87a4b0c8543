"""Prompts of a list, each as a file of its conditioning in one folder; what is there stays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.encoding.addons import read_addons
from bridge.encoding.interchange import save_conditioning
from bridge.encoding.verbs import condition
from bridge.files import filled_folder, home_path, stamp, write_whole
from bridge.progress import OnProgress, Progress, unwatched
from bridge.prompt import parse
from bridge.prompt.prompt import take_tags


@dataclass(frozen=True)
class EncodedFolder:
    """What is in a folder of conditionings.

    Attributes:
        files: ``{"file", "prompt"}`` of each, in the order of the prompts.
        made: how many were made now; the others were there.
    """

    files: tuple[dict[str, str], ...]
    made: int


def encode_folder(
    prompts: Sequence[str],
    folder: Path,
    options: Mapping[str, Any],
    *,
    device: Any = None,
    on_progress: OnProgress = unwatched,
) -> EncodedFolder:
    """Encode prompts into files, each named by its place in the list and by all that makes it.

    A file that is there is not made again, so that a run which was stopped goes on. ``index.json``
    says which file has which prompt, and the options.

    Args:
        prompts: the prompts.
        folder: where the files go; made if need be.
        options: those of ``bridge.condition``, of which ``dialect`` must be among them, as plain
            values that JSON holds; LoRAs as ``(path, strength)``.
        device: where the towers run.
        on_progress: told before each file that is made.

    Raises:
        WriteError: the folder cannot be written.

    It also raises what ``bridge.condition`` raises; of prompts and add-ons before any model loads.
    """
    tagged = [take_tags(prompt, options["dialect"]) for prompt in prompts]
    for each in tagged:
        parse(each.text, options["dialect"])
    read_addons(options.get("textual_inversions"), options.get("loras"), tagged)
    makers = [dict(options), *_stamps(options)]
    files, made = [], 0
    # One workplace for all: to look for those that were left takes longer in a fuller folder.
    with filled_folder(folder) as place:
        for number, prompt in enumerate(prompts, 1):
            key = hashlib.sha256(json.dumps([prompt, *makers]).encode()).hexdigest()[:8]
            name = f"{number:05}-{key}.safetensors"
            files.append({"file": name, "prompt": prompt})
            if not (folder / name).exists():
                on_progress(Progress("encoding", number - 1, len(prompts), "prompts"))
                cond = condition(prompt, device=device, **options)
                save_conditioning(cond, place / name).replace(folder / name)
                made += 1
    index = json.dumps({**options, "files": files}, ensure_ascii=False, indent=1) + "\n"
    write_whole(folder / "index.json", index.encode())
    return EncodedFolder(tuple(files), made)


def _stamps(options: Mapping[str, Any]) -> list[Any]:
    """What tells when a given file has changed, or one in a given folder. Names have none."""
    files = [file for each in _given(options) if each for file in _files_of(home_path(each))]
    return [[str(file), stamp(file)] for file in files]


def _given(options: Mapping[str, Any]) -> Iterator[str]:
    """The names and paths among the options."""
    yield options["model"]
    yield from (path for path, _ in options.get("loras") or ())
    yield from options.get("textual_inversions") or ()
    towers = options.get("towers") or ()
    yield from (towers,) if isinstance(towers, str) else towers
    yield options.get("adapter") or ""


def _files_of(place: Path) -> list[Path]:
    """The file itself, or those of a folder; none where there is neither."""
    if os.path.isdir(place):
        return sorted(file for file in place.rglob("*") if file.is_file())
    return [place] if os.path.isfile(place) else []
