"""What a step of `bridge.train_clip` takes, in memory and in time.

    python -m benchmarks.train_clip_speed memory
    python -m benchmarks.train_clip_speed time

emoji-clip is trained on random pictures with captions of the embedded world, by the trainer's own
steps. The plain form (one pass over the batch) stands beside the memory-bounded one (GradCache, in
parts), with room for graphs and without. Peaks are those of a process of its own for each form,
Python, torch, weights and the batch's pixels included. Times are by the clock, on two threads, all
forms in turn; a ratio is the median of the turns' own.

Where open_clip is installed (`make parity` makes such a place), its own ``train_one_epoch`` runs
beside on a model of the same sizes with the same rows. Results go to train-clip-memory.json and
train-clip-speed.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import benchmarks.torchvision_names  # noqa: F401 - before open_clip imports torchvision
import bridge
from benchmarks.results import (
    RESULTS,
    ROOT,
    Row,
    command_of,
    commit,
    median_row,
    report,
    save,
    show,
)
from bridge.contrastive.losses import caption_groups
from bridge.contrastive.train.options import ClipTrainOptions
from bridge.contrastive.train.pairs import Batch
from bridge.contrastive.train.run import Run, Steps
from bridge.contrastive.train.trainee import Trainee, set_mode, trained_parts
from bridge.embedded import IMAGE_TOWER
from bridge.training.optimization import decay_groups
from bridge.training.processes import accelerator_of
from emoji_world.captions import caption
from emoji_world.scenes import sample_scene

_PART = 64
_SIDE = 128
_FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"micro_batch": _PART},
    "cached_nothing_kept": {"micro_batch": _PART, "graph_memory": 0.0},
}


def captions(count: int) -> list[str]:
    rng = random.Random(5)
    return [caption(sample_scene(rng), rng) for _ in range(count)]


def batch_of(clip: bridge.CLIP, count: int) -> Batch:
    """Prepared rows, as the trainer's threads give them."""
    texts = captions(count)
    draws = torch.Generator().manual_seed(1)
    pixels = torch.empty(count, 3, _SIDE, _SIDE, dtype=torch.float32)
    ids = clip.text.tokenize(texts)
    return Batch(pixels.normal_(generator=draws), ids.ids, ids.mask, caption_groups(texts), None)


def stepper(clip: bridge.CLIP, count: int, folder: Path, **options: Any) -> Callable[[], None]:
    """What takes one step of the trainer with a batch that is ready."""
    settings = ClipTrainOptions(steps=1000, batch_size=count, learning_rate=1e-5, **options)
    batch = batch_of(clip, count)

    def step() -> None:
        with accelerator_of(torch.device("cpu"), "no") as accelerator:
            run = Run(clip, clip.name, [None] * count, {}, settings, folder, accelerator, count)  # type: ignore[list-item]
            trainee = Trainee(clip, sigmoid=False)
            with trained_parts(trainee, settings):
                own = {n: p for n, p in trainee.named_parameters() if p.requires_grad}
                adam = torch.optim.AdamW(decay_groups(own, settings.rate, 0.1), eps=1e-6)
                set_mode(trainee, settings, training=True)
                Steps(run, trainee, adam, None, None).take(1, batch)

    return step


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def measure_times(clip: bridge.CLIP, count: int, repeats: int, folder: Path) -> list[Row]:
    steps = {name: stepper(clip, count, folder, **options) for name, options in _FORMS.items()}
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(repeats + 1)][1:]
    rows = [
        median_row(f"step/{count}/{name}", [each[name] for each in rounds], "s") for name in steps
    ]
    for name in [*steps][1:]:
        shares = [each[name] / each["plain"] for each in rounds]
        rows.append(median_row(f"step/{count}/{name}_over_plain", shares, "x"))
    return rows


# ---------------------------------------------------------------- memory


def peak(form: str, count: int) -> float:
    """The largest memory of a process that takes one step, in GB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_clip_speed", "--one", form, str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def one(form: str, count: int) -> None:
    clip = bridge.CLIP(IMAGE_TOWER, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        stepper(clip, count, Path(folder), **_FORMS[form])()
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


# ---------------------------------------------------------------- open_clip


def measure_peer(clip: bridge.CLIP, count: int, repeats: int, folder: Path) -> list[Row]:
    """Seconds of a step: the trainer's beside open_clip's ``train_one_epoch``."""
    from open_clip import CLIP as Peer
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    text, vision = clip.text.module.config, clip.image.module.config
    model = Peer(
        embed_dim=clip.width,
        quick_gelu=vision.hidden_act == "quick_gelu",
        vision_cfg={
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
        },
        text_cfg={
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
        },
        output_dict=True,
    )
    batch = batch_of(clip, count)
    full = clip.text.tokenize(captions(count)).ids
    loader = _Loader([(batch.pixels, full)])
    args = Namespace(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=True,
        grad_clip_norm=1.0, horovod=False, log_every_n_steps=1000, world_size=1, rank=0,
        local_rank=0, batch_size=count, wandb=False,
    )  # fmt: skip
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6)

    def theirs() -> None:
        data = {"train": Namespace(set_epoch=lambda epoch: None, dataloader=loader)}
        train_one_epoch(model, data, ClipLoss(), 0, adam, None, None, None, args)

    ours = stepper(clip, count, folder)
    rounds = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]
    return [
        median_row(f"step/{count}/bridge", [a for a, _ in rounds], "s"),
        median_row(f"step/{count}/open_clip", [b for _, b in rounds], "s"),
        median_row(f"step/{count}/steps_over_open_clip", [b / a for a, b in rounds], "x"),
    ]


class _Loader(list[Any]):
    """A dataloader of batches that are ready."""

    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return sum(len(pixels) for pixels, _ in self)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.train_clip_speed"
    )
    parser.add_argument("what", choices=("memory", "time"), nargs="?")
    parser.add_argument("--size", type=int, default=512, help="pairs, plain beside cached")
    parser.add_argument("--large", type=int, default=4096, help="pairs, cached alone")
    parser.add_argument("--peer-size", type=int, default=128, help="pairs, beside open_clip")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.one:
        one(args.one[0], int(args.one[1]))
        return
    if args.what is None:
        parser.error("say what is measured: memory or time")
    commit()
    rows = measure_memory(args) if args.what == "memory" else measure_seconds(args)
    show(rows)
    notes = {"part": _PART, "graph_memory_gb": ClipTrainOptions().graph_memory}
    options = ("size", "large") if args.what == "memory" else ("size", "peer_size", "repeats")
    name = {"memory": "train-clip-memory.json", "time": "train-clip-speed.json"}[args.what]
    save(args.out / name, report(command_of(parser, args, options), rows, "cpu", **notes))


def measure_memory(args: argparse.Namespace) -> list[Row]:
    rows = []
    for form, count in (
        ("plain", args.size),
        ("cached", args.size),
        ("cached_nothing_kept", args.size),
        ("cached", args.large),
    ):
        value = round(peak(form, count), 2)
        rows.append(Row(f"memory/{count}/{form}", value, value, value, 1, "GB"))
    return rows


def measure_seconds(args: argparse.Namespace) -> list[Row]:
    clip = bridge.CLIP(IMAGE_TOWER, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_times(clip, args.size, args.repeats, Path(folder))
        if importlib.util.find_spec("open_clip_train"):
            rows += measure_peer(clip, args.peer_size, args.repeats, Path(folder))
    return rows


if __name__ == "__main__":
    main()
