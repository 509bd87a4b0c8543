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

from bridge.errors import OptionError, WeightsError
from bridge.files import write_whole
from bridge.lab.reading import Reading
from bridge.towers.tensors import check_finite, load_tensors

# Raise it when what is stored changes its meaning.
_VERSION = 1


def key_of(**what: Any) -> str:
    """A name for what depends on all of ``what``: 32 hex digits."""
    text = json.dumps([_VERSION, what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Cache:
    """A folder, or None to keep nothing. Raises OptionError for what is no folder."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else Path(folder).expanduser()
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"cache {str(folder)!r} cannot be a folder ({error.strerror}); give another."
            ) from error

    def reading(self, key: str) -> Reading | None:
        """A reading, if it is there and whole."""
        found = self.tensors(key)
        if found is None or not _is_reading(found):
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
                "ids": torch.tensor(reading.ids),
                "offsets": torch.tensor(offsets).reshape(-1, 2),
                "cut": torch.tensor(reading.cut),
            },
        )

    def floats(self, key: str, dimensions: int) -> dict[str, Tensor] | None:
        """Tensors of float32 and of so many dimensions, if they are there and whole."""
        found = self.tensors(key)
        if found is None or any(
            tensor.ndim != dimensions or tensor.dtype != torch.float32 for tensor in found.values()
        ):
            return None
        return found

    def tensors(self, key: str) -> dict[str, Tensor] | None:
        """Tensors, if they are there and whole."""
        path = self._path(key, ".safetensors")
        if path is None or not path.is_file():
            return None
        try:
            tensors, _ = load_tensors(path)
            check_finite(path, tensors.items())
        except WeightsError:
            return None
        return tensors

    def keep_tensors(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors."""
        from safetensors.torch import save

        path = self._path(key, ".safetensors")
        if path is not None:
            write_whole(path, save({name: each.contiguous() for name, each in tensors.items()}))

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


def _is_reading(found: dict[str, Tensor]) -> bool:
    """Whether tensors are those that ``keep_reading`` writes, as far as their shapes tell."""
    dimensions = {name: tensor.ndim for name, tensor in found.items()}
    if dimensions != {"pooled": 1, "states": 2, "ids": 1, "offsets": 2, "cut": 0}:
        return False
    count = len(found["ids"])
    floats = all(found[name].dtype == torch.float32 for name in ("pooled", "states"))
    whole = all(found[name].dtype == torch.int64 for name in ("ids", "offsets", "cut"))
    places = found["offsets"].shape == (count, 2) and len(found["states"]) == count
    return floats and whole and places and bool((found["offsets"] >= 0).all())
