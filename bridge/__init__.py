"""bridge: two roads out of CLIP, on one set of towers.

``import bridge`` is light: nothing heavier than the standard library loads until a
verb is called. The verbs live in their rooms, and both are looked up on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

__version__ = "0.2.0"

if TYPE_CHECKING:
    from bridge import (
        adapters,
        comfyui,
        contrastive,
        diffusion,
        encoding,
        errors,
        lab,
        prompt,
        towers,
        vlm,
    )
    from bridge.adapters import Adapter, fit_adapter, load_adapter
    from bridge.contrastive import CLIP, ClipTraining, ClipTrainOptions, train_clip
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

__getattr__, __dir__, __all__ = lazy_imports(__name__)
