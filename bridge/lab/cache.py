"""A study's folder: what was worked out already, so that a run cut off half way goes on.

Readings are safetensors files, one a text, named by a hash of all that they depend on: the tower as
it is now, the text, its ids and how it was read. Files appear whole or not at all. One that is
damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import check_output_folder, write_whole
from bridge.lab.reading import Reading
from bridge.towers.tensors import load_tensors

# Raise it when what is stored changes its meaning.
_VERSION = 1


def key_of(**what: Any) -> str:
    """A name for what depends on all of ``what``: 32 hex digits."""
    text = json.dumps([_VERSION, what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Cache:
    """A folder, or None to keep nothing. Raises OptionError for one that cannot be written."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else Path(folder).expanduser()
        if self._folder is not None:
            check_output_folder(self._folder, "cache")

    def reading(self, key: str) -> Reading | None:
        """A reading, if it is there and whole."""
        found = self.tensors(key)
        if found is None or found.keys() != {"pooled", "states", "ids", "offsets", "cut"}:
            return None
        offsets = tuple(
            (start, end) if start < end else None for start, end in found["offsets"].tolist()
        )
        ids = tuple(found["ids"].tolist())
        return Reading(found["pooled"], found["states"], ids, offsets, int(found["cut"]))

    def keep_reading(self, key: str, reading: Reading) -> None:
        """Keep a reading."""
        offsets = [span or (0, 0) for span in reading.offsets]
        self.keep_tensors(
            key,
            {
                "pooled": reading.pooled,
                "states": reading.states,
                "ids": torch.tensor(reading.ids, dtype=torch.long),
                "offsets": torch.tensor(offsets, dtype=torch.long).reshape(-1, 2),
                "cut": torch.tensor(reading.cut, dtype=torch.bool),
            },
        )

    def tensors(self, key: str) -> dict[str, Tensor] | None:
        """Tensors, if they are there and whole."""
        path = self._path(key, ".safetensors")
        if path is None or not path.is_file():
            return None
        try:
            tensors, metadata = load_tensors(path)
        except WeightsError:
            return None
        return tensors if metadata.get("sha256") == _digest(tensors) else None

    def keep_tensors(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors."""
        from safetensors.torch import save

        path = self._path(key, ".safetensors")
        if path is not None:
            whole = {name: each.contiguous() for name, each in tensors.items()}
            write_whole(path, save(whole, {"sha256": _digest(whole)}))

    def picture(self, key: str) -> Image.Image | None:
        """A picture, if it is there and whole."""
        path = self._path(key, ".png")
        if path is None or not path.is_file():
            return None
        try:
            return Image.open(BytesIO(path.read_bytes())).convert("RGB")
        # PIL raises SyntaxError, ValueError, zlib's and struct's own, by how a file is damaged.
        except Exception:
            return None

    def keep_picture(self, key: str, picture: Image.Image) -> None:
        """Keep a picture."""
        path = self._path(key, ".png")
        if path is not None:
            data = BytesIO()
            picture.save(data, "PNG")
            write_whole(path, data.getvalue())

    def _path(self, key: str, ending: str) -> Path | None:
        # Folders of few files each, as git keeps its objects.
        return None if self._folder is None else self._folder / key[:2] / f"{key}{ending}"


def _digest(tensors: dict[str, Tensor]) -> str:
    """A hash of names, shapes and numbers, by which a damaged file is known."""
    from safetensors.torch import save

    return hashlib.sha256(save(tensors)).hexdigest()
