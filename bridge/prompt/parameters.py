"""What a picture of stable-diffusion-webui says about how it was made.

The web UI writes one text into its pictures (``modules/infotext_utils.py``): the prompt, then
``Negative prompt:`` and the negative, then a line of ``Name: value`` pairs; PNG keeps it as the
text chunk ``parameters``, JPEG and WebP in the EXIF user comment. Forge, SD.Next and others
write the same.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import ImageError

_NEGATIVE = "Negative prompt:"
# Name: value, the value quoted if it has a comma or a colon.
_PAIR = re.compile(r'\s*([\w][\w /()+-]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
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
            return float(self.settings["CFG scale"])
        except (KeyError, ValueError):
            return None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels."""
        match = re.fullmatch(r"(\d+)x(\d+)", self.settings.get("Size", ""))
        return (int(match[2]), int(match[1])) if match else None

    @property
    def clip_skip(self) -> int | None:
        """As diffusers counts it: one less than the web UI's number."""
        counted = self._whole("Clip skip")
        return None if counted is None else counted - 1

    def _whole(self, name: str) -> int | None:
        value = self.settings.get(name, "")
        return int(value) if re.fullmatch(r"-?\d+", value) else None


def parse_parameters(text: str) -> Parameters:
    """Read the web UI's text; anything else is a prompt and nothing more."""
    lines = text.strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    settings: dict[str, str] = {}
    if len(pairs) >= _FEWEST:
        settings = {name.strip(): _unquoted(value.strip()) for name, value in pairs}
        lines.pop()
    at = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:])[len(_NEGATIVE) :]
    return Parameters("\n".join(lines[:at]).strip(), negative.strip(), settings)


def read_parameters(path: str | os.PathLike[str]) -> Parameters:
    """Read them from a picture. Raises ImageError if it is no picture or says nothing."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get("parameters") or _user_comment(image)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ImageError(f"{Path(path)} cannot be read as a picture: {error}") from error
    if not isinstance(text, str) or not text.strip():
        raise ImageError(
            f"{Path(path)} does not say how it was made; pictures lose that when they are edited "
            "or sent by a messenger."
        )
    return parse_parameters(text)


def _user_comment(image: Any) -> str | None:
    raw = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
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
