"""The image processor of a checkpoint folder, in transformers' PIL form.

transformers 5 gives every image processor two backends. The torchvision one is the
default where torchvision is installed, and resizes a little differently; the PIL one is
what the published CLIP and LLaVA weights were trained through, and needs nothing more
than PIL. bridge always takes the PIL one, so answers do not depend on what is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bridge.errors import WeightsError
from bridge.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL.Image import Image

    from bridge.vlm.aspect import ImageAspect, Size

# Processors that are built directly, by the name a folder gives without "Fast" or "Pil":
# AutoImageProcessor of transformers 5.17 wants torchvision even for the PIL backend. LLaVA's two
# are CLIP's with something done to the picture first, which is `bridge.vlm.aspect`'s part.
_CLIP = ("transformers.models.clip.image_processing_pil_clip", "CLIPImageProcessorPil")
_DIRECT = {
    "CLIPImageProcessor": _CLIP,
    "CLIPFeatureExtractor": _CLIP,
    "LlavaImageProcessor": _CLIP,
    "LlavaNextImageProcessor": _CLIP,
    "SiglipImageProcessor": (
        "transformers.models.siglip.image_processing_pil_siglip",
        "SiglipImageProcessorPil",
    ),
    "BitImageProcessor": (
        "transformers.models.bit.image_processing_pil_bit",
        "BitImageProcessorPil",
    ),
    "BlipImageProcessor": (
        "transformers.models.blip.image_processing_pil_blip",
        "BlipImageProcessorPil",
    ),
}
_OF_ASPECT = ("do_pad", "pad_size", "image_grid_pinpoints")


@dataclass(frozen=True, eq=False)
class Views:
    """What a tower takes of a batch of pictures: V views in all."""

    pixel_values: torch.Tensor  # (V, 3, H, W) float32, normalised
    counts: tuple[int, ...]  # views of each picture; they add up to V
    sizes: tuple[Size, ...]  # height and width of each picture as it came


def pil_clip_processor(**options: Any) -> Any:
    """CLIP's image processor on its PIL backend, with the given options."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**options)


def load_image_processor(folder: Path) -> Any:
    """The image processor that a folder's ``pre``/``processor_config.json`` names, on PIL.

    Raises WeightsError when the folder has none or it cannot be read.
    """
    settings = processor_settings(folder)
    kind = processor_kind(settings)
    try:
        if kind in _DIRECT:
            module, name = _DIRECT[kind]
            taken = {key: value for key, value in settings.items() if key not in _OF_ASPECT}
            return getattr(import_module(module), name).from_dict(taken)
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise WeightsError(
            f"{folder}: the image processor {kind!r} cannot load: {error}"
        ) from error


def pixels(image_processor: Any, images: Sequence[Image]) -> torch.Tensor:
    """RGB pictures to the tower's input: (B, 3, H, W) float32, normalised."""
    return image_processor(images=list(images), return_tensors="pt")["pixel_values"]


def view_pixels(image_processor: Any, aspect: ImageAspect, images: Sequence[Image]) -> Views:
    """RGB pictures, each as the views that ``aspect`` makes of it, to the tower's input."""
    views = [aspect.views(image) for image in images]
    return Views(
        pixels(image_processor, [view for each in views for view in each]),
        tuple(len(each) for each in views),
        tuple((image.height, image.width) for image in images),
    )


def processor_kind(settings: dict[str, Any]) -> str:
    """The processor's class by its plain name, without its backend."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    return str(kind).removesuffix("Fast").removesuffix("Pil")


def processor_settings(folder: Path) -> dict[str, Any]:
    """The saved settings: nested in processor_config.json (new) or a file of its own (old)."""
    for name, nested in (("processor_config.json", True), ("preprocessor_config.json", False)):
        path = folder / name
        if not path.is_file():
            continue
        data = read_json(path)
        found = data.get("image_processor") if nested else data
        if isinstance(found, dict):
            return found
    raise WeightsError(
        f"{folder}: no image processor; the folder needs processor_config.json (with an "
        "image_processor entry) or preprocessor_config.json"
    )
