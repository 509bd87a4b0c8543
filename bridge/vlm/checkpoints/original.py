"""A checkpoint of the original LLaVA, wherever its parts lie: its tensors, and as a BridgeVLM.

A whole checkpoint has all tensors in one folder (liuhaotian/llava-v1.5-7b, llava-v1.6-...).
Others leave the frozen tower where `mm_vision_tower` says, or hold nothing but
`mm_projector.bin` (the outcome of LLaVA's first stage) and need a ``base`` language model.

Pickle is read only where the caller asks for it, and then with torch's ``weights_only``, which
builds tensors and nothing else.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.model_folder import check_folder, check_sizes, shards
from bridge.runtime import quiet_loading
from bridge.store import resolve
from bridge.towers.image_processor import processor_settings, tried_on_a_picture
from bridge.towers.tensors import load_pickle, read_tensors
from bridge.vlm.chat import CHAT_TEMPLATE, IMAGE_TOKEN
from bridge.vlm.checkpoints.llava_layout import (
    CONVERSATION,
    LLM_CLASSES,
    NEWLINE,
    NOTED_TEMPLATE,
    PROJECTOR,
    TOWER,
    LlavaSettings,
    is_computed,
    is_original,
    projector_name,
    read_settings,
    tower_name,
)
from bridge.vlm.checkpoints.tokenizer import tokenizer_with_image
from bridge.vlm.conversations import CONVERSATIONS, ConversationName, conversation_of
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import build_projector
from bridge.vlm.validation import check_generation
from bridge.vlm.views import SQUARE, AnyRes, ImageAspect, OneView, mean_colour, pil_clip_processor

TOWER_FOLDER = "vision_tower"


@dataclass(frozen=True)
class OriginalCheckpoint:
    """A checkpoint of LLaVA's layout: its settings, and where its files are."""

    folder: Path
    llm: Path  # the folder of tokenizer and language model: ``folder`` itself, or the base
    settings: LlavaSettings
    vision: dict[str, Any]  # the tower's config
    allow_pickle: bool
    config: dict[str, Any]  # config.json as it is

    def conversation(self, name: str) -> ConversationName | None:
        """What the checkpoint is asked in: what `bridge convert` noted, else what LLaVA takes for
        the ``name`` that it was asked for by; None where a template was noted that is neither."""
        noted = self.config.get(CONVERSATION)
        if noted in CONVERSATIONS:
            return cast(ConversationName, noted)
        return None if self._noted_template else conversation_of(name, self.config)

    def chat_template(self, conversation: ConversationName | None, mark: str = IMAGE_TOKEN) -> str:
        """That of ``conversation``, or for None what `bridge convert` noted."""
        if conversation is None:
            return self._noted_template or CHAT_TEMPLATE
        return CONVERSATIONS[conversation].template(mark)

    @property
    def _noted_template(self) -> str | None:
        found = self.config.get(NOTED_TEMPLATE)
        return found if isinstance(found, str) else None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors by LLaVA's full names, as stored. Raises WeightsError."""
        seen = set()
        for file in model_files(self.llm, allow_pickle=self.allow_pickle):
            for name, tensor in read_file(file):
                if not is_computed(name):
                    seen.add(name)
                    yield name, tensor
        if not any(name.startswith(PROJECTOR) for name in seen):
            yield from self._projector()
        if not any(name.startswith(TOWER) for name in seen):
            yield from self._tower()

    def preprocessor(self) -> dict[str, Any]:
        """The settings of the tower's image processor, CLIP's."""
        own = self.folder / TOWER_FOLDER
        if (own / "preprocessor_config.json").is_file():
            return processor_settings(own)
        return processor_settings(tower_folder(self.folder, self.settings.tower))

    def _projector(self) -> Iterator[tuple[str, torch.Tensor]]:
        file = projector_file(self.folder, allow_pickle=self.allow_pickle)
        if file is not None:
            for name, tensor in read_file(file):
                if "mm_projector." in name:
                    yield projector_name(name), tensor

    def _tower(self) -> Iterator[tuple[str, torch.Tensor]]:
        place = tower_folder(self.folder, self.settings.tower, weights=True)
        files = model_files(place, allow_pickle=self.allow_pickle)
        if not files:
            raise WeightsError(
                f"{place} has no weights of the vision tower {self.settings.tower!r}, neither "
                f"model.safetensors nor pytorch_model.bin; {NO_PICKLE_OF_HUBS}"
            )
        for file in files:
            for name, tensor in read_file(file):
                full = tower_name(name)
                if full is not None and not is_computed(full):
                    yield full, tensor


def open_original(
    folder: Path, *, allow_pickle: bool = False, base: str | os.PathLike[str] | None = None
) -> OriginalCheckpoint:
    """Read the configs and look for the files; no tensor is read.

    ``base`` is the language model (a folder or hub id) of a folder that has only a projector.
    Raises UnsupportedModelError, WeightsError, OptionError, and what `bridge.store.resolve` does.
    """
    config = read_json(folder / "config.json")
    settings = read_settings(config, folder)
    refuse_lora(folder)
    llm = folder
    if base is not None:
        llm = resolve(base).absolute()
        base_config = read_json(llm / "config.json")
        if is_original(base_config) or base_config.get("model_type") != settings.llm:
            raise OptionError(
                f"base {os.fspath(base)!r} is a {base_config.get('model_type')!r} checkpoint; "
                f"{folder} needs a plain {settings.llm!r} language model"
            )
    if not model_files(llm, allow_pickle=allow_pickle):
        hint = config.get("_name_or_path") or "the one it was trained on"
        raise WeightsError(
            f"{llm} has no language model, neither model.safetensors nor pytorch_model.bin"
            + ("" if base else f"; give its folder as base ({hint})")
            + f"; {NO_PICKLE_OF_HUBS}"
        )
    if base is not None and projector_file(folder, allow_pickle=allow_pickle) is None:
        raise WeightsError(
            f"{folder} has no mm_projector.bin or mm_projector.safetensors; {NO_PICKLE_OF_HUBS}"
        )
    return OriginalCheckpoint(
        folder, llm, settings, _vision_config(folder, settings.tower), allow_pickle, config
    )


# What a run of LoRA leaves beside or in place of whole weights, in any layout.
_LORA = ("adapter_config.json", "adapter_model.*", "non_lora_trainables.*")


def refuse_lora(folder: Path) -> None:
    """Raises UnsupportedModelError for a folder with weights that have to be merged first, which
    would not be read."""
    found = sorted(file.name for name in _LORA for file in folder.glob(name))
    if found:
        raise UnsupportedModelError(
            f"{folder} has {' and '.join(found)}: a LoRA and what was trained beside it, which "
            "bridge does not merge; merge them (LLaVA's scripts/merge_lora_weights.py, or peft's "
            "merge_and_unload) and give the whole model"
        )


def tower_folder(folder: Path, tower: str, *, weights: bool = False) -> Path:
    """The folder that `mm_vision_tower` names: beside the checkpoint, elsewhere, or on the hub."""
    beside = folder / tower
    if beside.is_dir():
        return check_folder(beside)
    return resolve(tower, allow_patterns=None if weights else ("*.json",))


def _vision_config(folder: Path, tower: str) -> dict[str, Any]:
    """The tower's config, from the copy in the checkpoint or from where the tower is."""
    from transformers import CLIPVisionConfig

    own = folder / TOWER_FOLDER / "config.json"
    config = read_json(own if own.is_file() else tower_folder(folder, tower) / "config.json")
    # A CLIP of two sides keeps the settings of this one in an entry of their own.
    found = config.get("vision_config", config)
    return CLIPVisionConfig.from_dict({**found, "model_type": "clip_vision_model"}).to_dict()


Tensors = dict[str, torch.Tensor]


def load_original(
    source: OriginalCheckpoint,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    conversation: ConversationName | None = None,
) -> BridgeVLM:
    """A BridgeVLM of what `open_original` found.

    It is asked in ``conversation`` (see `bridge.vlm.conversations`), or in the one that LLaVA
    takes for ``name``. Raises UnsupportedModelError, WeightsError.
    """
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
    source: OriginalCheckpoint, dtype: torch.dtype
) -> tuple[Tensors, Tensors, Tensors, torch.Tensor | None]:
    """The tensors of language model, tower and projector by their own names, and the newline."""
    llm: Tensors = {}
    vision: Tensors = {}
    projector: Tensors = {}
    newline = None
    for name, tensor in source.tensors():
        cast = tensor.to(dtype)
        if name.startswith(TOWER):
            vision["vision_model." + name.removeprefix(TOWER)] = cast
        elif name.startswith(PROJECTOR):
            projector[name.removeprefix(PROJECTOR)] = cast
        elif name == NEWLINE:
            newline = cast
        else:
            llm[name] = cast
    return llm, vision, projector, newline


def _tower(source: OriginalCheckpoint, tensors: Tensors, dtype: torch.dtype) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**source.vision)
    return _filled(CLIPVisionModel, config, tensors, dtype, f"{source.folder}: the vision tower")


def _llm(source: OriginalCheckpoint, tensors: Tensors, dtype: torch.dtype) -> Any:
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


def _projector(source: OriginalCheckpoint, tensors: Tensors) -> Any:
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
            f"{source.folder}: mm_projector is not a {settings.projector!r} from {width} to "
            f"{settings.text['hidden_size']}: {error}"
        ) from error
    return projector


def _aspect(
    source: OriginalCheckpoint, processor: Any, newline: torch.Tensor | None
) -> ImageAspect:
    settings = source.settings
    if settings.aspect == "pad":
        return OneView(mean_colour(processor.image_mean))
    if settings.aspect == "square":
        return SQUARE
    if newline is None:
        raise WeightsError(f"{source.folder}: {NEWLINE} is missing, which anyres needs")
    tile = int(source.vision["image_size"])
    parameter = torch.nn.Parameter(newline, requires_grad=False)
    return AnyRes(settings.pinpoints, tile, parameter, int(processor.resample))


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """What CLIP's processor takes of its saved settings."""
    names = (
        "size", "crop_size", "do_resize", "do_center_crop", "do_rescale", "rescale_factor",
        "do_normalize", "image_mean", "image_std", "resample", "do_convert_rgb",
    )  # fmt: skip
    return {key: settings[key] for key in names if settings.get(key) is not None}


NO_PICKLE_OF_HUBS = (
    "pickle (.bin) is never fetched from a hub; if it is kept there, download it yourself with "
    "`hf download OWNER/NAME --local-dir FOLDER` and give that folder with allow_pickle=True"
)


def model_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The weight files of a folder: safetensors, else pickle if allowed; none is no error.

    Raises WeightsError when there is only pickle and it is not allowed, or not there.
    """
    for index, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        found: list[Path] = []
        if (folder / index).is_file():
            found = sorted(set(_indexed(folder / index)))
        elif (folder / single).is_file():
            found = [folder / single]
        if found:
            checked_pickle(found, allow_pickle)
            return found
    return []


def _indexed(index: Path) -> Collection[Path]:
    """The files that an index names, of either kind. Raises WeightsError."""
    if index.name.endswith(".safetensors.index.json"):
        return shards(index).values()
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
        raise WeightsError(
            f"{index}: weight_map is not a JSON object of file names; fetch it again."
        )
    return [index.parent / name for name in named.values()]


def projector_file(folder: Path, *, allow_pickle: bool = False) -> Path | None:
    """`mm_projector.safetensors` or, if allowed, LLaVA's `mm_projector.bin`. Raises as above."""
    for name in ("mm_projector.safetensors", "mm_projector.bin"):
        if (folder / name).is_file():
            checked_pickle([folder / name], allow_pickle)
            return folder / name
    return None


def checked_pickle(files: list[Path], allow_pickle: bool) -> None:
    pickled = [file for file in files if file.suffix == ".bin"]
    # An index of a hub's pickles is fetched, being JSON.
    missing = [file for file in pickled if not file.is_file()]
    if missing:
        raise WeightsError(f"{missing[0]} is missing: {NO_PICKLE_OF_HUBS}")
    if pickled and not allow_pickle:
        raise WeightsError(
            f"{pickled[0]} is a pickle file, a format that can carry programs; if you trust where "
            "it came from, pass allow_pickle=True (bridge convert --allow-pickle): its tensors "
            "are then read, and nothing in it is run"
        )


def read_file(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of one file of either kind, on the CPU, as stored. Raises WeightsError."""
    if file.suffix != ".bin":
        yield from read_tensors(file)
        return
    # The older form of torch.save is not a zip and cannot be mapped.
    found = load_pickle(file, mmap=zipfile.is_zipfile(file))
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise WeightsError(f"{file} holds something other than named tensors")
    yield from found.items()
