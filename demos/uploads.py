"""Files that a visitor names: only what lies in the upload cache is ever opened.

A request names an uploaded file by the path that the upload was answered with, and anyone can
write another path there. So a path counts only when, links followed, it is a file inside the
cache; everything else gets the same words, which do not tell whether there is such a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradio.utils import get_upload_folder

from bridge.errors import ImageError
from bridge.images import image_size, load_image
from demos.limits import MOST_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_UPLOADED = "That is no file uploaded to this app, or it was deleted since; upload it again."

# What a browser is sent. Far above what any vision tower looks at.
_SHOWN_SIDE = 1536
_NAMED_FILE = {"_type": "gradio.FileData"}


def admitted(path: object) -> Path:
    """The file that ``path`` names, links followed, if it is in the upload cache.

    Raises ImageError, in the same words for all else.
    """
    try:
        if isinstance(path, str):
            file = Path(path).resolve(strict=True)
            if file.is_relative_to(Path(get_upload_folder()).resolve()) and file.is_file():
                return file
    # ValueError: a NUL. RuntimeError: links that go round. UnicodeError is a ValueError.
    except (OSError, ValueError, RuntimeError):
        pass
    raise ImageError(NOT_UPLOADED)


def uploaded(given: object) -> Path | None:
    """The file that an event is handed with ``preprocess=False``; None where there is none.

    Gradio's preprocessing, which is left out, would open the picture itself, and one that it
    cannot open would end there in an error without words. Raises ImageError.
    """
    if given is None:
        return None
    return admitted(given.get("path") if isinstance(given, Mapping) else given)


def screened(value: Any) -> Any:
    """What a request sent as an event's input, with every file in it `admitted`.

    Of a file only its true path and its own name are kept: Gradio would follow its other
    fields, such as an address to fetch. Raises ImageError.
    """
    if isinstance(value, Mapping):
        if value.keys() & {"path", "url", "meta"}:
            name = value.get("orig_name")
            kept = {"path": str(admitted(value.get("path"))), "meta": dict(_NAMED_FILE)}
            return {**kept, "orig_name": os.path.basename(name)} if isinstance(name, str) else kept
        return {key: screened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [screened(each) for each in value]
    return value


def picture_of(path: str | os.PathLike[str]) -> Image:
    """Any uploaded file as an RGB picture that every browser shows.

    Raises ImageError, in which the file is called what its owner calls it; before anything is
    decoded for a picture of more than 16 megapixels.
    """
    try:
        height, width = image_size(path)
        if height * width > MOST_PIXELS:
            raise ImageError(
                f"{os.fspath(path)!r} has {width} x {height} pixels, and this app takes pictures "
                f"of at most {MOST_PIXELS:,}; make it smaller first"
            )
        picture = load_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(os.fspath(path), os.path.basename(path))) from None
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return picture
