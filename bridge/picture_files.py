"""Picture files, opened: judged before they are read, only raster formats, one kind of error.

A pipe or a device is refused before it is opened, for it may never end. PIL's PostScript reader,
for one, starts another program, so it is not tried.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.errors import ImageError, quoted
from bridge.files import home_path

if TYPE_CHECKING:
    from PIL.Image import Image

Read = TypeVar("Read")

MAX_PIXELS = 50_000_000

# fmt: off
_FORMATS = frozenset({
    "AVIF", "BMP", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "QOI", "SGI", "TGA", "TIFF", "WEBP", "XBM",
})
# fmt: on


def open_path(path: str | os.PathLike[str], read: Callable[[Image, str], Read]) -> Read:
    """Open a picture file and give what ``read`` makes of it and its name.

    Raises ImageError for a missing file, a folder, a pipe, an address, and as ``open_stream``.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ImageError(f"{text!r} is not a path; give the path of an image file")
    name = quoted(text)
    if text.startswith(("http://", "https://")):
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


def open_stream(
    opener: Callable[[], Any], name: str, n_bytes: int, read: Callable[[Image, str], Read]
) -> Read:
    """Open an encoded picture and give what ``read`` makes of it.

    Raises ImageError for all that goes wrong, in ``read`` too.
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
