"""The image processor of a checkpoint folder: transformers' in its PIL form, or open_clip's.

transformers 5 gives every image processor two backends. The torchvision one is the
default where torchvision is installed, and resizes a little differently; the PIL one is
what the published CLIP and LLaVA weights were trained through, and needs nothing more
than PIL. bridge always takes the PIL one, so answers do not depend on what is installed.

open_clip's way, as it evaluates its models: a picture is resized and cut in its own mode, and RGB
comes last, so a palette is resized by its nearest entries, and transparent colours weigh by their
alpha. Sizes and corners are rounded as torchvision rounds them, so that pixels are open_clip's bit
for bit (tests/parity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from bridge.errors import ImageError, OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.images import open_image
from bridge.model_folder import check_sizes
from bridge.rgb import is_transparent, is_wide, to_rgb
from bridge.towers.checkpoint import reading

if TYPE_CHECKING:
    from PIL.Image import Image

Alpha = Literal["white", "drop"]
"""What becomes of transparency: a white ground, or the colour that lay hidden there."""
# What a folder names, without "ImageProcessor" and in small letters -> transformers' class. Built
# directly: AutoImageProcessor of transformers 5.17 wants torchvision even for the PIL backend.
# LLaVA's two are CLIP's with something done to the picture first, `bridge.vlm.views`'s part.
_CLASSES = {
    "clip": "CLIP",
    "llava": "CLIP",
    "llavanext": "CLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
    "bit": "Bit",
    "blip": "Blip",
    "efficientnet": "EfficientNet",
    "chineseclip": "ChineseCLIP",
    # DINOv3's own is torchvision's alone, and asks for the same: a size, means and deviations.
    "dinov3vit": "ViT",
}
_NAMES = ("image_processor_type", "feature_extractor_type", "processor_class")
_OF_ASPECT = ("do_pad", "pad_size", "image_grid_pinpoints")


def load_image_processor(folder: Path) -> Any:
    """The image processor that a folder's ``pre``/``processor_config.json`` names, on PIL.

    Raises WeightsError when the folder has none or it cannot be read.
    """
    settings = processor_settings(folder)
    kind = processor_kind(settings)
    family = kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor").lower()
    with reading(f"{folder}: the image processor {kind!r} cannot load"):
        if family in _CLASSES:
            taken = {key: value for key, value in settings.items() if key not in _OF_ASPECT}
            return tried_on_a_picture(pil_processor(family, **taken))
        from transformers import AutoImageProcessor

        return tried_on_a_picture(
            AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
        )


def tried_on_a_picture(processor: Any) -> Any:
    """The processor, which has taken a picture: settings of wrong types load and then fail.

    Raises whatever the settings lead to.
    """
    for name, tensor in processor([a_picture()], return_tensors="pt").items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} of a black picture is not finite")
    return processor


def a_picture() -> Any:
    """A small black one, to try a processor and a tower with."""
    from PIL.Image import new

    return new("RGB", (8, 6))


def pil_processor(family: str, **options: Any) -> Any:
    """A processor of one family of transformers' with the given options."""
    name = _CLASSES[family]
    place = {"ChineseCLIP": "chinese_clip"}.get(name, name.lower())
    module = import_module(f"transformers.models.{place}.image_processing_pil_{place}")
    return getattr(module, f"{name}ImageProcessorPil").from_dict(
        {key: value for key, value in options.items() if key not in _NAMES}
    )


def processor_kind(settings: dict[str, Any]) -> str:
    """The processor's class by its plain name, without its backend."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    return str(kind).removesuffix("Fast").removesuffix("Pil")


def processor_settings(folder: Path) -> dict[str, Any]:
    """The saved settings: nested in processor_config.json (transformers 5) or a file of their own
    (before). Raises WeightsError for a folder that has neither."""
    for name, nested in (("processor_config.json", True), ("preprocessor_config.json", False)):
        path = folder / name
        if not path.is_file():
            continue
        data = read_json(path)
        found = data.get("image_processor") if nested else data
        if isinstance(found, dict):
            check_sizes(found, path)
            return found
    raise WeightsError(
        f"{folder}: no image processor; the folder needs processor_config.json (with an "
        "image_processor entry) or preprocessor_config.json"
    )


def to_pixels(processor: Any, images: Sequence[Any], alpha: Alpha = "white") -> Any:
    """What the tower takes of pictures: ``(B, 3, H, W)``, or a mapping of tensors.

    Transparency is laid over white, and greys of 16 bits keep their range, as `load_image` has it;
    with ``alpha="drop"`` PIL's own conversion to RGB takes off alpha and clips, as OpenAI's CLIP
    and open_clip do.

    Raises:
        ImageError: an empty list, or what is not a picture.
        OptionError: another ``alpha``.
    """
    from PIL import Image

    if alpha not in get_args(Alpha):
        raise OptionError(f'alpha is {alpha!r}; give "white" or "drop"')
    if not len(images):
        raise ImageError("images is empty; give one picture at least")
    pictures = [
        each if isinstance(each, Image.Image) else _opened(each, place)
        for place, each in enumerate(images)
    ]
    shown = [_over_white(each) if alpha == "white" else _as_it_is(each) for each in pictures]
    if not isinstance(processor, OpenClipPictures):  # which resizes in the picture's own mode
        shown = [each.convert("RGB") for each in shown]
    out = processor(shown, return_tensors="pt")
    return out["pixel_values"] if set(out) == {"pixel_values"} else dict(out)


def _opened(image: Any, place: int) -> Any:
    """A picture that is a path, bytes or an array. Raises ImageError, which says which one."""
    try:
        return open_image(image)
    except ImageError as error:
        raise ImageError(f"images[{place}]: {error}") from error


def _over_white(picture: Any) -> Any:
    return to_rgb(picture) if is_transparent(picture) or is_wide(picture) else picture


def _as_it_is(picture: Any) -> Any:
    return picture.convert("LA") if picture.mode == "La" else picture  # PIL cannot turn La into RGB


# ---------------------------------------------------------------- open_clip

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
