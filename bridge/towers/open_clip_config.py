"""A folder in open_clip's or OpenAI's layout: its tensors, and what its config says of each side.

A ``model_cfg`` without a field has open_clip's default for it, whatever the tensors' widths
suggest; files without a config (OpenAI's, Long-CLIP's, LAION's XLM-RoBERTa models) go by the
widths. Each side is judged by its own half. A field that open_clip 3.3 does not have, and a value
that it cannot run, is refused by name.
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

# The fields of open_clip 3.3: at the top, of the blocks of both sides, of the text and image side.
# hf_model_config is bridge's own; text_arch, global_average_pool and input_patchnorm are of other
# versions.
_TOP = {
    "embed_dim", "text_cfg", "vision_cfg", "multimodal_cfg", "quick_gelu", "custom_text",
    "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "cast_dtype", "output_dict",
}  # fmt: skip
_EXTRAS = ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
_BLOCKS = {
    "width", "layers", "mlp_ratio", "ls_init_value", "block_type", "scaled_cosine_attn", *_EXTRAS,
    "final_ln_after_pool", "pool_type", "output_tokens", "norm_kwargs", "act_kwargs",
}  # fmt: skip
_KNOWN = {
    "text_cfg": {
        *_BLOCKS,
        "heads", "context_length", "vocab_size", "pad_id", "eos_id", "embed_cls", "no_causal_mask",
        "proj_type", "proj_bias", "text_arch", "hf_tokenizer_name", "tokenizer_mode",
        "tokenizer_kwargs", "hf_model_name", "hf_model_pretrained", "hf_model_config",
        "hf_proj_type", "hf_pooler_type",
    },
    "vision_cfg": {
        *_BLOCKS,
        "head_width", "patch_size", "image_size", "patch_dropout", "no_ln_pre", "pos_embed_type",
        "attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "global_average_pool",
        "input_patchnorm", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj",
        "timm_proj_bias", "timm_drop", "timm_drop_path",
    },
}  # fmt: skip
# What bridge reads of fields that can ask for more. scaled_cosine_attn and pool_type "none" are in
# open_clip's code, where the one cannot run and the other gives no pooled state.
_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "text_cfg": {
        "scaled_cosine_attn": (False,),
        "block_type": ("default", "custom"),
        "pool_type": ("argmax", "eos", "first", "last"),
        "proj_type": ("linear", "none"),
        "text_arch": ("clip",),
    },
    "vision_cfg": {
        "scaled_cosine_attn": (False,),
        "block_type": ("default", "custom"),
        "pool_type": ("tok", "avg"),
        "pos_embed_type": ("learnable", "sin_cos_2d"),
        "attentional_pool": (False, True),
        "global_average_pool": (False,),
        "input_patchnorm": (False,),
        "timm_proj": ("linear", "mlp", "none", ""),
    },
}
# open_clip's ways to clean a text; CLIP's tokenizer of transformers has small letters always.
_CLEANS = ("lower", "canonicalize")
_FOREIGN_CLEANS = ("whitespace", *_CLEANS)
_HEADS, _HEAD_WIDTH, IMAGE_SIZE = 8, 64, 224
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


def read_files(folder: Path, allow_pickle: bool, *sides: str) -> OpenClipFiles:
    """Read a folder, for its ``text_cfg``, its ``vision_cfg`` or both.

    Raises WeightsError, and UnsupportedModelError for what a config asks for and bridge lacks.
    """
    config = _config(folder)
    model = _table(config, "model_cfg", folder)
    check_model(model, str(folder / CONFIG), *sides)
    state = read_state(folder, WEIGHTS, allow_pickle)
    return OpenClipFiles(folder, state, model, _table(config, "preprocess_cfg", folder))


def check_model(model: Model, where: str, *sides: str) -> None:
    """Raises UnsupportedModelError for what bridge does not read of the ``sides``, WeightsError for
    a damaged config."""
    _check_known(model, _TOP, "model_cfg", where)
    for side in sides:
        told = side_of(model, side)
        _check_known(told, _KNOWN[side], side, where)
        if has_foreign_text(model) and side == "text_cfg":
            continue  # which open_clip reads no other field for
        for name, values in _VALUES[side].items():
            value = told.get(name)
            if value is not None and not _is_one_of(value, values):
                raise UnsupportedModelError(
                    f"{where} asks for {side}.{name}={value!r}; bridge reads "
                    f"{', '.join(map(repr, values))}"
                )
        _check_arguments(model, side, where)
    if "text_cfg" in sides:
        _check_words(model, where)


def _check_known(told: Model, known: set[str], what: str, where: str) -> None:
    for name, value in told.items():
        if name not in known:
            raise UnsupportedModelError(
                f"{where} has {what}.{name}={value!r}, which open_clip 3.3 does not know, and "
                "neither does bridge; if the weights do not need it, take it out of a copy"
            )


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is among these; 1 is not True."""
    return any(type(value) is type(each) and value == each for each in values)


def has_foreign_text(model: Model) -> bool:
    """Whether its text tower is one of transformers."""
    return bool(side_of(model, "text_cfg").get("hf_model_name"))


def has_foreign_words(model: Model) -> bool:
    """Whether its tokenizer is one of transformers, beside a text tower of open_clip's own."""
    return bool(side_of(model, "text_cfg").get("hf_tokenizer_name"))


def side_of(model: Model, side: str) -> Mapping[str, Any]:
    """``text_cfg`` or ``vision_cfg``, {} where there is none. Raises WeightsError."""
    told = model.get(side) or {}
    if not isinstance(told, Mapping):
        raise WeightsError(f"model_cfg.{side} of an open_clip config is {told!r}, not a table")
    return told


def _check_words(model: Model, where: str) -> None:
    """Refuse a way to clean a text that open_clip does not have, and other arguments."""
    told = side_of(model, "text_cfg")
    foreign = has_foreign_text(model) or has_foreign_words(model)
    ways = _FOREIGN_CLEANS if foreign else _CLEANS
    for name, value in _words(model).items():
        fits = name == "clean" and value in ways
        if foreign:
            fits = fits or (name == "strip_sep_token" and isinstance(value, bool))
        if value and not fits:
            raise UnsupportedModelError(
                f"{where} asks for text_cfg.tokenizer_kwargs.{name}={value!r}, and bridge reads "
                f"clean with one of {', '.join(ways)}"
                + (", and strip_sep_token" if foreign else "")
            )
    if told.get("tokenizer_mode"):
        raise UnsupportedModelError(
            f"{where} asks for text_cfg.tokenizer_mode={told['tokenizer_mode']!r}; bridge reads "
            "open_clip's usual one"
        )


def _words(model: Model) -> Mapping[str, Any]:
    """What a config says of its tokenizer."""
    told = side_of(model, "text_cfg").get("tokenizer_kwargs") or {}
    if not isinstance(told, Mapping):
        raise WeightsError(
            f"text_cfg.tokenizer_kwargs of an open_clip config is {told!r}, no table"
        )
    return told


def reading_of_texts(model: Model) -> dict[str, Any]:
    """What a config says of how texts are read, by the fields of `tokenizer.TokenRule`."""
    told = _words(model)
    said = {"clean": told["clean"]} if told.get("clean") else {}
    return {**said, "strip_sep": True} if told.get("strip_sep_token") else said


def _check_arguments(model: Model, side: str, where: str) -> None:
    told = side_of(model, side)
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
        return divided("heads", width // _HEAD_WIDTH, width)
    return divided("text_cfg.heads", whole_of(model, "text_cfg", "heads", _HEADS, 1), width)


def vision_heads(model: Model, width: int) -> int:
    """Heads of the image tower: as many of ``head_width`` as its states have room for."""
    if not model:
        return divided("heads", width // _HEAD_WIDTHS.get(width, _HEAD_WIDTH), width)
    each = whole_of(model, "vision_cfg", "head_width", _HEAD_WIDTH, 1)
    return divided("width // vision_cfg.head_width", width // each, width)


def image_size(model: Model, grid: int, patch: int) -> int:
    """The side of the pictures that a square ``grid`` of patches comes from.

    One that ``patch`` does not divide loses its last rows and columns. Raises WeightsError where
    the config and the tensors have another grid, UnsupportedModelError for oblong pictures.
    """
    size = told_size(model)
    if size is None:
        return IMAGE_SIZE if model and IMAGE_SIZE // patch == grid else grid * patch
    if size // patch != grid:
        raise WeightsError(
            f"vision_cfg.image_size is {size}, and the tensors are of {grid} x {grid} patches "
            f"of {patch} pixels"
        )
    return size


def told_size(model: Model) -> int | None:
    """The side of the pictures as a config says it. Raises WeightsError, UnsupportedModelError."""
    told = side_of(model, "vision_cfg").get("image_size")
    if told is None:
        return None
    sides = list(told) if isinstance(told, list | tuple) else [told]
    if len(set(map(str, sides))) > 1:
        raise UnsupportedModelError(
            f"vision_cfg.image_size is {told!r}; bridge reads towers of square pictures"
        )
    if not sides or not is_whole(sides[0], 1):
        raise WeightsError(f"vision_cfg.image_size is {told!r}; it must be a whole number above 0")
    return int(sides[0])


def epsilon(model: Model, side: str) -> float:
    """What the norms of a side add to the variance."""
    return float((side_of(model, side).get("norm_kwargs") or {}).get("eps", _EPSILON))


def activation(model: Model, side: str, quick: bool) -> str:
    """transformers' name of a side's activation."""
    if quick:
        return "quick_gelu"
    told = (side_of(model, side).get("act_kwargs") or {}).get("approximate")
    return "gelu_pytorch_tanh" if told == "tanh" else "gelu"


def extras(model: Model, side: str) -> tuple[str, ...]:
    """The further norms and scales of a side's blocks, by open_clip's names; plain blocks that are
    asked for by name have none, whatever else is said."""
    told = side_of(model, side)
    plain = told.get("block_type") == "default"
    return () if plain else tuple(name for name in _EXTRAS if told.get(name))


def check_layers(model: Model, side: str, found: int) -> int:
    """How many blocks there are. Raises WeightsError where the config says otherwise."""
    told = side_of(model, side).get("layers")
    if found < 1 or (told is not None and told != found):
        raise WeightsError(
            f"{side}.layers is {told!r}, and there are {found} blocks among the tensors"
        )
    return found


def whole_of(model: Model, side: str, name: str, default: int, least: int = 0) -> int:
    """A field that is a whole number. Raises WeightsError for anything else."""
    value = side_of(model, side).get(name, default)
    if not is_whole(value, least):
        raise WeightsError(f"{side}.{name} is {value!r}; it must be a whole number from {least} on")
    return value


def divided(name: str, heads: int, width: int) -> int:
    """``heads``, which divide ``width``. Raises WeightsError."""
    if heads < 1 or width % heads:
        raise WeightsError(
            f"{name} is {heads}, which does not divide states {width} wide; the config does not "
            "fit the tensors"
        )
    return heads
