"""LoRA (Hu et al. 2021): low-rank updates of a language model's linear layers, and their files.

The layers are those of `bridge.training.lora`. They are added to the weights at the end, so that
what is saved is a plain checkpoint, or saved by themselves in the layout of Hugging Face's `peft`,
which reads it too:

adapter_config.json         rank, alpha, names of the layers, the model it stands on
adapter_model.safetensors   "base_model.model.<layer>.lora_A.weight" and "...lora_B.weight"

As in LLaVA, every linear layer gets one but the output head, unless some are named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bridge.checks import is_finite
from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import home_path, read_json, write_whole
from bridge.towers.tensors import check_computable, read_tensors
from bridge.training.lora import lora_layers, put_lora, take_lora


def add_lora(
    llm: Any, rank: int, alpha: float, seed: int, only: Collection[str] | None = None
) -> list[str]:
    """Put a `LoraLinear` in the place of every linear layer but the head, and freeze the rest.

    ``only`` keeps to layers of these names ("q_proj", "v_proj" ...). Gives the full names of the
    layers. Raises UnsupportedModelError when there is none (GPT-2's are of another class), and
    for a model that has a LoRA already.
    """
    if lora_layers(llm):
        raise UnsupportedModelError(
            f"{type(llm).__name__} has a LoRA already; take it off first: "
            "take_lora(llm, merge=True) keeps what it learnt"
        )
    llm.requires_grad_(False)
    head = llm.get_output_embeddings()
    found = [
        name
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and module is not head
        if only is None or name.rpartition(".")[2] in only
    ]
    if not found:
        named = f" named {', '.join(sorted(only))}" if only else ""
        raise UnsupportedModelError(
            f"{type(llm).__name__} has no linear layer{named} that LoRA could be put on; "
            "train it whole"
        )
    put_lora(llm, found, rank, alpha, seed)
    return found


@contextmanager
def without_lora(llm: Any) -> Iterator[None]:
    """Within the block the model is the one that the LoRA was put on, bit for bit."""
    layers = lora_layers(llm)
    take_lora(llm, merge=False)
    try:
        yield
    finally:
        for name, layer in layers.items():
            llm.set_submodule(name, layer)


# -- files ------------------------------------------------------------------------------

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
    return float(value) if is_finite(value, -1e30, 1e30) else None
