"""The table of families, and which of them a folder or a live module belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.errors import UnsupportedModelError
from bridge.files import read_json
from bridge.towers import clip
from bridge.towers.family import ImageFamily, TextFamily

TEXT_FAMILIES: dict[str, TextFamily] = {each.name: each for each in (clip.TEXT,)}
IMAGE_FAMILIES: dict[str, ImageFamily] = {each.name: each for each in (clip.IMAGE,)}

# model_type of a config.json -> family.
_MODEL_TYPES = {
    "clip": "clip",
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
}


def family_of(folder: Path) -> str:
    """The name of the family whose layout ``folder`` has.

    Raises UnsupportedModelError for a layout that no family reads, WeightsError for no config.
    """
    kind = str(read_json(folder / "config.json").get("model_type"))
    if kind in _MODEL_TYPES:
        return _MODEL_TYPES[kind]
    raise UnsupportedModelError(
        f"{folder} is of the kind {kind!r}, which no family of towers reads; known kinds: "
        f"{', '.join(sorted(_MODEL_TYPES))}"
    )


def family_of_config(config: Any) -> str:
    """As `family_of`, for a live module's config."""
    kind = str(getattr(config, "model_type", None))
    if kind in _MODEL_TYPES:
        return _MODEL_TYPES[kind]
    raise UnsupportedModelError(
        f"A module of the kind {kind!r} is of no family of towers; known kinds: "
        f"{', '.join(sorted(_MODEL_TYPES))}"
    )
