"""Conditioning into pictures: thin glue over stock diffusers pipelines.

Names load on first use, so that checking options or reading a result type needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_names

if TYPE_CHECKING:
    from bridge.diffusion.drawing import Generation, StepPreview, StopGeneration, generate
    from bridge.diffusion.heat import HeatMaps, heat_maps
    from bridge.diffusion.injection import inject
    from bridge.diffusion.load import load_pipeline

# Public name -> the module that defines it.
_HOMES = {
    "Generation": "bridge.diffusion.drawing",
    "HeatMaps": "bridge.diffusion.heat",
    "StepPreview": "bridge.diffusion.drawing",
    "StopGeneration": "bridge.diffusion.drawing",
    "generate": "bridge.diffusion.drawing",
    "heat_maps": "bridge.diffusion.heat",
    "inject": "bridge.diffusion.injection",
    "load_pipeline": "bridge.diffusion.load",
}

__all__ = [
    "Generation",
    "HeatMaps",
    "StepPreview",
    "StopGeneration",
    "generate",
    "heat_maps",
    "inject",
    "load_pipeline",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
