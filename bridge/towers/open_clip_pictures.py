"""open_clip's way from a picture to the pixels of a tower, as it evaluates its models.

A picture is resized and cut in its own mode, and RGB comes last: a palette is resized by its
nearest entries, and transparent colours weigh by their alpha. Sizes and corners are rounded as
torchvision rounds them, so that pixels are open_clip's bit for bit (tests/parity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridge.errors import UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image

# OpenAI's means and deviations of pixels, open_clip's default too.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BILINEAR, _BICUBIC = 2, 3
# open_clip takes "random", a way to train, for bicubic where it evaluates.
_RESAMPLE = {"bilinear": _BILINEAR, "bicubic": _BICUBIC, "random": _BICUBIC}
_MODES = ("shortest", "longest", "squash")

Size = tuple[int, int]


@dataclass(frozen=True)
class OpenClipPictures:
    """An image processor by open_clip's ``preprocess_cfg``.

    Attributes:
        size: height and width of the pixels.
        mode: "shortest" cuts the middle out, "longest" pads, "squash" squeezes the whole picture.
        resample: PIL's number of the filter.
        mean, std: of each channel.
        fill: the grey that "longest" pads with.
    """

    size: Size
    mode: str = "shortest"
    resample: int = _BICUBIC
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    fill: int = 0

    def __call__(
        self, images: Image | Sequence[Image], return_tensors: str = "pt"
    ) -> dict[str, Tensor]:
        """``pixel_values (B, 3, H, W)`` in float32; ``return_tensors`` is always "pt"."""
        some = images if isinstance(images, Sequence) else [images]
        return {"pixel_values": torch.stack([self._pixels(each) for each in some])}

    def _pixels(self, picture: Image) -> Tensor:
        import numpy as np

        shown = _cut(self._resized(picture), self.size, self.fill).convert("RGB")
        pixels = torch.from_numpy(np.array(shown, dtype=np.uint8)).permute(2, 0, 1)
        mean, std = (torch.tensor(each, dtype=torch.float32) for each in (self.mean, self.std))
        scaled = pixels.contiguous().to(torch.float32).div(255)
        return scaled.sub(mean[:, None, None]).div(std[:, None, None])

    def _resized(self, picture: Image) -> Image:
        width, height = picture.size
        tall, wide = self.size
        if self.mode == "squash":
            return picture.resize((wide, tall), self.resample)
        if self.mode == "shortest" and tall == wide:
            short, long = min(width, height), max(width, height)
            side = int(tall * long / short)
            return picture.resize((tall, side) if width <= height else (side, tall), self.resample)
        ratios = (height / tall, width / wide)
        longest = self.mode == "longest"
        ratio = max(ratios) if longest else min(ratios)
        # open_clip names its filter for "longest", and not for "shortest" to an oblong.
        filter_ = self.resample if longest else _BICUBIC
        shape = (max(1, round(width / ratio)), max(1, round(height / ratio)))
        return picture.resize(shape, filter_)


def _cut(picture: Image, size: Size, fill: int) -> Image:
    """The middle of a picture, with a border around it where it is too small."""
    tall, wide = size
    picture = _bordered(picture, max(wide, picture.width), max(tall, picture.height), fill)
    # Python rounds halves to even, and so does torchvision.
    left, top = round((picture.width - wide) / 2), round((picture.height - tall) / 2)
    return picture.crop((left, top, left + wide, top + tall))


def _bordered(picture: Image, width: int, height: int, fill: int) -> Image:
    """The picture in the middle of a larger one of its own mode; ``fill`` in each channel."""
    from PIL import Image

    if (width, height) == picture.size:
        return picture
    bands = len(picture.getbands())
    made = Image.new(picture.mode, (width, height), (fill,) * bands if bands > 1 else fill)
    if picture.mode == "P":
        made.putpalette(picture.getpalette() or [])
    made.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return made


def open_clip_pictures(told: Mapping[str, Any], size: Size, where: str) -> OpenClipPictures:
    """The processor that ``preprocess_cfg`` tells; ``size`` is the tower's, as in open_clip.

    Raises UnsupportedModelError for a value that open_clip does not know, naming ``where``.
    """
    given = {name: value for name, value in told.items() if value is not None}
    mode = _known(given, "resize_mode", _MODES, where)
    filter_ = _known(given, "interpolation", ("bicubic", *_RESAMPLE), where)
    _known(given, "mode", ("RGB",), where)
    return OpenClipPictures(
        size=size,
        mode=mode,
        resample=_RESAMPLE[filter_],
        mean=_channels(given.get("mean") or _MEAN),
        std=_channels(given.get("std") or _STD),
        fill=int(given.get("fill_color", 0)),
    )


def _known(told: Mapping[str, Any], name: str, values: Sequence[str], where: str) -> str:
    value = told.get(name) or values[0]
    if value not in values:
        raise UnsupportedModelError(
            f"{where} asks for preprocess_cfg.{name}={value!r}, and open_clip knows "
            f"{', '.join(sorted(set(values)))} alone; its text tower can be opened"
        )
    return str(value)


def _channels(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (float(value),) * 3
