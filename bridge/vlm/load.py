"""Models from files: a whole VLM, its tower or its language model, by name, folder or hub id.

Four layouts of a VLM: transformers' LLaVA and BLIP-2 (`bridge.vlm.hf_models`), the original LLaVA
(`bridge.vlm.checkpoints`), and bridge's own, for pairings that the others cannot say:

config.json                  {"model_type": "bridge_vlm", ...}: how the parts are joined
vision/, llm/                each as its own save_pretrained writes it
projector/                   as `save_projector` writes it
tokenizer*, preprocessor_config.json

A part may be referred to instead: "vision" and "llm" of config.json are then names that
`load_vision` and `load_llm` open. With the language model goes its tokenizer, and the folder has

lora/                        as `save_lora` writes it, where the language model has a LoRA
config.json                  "lora" (whether it has), "chat_template", "image_token_id"
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from bridge.checks import keywords
from bridge.embedded import ANSWERING
from bridge.errors import MissingDependencyError, OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.model_folder import check_described, files_size
from bridge.runtime import Dtype, check_dtype, quiet_loading, resolve_device, resolve_dtype
from bridge.store import resolve
from bridge.towers import reading
from bridge.towers.checkpoint import read_config
from bridge.towers.image_processor import (
    a_picture,
    load_image_processor,
    processor_kind,
    processor_settings,
)
from bridge.towers.registry import find_row
from bridge.towers.tokenizer import load_words
from bridge.vlm.chat import IMAGE_TOKEN
from bridge.vlm.checkpoints.llava_layout import is_original, read_settings
from bridge.vlm.checkpoints.original import load_original, open_original, refuse_lora
from bridge.vlm.checkpoints.tokenizer import chat_template_of
from bridge.vlm.conversations import CONVERSATIONS, ConversationName, checked_conversation
from bridge.vlm.hf_models import blip2_refusal, check_tower, from_blip2, from_llava
from bridge.vlm.lora import load_lora
from bridge.vlm.model import BridgeVLM
from bridge.vlm.packaged import PACKAGED, packaged_folder
from bridge.vlm.pairing import image_tower, with_image_token
from bridge.vlm.projectors import load_projector
from bridge.vlm.validation import check_generation
from bridge.vlm.views import SQUARE, ImageAspect, OneView, mean_colour, pixels

MODEL_TYPE = "bridge_vlm"
# transformers' layouts: the config's model_type, and the class it loads in.
_CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
}
# Whole VLMs, whose parts may be taken out.
_VLMS = ("llava", "llava_next", MODEL_TYPE)
# Folders that refer to folders that refer ...
_DEEPEST = 4
# How much of transformers' own words an error repeats.
_REPEATED = 300
_WANTED = {
    "AutoModel": "loads towers; give a vision tower, such as 'clip-l' or 'siglip-b'",
    "AutoModelForCausalLM": "loads language models; give one, such as 'gemma-270m'",
}


# -- a whole VLM --------------------------------------------------------------------------


@keywords
def load_vlm(
    model: str | os.PathLike[str] = ANSWERING,
    *,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    base: str | os.PathLike[str] | None = None,
    conversation: ConversationName | None = None,
) -> BridgeVLM:
    """Load a checkpoint of LLaVA 1.5, LLaVA 1.6 or BLIP-2, or what `save_vlm` wrote.

    Layouts: transformers' (`LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration`,
    `Blip2ForConditionalGeneration` with OPT), and the original of haotian-liu/LLaVA.

    Args:
        model: an embedded name, a folder or a hub id.
        device: by default CUDA if there is one.
        dtype: by default fp32 for small models and on a CPU, else half precision.
        revision: of a hub id: a branch, a tag or a commit.
        allow_pickle: for the original layout alone: read the ``.bin`` files (tensors only, nothing
            in them is run) of a folder. Of a hub none are fetched (`hf download` gets them).
        base: for the original layout alone: the language model, a folder or hub id, of a folder
            that holds only `mm_projector.bin`.
        conversation: what a LLaVA is asked in, by LLaVA's name for it, such as "llava_v1" (see
            `bridge.vlm.CONVERSATIONS`). Without it, an original folder is asked in the one that
            LLaVA takes for its name, and all else by the chat template of the checkpoint.

    Returns:
        The model, in evaluation mode.

    Raises:
        UnknownModelError, HubError: no such model, or it cannot be fetched.
        WeightsError: missing, damaged or incomplete weights.
        UnsupportedModelError: another architecture.
        OptionError: an option that has no meaning for this checkpoint.
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
    conversation: ConversationName | None = None,
) -> BridgeVLM:
    """`load_vlm` once the model is a folder and device and dtype are settled."""
    with reading(f"{folder}: the model cannot load"):
        config = read_json(folder / "config.json")
        if is_original(config):
            source = open_original(folder, allow_pickle=allow_pickle, base=base)
            vlm = load_original(source, device, dtype, name, conversation)
        else:
            if allow_pickle or base is not None:
                raise OptionError(
                    f"{folder} is not of the original LLaVA's layout; leave allow_pickle and base "
                    "out"
                )
            kind = config["model_type"]
            if conversation is not None and kind not in ("llava", "llava_next"):
                raise OptionError(
                    f"{folder} is a {kind!r} checkpoint; conversation is for LLaVA's, leave it out"
                )
            refuse_lora(folder)
            if kind == MODEL_TYPE:
                vlm = _load_own(folder, config, device, dtype, name)
            else:
                vlm = _load_hf(folder, kind, device, dtype, name, conversation)
        if vlm.vision is not None:  # the image processor may be another tower's
            with torch.no_grad():
                vlm.soft_tokens(pixels(vlm.image_processor, [a_picture()]))
    return vlm


def _load_hf(
    folder: Path,
    kind: str,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    conversation: ConversationName | None,
) -> BridgeVLM:
    """A folder in transformers' layout."""
    import transformers

    processor = load_image_processor(folder)
    with quiet_loading():
        tokenizer = load_words(folder)
        model = load_part(getattr(transformers, _CLASSES[kind]), folder, dtype).to(device).eval()
    if kind == "blip-2":
        return from_blip2(model, tokenizer, processor, name=name)
    if conversation is not None:
        template: str | None = CONVERSATIONS[conversation].template()
    elif isinstance(tokenizer.chat_template, str):
        template = tokenizer.chat_template
    else:
        template = chat_template_of(folder)
    aspect = _aspect(folder)
    return from_llava(model, tokenizer, processor, chat_template=template, aspect=aspect, name=name)


def _aspect(folder: Path) -> ImageAspect:
    """What a LLaVA 1.5 folder's processor does with pictures that are not square."""
    settings = processor_settings(folder)
    if processor_kind(settings) == "LlavaImageProcessor" and settings.get("do_pad"):
        return OneView(mean_colour(settings["image_mean"]))
    return SQUARE


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
        raise UnsupportedModelError(blip2_refusal(folder, decoder))


# -- bridge's own layout ------------------------------------------------------------------


def check_references(folder: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse parts that lead back to the folder that they are parts of, or lead on too far.

    Raises UnsupportedModelError, and what `bridge.store.resolve` does.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        return
    here = folder.resolve()
    if here in above or len(above) > _DEEPEST:
        raise UnsupportedModelError(
            f"{folder} is a part of itself: {' -> '.join(map(str, (*above, here)))}; name another "
            "model as vision or llm in its config.json"
        )
    for part in ("vision", "llm"):
        named = config.get(part)
        if named is None or named in PACKAGED or find_row(str(named)) is not None:
            continue
        inner = resolve(str(named), allow_patterns=("config.json",))
        if (inner / "config.json").is_file():
            check_references(inner, (*above, here))


def _load_own(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype, name: str
) -> BridgeVLM:
    """A folder in bridge's layout. Raises WeightsError, UnsupportedModelError, and for parts that
    are referred to what `load_vision` and `load_llm` raise."""
    layer, pad = config.get("select_layer", -2), config.get("pad_colour")
    image_token = str(config.get("image_token", IMAGE_TOKEN))
    image_processor = load_image_processor(folder)
    projector: Any = load_projector(folder / "projector")
    llm, tokenizer = _language_model(folder, config, device, dtype)
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    if not isinstance(image_id, int):
        raise UnsupportedModelError(f"{folder}: the tokenizer lacks {image_token!r}")
    template = config.get("chat_template", tokenizer.chat_template)
    return BridgeVLM(
        vision=_tower(folder, config, device, dtype),
        projector=projector.to(device, dtype).eval(),
        llm=llm,
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=image_id,
        image_token=image_token,
        select_layer=layer if isinstance(layer, int) else tuple(layer),
        select_feature=config.get("select_feature", "patch"),
        chat_template=template if isinstance(template, str) else None,
        name=name,
        aspect=SQUARE if pad is None else OneView((pad[0], pad[1], pad[2])),
        cut_at_images=config.get("cut_at_images") is True,
    )


def _tower(folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModel

    named = config.get("vision")
    if named is not None:
        return load_vision(str(named), device=device, dtype=dtype)[0]
    with quiet_loading():
        return load_part(AutoModel, folder / "vision", dtype).to(device).eval()


def _language_model(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any]:
    """The language model, its LoRA in place, and its tokenizer, the image token in it."""
    from transformers import AutoModelForCausalLM

    named = config.get("llm")
    if named is None:
        with quiet_loading():
            tokenizer = load_words(folder)
            llm = load_part(AutoModelForCausalLM, folder / "llm", dtype)
        return llm.to(device).eval(), tokenizer
    llm, tokenizer = load_llm(str(named), device=device, dtype=dtype)
    image_token = str(config.get("image_token", IMAGE_TOKEN))
    tokenizer = with_image_token(tokenizer, image_token)
    found, wanted = tokenizer.convert_tokens_to_ids(image_token), config.get("image_token_id")
    if found != wanted:
        raise WeightsError(
            f"{folder} was made for a tokenizer of {named!r} that has {image_token!r} as {wanted}, "
            f"and here it is {found}; get the {named!r} that it was made for"
        )
    # A folder alone says little: it may be left of an earlier model, or be lost. (Configs of
    # before the key had one where there was a LoRA.)
    if config.get("lora", (folder / "lora").is_dir()):
        load_lora(llm, folder / "lora")
    return llm.eval(), tokenizer


# -- one part of a VLM --------------------------------------------------------------------


@keywords
def load_vision(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """The image tower of a checkpoint, and its image processor, or None where it has none.

    Args:
        source: a name of `bridge.towers.towers` whose weights are in transformers' layout, or a
            folder or hub id of a tower (`CLIPVisionModel`, `SiglipVisionModel`, `Dinov2Model` ...),
            of a model with two (`CLIPModel`), or of a VLM.
        device, dtype, revision: as in `load_vlm`.

    Raises:
        UnknownModelError, HubError: the source is not found, or not fetched.
        WeightsError: its files are damaged or do not fit.
        UnsupportedModelError: a model of another kind.
        OptionError: a device or dtype that there is not.
    """
    folder, kind = _part_folder(source, revision)
    if kind in _VLMS:
        vlm = load_vlm(folder, device=device, dtype=dtype)
        return vlm.vision, vlm.image_processor
    place, precision = _where(device, dtype, folder)
    from transformers import AutoModel

    with quiet_loading():
        model = load_part(AutoModel, folder, precision)
    has_processor = any((folder / f"{name}processor_config.json").is_file() for name in ("pre", ""))
    processor = load_image_processor(folder) if has_processor else None
    tower = image_tower(model).to(place).eval()
    if processor is not None:
        with reading(f"{folder}: the tower does not take what its image processor makes"):
            _look(tower, processor)
    return tower, processor


@torch.no_grad()
def _look(tower: Any, processor: Any) -> None:
    """The tower's first look at a picture, for what it may raise."""
    made = processor(images=[a_picture()], return_tensors="pt")
    if set(made) == {"pixel_values"}:  # towers of free shapes take more, each by other names
        tower(made["pixel_values"].to(next(tower.parameters())))


@keywords
def load_llm(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """The causal language model of a checkpoint, or of a VLM, and its tokenizer.

    Args:
        source: a folder or hub id, or a short name of `bridge.vlm.packaged`, such as "gemma-270m".
        device, dtype, revision: as in `load_vlm`.

    Raises:
        MissingDependencyError: the package of a short name is not installed.

    It also raises what `load_vision` raises.
    """
    folder, kind = _part_folder(source, revision)
    if kind in _VLMS:
        vlm = load_vlm(folder, device=device, dtype=dtype)
        return vlm.llm, vlm.tokenizer
    place, precision = _where(device, dtype, folder)
    from transformers import AutoModelForCausalLM

    with quiet_loading():
        llm = load_part(AutoModelForCausalLM, folder, precision)
        tokenizer = load_words(folder)
    return llm.to(place).eval(), tokenizer


def load_part(auto_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One model of a folder, every tensor of it from the folder. Raises WeightsError,
    UnsupportedModelError, MissingDependencyError."""
    with reading(f"{folder}: the weights cannot load"):
        try:
            config = read_config(folder)
            check_described(auto_class, config, folder, files_size(folder))
            model, info = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except ImportError as error:  # a quantised checkpoint's package, mostly bitsandbytes
            why = str(error).strip().split("\n", 1)[0][:_REPEATED]
            raise MissingDependencyError(f"{folder} needs another package: {why}") from error
        except ValueError as error:  # transformers' word for a config of another kind
            # What follows its first line is a list of all classes there are.
            why = str(error).split("\n", 1)[0][:_REPEATED]
            raise UnsupportedModelError(
                f"{folder} is not a model for {auto_class.__name__}, which "
                f"{_WANTED.get(auto_class.__name__, 'it should be')}: {why}"
            ) from error
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise WeightsError(
            f"{folder}: {len(missing)} tensors are missing, such as {missing[0]!r}; "
            "get the complete checkpoint"
        )
    return check_generation(model, folder) if hasattr(model, "generation_config") else model


def _part_folder(source: str | os.PathLike[str], revision: str | None) -> tuple[Path, str]:
    """Folder and model_type."""
    if isinstance(source, str) and source in PACKAGED:
        folder = packaged_folder(source)
        return folder, str(read_json(folder / "config.json").get("model_type"))
    row = find_row(source) if isinstance(source, str) else None
    if row is not None and (row.files or row.pickle):
        raise UnsupportedModelError(
            f"the weights of {row.name!r} ({row.source}) are not in transformers' layout, which a "
            "VLM's parts need; give another, such as 'clip-l' or 'siglip-l', a folder or a hub id"
        )
    named = source if row is None else row.source
    folder = resolve(named, revision=revision).absolute()
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{folder} has no config.json; give a folder of transformers")
    return folder, str(read_json(folder / "config.json").get("model_type"))


def _where(
    device: str | torch.device | None, dtype: Dtype | None, folder: Path
) -> tuple[torch.device, torch.dtype]:
    place = resolve_device(device)
    check_dtype(dtype)
    return place, resolve_dtype(dtype, place, folder)
