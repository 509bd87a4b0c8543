"""Anything a person hands over as a picture, to one RGB PIL image, or one clear error.

The size is read from the header and judged before a single pixel is decoded, so that a
small file which unpacks to gigabytes costs nothing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from bridge.checks import keywords
from bridge.errors import ImageError
from bridge.picture_files import MAX_PIXELS, open_path, open_stream
from bridge.rgb import to_rgb

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image | np.ndarray"
ImagesInput: TypeAlias = "ImageInput | Sequence[ImageInput] | None"
"""The pictures of one chat: one, a list or tuple of several, or None for a chat without."""

# Processors that resize the short side to 224 px would turn a 1x20000 strip into 4.5 million
# columns; such a strip shows nothing anyway.
MAX_ASPECT = 200

# The EXIF tag that says which way up a picture is, and its values that lay it on its side.
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


@keywords
def load_image(image: ImageInput) -> Image:
    """Read a picture as RGB, the right way up.

    - From 1x1 to 50 megapixels, sides at most 200 to 1.
    - An animation gives its first frame (a live PIL image: the frame it stands at).
    - Transparency is laid over white; CMYK, palettes, grey and 16 bits become RGB.
    - The EXIF orientation is applied, for files and live images alike.

    Args:
        image: a path (or a ``data:`` or ``file:`` address), the bytes of a file, a PIL image, or an
            array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, uint16, bool, or floats
            in 0..1 or 0..255. It is never changed.

    Raises:
        ImageError: a missing file, a folder, a file that is not an image or is cut short, a size
            out of range, another type.
    """
    return to_rgb(open_image(image))


def open_image(image: ImageInput) -> Image:
    """As `load_image`, but in the picture's own mode: grey, with alpha, with a palette. Never
    ``image`` itself."""
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        return _decode(image, "the PIL image")
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        return open_stream(
            lambda: io.BytesIO(data), f"the image of {len(data):,} bytes", len(data), _decode
        )
    if isinstance(image, str | os.PathLike):
        return open_path(image, _decode)
    raise ImageError(
        f"cannot read a picture from {type(image).__name__}; "
        "give a path, bytes, a PIL image or a numpy array"
    )


def is_one_image(images: object) -> bool:
    """Whether this is a picture and not several; of arrays, one of at most three dimensions."""
    from numpy import ndarray
    from PIL.Image import Image

    if isinstance(images, ndarray):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of a picture file as `load_image` would give it, from its header alone.

    Raises ImageError as `load_image` does, but for damage further inside the file.
    """

    def judge(picture: Image, name: str) -> tuple[int, int]:
        width, height = picture.size
        _check_size(width, height, name)
        try:
            # PIL's TIFF reader gives the size of the picture as it turns it.
            turned = picture.format == "TIFF"
            sideways = not turned and picture.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
        except Exception:
            sideways = False  # as in _upright
        return (width, height) if sideways else (height, width)

    return open_path(path, judge)


def load_images(images: ImagesInput) -> list[Image]:
    """The pictures of one chat, each as `load_image` reads it; an empty list for None."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [load_image(each) for each in images]
    return [load_image(images)]  # type: ignore[arg-type]


def _decode(picture: Image, name: str) -> Image:
    """Judge the size, decode and turn upright. Never returns ``picture`` itself."""
    _check_size(*picture.size, name)
    try:
        picture.load()
    except Exception as error:
        # Damaged data surfaces in PIL's decoders as almost any exception class.
        raise ImageError(f"{name} is truncated or damaged: {error}") from error
    return _upright(picture)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is too big: {width}x{height} is {width * height:,} pixels, "
            f"at most {MAX_PIXELS:,}; make it smaller first"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"{name} is too narrow: {width}x{height}; "
            f"one side may be at most {MAX_ASPECT} times the other"
        )


def _upright(picture: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        # Unreadable EXIF says nothing about the pixels, which did decode.
        return picture


def _from_array(array: np.ndarray) -> Image:
    import numpy as np
    from PIL import Image

    name = f"the array of shape {array.shape} and type {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"{name} is not a picture; give (H, W), (H, W, 3) or (H, W, 4)")
    _check_size(array.shape[1], array.shape[0], name)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.bool_:
        return Image.fromarray(array.astype(np.uint8) * 255)
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"{name} holds no numbers that could be pixels")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinity")
    low, top = float(values.min()), float(values.max())
    is_float = np.issubdtype(array.dtype, np.floating)
    limit = 65535.0 if array.dtype == np.uint16 else 1.0 if is_float and top <= 1.0 else 255.0
    if low < 0 or top > limit:
        raise ImageError(
            f"{name} runs from {low:g} to {top:g}; scale it to 0..1 (floats) or 0..255 first"
        )
    return Image.fromarray(np.rint(values * (255.0 / limit)).astype(np.uint8))
