"""A LoRA as a folder of its own, in the layout of Hugging Face's `peft`, which reads it too.

adapter_config.json         rank, alpha, names of the layers, the model it stands on
adapter_model.safetensors   "base_model.model.<layer>.lora_A.weight" and "...lora_B.weight"
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import torch

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import home_path, read_json, write_whole
from bridge.towers.tensors import check_computable, read_tensors
from bridge.vlm.train.lora import add_lora, lora_layers, take_lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OTHER_SCALES = ("use_rslora", "alpha_pattern")  # of peft: not alpha / rank for every layer


def save_lora(llm: Any, folder: str | os.PathLike[str], base: str) -> None:
    """Write the LoRA of ``llm``, in its dtype; ``base`` names the model that it stands on.

    Each file appears whole or not at all. Raises UnsupportedModelError when there is no LoRA, or
    one whose layers differ in rank or scale, which the layout cannot say.
    """
    from safetensors.torch import save

    layers = lora_layers(llm)
    settings = {(len(layer.lora_A), layer.scale) for layer in layers.values()}
    if len(settings) != 1:
        kinds = "no LoRA" if not layers else "LoRAs of several ranks or scales"
        raise UnsupportedModelError(f"{type(llm).__name__} has {kinds}; nothing can be saved")
    ((rank, scale),) = settings
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "inference_mode": True,
    }
    tensors = {}
    for name, layer in layers.items():
        for side in ("lora_A", "lora_B"):
            weight = getattr(layer, side).detach().cpu().contiguous()
            tensors[f"{_PREFIX}{name}.{side}.weight"] = weight
    place = home_path(folder)
    write_whole(place / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_whole(place / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


@torch.no_grad()
def load_lora(llm: Any, folder: str | os.PathLike[str]) -> None:
    """Put what `save_lora` wrote on ``llm``, in fp32, in place; all else of it is frozen.

    Raises WeightsError when a file is missing or damaged, or made for another model, which then
    stays without a LoRA.
    """
    place = home_path(folder)
    config = read_json(place / CONFIG)
    rank, names = (config.get(key) for key in ("r", "target_modules"))
    alpha = _number(config.get("lora_alpha"))
    if (
        config.get("peft_type") != "LORA"
        or not (isinstance(rank, int) and rank > 0)
        or alpha is None
        or not (isinstance(names, list) and all(isinstance(name, str) for name in names))
    ):
        raise WeightsError(
            f"{place / CONFIG} needs peft_type LORA, r (above 0), lora_alpha (a number) and "
            "target_modules (a list of names)"
        )
    other = [key for key in _OTHER_SCALES if config.get(key)]
    if other:
        raise WeightsError(f"{place / CONFIG} has {other[0]}, a scaling that bridge does not read")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in read_tensors(place / WEIGHTS)}
    check_computable(place / WEIGHTS, tensors.items())
    ranks = {t.shape[:1] for name, t in tensors.items() if name.endswith(".lora_A.weight")}
    if ranks != {(rank,)}:
        raise WeightsError(f"{place / WEIGHTS} is not of the rank {rank} that {CONFIG} says")
    try:
        layers = add_lora(llm, rank, alpha, seed=0, only=names)
    except UnsupportedModelError as error:
        raise WeightsError(f"{place / CONFIG} does not go on this model: {error}") from error
    wanted = {
        f"{name}.{side}.weight": getattr(llm.get_submodule(name), side)
        for name in layers
        for side in ("lora_A", "lora_B")
    }
    shapes = {name: tuple(weight.shape) for name, weight in wanted.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != found:
        take_lora(llm, merge=False)
        different = sorted(set(shapes.items()) ^ set(found.items()))
        raise WeightsError(
            f"{place / WEIGHTS} is for another model than {type(llm).__name__}: "
            f"{len(different)} tensors differ, such as {different[0][0]!r}"
        )
    for name, weight in wanted.items():
        weight.copy_(tensors[name])


def _number(value: object) -> float | None:
    """A number of ordinary size: not NaN, not infinite, and no truth value; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) < 1e30 else None
