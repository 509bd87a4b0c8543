"""What is trained on: conversations about pictures, whatever they were read from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import ImageError
from bridge.files import hash_file, home_path
from bridge.vlm.chat import Turn
from bridge.vlm.image import ImageInput, load_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is read when asked for. ``size`` is its (height, width)."""

    name: str
    size: tuple[int, int]
    read: Callable[[], ImageInput]

    def load(self) -> Image:
        """RGB, as `load_image` reads it. Raises ImageError that names the picture."""
        try:
            return load_image(self.read())
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from error

    def key(self) -> str:
        """16 hex digits of a sha256 over the file, or over size and pixels where it is none."""
        source = self.read()
        if isinstance(source, str | os.PathLike):
            return hash_file(home_path(source))
        image = load_image(source)
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Row:
    """One conversation and its pictures, and where it stood for errors to name."""

    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    where: str
