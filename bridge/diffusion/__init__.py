"""Conditioning into pictures: thin glue over stock diffusers pipelines.

Names load on first use, so that checking options or reading a result type needs no torch.
"""

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

if TYPE_CHECKING:
    from bridge.diffusion.drawing import Generation, StepPreview, StopGeneration, generate
    from bridge.diffusion.heat import HeatMaps, heat_maps
    from bridge.diffusion.injection import inject
    from bridge.diffusion.load import load_pipeline

__getattr__, __dir__, __all__ = lazy_imports(__name__)
