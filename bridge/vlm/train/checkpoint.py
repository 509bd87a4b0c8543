"""A run that was stopped goes on exactly as if it had not been.

One safetensors file has what was trained and AdamW's state of it. Learning rate, order of the
rows and every step's random seed are functions of the settings and the step, so the step is all
that is left to keep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bridge.errors import OptionError, WeightsError
from bridge.files import whole
from bridge.towers.tensors import read_tensors

CHECKPOINT = "checkpoint.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    told: Mapping[str, Any],
) -> None:
    """Write the run's state after ``step`` steps; ``told`` is what another run must share with
    this one to go on from it. The old file stays until the new one is whole."""
    tensors = {}
    for name, parameter in trained(module).items():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value
    copied = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole(path) as part:
        save_file(copied, part, metadata={"step": str(step), "told": json.dumps(told)})


@torch.no_grad()
def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, told: Mapping[str, Any]
) -> int:
    """Put the state of ``path`` in place, and give its step.

    Raises OptionError, naming what differs, for the checkpoint of a run with other settings,
    WeightsError for a damaged one.
    """
    tensors = dict(read_tensors(path))
    with safe_open(path, "pt") as opened:
        meta = opened.metadata() or {}
    try:
        step, theirs = int(meta["step"]), json.loads(meta["told"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} is no checkpoint of a training run; delete it") from error
    ours = json.loads(json.dumps(told))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise OptionError(
                f"{path.parent} holds a run with {key} {theirs.get(key)!r}, and this one has "
                f"{ours.get(key)!r}; give the settings it was begun with, or another folder"
            )
    parameters = trained(module)
    if parameters.keys() != {n.removeprefix("weight.") for n in tensors if n.startswith("weight.")}:
        raise WeightsError(f"{path} holds other weights than are trained here; delete it")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weight.{name}"])
        moments = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        if moments:
            # AdamW counts its steps on the CPU, and keeps the moments beside the weight.
            optimizer.state[parameter] = {
                m: value if m == "step" else value.to(parameter) for m, value in moments.items()
            }
    return step
