"""Picture files, opened: judged before they are read, only raster formats, one kind of error.

A pipe or a device is refused before it is opened, for it may never end. PIL's PostScript reader,
for one, starts another program, so it is not tried.
"""

from __future__ import annotations

import io
import os
import re
import stat
from base64 import b64decode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, unquote_to_bytes

from bridge.errors import ImageError, quoted
from bridge.files import home_path

if TYPE_CHECKING:
    from PIL.Image import Image

Read = TypeVar("Read")

MAX_PIXELS = 50_000_000

_ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf|blob)://", re.IGNORECASE)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")

# fmt: off
_FORMATS = frozenset({
    "AVIF", "BMP", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "QOI", "SGI", "TGA", "TIFF", "WEBP", "XBM",
})
# fmt: on


def open_path(path: str | os.PathLike[str], read: Callable[[Image, str], Read]) -> Read:
    """Open a picture file and give what ``read`` makes of it and its name.

    Args:
        path: a file's; or a ``data:`` address, which holds the file itself, or a ``file:`` one.
        read: given the open picture and its name for messages.

    Raises:
        ImageError: a missing file, a folder, a pipe, another address; as ``open_stream``.
    """
    text = os.fspath(path)
    if isinstance(text, str) and text[:5].lower() == "data:":
        data, name = _held(text)
        return open_stream(lambda: io.BytesIO(data), name, len(data), read)
    if isinstance(text, str) and text[:7].lower() == "file://":
        text = _local(text)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ImageError(f"{text!r} is not a path; give the path of an image file")
    name = quoted(text)
    if _ADDRESS.match(text):
        raise ImageError(f"{name} is an address; download the picture and give its path")
    try:
        file = home_path(text)
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"no such image file: {name}") from None
    except (OSError, ValueError) as error:  # a name too long; half of a surrogate pair
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name} cannot be read: {why}; give another path") from error
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(f"{name} is a directory; give the path of an image file")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{name} is not a regular file; give the path of an image file")
    return open_stream(lambda: file.open("rb"), name, found.st_size, read)


def _held(address: str) -> tuple[bytes, str]:
    """The bytes of a ``data:`` address (RFC 2397), and a name for them. Raises ImageError."""
    head, comma, body = address.partition(",")
    name = f"the data: address of {len(address):,} characters"
    *kind, coding = head.split(";")
    coded = bool(kind) and coding.strip().lower() == "base64"
    try:
        data = unquote_to_bytes(body)
        # Addresses may be broken into lines, and be written in the alphabet that URLs have.
        plain = b"".join(data.split()).translate(_URL_SAFE)
        data = b64decode(plain + b"=" * (-len(plain) % 4), validate=True) if coded else data
    except ValueError as error:
        raise ImageError(f"{name} is not base64: {error}") from None
    if not comma:
        raise ImageError(f"{name} has no comma; it is data:image/png;base64, and then the file")
    return data, name


def _local(address: str) -> str:
    """The path of a ``file:`` address. Raises ImageError for another machine's."""
    host, slash, path = address[7:].partition("/")
    if host not in ("", "localhost"):
        raise ImageError(f"{quoted(address)} is on another machine; give the path of a local file")
    return slash + unquote(path)


def open_stream(
    opener: Callable[[], Any], name: str, n_bytes: int, read: Callable[[Image, str], Read]
) -> Read:
    """Open an encoded picture and give what ``read`` makes of it.

    Raises:
        ImageError: for all that goes wrong, in ``read`` too.
    """
    from PIL import Image, UnidentifiedImageError

    if n_bytes == 0:
        raise ImageError(f"{name} is empty (0 bytes)")
    Image.init()
    formats = [name for name in Image.ID if name in _FORMATS]
    try:
        with opener() as stream, Image.open(stream, formats=formats) as picture:
            return read(picture, name)
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not an image bridge can read (PNG, JPEG, WebP, GIF, BMP, TIFF ...), "
            "or its header is damaged"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # PIL refuses on opening, before the size can be asked for; its message has the count.
        raise ImageError(f"{name} is too big; at most {MAX_PIXELS:,} pixels: {error}") from None
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
