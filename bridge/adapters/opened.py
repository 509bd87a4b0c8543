"""Foreign towers by name, kept from one call to the next until their files change."""

from __future__ import annotations

import os
from typing import Any

import torch

from bridge.errors import OptionError
from bridge.files import stamp
from bridge.kept import kept
from bridge.towers import TextTower, find_source, open_text_tower


def open_tower(
    tower: Any, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> TextTower:
    """The tower of a name, hub id or folder; an open one as it is.

    Raises:
        OptionError: what is none of these.
        The errors of ``bridge.towers.open_text_tower``.
    """
    if isinstance(tower, TextTower):
        return tower
    if not isinstance(tower, (str, os.PathLike)):
        raise OptionError(
            "towers takes a name, a folder, a TextTower, a list of these or {component: tower}, "
            f"not {type(tower).__name__} ({tower!r:.60})."
        )
    source = os.fspath(tower)
    files = sorted(find_source(source)[1].glob("*"))
    return _opened(source, tuple((file.name, stamp(file)) for file in files), device, dtype)


@kept(2)
def _opened(
    source: str, state: object, device: torch.device | None, dtype: torch.dtype | None
) -> TextTower:
    return open_text_tower(source, device=device, dtype=dtype)
