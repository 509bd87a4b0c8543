"""LoRA files with random tensors, in each layout that people share them in."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Deltas = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Path of a layer in a ``CLIPTextModel`` -> ``(A (r, in), B (out, r))``."""

LAYOUTS = ("kohya", "diffusers", "lora_linear_layer", "oldest")
_OLDEST = {f"{name}_proj": f"to_{name}_lora" for name in ("q", "k", "v", "out")}


def random_deltas(tower: Any, rank: int, seed: int) -> Deltas:
    """One for every linear layer of a text tower, the projection included; large enough to show."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name.removeprefix("text_model."): (
            0.3 * torch.randn(rank, layer.in_features, generator=generator),
            0.3 * torch.randn(layer.out_features, rank, generator=generator),
        )
        for name, layer in tower.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def write_lora(
    path: Path,
    layout: str,
    towers: Mapping[str, Deltas],
    *,
    alpha: float | None = None,
    others: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """One file with the deltas of ``{component: deltas}``. ``alpha`` goes into it as the layout
    has it: kohya's tensors, or the config that diffusers keeps in the header."""
    tensors: dict[str, torch.Tensor] = dict(others or {})
    metadata: dict[str, Any] = {}
    for component, deltas in towers.items():
        for layer, (down, up) in deltas.items():
            a, b = _names(layout, component, layer, len(towers) > 1)
            tensors[a], tensors[b] = down, up
            if layout == "kohya" and alpha is not None:
                tensors[a.replace("lora_down.weight", "alpha")] = torch.tensor(alpha)
        if alpha is not None:
            metadata[f"{component}.lora_alpha"] = alpha
    header = {"lora_adapter_metadata": json.dumps(metadata)} if layout == "diffusers" else None
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, header)
    return path


def _names(layout: str, component: str, layer: str, several: bool) -> tuple[str, str]:
    whole = layer if layer == "text_projection" else f"text_model.{layer}"
    match layout:
        case "kohya":
            prefix = {"text_encoder_2": "te2"}.get(component, "te1" if several else "te")
            name = f"lora_{prefix}_{whole.replace('.', '_')}"
            return f"{name}.lora_down.weight", f"{name}.lora_up.weight"
        case "diffusers":
            return (
                f"{component}.{whole}.lora_A.weight",
                f"{component}.{whole}.lora_B.weight",
            )
        case "oldest" if "self_attn" in layer:
            block, linear = f"{component}.{whole}".rsplit(".", 1)
            return f"{block}.{_OLDEST[linear]}.down.weight", f"{block}.{_OLDEST[linear]}.up.weight"
        case _:
            middle = "lora" if layer == "text_projection" else "lora_linear_layer"
            name = f"{component}.{whole}.{middle}"
            return f"{name}.down.weight", f"{name}.up.weight"


def fused(pipe: Any, towers: Mapping[str, Deltas], scale: float) -> Any:
    """A copy of a pipeline with ``W + scale * B @ A`` in its text towers."""
    found = copy.deepcopy(pipe)
    add_to(found, towers, scale)
    return found


@torch.no_grad()
def add_to(pipe: Any, towers: Mapping[str, Deltas], scale: float) -> None:
    for component, deltas in towers.items():
        layers = dict(getattr(pipe, component).named_modules())
        for path, (down, up) in deltas.items():
            layer = layers[path if path in layers else f"text_model.{path}"]
            layer.weight.add_(scale * (up @ down))
