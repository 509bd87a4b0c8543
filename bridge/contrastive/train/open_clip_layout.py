"""A CLIP in open_clip's layout, which its `create_model_and_transforms("local-dir:...")` opens.

The inverse of what `bridge.towers.open_clip` reads: query, key and value in one tensor, projections
for ``x @ w``, names of Sequential blocks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.checks import keywords
from bridge.contrastive.clip import CLIP
from bridge.errors import UnsupportedModelError
from bridge.files import filled_folder, home_path
from bridge.runtime import quiet_loading
from bridge.towers.image_processor import OpenClipPictures
from bridge.towers.open_clip_config import CONFIG

_WEIGHTS = "open_clip_model.safetensors"
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
}
_IMAGE = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
}
_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)")
_FILTERS = {2: "bilinear", 3: "bicubic"}


@keywords
def save_open_clip(clip: CLIP, folder: str | os.PathLike[str]) -> Path:
    """Write a CLIP as open_clip does, with its tokenizer, and give the folder.

    Raises:
        UnsupportedModelError: what the layout has no words for; the message names it.
    """
    config = check_layout(clip)
    state = _state(clip)
    place = home_path(folder)
    with filled_folder(place) as part, quiet_loading():
        from safetensors.torch import save_file

        save_file(state, part / _WEIGHTS, metadata={"format": "pt"})
        clip.text.tokenizer.save_pretrained(part)
        (part / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for path in sorted(part.iterdir(), key=lambda each: each.name == CONFIG):
            path.replace(place / path.name)
    return place


def check_layout(clip: CLIP) -> dict[str, Any]:
    """What is written to ``open_clip_config.json``. Raises UnsupportedModelError, as above."""
    return {"model_cfg": _model(clip), "preprocess_cfg": _preprocess(clip)}


def _refused(clip: CLIP, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{clip.name} cannot be said in open_clip's layout: {why}")


def _model(clip: CLIP) -> dict[str, Any]:
    """``model_cfg``. Raises UnsupportedModelError."""
    if not {clip.text.family, clip.image.family} <= {"clip", "open_clip"}:
        raise _refused(clip, f"it is a {clip.image.family}, with names of its own there")
    text, vision = clip.text.module.config, clip.image.module.config
    acts = {text.hidden_act, vision.hidden_act}
    if acts not in ({"quick_gelu"}, {"gelu"}):
        raise _refused(clip, f"its activations are {', '.join(sorted(acts))}; it has one for both")
    # open_clip pools at the highest id.
    if text.eos_token_id not in (2, text.vocab_size - 1):
        raise _refused(clip, f"texts end with the id {text.eos_token_id}, which is not the highest")
    return {
        "embed_dim": clip.width,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            **_norm(vision),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            # Any name: in a folder of its own, open_clip reads the tokenizer that lies there.
            "hf_tokenizer_name": "tokenizer",
            **_norm(text),
        },
    }


def _norm(side: Any) -> dict[str, Any]:
    return {} if side.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": side.layer_norm_eps}}


def _preprocess(clip: CLIP) -> dict[str, Any]:
    """``preprocess_cfg``. Raises UnsupportedModelError."""
    own = clip.image.processor
    if isinstance(own, OpenClipPictures):
        size, mode, resample = list(own.size), own.mode, own.resample
        mean, std = list(own.mean), list(own.std)
    else:
        told = own.to_dict()
        short, crop = dict(told["size"]), dict(told.get("crop_size") or {})
        side = clip.image.module.config.image_size
        if short.get("shortest_edge") != side or crop != {"height": side, "width": side}:
            raise _refused(clip, f"its pictures are brought to {short} and cut to {crop or 'none'}")
        if not (told.get("do_normalize", True) and told.get("do_rescale", True)):
            raise _refused(clip, "its pixels are not normalised")
        size, mode, resample = [side, side], "shortest", int(told["resample"])
        mean, std = list(told["image_mean"]), list(told["image_std"])
    if resample not in _FILTERS:
        raise _refused(clip, f"its pictures are resized by PIL's filter {resample}")
    return {
        "size": size,
        "mode": "RGB",
        "mean": mean,
        "std": std,
        "interpolation": _FILTERS[resample],
        "resize_mode": mode,
    }


def _state(clip: CLIP) -> dict[str, Tensor]:
    """Both towers' tensors by open_clip's names, and ``logit_scale``."""
    made: dict[str, Tensor] = {}
    for module, side, names in (
        (clip.text.module, "text_model", _TEXT),
        (clip.image.module, "vision_model", _IMAGE),
    ):
        state = {
            name if name.startswith((side, "text_p", "visual_p")) else f"{side}.{name}": tensor
            for name, tensor in module.state_dict().items()
        }
        made |= _renamed(state, names)
    if clip.scoring is not None:
        made["logit_scale"] = torch.tensor(clip.scoring.scale, dtype=torch.float32).log()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in made.items()}


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            for old, new in names.items():
                if name.startswith(old):
                    turned = name.endswith("_projection.weight")
                    made[new + name[len(old) :]] = tensor.T if turned else tensor
            continue
        start = "visual." if layer[1] == "vision" else ""
        start += f"transformer.resblocks.{layer[2]}."
        for old, new in _BLOCK.items():
            if layer[3].startswith(old):
                made[start + new + layer[3][len(old) :]] = tensor
        if layer[3].startswith("self_attn.q_proj."):
            kind = layer[3].rpartition(".")[2]
            thirds = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[f"{start}attn.in_proj_{kind}"] = torch.cat(thirds)
    return made
