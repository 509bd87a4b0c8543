"""LoRA files: what a low-rank adapter adds to the linear layers of text towers.

Hu et al. 2021, "LoRA": a layer's output ``W x`` becomes ``W x + s * (alpha / r) * B (A x)``, with
A ``(r, in)``, B ``(out, r)`` and s the strength of the call. Where no alpha is stored it is r.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import hash_file, read_json
from bridge.towers.lora_keys import Key, Role, is_cross_attention, is_text_key, read_key
from bridge.towers.spec import TowerSpec

# What peft and diffusers call the file in a folder that is one LoRA.
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_METADATA = "lora_adapter_metadata"


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
    from safetensors import SafetensorError, safe_open

    source = file_of(Path(path))
    chosen = name or name_of(source)
    if source.suffix.lower() != ".safetensors":
        raise WeightsError(
            f"{source} is no safetensors file; other kinds can run code when they are opened. "
            "Take the LoRA's safetensors version."
        )
    try:
        with safe_open(source, "pt") as opened:
            keys = list(opened.keys())
            found = {key: read for key in keys if (read := read_key(key)) is not None}
            tensors = {key: opened.get_tensor(key) for key in found}
            crossing = next(filter(is_cross_attention, keys), None)
            width = opened.get_slice(crossing).get_shape()[1] if crossing else None
            metadata = opened.metadata() or {}
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{source} cannot be read as safetensors: {error}") from error
    unused = tuple(key for key in keys if key not in found)
    _check_kind(source, keys, unused)
    alpha_of = _alphas(source, metadata)
    parts: dict[str, dict[str, dict[Role, Tensor]]] = {}
    for key, read in found.items():
        parts.setdefault(read.tower, {}).setdefault(read.layer, {})[read.role] = tensors[key]
    towers = {
        tower: {
            layer: _low_rank(source, Key(tower, layer, "down"), roles, alpha_of)
            for layer, roles in layers.items()
        }
        for tower, layers in parts.items()
    }
    return Lora(chosen, towers, unused, width, str(source), hash_file(source))


def file_of(path: Path) -> Path:
    """The file of a LoRA: the path itself, or the file in a folder that is one LoRA."""
    return next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)


def name_of(source: Path) -> str:
    """What prompts call the LoRA of a file: its stem, or the name of the folder that is one."""
    return source.parent.name if source.name in FOLDER_FILES else source.stem


def _check_kind(source: Path, keys: list[str], unused: tuple[str, ...]) -> None:
    if not any("lora" in key.lower() for key in keys):
        raise WeightsError(
            f"{source} is no LoRA: none of its {len(keys)} tensors is called one "
            f"({', '.join(sorted(keys)[:2])}). An embedding goes into textual_inversions."
        )
    strange = next(filter(is_text_key, unused), None)
    if strange is not None:
        raise WeightsError(
            f"{source} has {strange!r}, which is no LoRA of a linear layer of a CLIP text tower; "
            "bridge adds up and down matrices only, not DoRA, LoHa, LoKr or trained embeddings."
        )


# ---------------------------------------------------------------- alpha

AlphaOf = Callable[[Key, int], float | None]
"""From a layer and its rank to the ``alpha / r`` that a config beside the tensors says."""


def _alphas(source: Path, metadata: Mapping[str, str]) -> AlphaOf:
    """What peft's config says: beside the file, or in the header as diffusers keeps it."""
    beside = source.parent / "adapter_config.json"
    if source.name == FOLDER_FILES[0] and beside.is_file():
        config = read_json(beside)
        return lambda key, rank: _scale(config, "", key.layer, rank)
    if _METADATA in metadata:
        try:
            packed = json.loads(metadata[_METADATA])
            assert isinstance(packed, dict)
        except (ValueError, AssertionError) as error:
            raise WeightsError(f"{source}: its {_METADATA} is no JSON object.") from error
        return lambda key, rank: _scale(packed, f"{key.tower}.", key.layer, rank)
    return lambda key, rank: None


def _scale(config: Mapping[str, Any], prefix: str, layer: str, rank: int) -> float | None:
    alpha = config.get(f"{prefix}lora_alpha")
    for pattern, value in (config.get(f"{prefix}alpha_pattern") or {}).items():
        # As peft: a pattern is the end of a layer's path.
        if re.fullmatch(rf"(.*\.)?(?:{pattern})", f"text_model.{layer}"):
            alpha = value
            break
    if alpha is None:
        return None
    stabilised = bool(config.get(f"{prefix}use_rslora"))
    return float(alpha) / (math.sqrt(rank) if stabilised else rank)


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
    rank = down.shape[0]
    if "alpha" in roles:
        scale = float(roles["alpha"]) / rank
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
