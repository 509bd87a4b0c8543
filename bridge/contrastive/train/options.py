"""Every setting of a CLIP's training, checked, and `bridge train-clip`, which takes them."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

from bridge.checks import choice, is_finite, is_whole, keywords
from bridge.errors import OptionError

MODES = ("full", "scratch", "probe", "lora", "lit", "distill")
LOSSES = ("infonce", "sigmoid", "coca")
_RATES = {"full": 1e-5, "scratch": 5e-4, "probe": 1e-3, "lora": 2e-4, "lit": 1e-4, "distill": 1e-4}
_USUAL_BATCH = 256
# What a student does not learn by: it compares no pairs, sees no picture, and is saved as it is.
_NOT_DISTILLED = (
    *("loss", "captioning", "same_caption", "hardness", "popularity", "bank", "patch_masking"),
    *("unmasked_ratio", "micro_batch", "graph_memory", "ema", "wise_ft", "evaluate_every"),
)


@keywords
@dataclass(frozen=True)
class ClipTrainOptions:
    """How a CLIP is trained, by AdamW (0.9, 0.98; epsilon 1e-6: Radford et al. 2021).

    Args:
        mode: "full" trains all of both towers; "scratch" too, from random weights; "probe" the last
            linear layers alone; "lora" low-rank updates of both towers' linear layers, which are
            added to the weights at the end; "lit" the text tower, the image tower locked (Zhai et
            al. 2022); "distill" teaches a ``student`` text tower to land where the model's own does
            (Reimers & Gurevych 2020; Carlsson et al. 2022).
        loss: "infonce" or "sigmoid" (default: as the model was trained); "coca" is InfoNCE, and
            captioning by the model's own decoder (CoCa; Yu et al. 2022).
        captioning: the weight of "coca"'s captioning; 2 in the paper, 1 the other's.
        same_caption: what becomes of rows with one caption in a batch: "negative" (as open_clip),
            "mask", "positive"; see `bridge.contrastive.losses`.
        hardness: β of hard negatives, of InfoNCE.
        popularity: correct InfoNCE for how often a caption is in the data.
        bank: pairs of earlier batches kept as negatives, of InfoNCE.
        patch_masking: the part of a picture's patches that is left out while training (FLIP).
        unmasked_ratio: the part of the steps, at the end, that see whole pictures after all.
        lora, lora_alpha: rank and strength of "lora" (default: 8, and twice the rank).
        epochs, steps: how long; ``steps``, if given, stands before ``epochs``.
        batch_size: pairs that a step compares, in all processes (default: 256, halved until there
            are as many rows).
        micro_batch: pairs that go through the towers at once in each process; the loss still
            compares the whole batch (GradCache). Default: all of them.
        graph_memory: GB that a batch's pixels and intermediate states may take where
            ``micro_batch`` is given; states that are kept are not computed twice.
        learning_rate: the highest (default: 1e-5 full, 5e-4 scratch, 1e-3 probe, 2e-4 lora, 1e-4
            lit and distill).
        weight_decay: of matrices; gains, biases and the temperature never decay.
        warmup_ratio: the part of the steps in which the rate rises; then a cosine takes it to 0.
        ema: decay of averaged weights, which are the result; None for none.
        wise_ft: α of WiSE-FT (Wortsman et al. 2022): the result is the start plus this part of what
            was learnt, which forgets less.
        mixed_precision: "bf16", "no", or None for bf16 where the device computes in it. What is
            trained is kept in fp32.
        workers: threads that read and prepare the next batches.
        save_every, evaluate_every: steps between checkpoints and between evaluations.

    Raises:
        OptionError: a value out of range.
    """

    mode: Literal["full", "scratch", "probe", "lora", "lit", "distill"] = "full"
    loss: Literal["infonce", "sigmoid", "coca"] | None = None
    captioning: float = 2.0
    same_caption: Literal["negative", "mask", "positive"] = "negative"
    hardness: float = 0.0
    popularity: bool = False
    bank: int = 0
    patch_masking: float = 0.0
    unmasked_ratio: float = 0.1
    lora: int | None = None
    lora_alpha: float | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    graph_memory: float = 2.0
    learning_rate: float | None = None
    weight_decay: float = 0.1
    warmup_ratio: float = 0.05
    max_grad_norm: float = 1.0
    ema: float | None = None
    wise_ft: float | None = None
    mixed_precision: Literal["bf16", "no"] | None = None
    seed: int = 0
    workers: int = 2
    save_every: int = 200
    evaluate_every: int = 200

    def __post_init__(self) -> None:
        choice(self.mode, MODES, "mode of training")
        if self.loss is not None:
            choice(self.loss, LOSSES, "loss")
        if self.mixed_precision not in (None, "no", "bf16"):
            raise OptionError(f"mixed_precision is {self.mixed_precision!r}; 'bf16', 'no' or None")
        if self.lora is not None and self.mode != "lora":
            raise OptionError("lora is a rank, and goes with mode='lora'; give both")
        if self.lora_alpha is not None and self.mode != "lora":
            raise OptionError("lora_alpha goes with mode='lora'")
        if self.loss == "sigmoid" and (self.hardness or self.popularity or self.bank):
            raise OptionError("hardness, popularity and bank are of InfoNCE; give loss='infonce'")
        if self.mode == "distill":
            usual = {field.name: field.default for field in fields(self)}
            idle = [name for name in _NOT_DISTILLED if getattr(self, name) != usual[name]]
            if idle:
                raise OptionError(
                    f"mode='distill' compares no pairs, and has no {', '.join(idle)}; leave "
                    f"{'it' if len(idle) == 1 else 'them'} out"
                )
        if self.captioning != 2.0 and self.loss != "coca":
            raise OptionError("captioning goes with loss='coca'; give both")
        if self.loss == "coca" and self.mode not in ("full", "lit"):
            raise OptionError(f"loss='coca' goes with mode='full' or 'lit', not {self.mode!r}")
        if not isinstance(self.popularity, bool):
            raise OptionError(f"popularity is {self.popularity!r}; True or False")
        for name in ("lora", "steps", "batch_size", "micro_batch"):
            if getattr(self, name) is not None:
                self._check_whole(name, 1)
        for name in ("save_every", "evaluate_every", "workers"):
            self._check_whole(name, 1)
        for name in ("seed", "bank"):
            self._check_whole(name, 0)
        for name in ("epochs", "learning_rate", "lora_alpha"):
            self._check_number(name, above=True)
        for name in ("max_grad_norm", "weight_decay", "hardness", "graph_memory", "captioning"):
            self._check_number(name)
        for name in ("warmup_ratio", "unmasked_ratio", "wise_ft"):
            value = getattr(self, name)
            if value is not None and not is_finite(value, 0, 1):
                raise OptionError(f"{name} is {value!r}; it is a part of 1, as 0.1 is")
        for name in ("patch_masking", "ema"):
            value = getattr(self, name)
            if value is not None and (not is_finite(value, 0) or value >= 1):
                raise OptionError(f"{name} is {value!r}; give a number from 0 to below 1")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or _RATES[self.mode]

    @property
    def rank(self) -> int:
        """Of LoRA."""
        return self.lora or 8

    @property
    def alpha(self) -> float:
        """The strength of LoRA."""
        return self.lora_alpha or 2.0 * self.rank

    def settings(self) -> dict[str, Any]:
        """What a card says: all that has a value in this mode, LoRA's rank and strength too."""
        given = asdict(self)
        if self.mode == "lora":
            given |= {"lora": self.rank, "lora_alpha": self.alpha}
        if self.loss != "coca":
            del given["captioning"]
        if self.mode == "distill":
            given = {name: each for name, each in given.items() if name not in _NOT_DISTILLED}
        return {name: value for name, value in given.items() if value is not None}

    def pairs_a_step(self, n_rows: int) -> int:
        """The batch that data of ``n_rows`` is trained in. Raises OptionError where there are too
        few rows for it."""
        if self.batch_size is not None:
            if self.batch_size > n_rows:
                raise OptionError(
                    f"batch_size is {self.batch_size}, and there are {n_rows} rows; give "
                    f"{n_rows} at most, as a row would be its own false negative"
                )
            return self.batch_size
        size = _USUAL_BATCH
        while size > max(1, n_rows):
            size //= 2
        return size

    def n_steps(self, n_rows: int) -> int:
        """Steps in all."""
        a_epoch = n_rows // self.pairs_a_step(n_rows)
        return self.steps or max(1, math.ceil(self.epochs * a_epoch))

    def share(self, n_rows: int, processes: int) -> int:
        """Pairs of a step in each process. Raises OptionError where a batch does not divide."""
        batch = self.pairs_a_step(n_rows)
        share, left = divmod(batch, processes)
        if left:
            raise OptionError(
                f"batch_size {batch} does not divide among {processes} processes; give another"
            )
        return share

    def masking_at(self, step: int, steps: int) -> float:
        """The part of patches that a step leaves out: none in the last ``unmasked_ratio``."""
        whole = math.ceil(self.unmasked_ratio * steps)
        return self.patch_masking if step < steps - whole else 0.0

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not is_whole(value, least):
            raise OptionError(f"{name} is {value!r}; give a whole number from {least} up")

    def _check_number(self, name: str, above: bool = False) -> None:
        value = getattr(self, name)
        if value is None and above and name != "epochs":
            return
        if not is_finite(value, 0) or (above and value == 0):
            raise OptionError(
                f"{name} is {value!r}; give a number {'above 0' if above else 'from 0 up'}"
            )


class ClipTrainKeywords(TypedDict, total=False):
    """The fields of `ClipTrainOptions` as keywords of `train_clip`, for type checkers."""

    mode: Literal["full", "scratch", "probe", "lora", "lit", "distill"]
    loss: Literal["infonce", "sigmoid", "coca"] | None
    captioning: float
    same_caption: Literal["negative", "mask", "positive"]
    hardness: float
    popularity: bool
    bank: int
    patch_masking: float
    unmasked_ratio: float
    lora: int | None
    lora_alpha: float | None
    epochs: float
    steps: int | None
    batch_size: int | None
    micro_batch: int | None
    graph_memory: float
    learning_rate: float | None
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    ema: float | None
    wise_ft: float | None
    mixed_precision: Literal["bf16", "no"] | None
    seed: int
    workers: int
    save_every: int
    evaluate_every: int


# name -> type, what help says; bool for a flag.
_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "epochs": (float, "times through the data (default: 1)"),
    "steps": (int, "or: how many steps"),
    "batch_size": (int, "pairs that are compared (default: 256, or fewer for fewer rows)"),
    "micro_batch": (int, "pairs through the towers at once (default: all)"),
    "graph_memory": (float, "GB for a batch in parts, states kept (default: 2)"),
    "learning_rate": (float, "default: by mode, 1e-5 for full"),
    "weight_decay": (float, "default: 0.1"),
    "warmup_ratio": (float, "default: 0.05"),
    "lora": (int, "rank, with --mode lora (default: 8)"),
    "hardness": (float, "weight on hard negatives (default: 0)"),
    "captioning": (float, "weight of captioning, with --loss coca (default: 2)"),
    "bank": (int, "pairs of earlier batches as negatives (default: 0)"),
    "patch_masking": (float, "part of patches left out, as 0.5 (FLIP; default: 0)"),
    "ema": (float, "decay of averaged weights, as 0.999"),
    "wise_ft": (float, "part of what was learnt that is kept, as 0.5"),
    "seed": (int, "default: 0"),
    "workers": (int, "threads that read pictures (default: 2)"),
    "save_every": (int, "steps between checkpoints (default: 200)"),
    "evaluate_every": (int, "steps between evaluations (default: 200)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command; without torch, as `bridge --help` shows them."""
    add = parser.add_argument
    add("data", help="a folder of pictures with captions, .csv, .parquet, .jsonl, .tar shards")
    add("-o", "--output", type=Path, required=True, help="folder for the trained model")
    add("-m", "--model", help="the CLIP to train: name, folder or hub id (default: the embedded)")
    add("--mode", choices=MODES, help="what is trained (default: full)")
    add("--loss", choices=LOSSES, help="default: as the model was trained")
    add("--student", metavar="MODEL", help="with --mode distill: the text tower that is taught")
    add("--same-caption", choices=("negative", "mask", "positive"), help="default: negative")
    add("--popularity", action="store_const", const=True, help="correct for frequent captions")
    add("--mixed-precision", choices=("bf16", "no"), help="default: bf16 where there is a GPU")
    add("--image-folder", metavar="DIR", help="where the data's pictures lie (default: beside it)")
    add("--open-clip", action="store_true", help="also write OUTPUT/open_clip, in its layout")
    add(
        "--evaluate",
        metavar="NAME=DATA",
        action="append",
        help="pairs that retrieval is measured on, before, while and after; may be given again",
    )
    for name, (kind, told) in _ARGUMENTS.items():
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=kind, metavar="N" if kind is int else "X", help=told)


def run_command(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and give what was done as plain values."""
    evaluation = {}
    for text in options.evaluate or ():
        name, sign, data = text.partition("=")
        if not (name and sign and data):
            raise OptionError(f"--evaluate is {text!r}; give NAME=DATA, as flowers=flowers.csv")
        if name in evaluation:
            raise OptionError(f"--evaluate has the name {name!r} twice; give each set its own")
        evaluation[name] = data
    from bridge.contrastive.train.run import train_clip
    from bridge.embedded import IMAGE_TOWER

    given = {field.name: getattr(options, field.name, None) for field in fields(ClipTrainOptions)}
    done = train_clip(
        options.model or IMAGE_TOWER,
        options.data,
        options.output,
        image_folder=options.image_folder,
        evaluation=evaluation,
        student=options.student,
        open_clip=options.open_clip,
        device=options.device,
        **{name: value for name, value in given.items() if value is not None},
    )
    return {
        "output": str(done.folder),
        "steps": len(done.log),
        "first_loss": done.losses[0] if done.log else None,
        "last_loss": done.losses[-1] if done.log else None,
        "skipped": len(done.skipped),
        "retrieval": list(done.evaluations),
    }
