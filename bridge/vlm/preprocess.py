"""Pictures to the tower's input, through the image processor of `bridge.towers.image_processor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.towers.image_processor import pil_processor

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from bridge.vlm.aspect import ImageAspect, Size


@dataclass(frozen=True, eq=False)
class Views:
    """What a tower takes of a batch of pictures: V views in all."""

    pixel_values: torch.Tensor  # (V, 3, H, W) float32, normalised
    counts: tuple[int, ...]  # views of each picture; they add up to V
    sizes: tuple[Size, ...]  # height and width of each picture as it came


def pil_clip_processor(**options: Any) -> Any:
    """CLIP's image processor on its PIL backend, with the given options."""
    return pil_processor("clip", **options)


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
