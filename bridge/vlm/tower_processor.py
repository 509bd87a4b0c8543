"""The image processor that a tower's family was published with, at the tower's own size.

For towers that come without their checkpoint's processor; a processor of the checkpoint is
always the better choice. All are transformers' PIL forms (see `bridge.vlm.preprocess`).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bridge.errors import UnsupportedModelError
from bridge.vlm.features import patch_size

# The tower's model_type -> family of its processor.
_FAMILIES = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "siglip2_vision_model": "siglip",
    "dinov2": "bit",
    "dinov2_with_registers": "bit",
}
_CLASSES = {
    "clip": "CLIPImageProcessorPil",
    "siglip": "SiglipImageProcessorPil",
    "bit": "BitImageProcessorPil",
}


def tower_processor(tower: Any) -> Any:
    """Resizing, cropping and normalising as CLIP, SigLIP or DINOv2 were published with.

    CLIP and DINOv2 cut the middle square out; SigLIP squeezes the whole picture. Raises
    UnsupportedModelError for another family of tower.
    """
    kind = getattr(tower.config, "model_type", None)
    family = _FAMILIES.get(str(kind))
    if family is None:
        raise UnsupportedModelError(
            f"bridge does not know how {type(tower).__name__} ({kind}) was shown its pictures; "
            "give image_processor, such as AutoImageProcessor.from_pretrained(...)"
        )
    side = tower_side(tower)
    square = {"height": side, "width": side}
    # DINOv2 is shown the middle 224 of 256 pixels, CLIP the middle of just as many.
    short = {"shortest_edge": round(side * 256 / 224) if family == "bit" else side}
    sizes: dict[str, Any] = (
        {"size": square} if family == "siglip" else {"size": short, "crop_size": square}
    )
    means: dict[str, Any] = {}
    if family == "bit":
        means = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return getattr(module, _CLASSES[family])(**sizes, **means)


def tower_side(tower: Any) -> int:
    """The side in pixels of the square pictures that a tower was made for."""
    side = getattr(tower.config, "image_size", None)
    if isinstance(side, list | tuple):
        return int(side[0])
    if isinstance(side, int):
        return side
    # SigLIP 2 of free shapes says how many patches at most.
    return int(int(tower.config.num_patches) ** 0.5) * patch_size(tower)[0]
