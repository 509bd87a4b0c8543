"""Every setting of a training run, checked, with LLaVA-1.5's own values where none is given."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from bridge.errors import OptionError


@dataclass(frozen=True)
class TrainOptions:
    """How a bridge is trained. Raises OptionError for values out of range.

    ``stage`` 1 trains the projector, the language model frozen; 2 trains both. The tower is
    always frozen. With ``lora``, a rank, stage 2 trains low-rank updates of the language model's
    linear layers (of ``lora_alpha``, by default twice the rank) in place of the whole, and adds
    them to the weights at the end.

    A step sees ``batch_size`` rows, whatever the machine: ``micro_batch`` rows at once in each
    process, and gradients are summed until the batch is whole. Not given: 256 in stage 1, 128 in
    stage 2, halved until there are as many rows; up to 16 at once. ``steps``, if given, stands
    before ``epochs``.

    ``learning_rate`` is 1e-3 in stage 1, 2e-5 in stage 2, 2e-4 with LoRA; the projector's own,
    ``projector_learning_rate``, is the same, and 2e-5 with LoRA. It rises for ``warmup_ratio`` of
    the steps and falls along a cosine to 0. The optimiser is AdamW (0.9, 0.999).

    ``mixed_precision`` is "bf16", "no", or None for bf16 where the device computes in it. What is
    trained is kept in fp32 meanwhile, in either case. Rows longer than ``max_length`` positions
    (default: the language model's context) lose their last turns.

    ``save_every`` steps the run is written down so that it can go on, and the curve is drawn;
    ``sample_every`` steps it answers the questions of ``samples`` of its rows.
    """

    stage: int = 1
    lora: int | None = None
    lora_alpha: float | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    learning_rate: float | None = None
    projector_learning_rate: float | None = None
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None
    max_length: int | None = None
    seed: int = 0
    save_every: int = 200
    sample_every: int = 200
    samples: int = 3

    def __post_init__(self) -> None:
        if self.stage not in (1, 2):
            raise OptionError(f"stage is {self.stage!r}; 1 trains the projector, 2 the LLM as well")
        if self.stage == 1 and self.lora is not None:
            raise OptionError("lora is for stage 2; in stage 1 the language model is frozen")
        if self.lora is None and self.lora_alpha is not None:
            raise OptionError("lora_alpha goes with lora, the rank; give both")
        if self.mixed_precision not in (None, "no", "bf16"):
            raise OptionError(f"mixed_precision is {self.mixed_precision!r}; 'bf16', 'no' or None")
        for name in ("lora", "steps", "batch_size", "micro_batch", "max_length"):
            if getattr(self, name) is not None:
                self._check_whole(name, 1)
        for name in ("save_every", "sample_every"):
            self._check_whole(name, 1)
        for name in ("seed", "samples"):
            self._check_whole(name, 0)
        for name in ("epochs", "learning_rate", "projector_learning_rate", "lora_alpha"):
            self._check_number(name, above=0.0)
        for name in ("max_grad_norm", "weight_decay", "warmup_ratio"):
            self._check_number(name)
        if self.warmup_ratio > 1:
            raise OptionError(f"warmup_ratio is {self.warmup_ratio}; it is a part of 1, as 0.03 is")

    def rows_a_step(self, n_rows: int) -> int:
        """The batch that data of ``n_rows`` is trained in."""
        if self.batch_size is not None:
            return self.batch_size
        size = 256 if self.stage == 1 else 128
        while size > max(1, n_rows):  # a power of two divides among processes and passes
            size //= 2
        return size

    @property
    def rates(self) -> tuple[float, float]:
        """The highest learning rates of the projector and of the language model."""
        usual = 1e-3 if self.stage == 1 else 2e-5 if self.lora is None else 2e-4
        llm = self.learning_rate or usual
        return self.projector_learning_rate or (2e-5 if self.lora is not None else llm), llm

    def n_steps(self, n_rows: int) -> int:
        return self.steps or max(1, math.ceil(self.epochs * n_rows / self.rows_a_step(n_rows)))

    def rows_at_once(self, n_rows: int, processes: int) -> int:
        """How many rows go through each process in one pass. Raises OptionError when a batch does
        not come out whole."""
        batch = self.rows_a_step(n_rows)
        share, left = divmod(batch, processes)
        if left:
            raise OptionError(
                f"batch_size {batch} does not divide among {processes} processes; give another"
            )
        if self.micro_batch is None:
            return max(size for size in range(1, 17) if share % size == 0)
        if share % self.micro_batch:
            raise OptionError(
                f"batch_size {batch} is no multiple of micro_batch {self.micro_batch} "
                f"times {processes} process(es)"
            )
        return self.micro_batch

    def rate_at(self, step: int, steps: int) -> float:
        """Part of the highest learning rate in a step: linear warm-up, then half a cosine.

        As transformers' `get_cosine_schedule_with_warmup`. The first step of a warm-up has the
        rate 0, so a step that is left after it there always is.
        """
        warm = min(math.ceil(self.warmup_ratio * steps), steps - 1)
        if step < warm:
            return step / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name} is {value!r}; give a whole number from {least} up")

    def _check_number(self, name: str, above: float | None = None) -> None:
        value = getattr(self, name)
        if value is None and above is not None and name != "epochs":
            return
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value < 0 or value == above:
            least = "above 0" if above is not None else "from 0 up"
            raise OptionError(f"{name} is {value!r}; give a number {least}")


def train_options(settings: dict[str, Any]) -> TrainOptions:
    """`TrainOptions` of keywords. Raises OptionError for one that there is not."""
    known = [field.name for field in fields(TrainOptions)]
    for name in settings:
        if name not in known:
            raise OptionError(f"there is no option {name!r}; there are {', '.join(known)}")
    return TrainOptions(**settings)
