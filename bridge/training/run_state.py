"""What a run writes down: a checkpoint to go on from, its log, curve and samples.

One safetensors file has what was trained and AdamW's state of it. Learning rate, order of the
rows and every step's random seed are functions of the settings and the step, so the step is all
that is left to keep, and a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bridge.errors import MissingDependencyError, OptionError, WeightsError
from bridge.files import parse_json, whole, write_whole
from bridge.pictures import draw_curve
from bridge.towers.tensors import check_finite, load_tensors

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
    extra: Mapping[str, torch.Tensor] = {},
) -> None:
    """Write the run's state after ``step`` steps; ``told`` is what another run must share with
    this one to go on from it, ``extra`` what it has besides weights: averages, a bank. The old file
    stays until the new one is whole."""
    parameters = trained(module)
    tensors = {f"weight.{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= moments_of(optimizer, parameters)
    tensors |= {f"extra.{name}": tensor.detach() for name, tensor in extra.items()}
    write_state(path, tensors, {"step": str(step), "told": json.dumps(told)})


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """What an optimizer keeps of each parameter, as ``moment.name``."""
    return {
        f"{moment}.{name}": value
        for name, parameter in parameters.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def put_moments(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, moments: Mapping[str, torch.Tensor]
) -> None:
    """Give an optimizer back what it kept of a parameter.

    The moments lie beside the weight; AdamW counts its steps on the CPU, unless it is fused.
    """
    fused = bool(optimizer.defaults.get("fused"))
    step = parameter.device if fused else torch.device("cpu")
    optimizer.state[parameter] = {
        moment: value.to(step) if moment == "step" else value.to(parameter)
        for moment, value in moments.items()
    }


def write_state(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a copy of the tensors; the old file stays until the new one is whole."""
    copied = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole(path) as part:
        save_file(copied, part, metadata=dict(metadata))


@torch.no_grad()
def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    told: Mapping[str, Any],
    extra: Mapping[str, torch.Tensor] = {},
) -> int:
    """Put the state of ``path`` in place, into the tensors of ``extra`` too, and give its step.

    Raises OptionError, naming what differs, for the checkpoint of a run with other settings,
    WeightsError for a damaged one.
    """
    tensors, meta = load_tensors(path)
    if not meta.get("step", "").isdecimal() or len(meta["step"]) > 12 or "told" not in meta:
        raise WeightsError(f"{path} is not a checkpoint of a training run; delete it")
    step, theirs = int(meta["step"]), parse_json(meta["told"], f"{path}: its settings")
    if not isinstance(theirs, dict):
        raise WeightsError(f"{path}: its settings are not a JSON object; delete it")
    check_finite(path, tensors.items())
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
    # All are checked before the first is put in place.
    states = {name: _state(path, name, own, tensors) for name, own in parameters.items()}
    kept = {n.removeprefix("extra."): t for n, t in tensors.items() if n.startswith("extra.")}
    if {n: t.shape for n, t in kept.items()} != {n: t.shape for n, t in extra.items()}:
        raise WeightsError(f"{path} holds other averages than are kept here; delete it")
    for name, tensor in extra.items():
        tensor.copy_(kept[name])
    for name, parameter in parameters.items():
        moments = states[name]
        parameter.copy_(tensors[f"weight.{name}"])
        if moments:
            put_moments(optimizer, parameter, moments)
    return step


def kept_step(path: Path) -> int:
    """After how many steps a checkpoint was written; 0 where there is none."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def _state(
    path: Path, name: str, parameter: torch.Tensor, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """AdamW's state of one parameter; empty before its first step. Raises WeightsError."""
    own = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
    shapes = {"step": torch.Size()} | dict.fromkeys(_MOMENTS[1:], parameter.shape)
    every = [(tensors[f"weight.{name}"], parameter.shape)]
    every += [(tensor, shapes[moment]) for moment, tensor in own.items()]
    fits = all(tensor.shape == shape and tensor.is_floating_point() for tensor, shape in every)
    if not fits or len(own) not in (0, len(_MOMENTS)):
        raise WeightsError(f"{path}: what it holds of {name} does not fit; delete it")
    return own


# -- log, curve and samples -------------------------------------------------------------


@dataclass
class Journal:
    """The rows of a run so far, in ``folder``; ``samples_file`` holds what was tried on the way."""

    folder: Path
    log: list[dict[str, float]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    samples_file: str = "samples.json"

    def resume(self, step: int) -> None:
        """Read back what was written up to ``step``; a killed run may have written more.

        Raises WeightsError for a damaged file.
        """
        self.log = _up_to(step, self.folder / "log.json")
        self.samples = _up_to(step, self.folder / self.samples_file)

    def write(self) -> None:
        """The two JSON files, and the curve where matplotlib is installed."""
        write_whole(self.folder / "log.json", json.dumps(self.log).encode())
        shown = json.dumps(self.samples, ensure_ascii=False, indent=1)
        write_whole(self.folder / self.samples_file, shown.encode())
        with suppress(MissingDependencyError):  # the rows say the same
            draw_curve(self.log, self.folder / "loss.png", self.folder.name, along="step")


def _up_to(step: int, path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [row for row in json.loads(path.read_bytes()) if row["step"] <= step]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(
            f"{path} does not hold the rows that the run wrote ({error}); put it back, or delete "
            "it, and the run goes on without what it said"
        ) from error
