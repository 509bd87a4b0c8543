"""A BridgeVLM to a folder that `load_vlm` reads: transformers' LLaVA layout where it can say all
that the model is, else bridge's own (see `bridge.vlm.load`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bridge.checks import keywords
from bridge.errors import UnsupportedModelError
from bridge.files import filled_folder, home_path
from bridge.runtime import quiet_loading
from bridge.training.lora import lora_layers
from bridge.vlm.checkpoints.tokenizer import keep_rules
from bridge.vlm.hf_models import why_not, with_template, write_hf_llava
from bridge.vlm.load import MODEL_TYPE
from bridge.vlm.lora import save_lora
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import save_projector
from bridge.vlm.validation import is_quantised
from bridge.vlm.views import OneView


@keywords
def save_vlm(
    vlm: BridgeVLM,
    folder: str | os.PathLike[str],
    *,
    vision: str | None = None,
    llm: str | None = None,
) -> Path:
    """Write the whole model, in its dtypes, and give the folder.

    A pairing like LLaVA's (CLIP or SigLIP, `mlp2x_gelu`, a decoder of LLaMA's kind) loads with
    stock `LlavaForConditionalGeneration.from_pretrained`; `bridge.vlm.hf_models.why_not` says of
    any other why it does not. Files appear under their names when all are whole, config.json last;
    of a model that was in ``folder`` before nothing stays that would be read for the new one.

    Args:
        vlm: the model.
        folder: new, or that of an earlier model.
        vision, llm: names of parts that are not to be copied but referred to, by what
            `load_vision` and `load_llm` open ("clip-l", "gemma-270m"), and must be those; of a
            language model with a LoRA, the LoRA is written. Such a folder is in bridge's layout.

    Raises:
        UnsupportedModelError: a model of text alone, anyres, quantised or peft's parts, and a LoRA
            without the name of the model that it stands on.
    """
    check_can_save(vlm, llm)
    place = home_path(folder)
    with filled_folder(place) as part:
        with quiet_loading():
            if vision is None and llm is None and why_not(vlm) is None:
                write_hf_llava(vlm, part)
            else:
                _write_own(vlm, part, vision=vision, llm=llm)
        _put(part, place)
    return place


def _write_own(vlm: BridgeVLM, folder: Path, *, vision: str | None, llm: str | None) -> None:
    """Every part into ``folder``, which is new; but those that ``vision`` and ``llm`` name."""
    tower: Any = vlm.vision
    assert vlm.projector is not None
    tokenizer = with_template(vlm)
    referred: dict[str, Any] = {}
    if vision is None:
        tower.save_pretrained(folder / "vision")
    else:
        referred["vision"] = vision
    if llm is None:
        vlm.llm.save_pretrained(folder / "llm")
        tokenizer.save_pretrained(folder)
        keep_rules(folder)
    else:
        has_lora = bool(lora_layers(vlm.llm))
        if has_lora:
            save_lora(vlm.llm, folder / "lora", llm)
        referred |= {
            "llm": llm,
            "lora": has_lora,
            "image_token_id": vlm.image_token_id,
            "chat_template": tokenizer.chat_template,
        }
    save_projector(vlm.projector, folder / "projector")
    vlm.image_processor.save_pretrained(folder)
    layer = vlm.select_layer
    config = {
        "model_type": MODEL_TYPE,
        "select_layer": layer if isinstance(layer, int) else list(layer),
        "select_feature": vlm.select_feature,
        "image_token": vlm.image_token,
        "cut_at_images": vlm.cut_at_images,
        "pad_colour": vlm.aspect.pad_colour if isinstance(vlm.aspect, OneView) else None,
        **referred,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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

    Without its config.json a folder is not a model: better that, should this stop halfway, than one
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
            "bridge.vlm.lora.take_lora(vlm.llm, merge=True), or save it with the name of the "
            "model that it stands on (save_vlm(..., llm=...))"
        )
