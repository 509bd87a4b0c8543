"""A folder's image processor, in transformers' PIL form, as `bridge.vlm.preprocess` has it.

The torchvision form, the default where that is installed, resizes a little differently; the
published weights were trained through PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bridge.errors import ImageError, WeightsError
from bridge.files import read_json

# The name a folder gives, without "Fast", "Pil" or "FeatureExtractor" -> module of transformers.
_FAMILIES = {
    "CLIP": "clip",
    "Siglip": "siglip",
    "Siglip2": "siglip2",
    "Blip": "blip",
    "EfficientNet": "efficientnet",
}


def load_image_processor(folder: Path) -> Any:
    """The processor that ``preprocessor_config.json`` names. Raises WeightsError."""
    config = read_json(folder / "preprocessor_config.json")
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        named = named.removesuffix(ending)
    if named not in _FAMILIES:
        raise WeightsError(
            f"{folder / 'preprocessor_config.json'} names the processor {named!r}; towers have one "
            f"of {', '.join(sorted(_FAMILIES))}"
        )
    return pil_processor(_FAMILIES[named], **config)


def pil_processor(family: str, **options: Any) -> Any:
    """A processor of one family of transformers' with the given options."""
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    kind = next(name for name, of in _FAMILIES.items() if of == family)
    told = ("image_processor_type", "feature_extractor_type", "processor_class")
    return getattr(module, f"{kind}ImageProcessorPil").from_dict(
        {key: value for key, value in options.items() if key not in told}
    )


def to_pixels(processor: Any, images: Sequence[Any]) -> Any:
    """What the tower takes of PIL pictures: ``(B, 3, H, W)``, or a mapping of tensors.

    Raises ImageError for an empty list and for what is no picture.
    """
    from PIL.Image import Image

    if not len(images):
        raise ImageError("images is empty; give one picture at least")
    for place, image in enumerate(images):
        if not isinstance(image, Image):
            raise ImageError(
                f"images[{place}] is a {type(image).__name__}; give PIL pictures "
                "(PIL.Image.open(...)), or the processor's tensor"
            )
    out = processor([image.convert("RGB") for image in images], return_tensors="pt")
    return out["pixel_values"] if set(out) == {"pixel_values"} else dict(out)
