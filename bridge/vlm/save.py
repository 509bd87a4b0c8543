"""A BridgeVLM to a folder that `load_vlm` reads: transformers' LLaVA layout where it can say all
that the model is, else bridge's own (`bridge.vlm.own_layout`)."""

from __future__ import annotations

import os
from pathlib import Path

from bridge.errors import UnsupportedModelError
from bridge.files import filled_folder, home_path
from bridge.runtime import quiet_loading
from bridge.vlm.aspect import OneView
from bridge.vlm.model import BridgeVLM
from bridge.vlm.parts import is_quantised


def save_vlm(
    vlm: BridgeVLM,
    folder: str | os.PathLike[str],
    *,
    vision: str | None = None,
    llm: str | None = None,
) -> Path:
    """Write the whole model, in its dtypes, and give the folder.

    ``vision`` and ``llm`` name parts that are not to be copied but referred to, by what
    `load_vision` and `load_llm` open ("clip-l", "gemma-270m"), and must be those; of a
    language model with a LoRA, the LoRA is written. Such a folder is in bridge's own layout.

    A pairing like LLaVA's (CLIP or SigLIP, `mlp2x_gelu`, a decoder of LLaMA's kind) loads with
    stock `LlavaForConditionalGeneration.from_pretrained`; `bridge.vlm.stock.why_not` says of any
    other why it does not. Files appear under their names when all are whole, config.json last; of
    a model that was in ``folder`` before nothing stays that would be read for the new one.
    Raises UnsupportedModelError for a model of text alone, for anyres, and for a LoRA without
    the name of the model that it stands on.
    """
    from bridge.vlm.own_layout import write_own
    from bridge.vlm.stock import why_not, write_stock

    check_can_save(vlm, llm)
    place = home_path(folder)
    with filled_folder(place) as part:
        with quiet_loading():
            if vision is None and llm is None and why_not(vlm) is None:
                write_stock(vlm, part)
            else:
                write_own(vlm, part, vision=vision, llm=llm)
        _put(part, place)
    return place


# What a model saved before, in either layout, in one file or in shards, may have left, and readers
# would take for a part of a new one that has it by another name or not at all.
_TAKEN_FIRST = (
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
)


def _put(part: Path, place: Path) -> None:
    """All files of ``part`` to ``place``, over an earlier model.

    Without its config.json a folder is no model: better that, should this stop halfway, than one
    made of two.
    """
    config = Path("config.json")
    (place / config).unlink(missing_ok=True)
    folders = [part, *(each for each in part.rglob("*") if each.is_dir())]
    for folder in folders:
        target = place / folder.relative_to(part)
        target.mkdir(exist_ok=True)
        for stale in (file for name in _TAKEN_FIRST for file in target.glob(name)):
            stale.unlink()
    new = (file.relative_to(part) for file in part.rglob("*") if file.is_file())
    for file in sorted(new, key=lambda file: file == config):
        (part / file).replace(place / file)


def check_can_save(vlm: BridgeVLM, llm: str | None = None) -> None:
    """Raises UnsupportedModelError for what `save_vlm` cannot write."""
    from bridge.vlm.train.lora import lora_layers

    if vlm.vision is None:
        raise UnsupportedModelError(
            f"{vlm.name} is a language model alone; save it with its own save_pretrained"
        )
    if not hasattr(vlm.vision, "save_pretrained"):
        raise UnsupportedModelError(
            f"{vlm.name} has a {type(vlm.vision).__name__}, a tower that no folder of transformers "
            "holds as it is read here, so it is not saved, or trained; pair a tower of "
            "transformers with its language model by bridge.vlm.pair"
        )
    if not isinstance(vlm.aspect, OneView):
        raise UnsupportedModelError(
            f"{vlm.name} takes pictures in tiles (anyres), which bridge does not save; pair its "
            "tower and language model anew with bridge.vlm.pair"
        )
    parts = {"tower": vlm.vision, "projector": vlm.projector, "language model": vlm.llm}
    for part, module in parts.items():
        if is_quantised(module):
            raise UnsupportedModelError(
                f"{vlm.name}: its {part} is quantised (4 or 8 bits), which bridge does not save; "
                "save the model in whole precision and quantise it when it is loaded"
            )
    if hasattr(vlm.llm, "peft_config") or getattr(vlm.llm, "_hf_peft_config_loaded", False):
        raise UnsupportedModelError(
            f"{vlm.name}: its language model is one of peft, which saves the LoRA alone; merge it "
            "(llm.merge_and_unload()) and pair what that gives with bridge.vlm.pair"
        )
    if llm is None and lora_layers(vlm.llm):
        raise UnsupportedModelError(
            f"{vlm.name}: its language model has a LoRA; merge it with "
            "bridge.vlm.train.lora.take_lora(vlm.llm, merge=True), or save it with the name of the "
            "model that it stands on (save_vlm(..., llm=...))"
        )
