"""A folder of the original LLaVA, as a BridgeVLM."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.model_folder import check_sizes
from bridge.runtime import quiet_loading
from bridge.towers.image_processor import tried_on_a_picture
from bridge.vlm.aspect import SQUARE, AnyRes, ImageAspect, OneView, mean_colour
from bridge.vlm.chat import IMAGE_TOKEN
from bridge.vlm.checkpoints import names
from bridge.vlm.checkpoints.settings import LLM_CLASSES
from bridge.vlm.checkpoints.source import Original, open_original
from bridge.vlm.checkpoints.tokenizer import tokenizer_with_image
from bridge.vlm.generation import check_generation
from bridge.vlm.model import BridgeVLM
from bridge.vlm.preprocess import pil_clip_processor
from bridge.vlm.projectors import build_projector

Tensors = dict[str, torch.Tensor]


def load_original(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    *,
    allow_pickle: bool = False,
    base: str | os.PathLike[str] | None = None,
    conversation: str | None = None,
) -> BridgeVLM:
    """A BridgeVLM of a LLaVA folder (see `bridge.vlm.checkpoints.source`).

    It is asked in ``conversation`` (see `bridge.vlm.conversations`), or in the one that LLaVA
    takes for ``name``.

    Raises UnsupportedModelError, WeightsError (missing, damaged, or pickle that was not
    allowed), OptionError.
    """
    source = open_original(folder, allow_pickle=allow_pickle, base=base)
    tokenizer = tokenizer_with_image(source.llm, source.settings.llm)
    llm, vision, projector, newline = _parts(source, dtype)
    image_processor = tried_on_a_picture(pil_clip_processor(**_options(source.preprocessor())))
    with quiet_loading():
        parts = _tower(source, vision, dtype), _llm(source, llm, dtype)
    aspect = _aspect(source, image_processor, None if newline is None else newline.to(device))
    return BridgeVLM(
        vision=parts[0].to(device).eval(),
        projector=_projector(source, projector).to(device).eval(),
        llm=parts[1].to(device).eval(),
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)),
        select_layer=source.settings.select_layer,
        select_feature="patch" if source.settings.select_feature == "patch" else "cls_patch",
        chat_template=source.chat_template(conversation or source.conversation(name)),
        name=name,
        aspect=aspect,
        cut_at_images=True,
    )


def _parts(
    source: Original, dtype: torch.dtype
) -> tuple[Tensors, Tensors, Tensors, torch.Tensor | None]:
    """The tensors of language model, tower and projector by their own names, and the newline."""
    llm: Tensors = {}
    vision: Tensors = {}
    projector: Tensors = {}
    newline = None
    for name, tensor in source.tensors():
        cast = tensor.to(dtype)
        if name.startswith(names.TOWER):
            vision["vision_model." + name.removeprefix(names.TOWER)] = cast
        elif name.startswith(names.PROJECTOR):
            projector[name.removeprefix(names.PROJECTOR)] = cast
        elif name == names.NEWLINE:
            newline = cast
        else:
            llm[name] = cast
    return llm, vision, projector, newline


def _tower(source: Original, tensors: Tensors, dtype: torch.dtype) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**source.vision)
    return _filled(CLIPVisionModel, config, tensors, dtype, f"{source.folder}: the vision tower")


def _llm(source: Original, tensors: Tensors, dtype: torch.dtype) -> Any:
    import transformers

    text = source.settings.text
    config = transformers.AutoConfig.for_model(**text)
    model_class = getattr(transformers, LLM_CLASSES[source.settings.llm])
    model = _filled(model_class, config, tensors, dtype, f"{source.folder}: the language model")
    if (source.folder / "generation_config.json").is_file():
        saved = transformers.GenerationConfig.from_pretrained(
            source.folder, trust_remote_code=False
        )
        model.generation_config = saved
    return check_generation(model, source.folder)


def _filled(model_class: Any, config: Any, tensors: Tensors, dtype: torch.dtype, what: str) -> Any:
    """A transformers model of these tensors. Raises WeightsError when they do not fit."""
    check_sizes(config.to_dict(), what)
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (ValueError, RuntimeError) as error:
        raise WeightsError(f"{what} cannot be built: {error}") from error
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise WeightsError(
            f"{what} lacks {len(missing)} tensors, such as {missing[0]!r}; get the complete "
            "checkpoint"
        )
    return model


# Those of LLaVA's multimodal_projector/builder.py; bridge's of these names have its tensor names.
_LLAVAS_OWN = re.compile(r"linear|identity|mlp\d+x_gelu")


def _projector(source: Original, tensors: Tensors) -> Any:
    settings = source.settings
    if not _LLAVAS_OWN.fullmatch(settings.projector):
        raise UnsupportedModelError(
            f"{source.folder}: mm_projector_type {settings.projector!r} is not one of LLaVA's: "
            "linear, mlpNx_gelu, identity"
        )
    width = int(source.vision["hidden_size"])
    projector: Any = build_projector(settings.projector, width, int(settings.text["hidden_size"]))
    try:
        projector.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{source.folder}: mm_projector is no {settings.projector!r} from {width} to "
            f"{settings.text['hidden_size']}: {error}"
        ) from error
    return projector


def _aspect(source: Original, processor: Any, newline: torch.Tensor | None) -> ImageAspect:
    settings = source.settings
    if settings.aspect == "pad":
        return OneView(mean_colour(processor.image_mean))
    if settings.aspect == "square":
        return SQUARE
    if newline is None:
        raise WeightsError(f"{source.folder}: {names.NEWLINE} is missing, which anyres needs")
    tile = int(source.vision["image_size"])
    parameter = torch.nn.Parameter(newline, requires_grad=False)
    return AnyRes(settings.pinpoints, tile, parameter, int(processor.resample))


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """What CLIP's processor takes of its saved settings."""
    names: tuple[str, ...] = (
        "size",
        "crop_size",
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "rescale_factor",
    )
    names += ("do_normalize", "image_mean", "image_std", "resample", "do_convert_rgb")
    return {key: settings[key] for key in names if settings.get(key) is not None}
