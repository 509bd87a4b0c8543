"""The phrasing lab: how what is said, and who reads it, changes what is understood and drawn.

``study`` is the verb (``bridge.study``), ``OPERATIONS`` the table of variants. Names load on first
use, so that variants are made without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_names

if TYPE_CHECKING:
    from bridge.lab.gallery import Judge
    from bridge.lab.overlaying import overlay
    from bridge.lab.result import Study
    from bridge.lab.run import study
    from bridge.lab.variants import OPERATIONS, Settings, Variant, own, vary

# Public name -> the module that defines it.
_HOMES = {
    "Judge": "bridge.lab.gallery",
    "OPERATIONS": "bridge.lab.variants",
    "Settings": "bridge.lab.variants",
    "Study": "bridge.lab.result",
    "Variant": "bridge.lab.variants",
    "own": "bridge.lab.variants",
    "overlay": "bridge.lab.overlaying",
    "study": "bridge.lab.run",
    "vary": "bridge.lab.variants",
}

# Submodules that are reached as attributes, without an import of their own.
_ROOMS = ("measures", "variants")

__all__ = [
    "OPERATIONS",
    "Judge",
    "Settings",
    "Study",
    "Variant",
    "overlay",
    "own",
    "study",
    "vary",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _ROOMS)
