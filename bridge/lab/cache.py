"""A study's folder: what was worked out already, so that a run cut off half way goes on.

Readings are safetensors files and pictures PNG files, named by a hash of all that they depend on
(``cache_keys``). Files appear whole or not at all. One that is damaged is made again.

What went through a model together is a batch, and counts only when all of it was kept: numbers
depend in their last digits on what else was in the batch, so one that was cut off is made again
as a whole, and a study that goes on is the study that was never cut off.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import check_output_folder, home_path, write_whole
from bridge.lab.cache_keys import key_of
from bridge.towers.tensors import load_tensors

_KEY = re.compile("[0-9a-f]{1,64}")  # what is in a damaged file may be anything
_BATCH = "batch"  # what a file's own note of its batch is called


class Cache:
    """A folder, or None to keep nothing.

    Raises:
        OptionError: a folder that cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else home_path(folder)
        if self._folder is not None:
            check_output_folder(self._folder, "cache")

    @contextmanager
    def batch(self, keys: Sequence[str]) -> Iterator[str]:
        """A name to keep what went through a model together by; it counts from the block's end."""
        name = key_of(batch=list(keys))
        yield name
        path = self._path(name, ".done")
        if path is not None:
            write_whole(path, b"")

    def tensors(self, key: str) -> dict[str, Tensor] | None:
        """Tensors, if they are there and whole."""
        path = self._path(key, ".safetensors")
        if path is None or not path.is_file():
            return None
        try:
            tensors, metadata = load_tensors(path)
        except WeightsError:
            return None
        whole = metadata.get("sha256") == _digest(tensors) and self._is_whole(metadata.get(_BATCH))
        return tensors if whole else None

    def keep_tensors(self, key: str, tensors: dict[str, Tensor], batch: str) -> None:
        """Keep tensors."""
        from safetensors.torch import save

        path = self._path(key, ".safetensors")
        if path is not None:
            whole = {name: each.contiguous() for name, each in tensors.items()}
            write_whole(path, save(whole, {"sha256": _digest(whole), _BATCH: batch}))

    def picture(self, key: str) -> Image.Image | None:
        """A picture, if it is there and whole."""
        path = self._path(key, ".png")
        if path is None or not path.is_file():
            return None
        try:
            found = Image.open(BytesIO(path.read_bytes()))
            return found.convert("RGB") if self._is_whole(found.info.get(_BATCH)) else None
        # PIL raises SyntaxError, ValueError, zlib's and struct's own, by how a file is damaged.
        except Exception:
            return None

    def keep_picture(self, key: str, picture: Image.Image, batch: str) -> None:
        """Keep a picture."""
        path = self._path(key, ".png")
        if path is not None:
            data = BytesIO()
            note = PngInfo()
            note.add_text(_BATCH, batch)
            picture.save(data, "PNG", pnginfo=note)
            write_whole(path, data.getvalue())

    def _is_whole(self, batch: str | None) -> bool:
        """Whether all of a batch was kept. Files of before there were batches have none."""
        if batch is None or self._folder is None:
            return True
        path = self._path(batch, ".done") if _KEY.fullmatch(batch) else None
        return path is not None and path.is_file()

    def _path(self, key: str, ending: str) -> Path | None:
        # Folders of few files each, as git keeps its objects.
        return None if self._folder is None else self._folder / key[:2] / f"{key}{ending}"


def _digest(tensors: dict[str, Tensor]) -> str:
    """A hash of names, shapes and numbers, by which a damaged file is known."""
    from safetensors.torch import save

    return hashlib.sha256(save(tensors)).hexdigest()
