"""From a tower's short name, hub id or folder to a local folder."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from bridge.errors import UnknownModelError, WeightsError
from bridge.store import DEFAULT_PATTERNS, EMBEDDED, resolve
from bridge.towers.open_clip_files import has_layout
from bridge.towers.registry import ROWS, TowerRow, find_row

_TEXTS = ("*.json", "*.txt", "*.model")
_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model")


def find_source(source: str | Path) -> tuple[str, Path, str | None, Path | None]:
    """A tower's name, its folder, its family where the table says it, and the folder of its
    tokenizer where that is another.

    Raises UnknownModelError with the nearest names, HubError, WeightsError.
    """
    row = find_row(source) if isinstance(source, str) else None
    if row is not None:
        words = find_tokenizer(row.tokenizer) if row.tokenizer else None
        return row.name, _folder_of(row), row.family, words
    try:
        return str(source), _fetched(source), None, None
    except UnknownModelError as error:
        near = get_close_matches(str(source).lower(), [each.name for each in ROWS], n=3)
        if not near:
            raise UnknownModelError(f"{error} Towers by name: `bridge towers`.") from error
        names = " or ".join(map(repr, near))
        raise UnknownModelError(
            f"No tower {str(source)!r}: did you mean {names}? All names: `bridge towers`; or give "
            "a folder or a hub id such as 'owner/name'."
        ) from error


def _fetched(source: str | Path) -> Path:
    """The folder, with open_clip's weights if it is a hub's repository in that layout."""
    folder = resolve(source)
    if os.path.isdir(os.path.expanduser(source)) or not has_layout(folder):
        return folder
    return resolve(source, allow_patterns=(*DEFAULT_PATTERNS, "open_clip_*.safetensors"))


def find_tokenizer(source: str | Path) -> Path:
    """The folder of a tokenizer; of a hub's repository nothing else is fetched."""
    return resolve(source, allow_patterns=None if source in EMBEDDED else _TOKENIZER)


def _folder_of(row: TowerRow) -> Path:
    if row.pickle:
        raise WeightsError(
            f"{row.name} is published as a pickle only, which bridge does not fetch by itself: "
            f"`hf download {row.source} --local-dir FOLDER`, then open FOLDER with "
            f"family={row.family!r}, allow_pickle=True (tensors only are read)"
        )
    return resolve(row.source, allow_patterns=_patterns(row))


def _patterns(row: TowerRow) -> tuple[str, ...] | None:
    """What is fetched of a row's repository. One with files of its own may have a
    ``model.safetensors`` beside them that is read by none of the families (timm's image model)."""
    if row.source in EMBEDDED:
        return None
    return (*_TEXTS, *row.files) if row.files else DEFAULT_PATTERNS
