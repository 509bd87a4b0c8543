"""Pictures inside HTML: the previews while a picture is being drawn."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from demos.drawing import Progress


def columns_for(count: int) -> int:
    """How many columns make the squarest grid of ``count`` pictures."""
    return max(1, math.ceil(math.sqrt(count)))


def progress_html(progress: Progress, prompt: str) -> str:
    """A progress bar, the count of steps, and every picture as it is so far."""
    if not progress.steps:
        # The model may be loading, or the first step still runs: a bar without a value.
        bar, words = "<progress aria-label='Drawing'></progress>", "Getting ready…"
    else:
        bar = (
            f"<progress aria-label='Drawing' max='{progress.steps}' value='{progress.step}'>"
            "</progress>"
        )
        words = f"Step {progress.step} of {progress.steps}"
    columns = columns_for(len(progress.images))
    images = "".join(
        f'<img src="{data_uri(image)}" alt="Preview: {escape(prompt[:200], quote=True)}">'
        for image in progress.images
    )
    return (
        f"<div class='bridge-drawing'>{bar}<p class='bridge-note'>{words}</p>"
        f"<div class='previews' style='grid-template-columns:repeat({columns},1fr)'>"
        f"{images}</div></div>"
    )


def data_uri(image: Image) -> str:
    """A picture as a JPEG data URI: small, and nothing is left on the disk."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
