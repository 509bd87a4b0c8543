"""`bridge.train_clip`: from a CLIP and pairs to a trained folder.

Each step is the same whether run straight, resumed, or by several processes, in one pass or in
parts.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from bridge.checks import keywords, takes_fields
from bridge.contrastive.clip import CLIP
from bridge.contrastive.distributed import average_gradients, place, sum_over_processes
from bridge.contrastive.grad_cache import Encoded, cached_backward, check_rows_alone
from bridge.contrastive.losses import (
    CoCaLoss,
    InfoNCE,
    MemoryBank,
    PooledPairs,
    SigmoidLoss,
    clamp_scale_,
    exp_scale,
)
from bridge.contrastive.patch_masking import masked_patches
from bridge.contrastive.train.evaluation import draw_retrieval, retrieval
from bridge.contrastive.train.kept_states import KeptStates
from bridge.contrastive.train.open_clip_layout import (
    came_in_layout,
    check_layout,
    own_decoder,
    save_open_clip,
)
from bridge.contrastive.train.options import ClipTrainKeywords, ClipTrainOptions
from bridge.contrastive.train.pairs import Batch, Batches, Pair, digest, read_pairs
from bridge.contrastive.train.recipe import (
    NO_RECIPE,
    InOrder,
    Recipe,
    Rows,
    Stream,
    check_stream,
)
from bridge.contrastive.train.saving import check_can_save, save_clip, write_card
from bridge.contrastive.train.trainee import Trainee, check_trainable, set_mode, trained_parts
from bridge.errors import MissingDependencyError, OptionError, UnsupportedModelError
from bridge.files import check_output_folder, home_path, write_whole
from bridge.progress import OnProgress, ProgressLine, unwatched
from bridge.runtime import resolve_device
from bridge.towers.captioner import CoCaDecoder
from bridge.towers.family import Scoring
from bridge.towers.open_clip_config import CONFIG
from bridge.training.loop import Loop, check_step
from bridge.training.optimization import Average, decay_groups, rate_at, set_rates
from bridge.training.order import Shuffled
from bridge.training.processes import accelerator_of
from bridge.training.records import Data
from bridge.training.run_state import CHECKPOINT, Journal, load_checkpoint, save_checkpoint

# Settings that a run may go on with changed: they do not change what it computes.
_FREE = ("graph_memory", "workers", "save_every", "evaluate_every", "wise_ft")
_ALL = sys.maxsize


@keywords
@dataclass(frozen=True, eq=False)
class ClipTraining:
    """A finished run.

    Attributes:
        clip: the trained model.
        folder: where it was saved.
        log: a row of figures a step.
        evaluations: a row of figures for each set and step that was measured.
        skipped: where rows stood whose pictures cannot be read, and why.
    """

    clip: CLIP
    folder: Path
    log: tuple[dict[str, float], ...]
    evaluations: tuple[dict[str, Any], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.log]


@takes_fields(ClipTrainOptions)
def train_clip(
    model: str | os.PathLike[str] | CLIP,
    data: Data | Rows,
    output: str | os.PathLike[str],
    *,
    image_folder: str | os.PathLike[str] | None = None,
    evaluation: Data | Mapping[str, Data] | None = None,
    student: str | os.PathLike[str] | None = None,
    open_clip: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    recipe: Recipe = NO_RECIPE,
    **options: Unpack[ClipTrainKeywords],
) -> ClipTraining:
    """Train or adapt a CLIP on pictures with captions, and save it to ``output``.

    Args:
        model: what `bridge.CLIP` opens, or one that is open, which is trained in place.
        data: a folder of pictures with captions, CSV, Parquet, JSON, WebDataset shards, a
            `datasets.Dataset` or rows; see `bridge.training.records`. A picture that cannot be read
            is left out, counted and listed in ``skipped.json``. Or a function of a step's number,
            from 0, that gives its rows; it must give the same ones when it is asked again.
        output: a new folder, or that of a run that was stopped: it goes on to the same losses. It
            gets the model, its card (README.md), `log.json`, `loss.png`, and with ``evaluation``
            `evaluations.json` and `retrieval.png`.
        image_folder: where the pictures of all data lie, by default beside each.
        evaluation: pairs that retrieval is measured on before, while and after; or several sets by
            name, such as the new domain and an old one that must not be forgotten.
        student: with ``mode="distill"``, the text tower that is taught, a CLIP's: name or folder.
            Rows need no pictures then; ``translation`` is what the student reads in the place of
            the caption.
        open_clip: write the model in open_clip's layout too, to ``output``/open_clip.
        device: CUDA if there is one; of an open CLIP, its own.
        progress: show a line with the loss and the time left.
        recipe: what options cannot say: an optimizer, a schedule, a further loss; see `Recipe`.
        options: those of `ClipTrainOptions`: ``mode``, ``epochs``, ``batch_size`` ...

    Launched by `accelerate launch` or `torchrun`, all processes share the pairs of each batch, and
    every pair is compared with those of all.

    Raises:
        DataError: a row without a caption, and the like.
        OptionError: an option out of range; a batch of one with InfoNCE.
        UnsupportedModelError: a CLIP that transformers has no layout for.
        NumbersError: numbers that are not finite; the last good checkpoint stays.

    It also raises what `bridge.CLIP` raises.
    """
    settings = ClipTrainOptions(**options)
    if (student is not None) != (settings.mode == "distill"):
        raise OptionError("student goes with mode='distill', and that needs one; give both")
    if settings.loss == "coca" and recipe.further is not None:
        raise OptionError("loss='coca' is a further loss itself; leave recipe.further out")
    aside = open_clip or recipe is not NO_RECIPE or _named(evaluation)
    if settings.mode == "distill" and aside:
        raise OptionError(
            "mode='distill' has no evaluation, open_clip or recipe; leave them out, and measure "
            "the result afterwards"
        )
    folder = _checked_output(output)
    skipped: dict[str, str] = {}
    read = partial(read_pairs, image_folder=image_folder, skipped=skipped.__setitem__)
    pairs: Sequence[Pair]
    if callable(data):
        size, steps = check_stream(settings)
        pairs = Stream(data, size, steps)
    else:
        more = recipe.further is not None
        pairs = read(data, pictures=settings.mode != "distill", fields=more)
    tried = {name: read(each) for name, each in _named(evaluation).items()}
    if settings.mode == "distill":
        from bridge.contrastive.train.distillation import distill

        return distill(model, str(student), pairs, settings, folder, device, progress)
    live = isinstance(model, CLIP) and device is None
    where = model.device if live else resolve_device(device)  # type: ignore[union-attr]
    with accelerator_of(where, settings.mixed_precision) as accelerator:
        share = settings.share(len(pairs), accelerator.num_processes)
        clip = model if isinstance(model, CLIP) else CLIP(model, device=accelerator.device)
        clip.to(accelerator.device)
        check_trainable(clip)
        check_can_save(clip)
        if open_clip:
            check_layout(clip)
        decoder = own_decoder(clip) if settings.loss == "coca" else None
        if settings.mode == "scratch" and came_in_layout(clip):
            raise UnsupportedModelError(
                f"{clip.name} is in open_clip's layout, which has no random start here; make one "
                "with open_clip.create_model, save it, and train it with mode='full'"
            )
        run = Run(
            clip, clip.name, pairs, tried, settings, folder, accelerator, share, recipe, decoder,
            skipped,
        )  # fmt: skip
        with ProgressLine(sys.stderr) as show:
            watched = show if progress and accelerator.is_main_process else unwatched
            journal, scoring = run.train(watched)
        clip.scoring = scoring
        if accelerator.is_main_process:
            save_clip(clip, folder, scoring, decoder)
            if open_clip:
                save_open_clip(clip, folder / "open_clip", scoring, decoder)
            told = {
                "model": run.name,
                "rows": len(pairs),
                "steps": run.steps,
                "skipped": len(skipped),
            }
            write_card(folder, run.name, settings, told, journal.samples)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    return ClipTraining(
        clip, folder, tuple(journal.log), tuple(journal.samples), tuple(skipped.items())
    )


def _named(evaluation: Any) -> Mapping[str, Data]:
    if evaluation is None:
        return {}
    return evaluation if isinstance(evaluation, Mapping) else {"evaluation": evaluation}


def _checked_output(output: str | os.PathLike[str]) -> Path:
    folder = home_path(output)
    check_output_folder(folder)
    held = any((folder / name).exists() for name in ("config.json", CONFIG))
    if held and not (folder / CHECKPOINT).exists():
        raise OptionError(f"output {str(folder)!r} holds a model already; give another folder")
    return folder


@dataclass(eq=False)
class Run:
    """All of a run between loading and saving."""

    clip: CLIP
    name: str
    pairs: Sequence[Pair]
    tried: Mapping[str, Sequence[Pair]]
    options: ClipTrainOptions
    folder: Path
    accelerator: Any
    share: int
    recipe: Recipe = NO_RECIPE
    decoder: CoCaDecoder | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.options.n_steps(len(self.pairs))

    @property
    def sigmoid(self) -> bool:
        own = self.clip.scoring
        return self.options.loss == "sigmoid" or (
            self.options.loss is None and own is not None and own.sigmoid
        )

    def train(self, on_progress: OnProgress) -> tuple[Journal, Scoring]:
        """Train the CLIP's modules in place; gives what was logged, and the learnt scale."""
        options, accelerator, path = self.options, self.accelerator, self.folder / CHECKPOINT
        if not self.sigmoid and self.share * accelerator.num_processes + options.bank < 2:
            raise OptionError(
                "InfoNCE tells a pair from the others of its batch, and batch_size is 1; give 2 or "
                "more, or loss='sigmoid'"
            )
        if self.sigmoid and (options.hardness or options.popularity or options.bank):
            raise OptionError(
                f"{self.clip.name} was trained with the sigmoid loss, and goes on with it; "
                "hardness, popularity and bank are of InfoNCE: give loss='infonce' too, or leave "
                "them out"
            )
        identity = self._identity()
        recipe = self.recipe
        if recipe.further is not None:
            recipe.further.to(accelerator.device)
        trainee = Trainee(self.clip, self.sigmoid, recipe.further, self.decoder)
        journal = Journal(self.folder, samples_file="evaluations.json")
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(trained_parts(trainee, options, recipe))
            own = {n: p for n, p in trainee.named_parameters() if p.requires_grad}
            whole = options.wise_ft is None
            start = {} if whole else {n: p.detach().clone() for n, p in own.items()}
            adam = self._optimizer(own)
            if recipe.optimizer is not None:
                identity["optimizer"] = _told(adam)
            average = Average(own, options.ema) if options.ema is not None else None
            bank = None
            if options.bank:
                bank = MemoryBank(options.bank, self.clip.width).to(accelerator.device)
            extra = _extra(trainee, average, bank)
            first = 0
            if path.is_file():
                first = load_checkpoint(path, trainee, adam, identity, extra)
                journal.resume(first)
            batch = self.share * accelerator.num_processes
            endless = isinstance(self.pairs, Stream)
            order = InOrder(batch) if endless else Shuffled(len(self.pairs), batch, options.seed)
            each = Steps(self, trainee, adam, average, bank)
            batches = Batches(
                self.pairs,
                lambda step: self._mine(order.batch(step)),
                (self.clip.text, self.clip.image),
                options,
                self.skipped.__setitem__,
                kept=None if endless else self._kept_states(trainee),
                target=None if recipe.further is None else recipe.further.target,
            )
            get = stack.enter_context(batches.reading(options.workers, first, self.steps))

            def between(done: int, last: bool) -> None:
                if last or done % options.evaluate_every == 0:
                    self._evaluate(trainee, average, journal, done)

            def save(done: int) -> None:
                save_checkpoint(path, trainee, adam, done, identity, extra)
                self._write_aside(journal)

            if first == 0:
                self._evaluate(trainee, None, journal, 0)
            set_mode(trainee, options, training=True)
            loop = Loop(
                self.steps,
                lambda step: each.take(step, get(step)),
                save,
                options.save_every,
                accelerator,
                between,
            )
            loop.run(journal, first, on_progress)
            if average is not None:
                average.exchange()
            if options.wise_ft is not None:
                _towards_start(own, start, options.wise_ft)
            if options.wise_ft is not None and self.tried:
                # A run that was stopped while it was saved may have measured another alpha here.
                journal.samples = [row for row in journal.samples if "note" not in row]
                self._evaluate(trainee, None, journal, self.steps, "after wise_ft")
                self._write_aside(journal)
                journal.write()
            scoring = _scoring(trainee)
        return journal, scoring

    def _optimizer(self, own: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        options = self.options
        if self.recipe.optimizer is None:
            groups = decay_groups(own, options.rate, options.weight_decay)
            return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
        made = self.recipe.optimizer(own)
        if not isinstance(made, torch.optim.AdamW):
            raise OptionError(
                f"recipe.optimizer gives a {type(made).__name__}; checkpoints hold AdamW's state, "
                "so give a torch.optim.AdamW"
            )
        if any(group["amsgrad"] for group in made.param_groups):
            raise OptionError(
                "recipe.optimizer has amsgrad, whose state checkpoints do not hold; leave it out"
            )
        for group in made.param_groups:
            group["rate"] = group["lr"]
        return made

    def _kept_states(self, trainee: Trainee) -> KeptStates | None:
        """For a tower that makes the same of a picture in every step."""
        options, accelerator = self.options, self.accelerator
        if options.mode != "lit" or options.patch_masking:
            return None
        if self.recipe.further is not None or self.decoder is not None:
            return None  # which read more of the tower than pooled states
        if any(parameter.requires_grad for parameter in trainee.image.parameters()):
            return None

        @torch.no_grad()
        def compute(pixels: Any) -> Tensor:
            with accelerator.autocast():
                return trainee.encode_image(self.clip.image.pixels(pixels))

        return KeptStates(compute, min(options.micro_batch or self.share, self.share))

    def _mine(self, rows: Sequence[int]) -> Sequence[int]:
        rank = self.accelerator.process_index
        return rows[rank * self.share : (rank + 1) * self.share]

    def _evaluate(
        self, trainee: Trainee, average: Average | None, journal: Journal, done: int, note: str = ""
    ) -> None:
        """Measure retrieval with the weights that would be saved now."""
        if not self.tried or not self.accelerator.is_main_process:
            return
        set_mode(trainee, self.options, training=False)
        if average is not None:
            average.exchange()
        for name, pairs in self.tried.items():
            found = retrieval(trainee, (self.clip.text, self.clip.image), pairs)
            more = {"note": note} if note else {}
            journal.samples.append({"step": done, "set": name, **found, **more})
        if average is not None:
            average.exchange()
        set_mode(trainee, self.options, training=True)

    def _write_aside(self, journal: Journal) -> None:
        if journal.samples:
            with suppress(MissingDependencyError):  # the rows say the same
                draw_retrieval(journal.samples, self.folder / "retrieval.png")
        if self.skipped:
            listed = [{"row": row, "why": why} for row, why in self.skipped.items()]
            write_whole(self.folder / "skipped.json", json.dumps(listed, indent=1).encode())

    def _identity(self) -> dict[str, Any]:
        """What a run must share with a stopped one to go on from it."""
        return {
            **{k: v for k, v in asdict(self.options).items() if k not in _FREE},
            "batch_size": self.share * self.accelerator.num_processes,
            "steps": self.steps,
            "data": digest(self.pairs.step(0) if isinstance(self.pairs, Stream) else self.pairs),
            **self.recipe.identity(self.steps),
            "text tower": self.clip.text.fingerprint(),
            "image tower": self.clip.image.fingerprint(),
        }


@dataclass(frozen=True, eq=False)
class Steps:
    """What every step needs."""

    run: Run
    trainee: Trainee
    optimizer: torch.optim.Optimizer
    average: Average | None
    bank: MemoryBank | None

    def take(self, step: int, batch: Batch) -> dict[str, float]:
        """One step: a whole batch, its gradient, an update. Gives what is logged of it."""
        run, options, trainee = self.run, self.run.options, self.trainee
        seed_step(options.seed, step)
        planned = run.recipe.schedule
        set_rates(
            self.optimizer,
            planned(step, run.steps) if planned else rate_at(step, run.steps, options.warmup_ratio),
        )
        self.optimizer.zero_grad()
        size = min(options.micro_batch or run.share, run.share)
        parts = [batch.part(at, at + size) for at in range(0, len(batch), size)]
        keep = _ALL
        if len(parts) > 1:
            keep = max(0, int(options.graph_memory * 1e9) - batch.nbytes)
            check_rows_alone(trainee)
        with (
            masked_patches(trainee.image, options.masking_at(step, run.steps))
            if (options.patch_masking)
            else nullcontext()
        ):
            total, pairs = cached_backward(
                self._captioned(batch) if trainee.decoder is not None else self._encode,
                parts,
                self._loss,
                keep=keep,
                device=run.accelerator.device,
            )
        loss = float(sum_over_processes(total)) / place()[1]
        norm = finish_gradients(trainee, options.max_grad_norm)
        check_step(step, loss, norm, run.folder)
        self.optimizer.step()
        if trainee.logit_bias is None:
            clamp_scale_(trainee.logit_scale)
        if self.average is not None:
            self.average.update(step)
        if self.bank is not None:
            self.bank.push(pairs)
        return {
            "step": step + 1,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "scale": _scoring(trainee).scale,
        }

    def _encode(self, part: Batch) -> Encoded:
        device, trainee, further = self.run.accelerator.device, self.trainee, self.trainee.further
        own_loss = None
        with self.run.accelerator.autocast():
            if part.image is not None:
                image = part.image.to(device)
            elif further is None or part.target is None:
                image = trainee.encode_image(self.run.clip.image.pixels(part.pixels))
            else:
                seen = trainee.look(self.run.clip.image.pixels(part.pixels), further.layers)
                assert seen.pooled is not None
                image = seen.pooled
                target = {name: column.to(device) for name, column in part.target.items()}
                own_loss = further(seen.patches, target) * (len(part) / self.run.share)
            text = trainee.encode_text(part.ids.to(device), part.mask.to(device))
        log_q = None if part.log_q is None else part.log_q.to(device)
        return Encoded(PooledPairs(image, text, part.groups.to(device), log_q), own_loss)

    def _captioned(self, batch: Batch) -> Callable[[Batch], Encoded]:
        """The pass over a part of a batch for a CoCa; a token counts alike in every part."""
        device, trainee, module = self.run.accelerator.device, self.trainee, self.run.clip.text
        loss = CoCaLoss(captioning=self.run.options.captioning, pad_id=module.module.config.pad)
        tokens = loss.tokens(batch.ids[:, 1:])

        def encode(part: Batch) -> Encoded:
            ids = part.ids.to(device)
            with self.run.accelerator.autocast():
                pixels = self.run.clip.image.pixels(part.pixels)
                image, text, logits = trainee.caption(pixels, ids)
            log_q = None if part.log_q is None else part.log_q.to(device)
            pairs = PooledPairs(image, text, part.groups.to(device), log_q)
            return Encoded(pairs, loss.caption(logits, ids[:, 1:], tokens))

        return encode

    def _loss(self, pairs: PooledPairs) -> Tensor:
        options, trainee = self.run.options, self.trainee
        if trainee.logit_bias is not None:
            loss = SigmoidLoss(options.same_caption)
            return loss(pairs, trainee.logit_scale, trainee.logit_bias)
        nce = InfoNCE(options.same_caption, options.hardness)
        return nce(pairs, trainee.logit_scale, self.bank)


def seed_step(seed: int, step: int) -> None:
    """The noise of a step (dropout, masks) is its own, so a resumed run draws that of a straight
    one, and each process its own."""
    rank, processes = place()
    torch.manual_seed((seed * 1_000_003 + step) * processes + rank)


def finish_gradients(module: nn.Module, most: float) -> float:
    """Average gradients over the processes and clip them to ``most``, 0 for no limit; gives their
    norm before."""
    own = [p for p in module.parameters() if p.requires_grad]
    average_gradients(own)
    return float(nn.utils.clip_grad_norm_(own, most or math.inf))


def _told(adam: torch.optim.AdamW) -> list[dict[str, Any]]:
    """What an optimizer does with each of its groups, as JSON has it."""
    asked = ("betas", "eps", "weight_decay")
    return [
        {
            "parameters": len(group["params"]),
            "rate": float(group["rate"]),  # which may be a tensor
            **{name: group[name] for name in asked},
        }
        for group in adam.param_groups
    ]


def _extra(trainee: Trainee, average: Average | None, bank: MemoryBank | None) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, part in trainee.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):  # its running means and variances
            made |= {f"{name}.{at}": tensor for at, tensor in part.named_buffers()}
    if average is not None:
        made |= {f"average.{name}": tensor for name, tensor in average.weights.items()}
    if bank is not None:
        made |= {f"bank.{name}": tensor for name, tensor in bank.named_buffers()}
    return made


@torch.no_grad()
def _towards_start(
    own: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], alpha: float
) -> None:
    """WiSE-FT: ``start + alpha (own - start)``. Of a LoRA the update itself is scaled: its A is not
    a weight of the model."""
    for name, parameter in own.items():
        if name.endswith("lora_A"):
            continue
        parameter.copy_(torch.lerp(start[name], parameter, alpha))


def _scoring(trainee: Trainee) -> Scoring:
    scale = trainee.logit_scale.detach()
    if trainee.logit_bias is None:
        return Scoring(float(exp_scale(scale)))
    return Scoring(float(scale.exp()), float(trainee.logit_bias.detach()), sigmoid=True)
