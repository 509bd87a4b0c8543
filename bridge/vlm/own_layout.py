"""bridge's own folder, for pairings that no checkpoint layout of others can say.

config.json                  {"model_type": "bridge_vlm", ...}: how the parts are joined
vision/, llm/                each as its own save_pretrained writes it
projector/                   as `save_projector` writes it
tokenizer*, preprocessor_config.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.runtime import quiet_loading
from bridge.towers.image_processor import load_image_processor
from bridge.vlm.aspect import SQUARE, OneView
from bridge.vlm.chat import IMAGE_TOKEN
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import load_projector, save_projector

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "bridge_vlm"


def write_own(vlm: BridgeVLM, folder: Path) -> None:
    """Every part into ``folder``, which is new."""
    from bridge.vlm.stock import with_template

    vision: Any = vlm.vision
    assert vlm.projector is not None
    vision.save_pretrained(folder / "vision")
    vlm.llm.save_pretrained(folder / "llm")
    save_projector(vlm.projector, folder / "projector")
    with_template(vlm).save_pretrained(folder)
    vlm.image_processor.save_pretrained(folder)
    layer = vlm.select_layer
    config = {
        "model_type": MODEL_TYPE,
        "select_layer": layer if isinstance(layer, int) else list(layer),
        "select_feature": vlm.select_feature,
        "image_token": vlm.image_token,
        "pad_colour": vlm.aspect.pad_colour if isinstance(vlm.aspect, OneView) else None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_own(folder: Path, device: torch.device, dtype: torch.dtype, name: str) -> BridgeVLM:
    """What `write_own` wrote. Raises WeightsError, UnsupportedModelError."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    from bridge.vlm.part_loading import load_part

    config = read_json(folder / "config.json")
    layer, pad = config.get("select_layer", -2), config.get("pad_colour")
    image_token = str(config.get("image_token", IMAGE_TOKEN))
    image_processor = load_image_processor(folder)
    projector: Any = load_projector(folder / "projector")
    with quiet_loading():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(f"{folder}: the tokenizer cannot load: {error}") from error
        vision = load_part(AutoModel, folder / "vision", dtype)
        llm = load_part(AutoModelForCausalLM, folder / "llm", dtype)
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    if not isinstance(image_id, int):
        raise UnsupportedModelError(f"{folder}: the tokenizer lacks {image_token!r}")
    template = tokenizer.chat_template
    return BridgeVLM(
        vision=vision.to(device).eval(),
        projector=projector.to(device, dtype).eval(),
        llm=llm.to(device).eval(),
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=image_id,
        image_token=image_token,
        select_layer=layer if isinstance(layer, int) else tuple(layer),
        select_feature=config.get("select_feature", "patch"),
        chat_template=template if isinstance(template, str) else None,
        name=name,
        aspect=SQUARE if pad is None else OneView((pad[0], pad[1], pad[2])),
    )
