"""`bridge.train_vlm`: from a pairing and data to a trained checkpoint folder.

Each step is the same whether run straight, resumed, or by several processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from bridge.checks import keywords, takes_fields
from bridge.errors import DataError, OptionError, UnsupportedModelError
from bridge.files import check_output_folder, home_path, write_whole
from bridge.progress import OnProgress, ProgressLine, unwatched
from bridge.runtime import resolve_device
from bridge.towers import fingerprint
from bridge.training.loop import Loop, check_step
from bridge.training.optimization import rate_at, set_rates
from bridge.training.order import Order
from bridge.training.processes import accelerator_of
from bridge.training.run_state import CHECKPOINT, Journal, load_checkpoint, save_checkpoint
from bridge.vlm.load import load_vlm
from bridge.vlm.model import BridgeVLM
from bridge.vlm.save import check_can_save, save_vlm
from bridge.vlm.train.batches import LabelledRow, encode, make_batch
from bridge.vlm.train.data import CAPTION_QUESTION, Data, Row, read_data
from bridge.vlm.train.feature_cache import FeatureSource, LiveStates, StoredStates, view_size
from bridge.vlm.train.options import TrainKeywords, TrainOptions
from bridge.vlm.train.samples import ask_samples, askable
from bridge.vlm.train.trainable import Trainee, groups, set_mode, trained_parts

if TYPE_CHECKING:
    from accelerate import Accelerator

# Settings that a run may go on with changed: they do not change what it computes.
_FREE = ("micro_batch", "save_every", "sample_every", "samples")


@keywords
@dataclass(frozen=True, eq=False)
class Training:
    """A finished run: the trained model, its folder, and a row of figures a step."""

    vlm: BridgeVLM
    folder: Path
    log: tuple[dict[str, float], ...]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.log]


@takes_fields(TrainOptions)
def train_vlm(
    model: str | os.PathLike[str] | BridgeVLM | Callable[[torch.device], BridgeVLM],
    data: Data,
    output: str | os.PathLike[str],
    *,
    image_folder: str | os.PathLike[str] | None = None,
    caption_question: str = CAPTION_QUESTION,
    feature_folder: str | os.PathLike[str] | None = None,
    store_features: bool = True,
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Unpack[TrainKeywords],
) -> Training:
    """Train a bridge in one of LLaVA's two stages, and save it to ``output``.

    Args:
        model: a `BridgeVLM` (`bridge.vlm.pair`), which is trained in place; or what `load_vlm`
            loads, such as the ``output`` of stage 1; or a function that makes one on a device,
            called when all else is checked.
        data: LLaVA's conversation JSON, a folder of pictures with captions, or rows; see
            `bridge.vlm.train.data.read_data`, for ``image_folder`` and ``caption_question`` too.
        output: a new folder, or that of a run that was stopped: it goes on where it was last
            written down, to the same loss curve. It gets the model (what `bridge.load_vlm` and,
            for LLaVA's kind of pairing, transformers load), `log.json`, `loss.png`, and
            `samples.json`, answers on the way.
        feature_folder: where the frozen tower's states of each picture are kept, by default
            ``output``/features. ``store_features=False`` runs the tower in every step instead:
            a LLaVA picture takes 1.2 MB in half precision.
        device: by default the model's own; CUDA if there is one, where it is yet to be loaded.
        options: those of `TrainOptions`: ``stage``, ``epochs``, ``batch_size``, ``lora`` ...

    Launched by `accelerate launch` or `torchrun`, all processes share the work of each batch.
    Data and options are checked before a model loads. Raises DataError, ImageError, OptionError,
    UnsupportedModelError, and what `load_vlm` raises.
    """
    settings = TrainOptions(**options)
    rows = read_data(data, image_folder=image_folder, caption_question=caption_question)
    if settings.stage == 1 and not any(row.pictures for row in rows):
        raise DataError("no row has a picture; stage 1 learns from pictures alone")
    folder = _checked_output(output)
    features = home_path(feature_folder or folder / "features")
    kept = features if store_features else None
    if kept is not None:
        check_output_folder(kept, "feature folder")
    live = isinstance(model, BridgeVLM) and device is None
    place = model.device if live else resolve_device(device)  # type: ignore[union-attr]
    with accelerator_of(place, settings.mixed_precision) as accelerator:
        settings.rows_at_once(len(rows), accelerator.num_processes)
        vlm = _made(model, accelerator.device)
        if vlm.vision is None:
            raise UnsupportedModelError(f"{vlm.name} has no tower; pair it with one to train")
        check_can_save(vlm)
        for part in (vlm.vision, vlm.projector, vlm.llm):
            part.to(accelerator.device)  # type: ignore[union-attr]
        with ProgressLine(sys.stderr) as show:
            watched = show if progress and accelerator.is_main_process else unwatched
            journal = _train(vlm, rows, settings, folder, kept, accelerator, watched)
        if accelerator.is_main_process:
            save_vlm(vlm, folder)
            told = {"rows": len(rows), "options": asdict(settings)}
            write_whole(folder / "training.json", json.dumps(told, indent=1).encode())
            (folder / CHECKPOINT).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    return Training(vlm, folder, tuple(journal.log))


def _made(model: Any, device: torch.device) -> BridgeVLM:
    if isinstance(model, BridgeVLM):
        return model
    made = model(device) if callable(model) else load_vlm(model, device=device)
    assert isinstance(made, BridgeVLM)
    return made


def _train(
    vlm: BridgeVLM,
    rows: Sequence[Row],
    options: TrainOptions,
    folder: Path,
    kept: Path | None,
    accelerator: Accelerator,
    on_progress: OnProgress,
) -> Journal:
    """All of a run between loading and saving."""
    first = next((row.pictures[0] for row in rows if row.pictures), None)
    view = None if first is None else view_size(vlm, first)
    encoded = [_encoded(vlm, row, view, options) for row in rows]
    features = _features(vlm, encoded, kept, accelerator, on_progress)
    steps = options.n_steps(len(rows))
    identity = _identity(vlm, encoded, options, steps)
    journal, path, start = Journal(folder), folder / CHECKPOINT, 0
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices), trained_parts(vlm, options):
        plain = Trainee(vlm, None if view is None else vlm.count(*view).layout)
        adam = torch.optim.AdamW(groups(vlm, options), betas=(0.9, 0.999))
        if path.is_file():
            start = load_checkpoint(path, plain, adam, identity)
            journal.resume(start)
        module, optimizer = accelerator.prepare(plain, adam)
        batch = options.rows_a_step(len(rows))
        order = Order([len(row.ids) for row in encoded], batch, steps, options.seed)
        each = Steps(
            accelerator, module, optimizer, options, order, encoded, features, vlm.pad_id, folder
        )
        asked = askable(rows, options.samples)

        def ask(done: int, last: bool) -> None:
            if asked and (last or done % options.sample_every == 0):
                set_mode(vlm, options, training=False)
                if accelerator.is_main_process:
                    journal.samples += ask_samples(vlm, asked, done)
                set_mode(vlm, options, training=True)

        def save(done: int) -> None:
            save_checkpoint(path, plain, adam, done, identity)

        set_mode(vlm, options, training=True)
        loop = Loop(steps, each.take, save, options.save_every, accelerator, ask)
        loop.run(journal, start, on_progress)
    return journal


def _encoded(
    vlm: BridgeVLM, row: Row, view: tuple[int, int] | None, options: TrainOptions
) -> LabelledRow:
    counts = [vlm.n_soft_tokens(*view, p.size) for p in row.pictures] if view else []
    limits = [limit for limit in (options.max_length, vlm.context) if limit is not None]
    return encode(vlm.writer, row, counts, min(limits, default=None))


def _features(
    vlm: BridgeVLM,
    rows: Sequence[LabelledRow],
    kept: Path | None,
    accelerator: Accelerator,
    on_progress: OnProgress,
) -> FeatureSource:
    if kept is None:
        return LiveStates(vlm)
    stored = StoredStates(vlm, kept)
    pictures = [picture for row in rows for picture in row.pictures]
    mine = pictures[accelerator.process_index :: accelerator.num_processes]
    stored.fill(mine, on_progress)
    accelerator.wait_for_everyone()
    return stored


def _identity(
    vlm: BridgeVLM, rows: Sequence[LabelledRow], options: TrainOptions, steps: int
) -> dict[str, Any]:
    """What a run must share with a stopped one to go on from it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.ids.tobytes() + row.labels.tobytes())
    settings = {k: v for k, v in asdict(options).items() if k not in _FREE}
    return {
        **settings,
        "batch_size": options.rows_a_step(len(rows)),
        "steps": steps,
        "data": digest.hexdigest()[:16],
        "tower": fingerprint(vlm.vision),
        "language model": fingerprint(vlm.llm),
        "projector": vlm.projector.kind if vlm.projector is not None else None,
    }


def _checked_output(output: str | os.PathLike[str]) -> Path:
    folder = home_path(output)
    check_output_folder(folder)
    if (folder / "config.json").exists() and not (folder / CHECKPOINT).exists():
        raise OptionError(f"output {str(folder)!r} holds a model already; give another folder")
    return folder


@dataclass(frozen=True, eq=False)
class Steps:
    """What every step needs; ``module`` and ``optimizer`` as `accelerate` prepared them."""

    accelerator: Any
    module: Any
    optimizer: Any
    options: TrainOptions
    order: Order
    rows: Sequence[LabelledRow]
    features: FeatureSource
    pad_id: int
    folder: Path

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
        set_rates(self.optimizer, rate_at(step, self.order.steps, options.warmup_ratio))
        batch = self.order.batch(step)
        n_learnt = sum(self.rows[index].n_learnt for index in batch)
        total = torch.zeros((), device=accelerator.device, dtype=torch.float32)
        self.optimizer.zero_grad()
        passes = self._passes(batch)
        for number, indices in enumerate(passes, start=1):
            rows = [self.rows[index] for index in indices]
            made = make_batch(rows, self.features, self.pad_id, accelerator.device)
            last = number == len(passes)
            with nullcontext() if last else accelerator.no_sync(self.module):
                loss = self.module(made)
                # Gradients are averaged over the processes, and each holds only its own rows.
                accelerator.backward(loss * (accelerator.num_processes / n_learnt))
            total += loss.detach()
        norm, loss = self._clip(), float(accelerator.reduce(total, "sum")) / n_learnt
        check_step(step, loss, norm, self.folder)
        self.optimizer.step()
        return {
            "step": step + 1,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[-1]["lr"],  # the LLM's, where it has one
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
