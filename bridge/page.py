"""Pages of results: one HTML file each, no network, no scripts, every value escaped.

A page's template extends ``page.jinja``, which has the looks of all of them.
"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from PIL.Image import Image

_HOME = Path(__file__).parent


def page_environment(folder: Path) -> Environment:
    """Jinja2 for the templates of a folder, and the one that they extend. It escapes every value,
    and a name that is not there is an error."""
    environment = Environment(
        loader=FileSystemLoader([folder, _HOME]), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(data_uri=data_uri, px="{:.1f}".format)
    return environment


def data_uri(image: Image) -> str:
    """A picture as an address that holds it, in WebP."""
    data = BytesIO()
    image.convert("RGB").save(data, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
