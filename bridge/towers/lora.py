"""LoRA files: what a low-rank adapter adds to the linear layers of text towers.

Hu et al. 2021, "LoRA": a layer's output ``W x`` becomes ``W x + s * (alpha / r) * B (A x)``, with
A ``(r, in)``, B ``(out, r)`` and s the strength of the call. Where no alpha is stored it is r; what
peft's config says of it lies beside the tensors (``adapter_config.json``) or in their header, as
diffusers keeps it. One pattern reads the keys of all trainers:

=========================  ==================================================================
kohya (SD 1, 2 / SDXL)     ``lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight``;
                           ``lora_te1_...``, ``lora_te2_...``; ``.alpha``
diffusers, of peft         ``text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight``
diffusers, before peft     ``text_encoder....mlp.fc1.lora_linear_layer.down.weight``
diffusers, the oldest      ``text_encoder....self_attn.to_q_lora.down.weight``
peft                       ``base_model.model.text_model.encoder....fc1.lora_A.weight``
=========================  ==================================================================

Facts from diffusers 0.42, ``utils/state_dict_utils.py`` and ``loaders/lora_conversion_utils.py``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import check_given, hash_file, parse_json, read_json
from bridge.towers.family import TowerSpec
from bridge.towers.layer_pattern import LayerPatternError, compile_pattern, is_plain, matches
from bridge.towers.tensors import check_finite, open_tensors

# What peft and diffusers call the file in a folder that is one LoRA.
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
METADATA = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
MOST_EXPRESSIONS = 4_000
"""Characters of all regular expressions of a config; plain names are not counted."""

Role = Literal["down", "up", "alpha"]

_TOWER = r"(?P<tower>lora_te1?_|lora_te2_|text_encoder(?:_2)?\.|)"
_LAYER = (
    r"encoder[._]layers[._](?P<number>[0-9]{1,4})[._](?P<block>self_attn|mlp)[._]"
    r"(?P<linear>[qkv]_proj|out_proj|fc[12]|to_(?:q|k|v|out)_lora)"
)
_ROLE = (
    r"(?P<down>lora_down\.weight|lora_A\.(?:\w+\.)?weight|(?:lora_linear_layer\.|lora\.)?down\.weight)"
    r"|(?P<up>lora_up\.weight|lora_B\.(?:\w+\.)?weight|(?:lora_linear_layer\.|lora\.)?up\.weight)"
    r"|(?P<alpha>alpha)"
)
_KEY = re.compile(
    rf"{_TOWER}(?:base_model\.model\.)?(?:text_model[._])?"
    rf"(?:{_LAYER}|text_projection)\.(?:{_ROLE})"
)
# A key that begins so is for a text tower, understood or not.
_TEXT = re.compile(
    r"lora_te[12]?_|text_encoder(_2)?\.|(base_model\.model\.)(text_|encoder\.layers)"
)
_OLDEST = {f"to_{name}_lora": f"{name}_proj" for name in ("q", "k", "v", "out")}
# A UNet's cross-attention reads the text states, so this layer's input is as wide as they are.
_CROSS = re.compile(
    r"(?:lora_unet_|unet\.).*attn2[._](?:processor\.)?to_k(?:_lora)?[._]"
    r"(?:lora_down\.weight|lora_A\.weight|(?:lora\.)?down\.weight)"
)


@dataclass(frozen=True)
class Key:
    """One tensor's meaning.

    Attributes:
        tower: ``text_encoder`` or ``text_encoder_2``, ``""`` where the key does not say.
        layer: the layer's path in a ``CLIPTextModel``, such as ``encoder.layers.0.mlp.fc1``.
        role: ``down`` (r, in), ``up`` (out, r), or ``alpha``, a number.
    """

    tower: str
    layer: str
    role: Role


AlphaOf = Callable[[Key, int], float | None]
"""From a layer and its rank to its ``alpha / r``; None where nothing is said."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one layer: down ``(r, in)``, up ``(out, r)``, and ``alpha / r``."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``, as the layer's own weight has it."""
        return self.up.shape[0], self.down.shape[1]


@dataclass(frozen=True, eq=False)
class Lora:
    """The text part of a LoRA file.

    Attributes:
        name: what prompts call it.
        towers: component (``text_encoder``, ``text_encoder_2``, or ``""`` where the file does not
            say) -> layer's path -> what is added to it. Empty if the file has no text part.
        unused: keys of all other tensors: the UNet's, which are the pipeline's business.
        context_width: the width of the text states that its UNet part reads, if it has one.
        source: the file.
        hash: the first 16 hex digits of the file's sha256.
    """

    name: str
    towers: Mapping[str, Mapping[str, LowRank]]
    unused: tuple[str, ...]
    context_width: int | None
    source: str
    hash: str


def read_lora(path: str | os.PathLike[str], name: str | None = None) -> Lora:
    """Read the text part of a LoRA; the rest stays on the disk.

    Args:
        path: a safetensors file of kohya, diffusers or peft, or the folder that peft
            (``adapter_model.safetensors`` with ``adapter_config.json``) or diffusers
            (``pytorch_lora_weights.safetensors``) writes for one.
        name: what prompts call it. Default: the stem of the file, or the folder's name.

    Raises:
        WeightsError: a file that is missing, damaged, pickled, no LoRA, or whose text part is of
            a kind that is not read here (DoRA, LoHa, LoKr ...).
    """
    source = file_of(Path(path))
    check_given(source, "LoRA file")
    chosen = name or name_of(source)
    if source.suffix.lower() != ".safetensors":
        raise WeightsError(
            f"{source} is not a safetensors file; other kinds can run code when they are opened. "
            "Take the LoRA's safetensors version."
        )
    with open_tensors(source) as opened:
        keys = list(opened.keys())
        found = {key: read for key in keys if (read := read_key(key)) is not None}
        tensors = {key: opened.get_tensor(key) for key in found}
        crossing = next(filter(is_cross_attention, keys), None)
        shape = opened.get_slice(crossing).get_shape() if crossing else None
        metadata = opened.metadata() or {}
    unused = tuple(key for key in keys if key not in found)
    _check_kind(source, keys, unused)
    check_finite(source, tensors.items())
    if shape is not None and len(shape) < 2:
        raise WeightsError(
            f"{source}: {crossing!r} is {tuple(shape)}, not a matrix; it is damaged."
        )
    beside = source.parent / CONFIG
    in_folder = source.name == FOLDER_FILES[0] and beside.is_file()
    alpha_of = alphas_beside(beside) if in_folder else alphas_within(source, metadata)
    parts: dict[str, dict[str, dict[Role, Tensor]]] = {}
    for key, read in found.items():
        roles = parts.setdefault(read.tower, {}).setdefault(read.layer, {})
        if read.role in roles:
            raise WeightsError(
                f"{source}: {key!r} is the second {read.role} of {read.layer}; it is damaged."
            )
        roles[read.role] = tensors[key]
    towers = {
        tower: {
            layer: _low_rank(source, Key(tower, layer, "down"), roles, alpha_of)
            for layer, roles in layers.items()
        }
        for tower, layers in parts.items()
    }
    width = None if shape is None else int(shape[1])
    return Lora(chosen, towers, unused, width, str(source), hash_file(source))


def file_of(path: Path) -> Path:
    """The file of a LoRA: the path itself, or the file in a folder that is one LoRA."""
    return next((path / name for name in FOLDER_FILES if os.path.isfile(path / name)), path)


def name_of(source: Path) -> str:
    """What prompts call the LoRA of a file: its stem, or the name of the folder that is one."""
    return source.parent.name if source.name in FOLDER_FILES else source.stem


def _check_kind(source: Path, keys: list[str], unused: tuple[str, ...]) -> None:
    if not any("lora" in key.lower() for key in keys):
        raise WeightsError(
            f"{source} is not a LoRA: none of its {len(keys)} tensors is called one "
            f"({', '.join(sorted(keys)[:2])}). An embedding goes into textual_inversions."
        )
    strange = next(filter(is_text_key, unused), None)
    if strange is not None:
        raise WeightsError(
            f"{source} has {strange!r}, which is not a LoRA of a linear layer of a CLIP text "
            "tower; bridge adds up and down matrices only, not DoRA, LoHa, LoKr or trained "
            "embeddings."
        )


# ---------------------------------------------------------------- keys


def read_key(key: str) -> Key | None:
    """The meaning of a key of a text tower's LoRA; None for any other."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    prefix = match["tower"]
    tower = "text_encoder_2" if "2" in prefix else "text_encoder" if prefix else ""
    role: Role = "down" if match["down"] else "up" if match["up"] else "alpha"
    if match["number"] is None:
        return Key(tower, "text_projection", role)
    linear = _OLDEST.get(match["linear"], match["linear"])
    return Key(tower, f"encoder.layers.{match['number']}.{match['block']}.{linear}", role)


def is_text_key(key: str) -> bool:
    """Whether a key is for a text tower, though perhaps of a kind that is not read here."""
    return _TEXT.match(key) is not None


def is_cross_attention(key: str) -> bool:
    """Whether a key is the down matrix of a layer of the UNet that reads the text states."""
    return _CROSS.fullmatch(key) is not None


# ---------------------------------------------------------------- alpha


def alphas_beside(config: Path) -> AlphaOf:
    """From a config file of peft. Raises WeightsError."""
    scaling = _scaling(read_json(config), "", str(config))
    return lambda key, rank: scaling(key.layer, rank)


def alphas_within(source: Path, metadata: Mapping[str, str]) -> AlphaOf:
    """From the header of a file of diffusers, if it has any. Raises WeightsError."""
    if METADATA not in metadata:
        return lambda key, rank: None
    where = f"{source}: its {METADATA}"
    packed = parse_json(metadata[METADATA], where)
    if not isinstance(packed, dict):
        raise WeightsError(f"{where} is not a JSON object.")
    towers = ("", "text_encoder", "text_encoder_2")
    scalings = {tower: _scaling(packed, f"{tower}.", where) for tower in towers}
    return lambda key, rank: scalings[key.tower](key.layer, rank)


def _scaling(
    config: Mapping[str, Any], prefix: str, where: str
) -> Callable[[str, int], float | None]:
    """From a layer's path and rank to ``alpha / r``; all that the config says is checked here."""
    named = f"{prefix}lora_alpha"
    common = None if config.get(named) is None else _number(config[named], f"{where}: {named}")
    own = _patterns(config.get(f"{prefix}alpha_pattern"), f"{where}: {prefix}alpha_pattern")
    stabilised = bool(config.get(f"{prefix}use_rslora"))

    def scale(layer: str, rank: int) -> float | None:
        # As peft: a pattern is the end of a layer's path, and the first that fits counts.
        path = f"text_model.{layer}"
        alpha = next((value for pattern, value in own.items() if matches(pattern, path)), common)
        return None if alpha is None else alpha / (math.sqrt(rank) if stabilised else rank)

    return scale


def _patterns(given: Any, where: str) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise WeightsError(f"{where} is {given!r:.60}, not names of layers with numbers.")
    expressions = [pattern for pattern in given if not is_plain(pattern)]
    length = sum(map(len, expressions))
    if length > MOST_EXPRESSIONS:
        raise WeightsError(
            f"{where} has regular expressions of {length:,} characters; at most "
            f"{MOST_EXPRESSIONS:,} are read. Write the layers' plain names."
        )
    for pattern in expressions:
        try:
            compile_pattern(pattern)
        except LayerPatternError as error:
            raise WeightsError(
                f"{where}: the pattern {pattern!r:.80} {error}. Write the layers' plain names."
            ) from error
    return {
        pattern: _number(value, f"{where}, {pattern!r:.80}") for pattern, value in given.items()
    }


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise WeightsError(f"{where} must be a finite number, not {value!r:.60}.")
    return number


# ---------------------------------------------------------------- one layer


def _low_rank(source: Path, key: Key, roles: Mapping[Role, Tensor], alpha_of: AlphaOf) -> LowRank:
    where = f"{source}: {key.tower or 'the text tower'}, {key.layer}"
    if "down" not in roles or "up" not in roles:
        there = " and ".join(sorted(roles))
        raise WeightsError(f"{where} has its {there} only, not both matrices; it is damaged.")
    down, up = roles["down"], roles["up"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not len(down):
        raise WeightsError(
            f"{where} has matrices of {tuple(down.shape)} and {tuple(up.shape)}, which do not "
            "multiply; it is damaged."
        )
    if not (down.is_floating_point() and up.is_floating_point()):
        raise WeightsError(
            f"{where} has matrices of {down.dtype} and {up.dtype}, not of numbers with a point; "
            "it is damaged, or quantized in a way that is not read here."
        )
    rank = down.shape[0]
    alpha = roles.get("alpha")
    if alpha is not None:
        if alpha.numel() != 1 or alpha.is_complex():
            raise WeightsError(
                f"{where} has an alpha of {tuple(alpha.shape)} in {alpha.dtype}, not one number; "
                "it is damaged."
            )
        scale = float(alpha) / rank
    else:
        said = alpha_of(key, rank)
        scale = 1.0 if said is None else said
    return LowRank(down, up, scale)


# ---------------------------------------------------------------- fitting a tower


def misfit(layers: Mapping[str, LowRank], spec: TowerSpec) -> str | None:
    """Why these layers are not those of a tower, in words; None if they fit."""
    for path, added in layers.items():
        wanted = _shape(path, spec)
        if wanted is None:
            return f"it has {path}, and the tower does not"
        if any(there != of and of for there, of in zip(added.shape, wanted, strict=True)):
            return f"{path} is {added.shape} in it, and {wanted} in the tower"
    return None


def _shape(path: str, spec: TowerSpec) -> tuple[int, int] | None:
    """``(out, in)`` of a linear layer of a CLIP text tower; 0 for a width that is not known."""
    wide = spec.width
    if path == "text_projection":
        return (spec.pooled_width, wide) if spec.architecture.endswith("Projection") else None
    number, linear = int(path.split(".")[2]), path.rsplit(".", 1)[-1]
    if number >= spec.layers:
        return None
    if linear == "fc1":
        return spec.mlp_width, wide
    return (wide, spec.mlp_width) if linear == "fc2" else (wide, wide)
