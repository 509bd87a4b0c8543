"""Image towers of transformers without texts beside them: SigLIP's, DINOv2, DINOv3 and AIMv2.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; Oquab et al. 2023, "DINOv2:
Learning Robust Visual Features without Supervision"; Darcet et al. 2023, "Vision Transformers Need
Registers"; Siméoni et al. 2025, "DINOv3"; Fini et al. 2024, "Multimodal Autoregressive Pre-training
of Large Vision Encoders" (AIMv2). What SigLIP pools is in the space of its texts; the others share
none with texts, so their pooled state is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.files import read_json
from bridge.towers.checkpoint import load_tower, read_config
from bridge.towers.clip import patch_grid
from bridge.towers.family import ImageFamily, Parts, TowerSpec
from bridge.towers.image_processor import load_image_processor
from bridge.towers.states import ImageStates

KINDS = {
    "siglip_vision_model": ("SiglipVisionModel", 0),
    "dinov2": ("Dinov2Model", 1),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", 1),
    "dinov3_vit": ("DINOv3ViTModel", 1),
    "aimv2_vision_model": ("Aimv2VisionModel", 0),
}
"""model_type -> transformers' class, and how many places come before its registers and patches."""

_POOLED = "siglip_vision_model"


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The tower of a folder. Raises WeightsError."""
    kind, _ = KINDS[str(read_json(folder / "config.json")["model_type"])]
    config = read_config(folder)
    module = load_tower(kind, folder, dtype=dtype, device=device)
    grid = config.image_size // config.patch_size
    inner = getattr(config, "intermediate_size", None)
    return Parts(
        module=module,
        spec=TowerSpec(
            architecture=kind,
            source=str(folder),
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            context=grid**2 + prefix(config),
            pooled_width=config.hidden_size if config.model_type == _POOLED else 0,
            activation=str(config.hidden_act),
            mlp_width=inner or int(config.hidden_size * config.mlp_ratio),
        ),
        processor=load_image_processor(folder),
    )


def prefix(config: Any) -> int:
    """How many places of a picture's states come before its patches."""
    return KINDS[config.model_type][1] + int(getattr(config, "num_register_tokens", 0) or 0)


def encode_image(module: Any, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass; patches as transformers gives a layer's states, class token and registers
    dropped."""
    out = module(pixels, output_hidden_states=True)
    first = prefix(module.config)
    pooled = out.pooler_output if module.config.model_type == _POOLED else None
    patches = tuple(out.hidden_states[layer][:, first:] for layer in layers)
    return ImageStates(patches, pooled, patch_grid(module, pixels))


IMAGE = ImageFamily("vision_models", load_image, encode_image, any_size=True)
