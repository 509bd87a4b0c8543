"""Pictures of any shape before a square tower: LLaVA's ways, by its `image_aspect_ratio`.

- "square": the image processor resizes and crops. One view a picture.
- "pad": the picture is first laid on a square of the processor's mean colour. One view.
- "anyres" (LLaVA 1.6, "NeXT"): the whole picture small, and a grid of tiles of it large. The
  soft tokens of the tiles are put back into one plane, the padding is cut off again, and each
  row of the plane is closed by a learnt newline.

All sizes are (height, width), as in transformers. The original LLaVA writes (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from bridge.errors import UnsupportedModelError
from bridge.towers.image_processor import pil_processor

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]


class ImageAspect(Protocol):
    """From one picture to the views a tower takes, and from their soft tokens to one row."""

    def views(self, picture: Image) -> list[Image]:
        """The RGB pictures that the image processor takes in place of ``picture``."""
        ...

    def n_soft_tokens(self, n_view: int, size: Size) -> int:
        """How many soft tokens a picture of this size has, when each view has ``n_view``."""
        ...

    def pack(self, soft: torch.Tensor, size: Size) -> torch.Tensor:
        """(V, M, D) soft tokens of a picture's views to its (n_soft_tokens(M, size), D)."""
        ...


@dataclass(frozen=True)
class OneView:
    """LLaVA's "square", and with ``pad_colour`` (RGB) its "pad"."""

    pad_colour: tuple[int, int, int] | None = None

    def views(self, picture: Image) -> list[Image]:
        return [picture if self.pad_colour is None else pad_to_square(picture, self.pad_colour)]

    def n_soft_tokens(self, n_view: int, size: Size) -> int:
        return n_view

    def pack(self, soft: torch.Tensor, size: Size) -> torch.Tensor:
        return soft[0]


SQUARE = OneView()


@dataclass(frozen=True, eq=False)
class AnyRes:
    """LLaVA's "anyres" with `mm_patch_merge_type` "spatial_unpad"; transformers' LlavaNext.

    ``pinpoints`` are the sizes that a picture may be laid out on, multiples of ``tile``.
    ``newline`` (D_llm,) is the model's `image_newline`; it is shared, not copied.
    """

    pinpoints: tuple[Size, ...]
    tile: int
    newline: torch.Tensor
    resample: int = 3  # PIL's BICUBIC

    def views(self, picture: Image) -> list[Image]:
        from PIL import Image

        target = best_pinpoint((picture.height, picture.width), self.pinpoints)
        plane = _fitted(picture, target, Image.Resampling(self.resample))
        whole = picture.resize((self.tile, self.tile), Image.Resampling(self.resample))
        corners = [
            (left, top)
            for top in range(0, target[0], self.tile)
            for left in range(0, target[1], self.tile)
        ]
        return [whole, *(plane.crop((x, y, x + self.tile, y + self.tile)) for x, y in corners)]

    def n_soft_tokens(self, n_view: int, size: Size) -> int:
        rows, columns = self.kept(n_view, size)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return n_view + height * (width + 1)

    def pack(self, soft: torch.Tensor, size: Size) -> torch.Tensor:
        side = _side(soft.shape[1])
        down, across = self.tiles(size)
        rows, columns = self.kept(soft.shape[1], size)
        # (tiles down, tiles across, side, side, D): the planes of the tiles become one.
        plane = soft[1:].view(down, across, side, side, -1).transpose(1, 2)
        plane = plane.reshape(down * side, across * side, -1)[rows, columns]
        ends = self.newline.to(plane).expand(len(plane), 1, -1)
        return torch.cat([soft[0], torch.cat([plane, ends], dim=1).flatten(0, 1)])

    def tiles(self, size: Size) -> Size:
        """How many tiles down and across a picture of this size is laid out on."""
        height, width = best_pinpoint(size, self.pinpoints)
        return height // self.tile, width // self.tile

    def kept(self, n_view: int, size: Size) -> tuple[slice, slice]:
        """Rows and columns of the plane that show the picture and not its padding."""
        side = _side(n_view)
        down, across = self.tiles(size)
        return unpadded((down * side, across * side), size)


def best_pinpoint(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The size on which most of the picture's pixels survive and least area is wasted.

    Of equals the first. After `select_best_resolution` of LLaVA's mm_utils.
    """

    def merit(target: Size) -> tuple[int, int]:
        scale = min(target[1] / size[1], target[0] / size[0])
        shown = int(size[1] * scale) * int(size[0] * scale)
        useful = min(shown, size[0] * size[1])
        return useful, useful - target[0] * target[1]

    return max(pinpoints, key=merit)


def unpadded(plane: Size, size: Size) -> tuple[slice, slice]:
    """Where in a plane of this many rows and columns a picture of this size lies, centred.

    After `unpad_image` of LLaVA; as in transformers, the product is rounded to 7 digits before
    it is cut, so that 24 stays 24 where floating point says 23.999... A picture far narrower
    than one row of tokens leaves nothing.
    """
    if size[1] / size[0] > plane[1] / plane[0]:
        edge = (plane[0] - int(round(size[0] * (plane[1] / size[1]), 7))) // 2
        return slice(edge, plane[0] - edge), slice(0, plane[1])
    edge = (plane[1] - int(round(size[1] * (plane[0] / size[0]), 7))) // 2
    return slice(0, plane[0]), slice(edge, plane[1] - edge)


def pad_to_square(picture: Image, colour: tuple[int, int, int]) -> Image:
    """The picture centred on a square of its longer side. After `expand2square` of LLaVA."""
    from PIL import Image

    side = max(picture.size)
    if picture.width == picture.height:
        return picture
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def mean_colour(image_mean: Sequence[float]) -> tuple[int, int, int]:
    """LLaVA's padding colour: the processor's mean, in 0..255, cut to whole numbers."""
    red, green, blue = (int(value * 255) for value in image_mean)
    return red, green, blue


def _fitted(picture: Image, target: Size, resample: int) -> Image:
    """The picture as large as fits into ``target``, centred on black."""
    from PIL import Image

    across, down = target[1] / picture.width, target[0] / picture.height
    if across < down:
        width, height = target[1], min(math.ceil(picture.height * across), target[0])
    else:
        width, height = min(math.ceil(picture.width * down), target[1]), target[0]
    plane = Image.new("RGB", (target[1], target[0]))
    corner = ((target[1] - width) // 2, (target[0] - height) // 2)
    plane.paste(picture.resize((width, height), Image.Resampling(resample)), corner)
    return plane


def _side(n_view: int) -> int:
    side = math.isqrt(n_view)
    if side * side != n_view:
        raise UnsupportedModelError(
            f"anyres needs a square grid of soft tokens a view, not {n_view}; with a tower that "
            "has a class token, select_feature must be 'patch'"
        )
    return side


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
