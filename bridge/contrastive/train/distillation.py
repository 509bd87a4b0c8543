"""A text tower taught to land where another one's texts do, in the space shared with pictures.

Reimers & Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge
Distillation", as Carlsson et al. 2022 did it for CLIP: the teacher reads a text, the student the
same text or its translation, and the mean squared distance of their pooled states is made small.
No picture is needed, and the teacher's image tower stands beside the student unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from bridge.contrastive.clip import CLIP
from bridge.contrastive.distributed import place, sum_over_processes
from bridge.contrastive.train.options import ClipTrainOptions
from bridge.contrastive.train.pairs import Pair, digest
from bridge.contrastive.train.run import ClipTraining, finish_gradients, seed_step
from bridge.contrastive.train.saving import write_card
from bridge.contrastive.train.trainee import pooled_text
from bridge.errors import OptionError, UnsupportedModelError
from bridge.files import filled_folder
from bridge.progress import OnProgress, ProgressLine, unwatched
from bridge.runtime import quiet_loading, resolve_device
from bridge.towers.clip import TEXT_PROJECTED
from bridge.towers.tower import TextTower, open_text_tower
from bridge.training.loop import Loop, check_step
from bridge.training.optimization import decay_groups, rate_at, set_rates
from bridge.training.order import Shuffled
from bridge.training.processes import accelerator_of
from bridge.training.run_state import CHECKPOINT, Journal, load_checkpoint, save_checkpoint


def distill(
    model: Any,
    student: str,
    pairs: Sequence[Pair],
    options: ClipTrainOptions,
    folder: Path,
    device: Any,
    progress: bool,
) -> ClipTraining:
    """Teach ``student``, and save it to ``folder`` as a `CLIPTextModelWithProjection`.

    The result's ``clip`` is the teacher's image tower beside the student. Raises OptionError for a
    student of another width, UnsupportedModelError for one that is not a CLIP's.
    """
    live = isinstance(model, CLIP) and device is None
    where = model.device if live else resolve_device(device)
    with accelerator_of(where, options.mixed_precision) as accelerator:
        teacher = model if isinstance(model, CLIP) else CLIP(model, device=accelerator.device)
        taught = open_text_tower(student, device=accelerator.device)
        if type(taught.module).__name__ != TEXT_PROJECTED:
            raise UnsupportedModelError(
                f"student {student!r} is a {type(taught.module).__name__}; a {TEXT_PROJECTED} can "
                "be taught and saved"
            )
        if taught.spec.pooled_width != teacher.width:
            raise OptionError(
                f"student {student!r} has pooled states {taught.spec.pooled_width} wide, and the "
                f"space of {teacher.name} is {teacher.width} wide; give a student of that width"
            )
        share = options.share(len(pairs), accelerator.num_processes)
        lesson = _Lesson(teacher.text, taught, pairs, options, folder, accelerator, share)
        with ProgressLine(sys.stderr) as show:
            watched = show if progress and accelerator.is_main_process else unwatched
            journal = lesson.train(watched)
        if accelerator.is_main_process:
            with filled_folder(folder) as part, quiet_loading():
                taught.module.save_pretrained(part)
                taught.tokenizer.save_pretrained(part)
                for path in sorted(part.iterdir(), key=lambda each: each.name == "config.json"):
                    path.replace(folder / path.name)
            told = {"model": teacher.name, "rows": len(pairs), "steps": lesson.steps}
            write_card(folder, f"{student}, taught by {teacher.name}", options, told, ())
            (folder / CHECKPOINT).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    clip = CLIP(teacher.image.name, text=taught, image=teacher.image)
    return ClipTraining(clip, folder, tuple(journal.log))


class _Lesson:
    """All between loading and saving."""

    def __init__(
        self,
        teacher: TextTower,
        student: TextTower,
        pairs: Sequence[Pair],
        options: ClipTrainOptions,
        folder: Path,
        accelerator: Any,
        share: int,
    ) -> None:
        self._teacher, self._student, self._pairs = teacher, student, pairs
        self._options, self._folder, self._accelerator = options, folder, accelerator
        self._share = share
        self.steps = options.n_steps(len(pairs))
        batch = share * accelerator.num_processes
        self._order = Shuffled(len(pairs), batch, options.seed)

    def train(self, on_progress: OnProgress) -> Journal:
        options, module = self._options, self._student.module
        devices = [self._accelerator.device] if self._accelerator.device.type == "cuda" else []
        path, journal = (
            self._folder / CHECKPOINT,
            Journal(self._folder, samples_file="samples.json"),
        )
        identity = {
            **asdict(options),
            "data": digest(self._pairs),
            "teacher": self._teacher.fingerprint(),
            "student": self._student.fingerprint(),
        }
        with torch.random.fork_rng(devices):
            module.float().requires_grad_(True).train()
            groups = decay_groups(
                dict(module.named_parameters()), options.rate, options.weight_decay
            )
            adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
            first = 0
            if path.is_file():
                first = load_checkpoint(path, module, adam, identity)
                journal.resume(first)
            loop = Loop(
                self.steps,
                lambda step: self._take(step, adam),
                lambda done: save_checkpoint(path, module, adam, done, identity),
                options.save_every,
                self._accelerator,
            )
            loop.run(journal, first, on_progress)
            module.requires_grad_(False).eval()
        return journal

    def _take(self, step: int, adam: torch.optim.Optimizer) -> dict[str, float]:
        options, device = self._options, self._accelerator.device
        seed_step(options.seed, step)
        set_rates(adam, rate_at(step, self.steps, options.warmup_ratio))
        adam.zero_grad()
        rank = self._accelerator.process_index
        mine = self._order.batch(step)[rank * self._share : (rank + 1) * self._share]
        pairs = [self._pairs[row] for row in mine]
        said = [pair.caption(options.seed, step) for pair in pairs]
        read = [pair.translation or text for pair, text in zip(pairs, said, strict=True)]
        wanted = self._teacher.pool(said).float()
        batch = self._student.tokenize(read)
        with self._accelerator.autocast():
            found = pooled_text(self._student, batch.ids.to(device), batch.mask.to(device))
        loss = F.mse_loss(found.float(), wanted)
        loss.backward()
        value = float(sum_over_processes(loss)) / place()[1]
        norm = finish_gradients(self._student.module, options.max_grad_norm)
        check_step(step, value, norm, self._folder)
        adam.step()
        rate = adam.param_groups[0]["lr"]
        return {"step": step + 1, "loss": value, "learning_rate": rate, "grad_norm": norm}
