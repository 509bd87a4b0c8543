"""``python -m emoji_world.train STAGE``: train what weights/ ships, stage by stage.

Stages in their order, each needing those before it: ``tokenizer``, ``vae``, ``clip``,
``multilingual``, ``clip-2``, ``vision``, ``decoder``, ``sprites``, ``texts``, ``unet``,
``llava``, ``gemma``, ``publish``; ``all`` runs them all, ``gemma`` only where the extra of that
name is installed. A stage trains until it has used its minutes of wall clock, checkpoints every
two minutes under --runs, and goes on from there when it is started again, with a larger --minutes
if it should train longer. ``clip`` and ``clip-2`` are runs of `bridge.train_clip`: of so many
--steps, to whose end a run that was stopped goes on. ``sprites`` and ``unet`` train the painter,
and need neither ``vision`` nor ``decoder``; ``texts`` reads the text towers as the painter does;
nothing needs ``multilingual``; ``gemma`` needs ``clip`` alone. Without a checkpoint, ``decoder``,
``vision`` and ``texts`` go on from the weights, and so do ``multilingual``, ``sprites``, ``unet``,
``llava`` and ``gemma`` unless --fresh is given. ``all`` begins with nothing.

A GPU is used where there is one, but for ``multilingual`` and ``texts``, which are small. It wants
--times (batches so many times as large) and --workers (processes that make them).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from bridge.files import default_cache
from bridge.runtime import resolve_device
from bridge.vlm import packaged
from emoji_world.art import Sprites, load_sprites
from emoji_world.captions import caption
from emoji_world.train import (
    binding_finetune,
    clip,
    gemma,
    llava,
    multilingual,
    publish,
    tokenizer,
    unet,
    vae,
)
from emoji_world.train.data import pictures, scene_batch, scene_rng
from emoji_world.train.loop import Recipe, Run, load_averaged
from emoji_world.train.prefetch import ON_CPU, Setup

# Minutes each stage trains by default: what the shipped weights had on one CPU core, the painter's
# (vae, decoder, sprites, unet) on two, `gemma` on an H200. Others had minutes on one as well, which
# count for far more (weights/README.md).
MINUTES = {
    "vae": 19.0,
    "multilingual": 27.0,
    "vision": 48.0,
    "decoder": 22.0,
    "sprites": 59.0,
    "texts": 59.0,
    "unet": 645.0,
    "llava": 172.0,
    "gemma": 11.5,
}
# Of the two stages that `bridge.train_clip` runs: as many as the shipped towers had, in 22 and 4
# minutes of one core.
STEPS = {"clip": 1443, "clip-2": 299}


@dataclass(frozen=True)
class Place:
    """Where a stage reads and writes, where it trains, and at which rate if not its own."""

    artwork: Callable[[], Sprites]  # not every stage needs it
    weights: Path
    runs: Path
    fresh: bool
    setup: Setup = ON_CPU
    lr: float | None = None
    steps: int | None = None

    @property
    def sprites(self) -> Sprites:
        return self.artwork()

    def shipped(self, part: str) -> Path | None:
        """The folder of a part that is trained already, to go on from; None when there is none
        or a fresh start is wanted."""
        folder = self.weights / part
        trained = not self.fresh and any(folder.glob("*.safetensors"))
        return folder if trained else None

    @property
    def xl(self) -> Path:
        return self.weights / "emoji-xl"

    def train(self, recipe: Recipe, minutes: float) -> Run:
        """The recipe's run, trained for its minutes."""
        run = Run(recipe if self.lr is None else replace(recipe, lr=self.lr), self.runs)
        run.train(minutes)
        return run

    def clip_settings(self, stage: str) -> clip.Settings:
        """How `bridge.train_clip` runs a stage: so many steps, in place of minutes."""
        usual = clip.Settings(self.steps or STEPS[stage])
        return replace(
            usual,
            batch=clip.BATCH * self.setup.times,
            workers=max(usual.workers, self.setup.workers),
            lr=usual.lr if self.lr is None else self.lr,
        )

    def tokenizer(self, name: str) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.xl / name, trust_remote_code=False)


def train_vae(place: Place, minutes: float) -> None:
    run = place.train(vae.recipe(vae.build(), place.sprites, place.setup), minutes)
    vae.export(run, place.sprites, place.xl)


def train_decoder(place: Place, minutes: float) -> None:
    part = vae.load(place.xl)
    if tuple(part.config.num_decoder_blocks) != vae.DEEP_DECODER_BLOCKS:
        part = vae.deepened(part)
    run = place.train(vae.recipe_decoder(part, place.sprites, place.setup), minutes)
    vae.export_decoder(run, part, place.xl)


def train_clip(place: Place, minutes: float) -> None:
    words = place.tokenizer("tokenizer")
    folder, settings = place.runs / "clip", place.clip_settings("clip")
    model = clip.build(words)
    model = clip.train(model, words, place.sprites, folder, settings, place.setup.device)
    clip.export(model, words, place.weights, second=False)


def train_multilingual(place: Place, minutes: float) -> None:
    teacher = CLIPModel.from_pretrained(
        place.weights / "emoji-clip", dtype=torch.float32, trust_remote_code=False
    )
    pooled = teacher.config.projection_dim
    words = multilingual.tokenizer(place.weights / multilingual.NAME)
    shipped = place.shipped(multilingual.NAME)
    if shipped:
        model = multilingual.load(shipped, words, pooled)
    else:
        model = multilingual.build(words, pooled)
    english = place.tokenizer("tokenizer")
    run = place.train(multilingual.recipe(model, words, teacher, english), minutes)
    multilingual.export(load_averaged(run, model), words, place.weights / multilingual.NAME)


def train_clip_2(place: Place, minutes: float) -> None:
    first = CLIPModel.from_pretrained(
        place.weights / "emoji-clip", dtype=torch.float32, trust_remote_code=False
    )
    words = place.tokenizer("tokenizer_2")
    folder, settings = place.runs / "clip-2", place.clip_settings("clip-2")
    model = clip.build(words, second=True)
    model = clip.train_second(
        model, first, words, place.sprites, folder, settings, place.setup.device
    )
    clip.export(model, words, place.weights, second=True)


def train_texts(place: Place, minutes: float) -> None:
    folders = (place.weights / "emoji-clip", place.weights / "emoji-clip-2")
    first, second = (
        CLIPModel.from_pretrained(f, dtype=torch.float32, trust_remote_code=False) for f in folders
    )
    before = unet.Painter.load(place.xl)
    model = UNet2DConditionModel.from_pretrained(
        place.xl / "unet", torch_dtype=torch.float32, trust_remote_code=False
    )
    words = [place.tokenizer(name) for name in ("tokenizer", "tokenizer_2")]
    recipe = binding_finetune.recipe((first, second), model.encoder_hid_proj, words[0])
    run = place.train(recipe, minutes)
    load_averaged(run, first.text_model, "first.")
    load_averaged(run, second.text_model, "second.")
    rng = scene_rng(33, 0)
    texts = [caption(s, rng) for s in scene_batch(rng, 1024)]
    ids = words[0](texts[:128], padding="max_length", return_tensors="pt").input_ids
    for each in (first, second):
        binding_finetune.anchor(each.text_model, ids)
    clip.export(first, words[0], place.weights, second=False)
    clip.export(second, words[1], place.weights, second=True)
    kept = unet.realign_text(model, before, unet.Painter.load(place.xl), texts)
    print(f"texts: of what the painter read, {kept:.0%} lies where it lay", flush=True)
    model.half().save_pretrained(place.xl / "unet")


def train_vision(place: Place, minutes: float) -> None:
    folders = (place.weights / "emoji-clip", place.weights / "emoji-clip-2")
    first, second = (
        CLIPModel.from_pretrained(f, dtype=torch.float32, trust_remote_code=False) for f in folders
    )
    heads = clip.trained_heads(place.runs / "clip", first.config.vision_config.hidden_size)
    words = place.tokenizer("tokenizer")
    drawing = vae.load(place.xl)
    recipe = clip.recipe_vision((first, second), heads, words, place.sprites, drawing, place.setup)
    run = place.train(recipe, minutes)
    first = load_averaged(run, first, "first.")
    clip.export(first, words, place.weights, second=False)
    second = load_averaged(run, second, "second.")  # the image tower is first's own object
    clip.export(second, place.tokenizer("tokenizer_2"), place.weights, second=True)


def train_painter(place: Place, minutes: float, stage: unet.Stage) -> None:
    painter = unet.Painter.load(place.xl)
    shipped = place.shipped("emoji-xl/unet")
    if shipped:
        model = UNet2DConditionModel.from_pretrained(
            shipped, torch_dtype=torch.float32, trust_remote_code=False
        )
    else:
        model = unet.build()
        rng = scene_rng(32, 0)
        unet.whiten_text(model, painter, [caption(s, rng) for s in scene_batch(rng, 1024)])
    painter = painter.to(place.setup.device)
    recipe = unet.recipe(model, painter, place.sprites, stage, place.setup)
    model.compile()  # a quarter faster, once it is compiled
    run = place.train(recipe, minutes)
    unet.export(run, place.xl)


def train_llava(place: Place, minutes: float) -> None:
    tower = CLIPModel.from_pretrained(
        place.weights / "emoji-clip", dtype=torch.float32, trust_remote_code=False
    )
    shipped = place.shipped("emoji-llava")
    words = llava.tokenizer(place.weights / "emoji-llava")
    if shipped:
        model = llava.load(shipped, tower, words)
    else:
        model = llava.build(tower, words)
        llava.whiten(model, pictures(scene_batch(scene_rng(42, 0), 256), place.sprites))
    run = place.train(
        llava.recipe(model, words, place.sprites, vae.load(place.xl), place.setup), minutes
    )
    llava.export(run, tower, words, place.weights / "emoji-llava")


def train_gemma(place: Place, minutes: float) -> None:
    shipped = place.shipped("emoji-gemma/projector")
    folder = place.weights / "emoji-gemma"
    vlm, module = gemma.start(
        place.weights, folder if shipped else None, place.sprites, place.setup.device
    )
    times, workers = place.setup.times, place.setup.workers
    run = place.train(gemma.recipe(vlm, module, place.sprites, times, workers), minutes)
    gemma.export(run, vlm, module, folder)


STAGES: dict[str, Callable[[Place, float], None]] = {
    "tokenizer": lambda place, _: tokenizer.export(place.xl),
    "vae": train_vae,
    "clip": train_clip,
    "multilingual": train_multilingual,
    "clip-2": train_clip_2,
    "vision": train_vision,
    "decoder": train_decoder,
    "sprites": lambda place, minutes: train_painter(place, minutes, unet.SPRITES),
    "texts": train_texts,
    "unet": lambda place, minutes: train_painter(place, minutes, unet.SCENES),
    "llava": train_llava,
    "gemma": train_gemma,
    "publish": lambda place, _: publish.publish(place.weights, place.runs),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m emoji_world.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--minutes", type=float, help="training time of the stage, in all")
    parser.add_argument("--steps", type=int, help="of clip or clip-2, in place of minutes")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="rendered artwork")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cuda, cpu; default: a GPU if there is one")
    parser.add_argument("--times", type=int, default=1, help="size of batches, in usual ones")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--lr", type=float, help="learning rate, if not the stage's own")
    parser.add_argument("--fresh", action="store_true", help="not from weights that are there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.times < 1 or args.workers < 0 or (args.steps is not None and args.steps < 1):
        parser.error("--times and --steps must be 1 or more, --workers 0 or more")
    if args.stage in STEPS and args.minutes is not None:
        parser.error(f"{args.stage} is trained for --steps, not for --minutes")
    if args.stage in MINUTES and args.steps is not None:
        parser.error(f"{args.stage} is trained for --minutes, not for --steps")
    setup = Setup(resolve_device(args.device), args.times, args.workers)
    every = [s for s in STAGES if s != "gemma" or packaged.is_at_hand(gemma.LLM)]
    chosen = every if args.stage == "all" else [args.stage]
    artwork = cache(lambda: load_sprites(args.cache))
    for stage in chosen:
        # What an earlier stage of the same call has begun is gone on with.
        begun = stage == "unet" and "sprites" in chosen
        fresh = not begun and (args.fresh or args.stage == "all")
        place = Place(artwork, args.weights, args.runs, fresh, setup, args.lr, args.steps)
        torch.manual_seed(args.seed)
        minutes = MINUTES.get(stage, 0.0) if args.minutes is None else args.minutes
        STAGES[stage](place, minutes)


if __name__ == "__main__":
    main()
