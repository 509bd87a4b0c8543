"""The line at the top of the page: what the app is, and which models draw and answer."""

from __future__ import annotations

import os
from html import escape

from demos.models import Models


def title_html(models: Models) -> str:
    """A heading and the models' names."""
    draws, answers = (escape(name_of(each)) for each in (models.draws, models.answers))
    return (
        "<h1>bridge</h1><p>Words into pictures, pictures into words.</p>"
        f'<p class="bridge-models"><span>Draws: <b>{draws}</b></span> '
        f"<span>Answers: <b>{answers}</b></span></p>"
    )


def name_of(model: str) -> str:
    """What a visitor may know of a model: an embedded name, a hub id, or a folder's own name."""
    folder = os.path.normpath(model)
    return os.path.basename(folder) if os.path.isabs(folder) or os.path.isdir(folder) else model
