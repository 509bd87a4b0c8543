"""Every setting of a training run, checked, and `bridge train-vlm`, which takes them.

Values are LLaVA-1.5's own where none is given.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

from bridge.checks import is_finite, is_whole, keywords
from bridge.errors import OptionError


@keywords
@dataclass(frozen=True)
class TrainOptions:
    """How a bridge is trained, by AdamW (0.9, 0.999).

    Args:
        stage: 1 trains the projector, the language model frozen; 2 trains both. The tower is
            always frozen.
        lora: a rank. Stage 2 then trains low-rank updates of the language model's linear layers in
            place of the whole, and adds them to the weights at the end.
        lora_alpha: their strength (default: twice the rank).
        epochs, steps: how long; ``steps``, if given, stands before ``epochs``.
        batch_size: rows that a step sees, whatever the machine (default: 256 in stage 1, 128 in
            stage 2, halved until there are as many rows).
        micro_batch: rows at once in each process (default: up to 16); gradients are summed until
            the batch is whole.
        learning_rate: 1e-3 in stage 1, 2e-5 in stage 2, 2e-4 with LoRA.
        projector_learning_rate: the same, and 2e-5 with LoRA.
        warmup_ratio: the part of the steps in which the rate rises; then a cosine takes it to 0.
        weight_decay: of matrices; biases and norms never decay.
        mixed_precision: "bf16", "no", or None for bf16 where the device computes in it. What is
            trained is kept in fp32 meanwhile, in either case.
        max_length: longer rows lose their last turns (default: the language model's context).
        save_every: steps between checkpoints, from which the run goes on if it is stopped.
        sample_every, samples: steps between answers to the questions of that many of its rows.

    Raises:
        OptionError: a value out of range.
    """

    stage: Literal[1, 2] = 1
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
    mixed_precision: Literal["bf16", "no"] | None = None
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
                f"batch_size {batch} is not a multiple of micro_batch {self.micro_batch} "
                f"times {processes} process(es)"
            )
        return self.micro_batch

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not is_whole(value, least):
            raise OptionError(f"{name} is {value!r}; give a whole number from {least} up")

    def _check_number(self, name: str, above: float | None = None) -> None:
        value = getattr(self, name)
        if value is None and above is not None and name != "epochs":
            return
        if not is_finite(value, 0) or value == above:
            least = "above 0" if above is not None else "from 0 up"
            raise OptionError(f"{name} is {value!r}; give a number {least}")


class TrainKeywords(TypedDict, total=False):
    """The fields of `TrainOptions` as keywords of `train_vlm`, for type checkers."""

    stage: Literal[1, 2]
    lora: int | None
    lora_alpha: float | None
    epochs: float
    steps: int | None
    batch_size: int | None
    micro_batch: int | None
    learning_rate: float | None
    projector_learning_rate: float | None
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    mixed_precision: Literal["bf16", "no"] | None
    max_length: int | None
    seed: int
    save_every: int
    sample_every: int
    samples: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command; without torch, as `bridge --help` shows them."""
    add = parser.add_argument
    add("data", help="LLaVA's .json or .jsonl, or a folder of pictures with captions")
    add("-o", "--output", type=Path, required=True, help="folder for the trained model")
    add("-m", "--model", help="the VLM to train further: name, folder or hub id")
    add("--vision", metavar="MODEL", help="or: its tower, by name, folder or hub id ...")
    add("--llm", metavar="MODEL", help="... its language model ...")
    add("--projector", metavar="NAME", help="... and a fresh projector (default: mlp2x_gelu)")
    add("--select-layer", type=int, metavar="N", help="of the tower, with --vision (default: -2)")
    add("--image-folder", metavar="DIR", help="where the data's pictures lie (default: beside it)")
    add("--caption-question", metavar="TEXT", help="default: describe the picture.")
    add("--feature-folder", metavar="DIR", help="the tower's states (default: OUTPUT/features)")
    add(
        "--no-store-features",
        dest="store_features",
        action="store_false",
        help="run the tower in every step, keep nothing",
    )
    add("--stage", type=int, choices=(1, 2), help="1: the projector (default); 2: the LLM as well")
    add("--lora", type=int, metavar="RANK", help="in stage 2, low-rank updates of the LLM")
    add("--epochs", type=float, help="times through the data (default: 1)")
    add("--steps", type=int, metavar="N", help="or: how many steps")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="rows a step (default: 256, stage 2: 128; fewer for fewer rows)",
    )
    add("--micro-batch", type=int, metavar="N", help="rows at once in a process (default: to 16)")
    add("--learning-rate", type=float, metavar="X", help="1e-3; stage 2: 2e-5; LoRA: 2e-4")
    add("--projector-learning-rate", type=float, metavar="X", help="the same; with LoRA 2e-5")
    add("--mixed-precision", choices=("bf16", "no"), help="default: bf16 where there is a GPU")
    add("--max-length", type=int, metavar="N", help="positions of a row (default: the context)")
    add("--seed", type=int, help="default: 0")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints (default: 200)")
    add("--sample-every", type=int, metavar="N", help="steps between samples (default: 200)")
    add("--samples", type=int, metavar="N", help="rows to answer on the way (default: 3)")


def run_command(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and give what was done as plain values. Data is read before any model loads."""
    named = {name: getattr(options, name) for name in ("vision", "llm")}
    if (options.model is None) != all(named.values()) or (options.model and any(named.values())):
        raise OptionError("give --model, or --vision and --llm, to say what is trained")
    if options.model and (options.projector or options.select_layer is not None):
        raise OptionError("--projector and --select-layer go with --vision and --llm, not --model")
    from bridge.vlm.train.data import CAPTION_QUESTION
    from bridge.vlm.train.run import train_vlm

    given = {field.name: getattr(options, field.name, None) for field in fields(TrainOptions)}
    done = train_vlm(
        partial(_loaded if options.model else _paired, options),
        options.data,
        options.output,
        image_folder=options.image_folder,
        caption_question=options.caption_question or CAPTION_QUESTION,
        feature_folder=options.feature_folder,
        store_features=options.store_features,
        device=options.device,
        **{name: value for name, value in given.items() if value is not None},
    )
    return {
        "output": str(done.folder),
        "steps": len(done.log),
        "first_loss": done.losses[0] if done.log else None,
        "last_loss": done.losses[-1] if done.log else None,
    }


def _loaded(options: argparse.Namespace, device: Any) -> Any:
    from bridge.vlm.load import load_vlm

    return load_vlm(options.model, device=device, dtype=options.dtype)


def _paired(options: argparse.Namespace, device: Any) -> Any:
    """Tower and language model of the names, and a projector drawn from the seed."""
    import torch

    from bridge.vlm.load import load_llm, load_vision
    from bridge.vlm.pairing import pair

    vision, processor = load_vision(options.vision, device=device, dtype=options.dtype)
    llm, tokenizer = load_llm(options.llm, device=device, dtype=options.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed or 0)
        return pair(
            vision,
            llm,
            tokenizer,
            projector=options.projector or "mlp2x_gelu",
            image_processor=processor,
            select_layer=-2 if options.select_layer is None else options.select_layer,
        )
