"""The image processor of a checkpoint folder, in transformers' PIL form.

transformers 5 gives every image processor two backends. The torchvision one is the
default where torchvision is installed, and resizes a little differently; the PIL one is
what the published CLIP and LLaVA weights were trained through, and needs nothing more
than PIL. bridge always takes the PIL one, so answers do not depend on what is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bridge.errors import ImageError, OptionError, WeightsError
from bridge.files import read_json
from bridge.model_folder import check_sizes
from bridge.rgb import is_transparent, is_wide, to_rgb
from bridge.towers.foreign import reading
from bridge.towers.open_clip_pictures import OpenClipPictures

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
    place = name.lower()
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


def to_pixels(processor: Any, images: Sequence[Any], alpha: str = "white") -> Any:
    """What the tower takes of PIL pictures: ``(B, 3, H, W)``, or a mapping of tensors.

    Transparency is laid over white, and greys of 16 bits keep their range, as `load_image` has it;
    with ``alpha="drop"`` PIL's own conversion to RGB takes off alpha and clips, as OpenAI's CLIP
    and open_clip do.

    Raises ImageError for an empty list and for what is no picture, OptionError for another
    ``alpha``.
    """
    from PIL.Image import Image

    if alpha not in ("white", "drop"):
        raise OptionError(f'alpha is {alpha!r}; give "white" or "drop"')
    if not len(images):
        raise ImageError("images is empty; give one picture at least")
    for place, image in enumerate(images):
        if not isinstance(image, Image):
            raise ImageError(
                f"images[{place}] is a {type(image).__name__}; give PIL pictures "
                "(PIL.Image.open(...)), or the processor's tensor"
            )
    shown = [_over_white(each) if alpha == "white" else _as_it_is(each) for each in images]
    if not isinstance(processor, OpenClipPictures):  # which resizes in the picture's own mode
        shown = [each.convert("RGB") for each in shown]
    out = processor(shown, return_tensors="pt")
    return out["pixel_values"] if set(out) == {"pixel_values"} else dict(out)


def _over_white(picture: Any) -> Any:
    return to_rgb(picture) if is_transparent(picture) or is_wide(picture) else picture


def _as_it_is(picture: Any) -> Any:
    return picture.convert("LA") if picture.mode == "La" else picture  # PIL cannot turn La into RGB
