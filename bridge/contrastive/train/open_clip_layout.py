"""A CLIP in open_clip's layout, which its `create_model_and_transforms("local-dir:...")` opens.

The inverse of what `bridge.towers.open_clip` reads: query, key and value in one tensor, projections
for ``x @ w``, names of Sequential blocks. A model that came in this layout goes back into it by the
config that it came with: its image side has open_clip's names all along.
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
from bridge.files import filled_folder, home_path, read_json
from bridge.runtime import quiet_loading
from bridge.towers.captioner import CoCaDecoder, load_decoder
from bridge.towers.family import Scoring
from bridge.towers.image_processor import OpenClipPictures
from bridge.towers.open_clip_config import CONFIG, read_files
from bridge.towers.open_clip_modules import ResNet, TextTransformer, VisionTransformer
from bridge.towers.timm_images import TimmImage

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
_FAMILIES = ("open_clip", "open_clip_words", "coca")
_OWN = (TextTransformer, VisionTransformer, ResNet, TimmImage)


@keywords
def save_open_clip(
    clip: CLIP,
    folder: str | os.PathLike[str],
    scoring: Scoring | None = None,
    decoder: CoCaDecoder | None = None,
) -> Path:
    """Write a CLIP as open_clip does, with its tokenizer, and give the folder.

    Args:
        clip: of transformers' classes, or opened from a folder in this layout.
        folder: new, or that of an earlier model.
        scoring: the learnt scale and bias, where they are not the CLIP's own.
        decoder: of a CoCa, where it is not the one that it was opened with.

    Raises:
        UnsupportedModelError: what the layout has no words for; the message names it.
    """
    config = check_layout(clip)
    told = clip.scoring if scoring is None else scoring
    _tell_scoring(config["model_cfg"], told)
    state = _state(clip, config["model_cfg"], told)
    if config["model_cfg"].get("multimodal_cfg"):
        own = own_decoder(clip) if decoder is None else decoder
        state |= {f"text_decoder.{name}": each for name, each in own.state_dict().items()}
    state = {name: each.detach().cpu().contiguous().clone() for name, each in state.items()}
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
    if came_in_layout(clip):
        return _as_it_came(clip)
    return {"model_cfg": _model(clip), "preprocess_cfg": _preprocess(clip)}


def came_in_layout(clip: CLIP) -> bool:
    """Whether both sides were opened from one folder in open_clip's layout."""
    text, image = clip.text, clip.image
    one = text.spec.source == image.spec.source and text.family == image.family
    return one and text.family in _FAMILIES and isinstance(image.module, _OWN)


def _as_it_came(clip: CLIP) -> dict[str, Any]:
    source = Path(clip.image.spec.source)
    if not (source / CONFIG).is_file():
        raise _refused(clip, f"{source} has no {CONFIG} to go with it; write one, as open_clip has")
    config = read_json(source / CONFIG)
    told = config["model_cfg"].get("text_cfg") or {}
    if told.get("proj_type") == "none" and not isinstance(clip.text.module, TextTransformer):
        raise _refused(clip, "its texts have no projection, and one would be learnt")
    return {"model_cfg": config["model_cfg"], "preprocess_cfg": config.get("preprocess_cfg") or {}}


def _tell_scoring(model: dict[str, Any], scoring: Scoring | None) -> None:
    """open_clip makes a bias where ``init_logit_bias`` is said, and asks for it then."""
    if scoring is not None and scoring.sigmoid:
        model.setdefault("init_logit_bias", scoring.bias)
    else:
        model.pop("init_logit_bias", None)


def own_decoder(clip: CLIP) -> CoCaDecoder:
    """The decoder in the folder that a CoCa was opened from, in the dtype of its towers.

    Raises UnsupportedModelError for another model.
    """
    if clip.image.family != "coca" or not came_in_layout(clip):
        raise UnsupportedModelError(
            f"{clip.name} ({clip.image.family}) writes no captions, so it cannot learn to by "
            "loss='coca'; train a CoCa in open_clip's layout, such as 'coca-l'"
        )
    dtype = next(clip.image.module.parameters()).dtype
    files = read_files(Path(clip.image.spec.source), False, "text_cfg", "vision_cfg")
    return load_decoder(files, dtype, clip.device)


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


def _state(clip: CLIP, model: Mapping[str, Any], scoring: Scoring | None) -> dict[str, Tensor]:
    """Both towers' tensors by open_clip's names, its scale and its bias."""
    made: dict[str, Tensor] = {}
    for module, side, names in (
        (clip.text.module, "text_model", _TEXT),
        (clip.image.module, "vision_model", _IMAGE),
    ):
        if isinstance(module, _OWN):
            # CLIP's text side has no name of its own there, unlike that of a CoCa or a custom one.
            custom = bool(model.get("custom_text") or model.get("multimodal_cfg"))
            start = "visual." if side == "vision_model" else "text." if custom else ""
            made |= {start + name: tensor for name, tensor in module.state_dict().items()}
            continue
        state = {
            name if name.startswith((side, "text_p", "visual_p")) else f"{side}.{name}": tensor
            for name, tensor in module.state_dict().items()
        }
        made |= _renamed(state, names)
    if scoring is not None:
        shape = (1,) if model.get("nonscalar_logit_scale") else ()
        scale = torch.tensor(scoring.scale, dtype=torch.float32).log()
        made["logit_scale"] = scale.reshape(shape)
        if scoring.sigmoid:
            made["logit_bias"] = torch.tensor(scoring.bias, dtype=torch.float32).reshape(shape)
    return made


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
