"""The image processor of a checkpoint folder, in transformers' PIL form.

transformers 5 gives every image processor two backends. The torchvision one is the
default where torchvision is installed, and resizes a little differently; the PIL one is
what the published CLIP and LLaVA weights were trained through, and needs nothing more
than PIL. bridge always takes the PIL one, so answers do not depend on what is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bridge.errors import WeightsError
from bridge.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL.Image import Image

# The names CLIP's processor has gone by in saved folders.
_CLIP_NAMES = frozenset(
    {
        "CLIPImageProcessor",
        "CLIPImageProcessorFast",
        "CLIPImageProcessorPil",
        "CLIPFeatureExtractor",
    }
)


def pil_clip_processor(**options: Any) -> Any:
    """CLIP's image processor on its PIL backend, with the given options."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**options)


def load_image_processor(folder: Path) -> Any:
    """The image processor that a folder's ``pre``/``processor_config.json`` names, on PIL.

    Raises WeightsError when the folder has none or it cannot be read.
    """
    settings = _settings(folder)
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    try:
        if kind in _CLIP_NAMES:
            # Built directly: AutoImageProcessor of transformers 5.17 wants torchvision even
            # for the PIL backend.
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

            return CLIPImageProcessorPil.from_dict(settings)
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise WeightsError(
            f"{folder}: the image processor {kind!r} cannot load: {error}"
        ) from error


def pixels(image_processor: Any, images: Sequence[Image]) -> torch.Tensor:
    """RGB pictures to the tower's input: (B, 3, H, W) float32, normalised."""
    return image_processor(images=list(images), return_tensors="pt")["pixel_values"]


def _settings(folder: Path) -> dict[str, Any]:
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
