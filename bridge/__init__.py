"""bridge: two roads out of CLIP, on one set of towers.

``import bridge`` is light: nothing heavier than the standard library loads until a
verb is called. The verbs live in their rooms and are looked up on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bridge.conditioning import (
        Composition,
        Conditioning,
        PromptSchedule,
        Region,
        RegionalConditioning,
        compose,
        condition,
        regional,
        schedule,
    )
    from bridge.diffusion import Generation, generate, inject, load_pipeline
    from bridge.errors import BridgeError
    from bridge.vlm import BridgeVLM, describe, load_vlm, train_vlm

# Public name -> the module that defines it.
_HOMES = {
    "BridgeError": "bridge.errors",
    "BridgeVLM": "bridge.vlm",
    "Composition": "bridge.conditioning",
    "Conditioning": "bridge.conditioning",
    "Generation": "bridge.diffusion",
    "PromptSchedule": "bridge.conditioning",
    "Region": "bridge.conditioning",
    "RegionalConditioning": "bridge.conditioning",
    "compose": "bridge.conditioning",
    "condition": "bridge.conditioning",
    "describe": "bridge.vlm",
    "generate": "bridge.diffusion",
    "inject": "bridge.diffusion",
    "load_pipeline": "bridge.diffusion",
    "load_vlm": "bridge.vlm",
    "regional": "bridge.conditioning",
    "schedule": "bridge.conditioning",
    "train_vlm": "bridge.vlm",
}

__all__ = [
    "BridgeError",
    "BridgeVLM",
    "Composition",
    "Conditioning",
    "Generation",
    "PromptSchedule",
    "Region",
    "RegionalConditioning",
    "compose",
    "condition",
    "describe",
    "generate",
    "inject",
    "load_pipeline",
    "load_vlm",
    "regional",
    "schedule",
    "train_vlm",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'bridge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
