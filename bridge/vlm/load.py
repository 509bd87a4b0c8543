"""A checkpoint of LLaVA or BLIP-2, by name, path or hub id, to a BridgeVLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.embedded import ANSWERING
from bridge.errors import OptionError, UnsupportedModelError
from bridge.files import read_json
from bridge.runtime import check_dtype, quiet_loading, resolve_device, resolve_dtype
from bridge.towers import reading
from bridge.towers.image_processor import (
    a_picture,
    load_image_processor,
    processor_kind,
    processor_settings,
)
from bridge.towers.tokenizer import load_words
from bridge.vlm.aspect import SQUARE, ImageAspect, OneView, mean_colour
from bridge.vlm.checkpoints.settings import is_original, read_settings
from bridge.vlm.checkpoints.source import refuse_lora
from bridge.vlm.conversations import CONVERSATIONS, checked_conversation
from bridge.vlm.llava import check_tower, from_llava
from bridge.vlm.model import BridgeVLM
from bridge.vlm.own_layout import MODEL_TYPE, check_references, read_own

if TYPE_CHECKING:
    import torch

# transformers' layouts: the config's model_type, and the class it loads in.
_CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
}


def load_vlm(
    model: str | os.PathLike[str] = ANSWERING,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    base: str | os.PathLike[str] | None = None,
    conversation: str | None = None,
) -> BridgeVLM:
    """Load a checkpoint of LLaVA 1.5, LLaVA 1.6 or BLIP-2, or what `save_vlm` wrote.

    Layouts: transformers' (`LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration`,
    `Blip2ForConditionalGeneration` with OPT), and the original of haotian-liu/LLaVA.
    ``model`` is an embedded name, a folder or a hub id. Without ``device``: CUDA if
    there is one. Without ``dtype``: fp32 for small models and on a CPU, else half precision.

    Two options are for the original layout alone: ``allow_pickle=True`` reads ``.bin`` files
    (tensors only, nothing in them is run) of a folder, and of a hub none, from which they are
    never fetched (`hf download` gets them); ``base`` is the language model, a folder or hub id,
    of a folder that holds only `mm_projector.bin`.

    ``conversation`` is what a LLaVA is asked in, by LLaVA's name for it, such as "llava_v1" (see
    `bridge.vlm.CONVERSATIONS`). Without it, an original folder is asked in the one that LLaVA
    takes for its name, and all else by the chat template of the checkpoint.

    Raises UnknownModelError, HubError, WeightsError (missing, damaged or incomplete weights),
    UnsupportedModelError (another architecture), OptionError.
    """
    place = resolve_device(device)
    check_dtype(dtype)
    if conversation is not None:
        checked_conversation(conversation)
    folder = locate(model, revision)
    precision = resolve_dtype(dtype, place, folder)
    return load_folder(
        folder,
        place,
        precision,
        os.fspath(model),
        allow_pickle=allow_pickle,
        base=base,
        conversation=conversation,
    )


def locate(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The absolute folder of a model that bridge answers with. Raises as `load_vlm`.

    The config is fetched and judged first, so that no gigabytes of another kind of model are.
    """
    from bridge.store import resolve

    folder = resolve(model, revision=revision, allow_patterns=("config.json",))
    with reading(f"{folder / 'config.json'} cannot be read"):
        _check_architecture(folder)
    return resolve(model, revision=revision).absolute()


def load_folder(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    *,
    allow_pickle: bool = False,
    base: str | os.PathLike[str] | None = None,
    conversation: str | None = None,
) -> BridgeVLM:
    """`load_vlm` once the model is a folder and device and dtype are settled."""
    with reading(f"{folder}: the model cannot load"):
        vlm = _opened(folder, device, dtype, name, allow_pickle, base, conversation)
        if vlm.vision is not None:  # the image processor may be another tower's
            import torch

            from bridge.vlm.preprocess import pixels

            with torch.no_grad():
                vlm.soft_tokens(pixels(vlm.image_processor, [a_picture()]))
    return vlm


def _opened(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    allow_pickle: bool,
    base: str | os.PathLike[str] | None,
    conversation: str | None,
) -> BridgeVLM:
    config = read_json(folder / "config.json")
    if is_original(config):
        from bridge.vlm.checkpoints.original import load_original

        return load_original(
            folder,
            device,
            dtype,
            name,
            allow_pickle=allow_pickle,
            base=base,
            conversation=conversation,
        )
    if allow_pickle or base is not None:
        raise OptionError(
            f"{folder} is not of the original LLaVA's layout; leave allow_pickle and base out"
        )
    if conversation is not None and config["model_type"] not in ("llava", "llava_next"):
        raise OptionError(
            f"{folder} is a {config['model_type']!r} checkpoint; conversation is for LLaVA's, "
            "leave it out"
        )
    refuse_lora(folder)
    if config["model_type"] == MODEL_TYPE:
        return read_own(folder, device, dtype, name)
    image_processor = load_image_processor(folder)
    import transformers

    from bridge.vlm.part_loading import load_part

    with quiet_loading():
        tokenizer = load_words(folder)
        architecture = getattr(transformers, _CLASSES[config["model_type"]])
        stock = load_part(architecture, folder, dtype).to(device).eval()
    if config["model_type"] == "blip-2":
        from bridge.vlm.blip2 import from_blip2

        return from_blip2(stock, tokenizer, image_processor, name=name)
    return from_llava(
        stock,
        tokenizer,
        image_processor,
        chat_template=(
            _chat_template(folder, tokenizer)
            if conversation is None
            else CONVERSATIONS[conversation].template()
        ),
        aspect=_aspect(folder),
        name=name,
    )


def _check_architecture(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UnsupportedModelError(
            f"{folder} has no config.json; give a folder of LlavaForConditionalGeneration"
        )
    found = read_json(config)
    if is_original(found):
        read_settings(found, folder)
        return
    kind = found.get("model_type")
    if kind == MODEL_TYPE:
        check_references(folder)
        return
    if kind not in _CLASSES:
        known = ", ".join(map(repr, _CLASSES))
        raise UnsupportedModelError(
            f"{folder} is a {kind!r} checkpoint; answering needs one of {known}, or the original "
            "LLaVA's layout"
        )
    check_tower(found.get("vision_config", {}).get("model_type"), folder)
    decoder = found.get("text_config", {}).get("model_type")
    if kind == "blip-2" and decoder in ("t5", "mt5"):
        from bridge.vlm.blip2 import refusal

        raise UnsupportedModelError(refusal(folder, decoder))


def _aspect(folder: Path) -> ImageAspect:
    """What a LLaVA 1.5 folder's processor does with pictures that are not square."""
    settings = processor_settings(folder)
    if processor_kind(settings) == "LlavaImageProcessor" and settings.get("do_pad"):
        return OneView(mean_colour(settings["image_mean"]))
    return SQUARE


def _chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The folder's chat template: the tokenizer's, or an older processor's own file."""
    template = tokenizer.chat_template
    if isinstance(template, str):
        return template
    legacy = folder / "chat_template.json"
    if legacy.is_file():
        found = read_json(legacy).get("chat_template")
        if isinstance(found, str):
            return found
    return None
