"""bridge: two roads out of CLIP, on one set of towers.

``import bridge`` is light: nothing heavier than the standard library loads until a
verb is called. The verbs live in their rooms, and both are looked up on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bridge import adapters as adapters
    from bridge import comfyui as comfyui
    from bridge import diffusion as diffusion
    from bridge import encoding as encoding
    from bridge import errors as errors
    from bridge import lab as lab
    from bridge import prompt as prompt
    from bridge import towers as towers
    from bridge import vlm as vlm
    from bridge.adapters import Adapter, fit_adapter, load_adapter
    from bridge.diffusion import Generation, generate, inject, load_pipeline
    from bridge.encoding import (
        Composition,
        Conditioning,
        Encoder,
        PromptSchedule,
        Region,
        RegionalConditioning,
        compose,
        condition,
        regional,
        schedule,
    )
    from bridge.errors import BridgeError
    from bridge.kept import release
    from bridge.lab import Study, study
    from bridge.vlm import BridgeVLM, Training, TrainOptions, describe, load_vlm, train_vlm

# Public name -> the module that defines it.
_HOMES = {
    "Adapter": "bridge.adapters",
    "BridgeError": "bridge.errors",
    "BridgeVLM": "bridge.vlm",
    "Composition": "bridge.encoding",
    "Conditioning": "bridge.encoding",
    "Encoder": "bridge.encoding",
    "Generation": "bridge.diffusion",
    "PromptSchedule": "bridge.encoding",
    "Region": "bridge.encoding",
    "RegionalConditioning": "bridge.encoding",
    "Study": "bridge.lab",
    "TrainOptions": "bridge.vlm",
    "Training": "bridge.vlm",
    "compose": "bridge.encoding",
    "condition": "bridge.encoding",
    "describe": "bridge.vlm",
    "fit_adapter": "bridge.adapters",
    "generate": "bridge.diffusion",
    "inject": "bridge.diffusion",
    "load_adapter": "bridge.adapters",
    "load_pipeline": "bridge.diffusion",
    "load_vlm": "bridge.vlm",
    "regional": "bridge.encoding",
    "release": "bridge.kept",
    "schedule": "bridge.encoding",
    "study": "bridge.lab",
    "train_vlm": "bridge.vlm",
}

# What `bridge.vlm.load_vision(...)` reaches after `import bridge` alone.
_ROOMS = (
    "adapters",
    "comfyui",
    "diffusion",
    "encoding",
    "errors",
    "lab",
    "prompt",
    "towers",
    "vlm",
)

__all__ = [
    "Adapter",
    "BridgeError",
    "BridgeVLM",
    "Composition",
    "Conditioning",
    "Encoder",
    "Generation",
    "PromptSchedule",
    "Region",
    "RegionalConditioning",
    "Study",
    "TrainOptions",
    "Training",
    "compose",
    "condition",
    "describe",
    "fit_adapter",
    "generate",
    "inject",
    "load_adapter",
    "load_pipeline",
    "load_vlm",
    "regional",
    "release",
    "schedule",
    "study",
    "train_vlm",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _ROOMS)
