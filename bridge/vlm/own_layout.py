"""bridge's own folder, for pairings that no checkpoint layout of others can say.

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

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.runtime import quiet_loading
from bridge.towers.image_processor import load_image_processor
from bridge.towers.tokenizer import load_words
from bridge.vlm.aspect import SQUARE, OneView
from bridge.vlm.chat import IMAGE_TOKEN
from bridge.vlm.checkpoints.text_files import keep_rules
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import load_projector, save_projector

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "bridge_vlm"
# Folders that refer to folders that refer ...
_DEEPEST = 4


def write_own(
    vlm: BridgeVLM, folder: Path, *, vision: str | None = None, llm: str | None = None
) -> None:
    """Every part into ``folder``, which is new; but those that ``vision`` and ``llm`` name."""
    from bridge.vlm.lora_files import save_lora
    from bridge.vlm.stock import with_template
    from bridge.vlm.train.lora import lora_layers

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


def check_references(folder: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse parts that lead back to the folder that they are parts of, or lead on too far.

    Raises UnsupportedModelError, and what `bridge.store.resolve` does.
    """
    from bridge.store import resolve
    from bridge.towers.registry import find_row
    from bridge.vlm.packaged import PACKAGED

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


def read_own(folder: Path, device: torch.device, dtype: torch.dtype, name: str) -> BridgeVLM:
    """What `write_own` wrote. Raises WeightsError, UnsupportedModelError, and for parts that are
    referred to what `load_vision` and `load_llm` raise."""
    config = read_json(folder / "config.json")
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

    from bridge.vlm.part_loading import load_part, load_vision

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

    from bridge.vlm.lora_files import load_lora
    from bridge.vlm.pairing import with_image_token
    from bridge.vlm.part_loading import load_llm, load_part

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
