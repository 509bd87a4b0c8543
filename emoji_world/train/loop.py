"""The one training loop: a time budget, checkpoints, resumption, and a logged loss curve.

A recipe gives the modules, an optimiser's settings, and a function from a step number to a
loss; everything that must survive an interruption lives in ``runs/<name>/``:
``state.safetensors`` (modules, optimiser moments, averaged weights), ``log.json`` (the loss
curve) and ``loss.png``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from bridge.files import write_whole
from bridge.pictures import draw_curve
from bridge.towers.tensors import check_finite, load_tensors
from bridge.training.run_state import moments_of, put_moments, write_state

Trained = TypeVar("Trained", bound=nn.Module)

_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
_MUON_STATE = ("momentum_buffer",)


@dataclass
class Recipe:
    """What a training run is made of.

    Attributes:
        name: folder under ``runs/``.
        module: everything that is trained, as one module.
        loss: from a step number to (loss to minimise, figures to log).
        lr, weight_decay, warmup: AdamW's rate, decay and linear warm-up in steps.
        decay_lr: cosine decay to a twentieth over the time budget when True.
        ema: decay of the averaged weights, or None for no averaging.
        muon: the names of weights that Muon trains (Jordan et al. 2024; with the update scaled
            to AdamW's as in Moonlight, so one rate serves both); AdamW trains the rest. A
            convolution's weight is trained as the matrix of its flattened kernels.
    """

    name: str
    module: nn.Module
    loss: Callable[[int], tuple[torch.Tensor, dict[str, float]]]
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 200
    decay_lr: bool = True
    ema: float | None = None
    muon: frozenset[str] = frozenset()


def _optimizers(
    recipe: Recipe, params: dict[str, nn.Parameter], matrices: dict[str, nn.Parameter]
) -> list[torch.optim.Optimizer]:
    rate, decay = recipe.lr, recipe.weight_decay
    rest = [p for name, p in params.items() if p.requires_grad and name not in matrices]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, betas=(0.9, 0.99), fused=True, lr=rate, weight_decay=decay)
    ]
    if matrices:
        made.append(
            torch.optim.Muon(
                list(matrices.values()),
                lr=rate,
                weight_decay=decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return made


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """A convolution's weight (out, in, h, w) as a matrix (out, h * w * in)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _matrix(weight: nn.Parameter) -> nn.Parameter:
    """The matrix that Muon trains in the place of ``weight``, in the same memory."""
    if weight.ndim == 2:
        return weight
    shared = _flat(weight.data)
    assert shared.data_ptr() == weight.data_ptr(), "put the module into channels_last first"
    return nn.Parameter(shared)


class Run:
    """One recipe's run: ``train`` goes on for some minutes from wherever it stands."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe = recipe
        self.folder = root / recipe.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []
        self.params = dict(recipe.module.named_parameters())
        self.matrices = {name: _matrix(self.params[name]) for name in sorted(recipe.muon)}
        self.optimizers = _optimizers(recipe, self.params, self.matrices)
        self.average: dict[str, torch.Tensor] = {}
        if recipe.ema is not None:
            self.average = {n: p.detach().clone() for n, p in self.params.items()}
        if (self.folder / "state.safetensors").exists():
            self._resume()

    def train(self, minutes: float, *, checkpoint_every: float = 120.0) -> None:
        """Train for ``minutes`` of wall clock in all, earlier sessions' time included."""
        recipe, budget = self.recipe, minutes * 60
        recipe.module.train()
        last_save = last_print = begun = time.monotonic()
        before = self.seconds
        sums: dict[str, float] = {}
        counted = 0
        while self.seconds < budget:
            self._set_lr(self.seconds / budget)
            torch.manual_seed(self.step)  # a resumed run draws the noise a straight one would
            loss, figures = recipe.loss(self.step)
            recipe.module.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(list(self.params.values()), 1.0)
            self._step()
            self._update_average()
            self.step += 1
            counted += 1
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value
            now = time.monotonic()
            self.seconds = before + now - begun
            if now - last_print > 20:
                row = {k: v / counted for k, v in sums.items()}
                self.log.append({"step": self.step, "minutes": self.seconds / 60, **row})
                shown = "  ".join(f"{k} {v:.4f}" for k, v in row.items())
                rate = counted / (now - last_print)
                print(
                    f"{recipe.name}: step {self.step}  {self.seconds / 60:.1f}/{minutes:g} min"
                    f"  {rate:.2f} steps/s  {shown}",
                    flush=True,
                )
                sums, counted, last_print = {}, 0, now
            if now - last_save > checkpoint_every:
                self.save()
                last_save = time.monotonic()
        self.save()
        self.draw_loss()

    def averaged(self) -> dict[str, torch.Tensor]:
        """The averaged parameters by name, or the plain ones when there is no average."""
        return self.average or {n: p.detach() for n, p in self.params.items()}

    def _step(self) -> None:
        for name, matrix in self.matrices.items():
            weight = self.params[name]
            if matrix is not weight and weight.grad is not None:
                matrix.grad = _flat(weight.grad)
        for optimizer in self.optimizers:
            optimizer.step()

    def _set_lr(self, progress: float) -> None:
        recipe = self.recipe
        rate = recipe.lr * min(1.0, (self.step + 1) / max(1, recipe.warmup))
        if recipe.decay_lr:
            rate *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.average or self.recipe.ema is None:
            return
        # A short memory at first, so that the random start does not linger in the average.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        names = list(self.average)
        torch._foreach_lerp_(
            [self.average[n] for n in names], [self.params[n].detach() for n in names], 1 - decay
        )

    def save(self) -> None:
        """Write the whole state, in the place of the one before."""
        tensors = {f"module.{k}": v for k, v in self._module_state().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for optimizer in self.optimizers:
            kept = moments_of(optimizer, self.params | self.matrices)
            tensors |= {f"optimizer.{name}": value for name, value in kept.items()}
        meta = {"step": str(self.step), "seconds": str(self.seconds)}
        write_whole(self.folder / "log.json", json.dumps(self.log).encode())
        write_state(self.folder / "state.safetensors", tensors, meta)

    def _module_state(self) -> dict[str, torch.Tensor]:
        return {k: v.detach() for k, v in self.recipe.module.state_dict().items()}

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        tensors, meta = load_tensors(path)
        check_finite(path, tensors.items())
        part = "module."
        self.recipe.module.load_state_dict(
            {k[len(part) :]: v for k, v in tensors.items() if k.startswith(part)}
        )
        for name, kept in self.average.items():
            self.average[name] = tensors[f"average.{name}"].to(kept.device)
        for name, parameter in (self.params | self.matrices).items():
            optimizer = self.optimizers[-1 if name in self.recipe.muon else 0]
            keys = _MUON_STATE if name in self.recipe.muon else _ADAMW_STATE
            stored = {key: f"optimizer.{key}.{name}" for key in keys}
            if all(place in tensors for place in stored.values()):
                moments = {key: tensors[place] for key, place in stored.items()}
                put_moments(optimizer, parameter, moments)
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        # A run killed between the two writes has a log that is ahead of its state.
        rows = json.loads((self.folder / "log.json").read_text())
        self.log = [row for row in rows if row["step"] <= self.step]
        print(f"{self.recipe.name}: resumed at step {self.step}", flush=True)

    def draw_loss(self) -> None:
        """The loss curve as a picture beside its JSON."""
        draw_curve(self.log, self.folder / "loss.png", self.recipe.name)


def load_averaged(run: Run, module: Trained, prefix: str = "") -> Trained:
    """``module`` with the run's averaged weights, ready for use; ``prefix`` is its name within
    the module that the run trains."""
    average = {k.removeprefix(prefix): v for k, v in run.averaged().items() if k.startswith(prefix)}
    module.load_state_dict(module.state_dict() | average)
    return module.eval()


def plain_attention(model: PreTrainedModel) -> None:
    """On a CPU the fused attention's backward pass takes twice the time of plain matmuls at
    our sizes (tens of tokens, heads of 32 or 64)."""
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
