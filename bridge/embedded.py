"""What ships with bridge, by name: the models, the text towers, and which serve by default.

All is read from ``models.json``, which lies beside the weights and is written by hand, so the
library knows no name of its own. Nothing here imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError
from bridge.files import home_path, read_json

CATALOGUE = "models.json"
_PARTS = {"models": dict, "defaults": dict, "towers": list}
_DEFAULTS = {"drawing": str, "answering": str, "image_tower": str, "study_towers": list}


def _shipped_dir() -> Path:
    packed = Path(__file__).parent / "_weights"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "weights"


def weights_dir() -> Path:
    """The folder of the embedded models: ``$BRIDGE_WEIGHTS``, the wheel's copy, or the clone's."""
    chosen = os.environ.get("BRIDGE_WEIGHTS")
    return home_path(chosen) if chosen else _shipped_dir()


def weights_file(name: str) -> Path:
    """A file of the weights folder, or of the one that ships where the chosen one has none."""
    chosen = weights_dir() / name
    return chosen if chosen.is_file() else _shipped_dir() / name


def read_catalogue(path: Path) -> dict[str, Any]:
    """The content of a ``models.json``.

    Args:
        path: the file.

    Returns:
        ``models`` (name -> its words, such as ``guidance_scale``), ``defaults`` (what draws, what
        answers, which image tower measures, which towers a study compares) and ``towers`` (the
        fields of `bridge.towers.registry.TowerRow`).

    Raises:
        WeightsError: the file is missing, damaged, or lacks a part.
    """
    found = read_json(path)
    for part, kind in _PARTS.items():
        _check(path, found, part, kind)
    for name in found["models"]:
        _check(path, found["models"], name, dict)
    for role, kind in _DEFAULTS.items():
        _check(path, found["defaults"], role, kind)
    return found


def _check(path: Path, found: dict[str, Any], key: str, kind: type) -> None:
    if not isinstance(found.get(key), kind):
        raise WeightsError(
            f"{path} names no {key}, so bridge does not know what ships with it. "
            f"Restore it with `git checkout {path}`."
        )


_CATALOGUE = read_catalogue(weights_file(CATALOGUE))

EMBEDDED: dict[str, dict[str, Any]] = _CATALOGUE["models"]
"""The models that ship with bridge, by folder name, each with what is special about it."""

EMBEDDED_TOWERS: list[dict[str, Any]] = _CATALOGUE["towers"]
"""The text towers that ship with bridge, as rows of `bridge.towers.registry`."""

DRAWING: str = _CATALOGUE["defaults"]["drawing"]
"""The model that draws when none is named."""

ANSWERING: str = _CATALOGUE["defaults"]["answering"]
"""The model that answers when none is named."""

IMAGE_TOWER: str = _CATALOGUE["defaults"]["image_tower"]
"""The image tower that measures the pictures of embedded models."""

STUDY_TOWERS: tuple[str, ...] = tuple(_CATALOGUE["defaults"]["study_towers"])
"""The text towers of a study that names neither towers nor a model."""
