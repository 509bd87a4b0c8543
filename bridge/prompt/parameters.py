"""What a picture of stable-diffusion-webui says about how it was made.

The web UI writes one text into its pictures (``modules/infotext_utils.py``): the prompt, then
``Negative prompt:`` and the negative, then a line of ``Name: value`` pairs; PNG keeps it as the
text chunk ``parameters``, JPEG and WebP in the EXIF user comment. Forge, SD.Next and others
write the same.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import ImageError
from bridge.picture_files import open_path

if TYPE_CHECKING:
    from PIL.Image import Image

_NEGATIVE = "Negative prompt:"
# Name: value, the value quoted if it has a comma or a colon.
_NAME = re.compile(r"\w[\w /()+-]*+")
_VALUE = re.compile(r':\s*+("(?:\\.|[^\\"])*+"(?=,|\Z)|[^,]*+),?')
# Longer numbers are no seeds, and Python refuses to read one of 5,000 digits.
_WHOLE = r"-?\d{1,20}"
# Fewer pairs than this make a last line that is part of the prompt.
_FEWEST = 3
_USER_COMMENT, _EXIF = 0x9286, 0x8769


@dataclass(frozen=True)
class Parameters:
    """How a picture was made.

    Attributes:
        prompt, negative_prompt: in the ``a1111`` dialect.
        settings: the other values by the names that the web UI gives them, as text.
    """

    prompt: str
    negative_prompt: str
    settings: dict[str, str]

    @property
    def seed(self) -> int | None:
        return self._whole("Seed")

    @property
    def steps(self) -> int | None:
        return self._whole("Steps")

    @property
    def guidance_scale(self) -> float | None:
        try:
            scale = float(self.settings["CFG scale"])
        except (KeyError, ValueError):
            return None
        return scale if math.isfinite(scale) else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels."""
        match = re.fullmatch(r"(\d{1,20})x(\d{1,20})", self.settings.get("Size", ""))
        return (int(match[2]), int(match[1])) if match else None

    @property
    def clip_skip(self) -> int | None:
        """As diffusers counts it, for SD 1 and 2: one less than the web UI's number."""
        return self.clip_skip_for("sd15")

    def clip_skip_for(self, recipe: str) -> int | None:
        """The ``clip_skip`` that reads the same with a model of a recipe, such as ``sdxl``.

        With SDXL and SD 3 the web UI ignores its number, and Forge counts from the layer before the
        last, the one that these take anyway. (With SD 3 and a number of 1 Forge takes the last
        layers without their norm, which no option of ``condition`` does.)
        """
        counted = self._whole("Clip skip")
        if counted is None:
            return None
        if not recipe.startswith(("sdxl", "sd3")):
            return max(counted, 1) - 1
        return max(counted, 2) - 2 if self.settings.get("Version", "").startswith("f") else None

    def _whole(self, name: str) -> int | None:
        value = self.settings.get(name, "")
        return int(value) if re.fullmatch(_WHOLE, value) else None


def parse_parameters(text: str) -> Parameters:
    """Read the web UI's text; anything else is a prompt and nothing more."""
    lines = text.strip().split("\n")
    pairs = list(_pairs(lines[-1]))
    settings: dict[str, str] = {}
    if len(pairs) >= _FEWEST:
        settings = {name.strip(): _unquoted(value.strip()) for name, value in pairs}
        lines.pop()
    at = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:])[len(_NEGATIVE) :]
    return Parameters("\n".join(lines[:at]).strip(), negative.strip(), settings)


def read_parameters(path: str | os.PathLike[str]) -> Parameters:
    """Read them from a picture. Raises ImageError if it is no picture or says nothing."""
    return open_path(path, _written_in)


def _written_in(picture: Image, name: str) -> Parameters:
    text = picture.info.get("parameters") or _user_comment(picture)
    if not isinstance(text, str) or not text.strip():
        raise ImageError(
            f"{name} does not say how it was made; pictures lose that when they are edited "
            "or sent by a messenger."
        )
    return parse_parameters(text)


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The ``Name: value`` pairs of a line; what is none is passed over."""
    name = _NAME.search(line)
    while name is not None:
        value = _VALUE.match(line, name.end())
        if value is not None:
            yield name.group(), value.group(1)
        name = _NAME.search(line, (value or name).end())


def _user_comment(picture: Image) -> str | None:
    raw = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    if not isinstance(raw, bytes):
        return raw
    kind, body = raw[:8], raw[8:]
    if kind == b"UNICODE\0":
        # The standard leaves the byte order open; the web UI writes big-endian.
        return body.decode("utf-16-be", "replace")
    return body.decode("utf-8", "replace").strip("\0")


def _unquoted(value: str) -> str:
    if len(value) < 2 or not value[0] == value[-1] == '"':
        return value
    try:
        return str(json.loads(value))  # the web UI quotes as JSON does
    except ValueError:
        return re.sub(r"\\(.)", r"\1", value[1:-1])
