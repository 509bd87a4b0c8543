"""The steps of a run: each the same whether run straight, resumed, or by several processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from bridge.vlm.train.labels import Encoded
from bridge.vlm.train.options import TrainOptions
from bridge.vlm.train.order import Order
from bridge.vlm.train.seen import Seen
from bridge.vlm.train.trainee import make_batch


@dataclass(frozen=True, eq=False)
class Steps:
    """What every step needs; ``module`` and ``optimizer`` as `accelerate` prepared them."""

    accelerator: Any
    module: Any
    optimizer: Any
    options: TrainOptions
    order: Order
    rows: Sequence[Encoded]
    seen: Seen
    pad_id: int

    def take(self, step: int) -> dict[str, float]:
        """One step: a whole batch, its gradient, an update. Gives what is logged of it.

        The loss is the mean over all tokens learnt in the batch, whichever process and pass they
        fell to, so neither the number of processes nor `micro_batch` changes it.
        """
        accelerator, options = self.accelerator, self.options
        # The noise of a step (dropout) is its own, so a resumed run draws that of a straight one.
        torch.manual_seed(
            (options.seed * 1_000_003 + step) * accelerator.num_processes
            + accelerator.process_index
        )
        part = options.rate_at(step, self.order.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * part
        batch = self.order.batch(step)
        n_learnt = sum(self.rows[index].n_learnt for index in batch)
        total = torch.zeros((), device=accelerator.device, dtype=torch.float32)
        self.optimizer.zero_grad()
        passes = self._passes(batch)
        for number, indices in enumerate(passes, start=1):
            rows = [self.rows[index] for index in indices]
            made = make_batch(rows, self.seen, self.pad_id, accelerator.device)
            last = number == len(passes)
            with nullcontext() if last else accelerator.no_sync(self.module):
                loss = self.module(made)
                # Gradients are averaged over the processes, and each holds only its own rows.
                accelerator.backward(loss * (accelerator.num_processes / n_learnt))
            total += loss.detach()
        norm = self._clip()
        self.optimizer.step()
        return {
            "step": step + 1,
            "loss": float(accelerator.reduce(total, "sum")) / n_learnt,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
        }

    def _passes(self, batch: Sequence[int]) -> list[Sequence[int]]:
        """This process' part of a batch, cut into passes of rows that are alike in length."""
        processes = self.accelerator.num_processes
        size = self.options.rows_at_once(len(self.rows), processes)
        cuts = [batch[at : at + size] for at in range(0, len(batch), size)]
        return cuts[self.accelerator.process_index :: processes]

    def _clip(self) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        most = self.options.max_grad_norm or float("inf")
        return float(self.accelerator.clip_grad_norm_(parameters, most))
