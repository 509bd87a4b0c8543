"""A folder in open_clip's or OpenAI's layout: its tensors, and what its config says of each side.

A ``model_cfg`` without a field has open_clip's default for it, whatever the tensors' widths
suggest; files without a config (OpenAI's, Long-CLIP's, LAION's XLM-RoBERTa models) go by the
widths. A field that open_clip has and CLIP's calculation does not, or that open_clip does not have,
is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.checks import is_whole
from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.towers.family import Scoring
from bridge.towers.tensors import read_state

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

Model = Mapping[str, Any]

# Where the calculation is CLIP's: of the blocks of both sides, of the text and of the image side.
_BLOCKS = {
    "ls_init_value": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "final_ln_after_pool": False,
}
_TEXT = {
    "pool_type": "argmax",
    "hf_tokenizer_name": None,
    "tokenizer_mode": None,
    "no_causal_mask": False,
    "proj_bias": False,
    "text_arch": "clip",
}
_IMAGE = {
    "pool_type": "tok",
    "global_average_pool": False,
    "timm_model_name": None,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "input_patchnorm": False,
}
# With what bridge reads, what the tensors tell, and what is of training alone.
_KNOWN = {
    "text_cfg": {
        *_BLOCKS, *_TEXT,
        "width", "layers", "heads", "mlp_ratio", "context_length", "vocab_size", "pad_id", "eos_id",
        "proj_type", "output_tokens", "norm_kwargs", "act_kwargs", "tokenizer_kwargs", "embed_cls",
        "hf_model_name", "hf_model_pretrained", "hf_model_config", "hf_proj_type", "hf_pooler_type",
    },
    "vision_cfg": {
        *_BLOCKS, *_IMAGE,
        "width", "layers", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout",
        "output_tokens", "norm_kwargs", "act_kwargs", "attentional_pool", "attn_pooler_queries",
        "attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias",
        "timm_drop", "timm_drop_path",
    },
}  # fmt: skip
# open_clip's ways to clean a text; CLIP's tokenizer of transformers has small letters always.
_CLEANS = ("lower", "canonicalize")
_FOREIGN_CLEANS = ("whitespace", *_CLEANS)
_HEADS, _HEAD_WIDTH, _IMAGE_SIZE = 8, 64, 224
# Without a config: the widths of a head, of the large vision transformers by their states' width.
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class OpenClipFiles:
    """The tensors by their own names, and ``model_cfg`` of ``open_clip_config.json``.

    ``model`` and ``preprocess`` are empty for OpenAI's and Long-CLIP's files, whose tensors alone
    tell the architecture.
    """

    folder: Path
    state: Mapping[str, Tensor]
    model: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    def activation(self, side: str) -> str:
        """Of "text_cfg" or "vision_cfg", by transformers' name.

        OpenAI's models have quick GELU; open_clip's have GELU unless their config says so. Without
        a config: names that begin with ``text.`` are open_clip's alone.
        """
        own = any(name.startswith("text.") for name in self.state)
        quick = bool(self.model.get("quick_gelu", not self.model and not own))
        return activation(self.model, side, quick)

    def scoring(self) -> Scoring:
        """CLIP's scale, with a bias for those that were trained with a sigmoid."""
        if "logit_scale" not in self.state:
            raise WeightsError(f"{self.folder} has no logit_scale; it is damaged")
        scale = float(self.state["logit_scale"].float().exp())
        if "logit_bias" not in self.state:
            return Scoring(scale)
        return Scoring(scale, float(self.state["logit_bias"].float()), sigmoid=True)


def has_layout(folder: Path) -> bool:
    """Whether the folder is open_clip's or OpenAI's and not (also) transformers'."""
    plain = (folder / "model.safetensors", folder / "model.safetensors.index.json")
    if (folder / "config.json").is_file() and any(file.is_file() for file in plain):
        # timm's config and image tower may lie beside open_clip's files.
        return (folder / CONFIG).is_file() and "model_type" not in read_json(folder / "config.json")
    tensors = (file for end in ("safetensors", "pt", "bin") for file in folder.glob(f"*.{end}"))
    bare = not (folder / "config.json").is_file() and any(True for _ in tensors)
    return (folder / CONFIG).is_file() or bare


def read_model_config(folder: Path) -> dict[str, Any]:
    """``model_cfg`` of ``open_clip_config.json``, {} where there is none. Raises WeightsError."""
    return _table(_config(folder), "model_cfg", folder)


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _table(config: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    told = config.get(name) or {}
    if not isinstance(told, dict):
        raise WeightsError(f"{folder / CONFIG}: {name} is {told!r}, not a table")
    return told


def read_files(folder: Path, allow_pickle: bool) -> OpenClipFiles:
    """Read a folder. Raises WeightsError, and UnsupportedModelError for what is unlike CLIP."""
    config = _config(folder)
    model = _table(config, "model_cfg", folder)
    check_model(model, str(folder / CONFIG))
    state = read_state(folder, WEIGHTS, allow_pickle)
    return OpenClipFiles(folder, state, model, _table(config, "preprocess_cfg", folder))


def check_model(model: Model, where: str) -> None:
    """Raises UnsupportedModelError for what is unlike CLIP, WeightsError for a damaged config."""
    for side, usual in _usual(model).items():
        told = _side(model, side)
        if isinstance(told.get("layers"), list):
            raise UnsupportedModelError(
                f"{where} is of a ResNet, whose pictures bridge does not read"
            )
        for name, value in told.items():
            if not value:
                continue  # null, false and {} all leave it out
            if name not in _KNOWN[side]:
                raise UnsupportedModelError(
                    f"{where} asks for {side}.{name}={value!r}, which bridge does not know of "
                    "open_clip's; give a copy in transformers' layout"
                )
            if value != usual.get(name, value):
                raise UnsupportedModelError(
                    f"{where} asks for {side}.{name}={value!r}, which CLIP does not have; "
                    "in this layout bridge reads plain CLIP. Give a copy in transformers' layout."
                )
    _check_words(model, where)
    for side in ("text_cfg", "vision_cfg"):
        _check_arguments(model, side, where)


def has_foreign_text(model: Model) -> bool:
    """Whether its text tower is one of transformers."""
    return bool(_side(model, "text_cfg").get("hf_model_name"))


def _usual(model: Model) -> dict[str, dict[str, Any]]:
    """Each side's table. CoCa pools by a class token and by queries; a text tower of transformers
    has its own tokenizer and pooler, and open_clip reads no other field for it."""
    coca = "multimodal_cfg" in model
    return {
        "text_cfg": {} if has_foreign_text(model) else {**_BLOCKS, **_TEXT, "embed_cls": coca},
        "vision_cfg": {**_BLOCKS, **_IMAGE, "attentional_pool": coca},
    }


def _side(model: Model, side: str) -> Mapping[str, Any]:
    told = model.get(side) or {}
    if not isinstance(told, Mapping):
        raise WeightsError(f"model_cfg.{side} of an open_clip config is {told!r}, not a table")
    return told


def _check_words(model: Model, where: str) -> None:
    """Refuse a way to clean a text that open_clip does not have, and other arguments."""
    ways = _FOREIGN_CLEANS if has_foreign_text(model) else _CLEANS
    for name, value in _words(model).items():
        if value and (name != "clean" or value not in ways):
            raise UnsupportedModelError(
                f"{where} asks for text_cfg.tokenizer_kwargs.{name}={value!r}, and bridge reads "
                f"clean with one of {', '.join(ways)}; its image tower can be opened by taking "
                "that line out of a copy"
            )


def _words(model: Model) -> Mapping[str, Any]:
    """What a config says of its tokenizer."""
    told = _side(model, "text_cfg").get("tokenizer_kwargs") or {}
    if not isinstance(told, Mapping):
        raise WeightsError(
            f"text_cfg.tokenizer_kwargs of an open_clip config is {told!r}, no table"
        )
    return told


def cleaning(model: Model) -> str | None:
    """How a config says that texts are cleaned, if it does."""
    return _words(model).get("clean") or None


def _check_arguments(model: Model, side: str, where: str) -> None:
    told = _side(model, side)
    known = {"norm_kwargs": ("eps",), "act_kwargs": ("approximate",)}
    for group, names in known.items():
        for name, value in (told.get(group) or {}).items():
            fits = name in names and (name == "eps" or value in ("none", "tanh"))
            if not fits or (group == "act_kwargs" and model.get("quick_gelu")):
                raise UnsupportedModelError(
                    f"{where} asks for {side}.{group}={told[group]!r}; bridge reads eps of the "
                    "norms, and GELU with approximate='tanh'"
                )


def text_heads(model: Model, width: int) -> int:
    """Heads of the text tower."""
    if not model:
        return _divided("heads", width // _HEAD_WIDTH, width)
    return _divided("text_cfg.heads", _whole(model, "text_cfg", "heads", _HEADS), width)


def vision_heads(model: Model, width: int) -> int:
    """Heads of the image tower: as many of ``head_width`` as its states have room for."""
    if not model:
        return _divided("heads", width // _HEAD_WIDTHS.get(width, _HEAD_WIDTH), width)
    each = _whole(model, "vision_cfg", "head_width", _HEAD_WIDTH)
    return _divided("width // vision_cfg.head_width", width // each, width)


def image_size(model: Model, grid: int, patch: int) -> int:
    """The side of the pictures that a square ``grid`` of patches comes from.

    One that ``patch`` does not divide loses its last rows and columns. Raises WeightsError where
    the config and the tensors have another grid, UnsupportedModelError for oblong pictures.
    """
    told = _side(model, "vision_cfg").get("image_size")
    if told is None:
        return _IMAGE_SIZE if model and _IMAGE_SIZE // patch == grid else grid * patch
    sides = list(told) if isinstance(told, list | tuple) else [told]
    if len(set(map(str, sides))) > 1:
        raise UnsupportedModelError(
            f"vision_cfg.image_size is {told!r}; bridge reads towers of square pictures"
        )
    size = sides[0] if sides else None
    if not is_whole(size) or size // patch != grid:
        raise WeightsError(
            f"vision_cfg.image_size is {told!r}, and the tensors are of {grid} x {grid} patches "
            f"of {patch} pixels"
        )
    return size


def epsilon(model: Model, side: str) -> float:
    """What the norms of a side add to the variance."""
    return float((_side(model, side).get("norm_kwargs") or {}).get("eps", _EPSILON))


def activation(model: Model, side: str, quick: bool) -> str:
    """transformers' name of a side's activation."""
    if quick:
        return "quick_gelu"
    told = (_side(model, side).get("act_kwargs") or {}).get("approximate")
    return "gelu_pytorch_tanh" if told == "tanh" else "gelu"


def pad_id(model: Model) -> int:
    """The id that a CoCa's text tower takes for padding."""
    told = _side(model, "text_cfg").get("pad_id", 0)
    if not is_whole(told):
        raise WeightsError(f"text_cfg.pad_id is {told!r}; it must be a whole number")
    return told


def is_projected(model: Model) -> bool:
    """Whether pooled text states go through a matrix of their own."""
    told = _side(model, "text_cfg").get("proj_type", "linear")
    if told not in ("linear", "none"):
        raise UnsupportedModelError(
            f"text_cfg.proj_type is {told!r}; open_clip knows 'linear' and 'none'"
        )
    return bool(told == "linear")


def _whole(model: Model, side: str, name: str, default: int) -> int:
    value = _side(model, side).get(name, default)
    if not is_whole(value, 1):
        raise WeightsError(f"{side}.{name} is {value!r}; it must be a whole number above 0")
    return value


def _divided(name: str, heads: int, width: int) -> int:
    if heads < 1 or width % heads:
        raise WeightsError(
            f"{name} is {heads}, which does not divide states {width} wide; the config does not "
            "fit the tensors"
        )
    return heads
