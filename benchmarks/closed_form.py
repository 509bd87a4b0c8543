"""A projector in closed form, beside LLaVA's first stage from random weights.

    python -m benchmarks.closed_form --n 30 --scenes 2000 --budgets 20 40 80

Tower and language model are those of `emoji-llava`, frozen, the tower with the last layer, which
`emoji-clip` has and `emoji-llava` has not; only a `linear` projector is made anew. Targets for the
ridge regression, by what is asked to be known beforehand:

- ``words``: the mean input embedding of the words that name what stands in a patch (its tint and
  concept, or the background): truth, and nothing of the shipped projector;
- ``teacher``: the shipped projector's soft tokens of the same patch: no truth, no question;
- ``teacher_last_layer``, ``teacher_3_layers``: the same from other states of the tower, which the
  shipped projector cannot read: a part swapped without training.

Stage 1 trains a projector of the same form through the frozen language model on the questions of
training scenes (AdamW, lr 1e-3, cosine, 3 % warm-up), for a number of seconds, from random
weights and from the closed form. Seconds are processor time, all threads together, so that a busy
machine gives the same figures. All are asked the questions of ``compositional.py ask``: held-out
scenes in held-out phrasings. ``blind`` reads the mean soft token wherever it looks: what can be
guessed.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.ask import SceneQuestion, answer_all, ask_rows, make_questions, normal
from benchmarks.results import RESULTS, Row, command_of, commit, report, results_file, save, show
from bridge.vlm import BridgeVLM, fit_linear_projector, load_vision, load_vlm
from bridge.vlm.projectors import build_projector
from bridge.vlm.projectors.per_state import LinearProjector
from bridge.vlm.train.batches import IGNORE_LABEL
from bridge.vlm.views import pixels
from bridge.vlm.vision import SelectLayer, image_states
from emoji_world.art import Sprites, load_sprites
from emoji_world.render import render_scene
from emoji_world.scenes import Scene, sample_scene
from emoji_world.train.llava import packed_example
from emoji_world.train.packed_chats import collate
from emoji_world.train.soft_words import word_targets

# Which layers of the whole tower each fit reads; the shipped projector reads -2.
TARGETS: dict[str, tuple[int, ...]] = {
    "words": (-2,),
    "teacher": (-2,),
    "teacher_last_layer": (-1,),
    "teacher_3_layers": (-4, -3, -2),
}
RIDGE = 1e-3
_BATCH = 64


def training_scenes(n: int, seed: int = 0) -> list[Scene]:
    """Scenes of the training side: none with a held-out pair, tint or count."""
    rng = random.Random(f"closed-form/{seed}")
    return [sample_scene(rng) for _ in range(n)]


@torch.inference_mode()
def states_of(
    vlm: BridgeVLM, scenes: Sequence[Scene], sprites: Sprites, layers: SelectLayer
) -> torch.Tensor:
    """(B, N, D) patch states of rendered scenes."""
    shown = [Image.fromarray(render_scene(scene, sprites)) for scene in scenes]
    assert vlm.vision is not None
    seen = pixels(vlm.image_processor, shown).to(vlm.device)
    return image_states(vlm.vision, seen, layers, vlm.select_feature).float()


def fitted(
    vlm: BridgeVLM, scenes: Sequence[Scene], sprites: Sprites, target: str
) -> tuple[LinearProjector, tuple[int, ...], float]:
    """A projector in closed form, the layers it reads, and the seconds, rendering included."""
    layers = TARGETS[target]
    teacher: Any = vlm.projector
    begun = time.process_time()

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(scenes), _BATCH):
            part = scenes[start : start + _BATCH]
            # What the teacher reads comes last, in one pass of the tower.
            joined = states_of(vlm, part, sprites, (*layers, -2))
            states = joined[..., : -teacher.vision_width]
            if target == "words":
                wanted = word_targets(vlm.tokenizer, vlm.llm.get_input_embeddings(), part)
            else:
                with torch.inference_mode():
                    wanted = teacher(joined[..., -teacher.vision_width :])
            yield states.flatten(0, 1), wanted.flatten(0, 1)

    made = fit_linear_projector(pairs(), ridge=RIDGE)
    return made.to(vlm.device), layers, time.process_time() - begun


def with_projector(vlm: BridgeVLM, projector: LinearProjector, layers: SelectLayer) -> BridgeVLM:
    return replace(vlm, projector=projector, select_layer=layers)


def blind(vlm: BridgeVLM, scenes: Sequence[Scene], sprites: Sprites) -> BridgeVLM:
    """A model whose every soft token is the mean one."""
    states = states_of(vlm, scenes[:_BATCH], sprites, vlm.select_layer)
    projector = build_projector("linear", states.shape[-1], vlm.projector.llm_width)  # type: ignore[union-attr]
    assert isinstance(projector, LinearProjector)
    with torch.no_grad():
        projector.weight.zero_()
        projector.bias.copy_(vlm.projector(states).flatten(0, 1).mean(0))  # type: ignore[misc]
    return replace(vlm, projector=projector.to(vlm.device).eval())


def stage_1(
    vlm: BridgeVLM, projector: LinearProjector, sprites: Sprites, seconds: float, seed: int = 0
) -> tuple[LinearProjector, int]:
    """LLaVA's first stage for ``seconds`` of processor time; the projector and its steps."""
    torch.manual_seed(seed)
    rng = random.Random(f"stage-1/{seed}")
    words, llm = vlm.tokenizer, vlm.llm
    llm.requires_grad_(False)
    trained = projector.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.0)
    begun, steps = time.process_time(), 0
    while (spent := (time.process_time() - begun) / seconds) < 1:
        rate = min(1.0, spent / 0.03) * 0.5 * (1 + math.cos(math.pi * spent))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * max(rate, 1e-3)
        scenes = [sample_scene(rng) for _ in range(16)]
        batch = collate([packed_example(words, s, rng) for s in scenes], words.pad_token_id)
        # Out of inference mode: what a gradient flows through must be a plain tensor.
        states = states_of(vlm, scenes, sprites, vlm.select_layer).clone()
        ids, labels, mask = batch.ids, batch.labels, batch.may_look()
        embeds = llm.get_input_embeddings()(ids)
        spots = (ids == vlm.image_token_id)[..., None]
        embeds = embeds.masked_scatter(spots, trained(states).to(embeds.dtype))
        bias = torch.zeros(mask.shape, dtype=torch.float32).masked_fill(~mask, -1e4)
        out = llm.base_model(
            inputs_embeds=embeds,
            attention_mask=bias,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        taught = labels[:, 1:] != IGNORE_LABEL
        loss = F.cross_entropy(llm.lm_head(out[:, :-1][taught]), labels[:, 1:][taught])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    return trained.eval().requires_grad_(False), steps


def fresh(vlm: BridgeVLM, seed: int = 0) -> LinearProjector:
    """A linear projector with torch's random weights."""
    old: Any = vlm.projector
    torch.manual_seed(seed)
    made = build_projector("linear", old.vision_width, old.llm_width)
    assert isinstance(made, LinearProjector)
    return made


def scored(name: str, vlm: BridgeVLM, asked: list[SceneQuestion], shown: list[Any]) -> list[Row]:
    """Rows ``closed_form/<name>/overall`` and ``.../overall_short`` (without captions)."""
    answers = answer_all(vlm, asked, shown, 32)
    right = [
        normal(told) == normal(one.question.answer)
        for one, told in zip(asked, answers, strict=True)
    ]
    rows = [
        replace(row, name=row.name.replace("ask/", f"closed_form/{name}/"))
        for row in ask_rows(asked, right)[:2]
    ]
    show(rows[:1])
    return rows


def seconds_row(name: str, seconds: float) -> Row:
    value = round(seconds, 2)
    return Row(f"closed_form/{name}/seconds", value, value, value, 1, "s")


def run(args: argparse.Namespace) -> list[Row]:
    vlm = load_vlm(args.vlm, device="cpu", dtype="float32")
    whole, _ = load_vision(args.vision, device="cpu", dtype="float32")
    vlm = replace(vlm, vision=whole, select_layer=-2)
    sprites = load_sprites()
    scenes = training_scenes(args.scenes, args.seed)
    asked = make_questions(args.n, args.seed)
    shown = [render_scene(one.scene, sprites) for one in asked]
    rows = scored("shipped", vlm, asked, shown)
    rows += scored("blind", blind(vlm, scenes, sprites), asked, shown)
    start: LinearProjector | None = None
    for target in args.targets:
        projector, layers, seconds = fitted(vlm, scenes, sprites, target)
        rows += scored(target, with_projector(vlm, projector, layers), asked, shown)
        rows.append(seconds_row(target, seconds))
        if target == "teacher":
            start = projector
    for budget in args.budgets:
        made, steps = stage_1(vlm, fresh(vlm), sprites, budget, args.seed)
        name = f"stage_1_random_{budget:g}s"
        rows += scored(name, replace(vlm, projector=made), asked, shown)
        rows.append(Row(f"closed_form/{name}/steps", steps, steps, steps, 1, "steps"))
    if start is not None and args.budgets:
        budget = args.budgets[-1]
        made, steps = stage_1(vlm, start, sprites, budget, args.seed)
        name = f"stage_1_from_teacher_{budget:g}s"
        rows += scored(name, replace(vlm, projector=made), asked, shown)
        rows.append(Row(f"closed_form/{name}/steps", steps, steps, steps, 1, "steps"))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.closed_form",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--vlm", default="emoji-llava")
    parser.add_argument("--vision", default="emoji-clip", help="its tower with all layers")
    parser.add_argument("--n", type=int, default=30, help="questions a kind")
    parser.add_argument("--scenes", type=int, default=2000, help="training scenes for the fit")
    parser.add_argument(
        "--targets", nargs="*", choices=TARGETS, default=list(TARGETS), help="which fits"
    )
    parser.add_argument(
        "--budgets", nargs="*", type=float, default=[20, 40, 80], help="seconds of stage 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    commit()
    rows = run(args)
    named = ("vlm", "vision", "n", "scenes", "targets", "budgets", "seed")
    command = command_of(parser, args, named)
    which = ((args.vlm, "emoji-llava"), (args.vision, "emoji-clip"))
    path = results_file(args.out, "closed_form.json", *which)
    save(path, report(command, rows, ridge=RIDGE, layers=TARGETS))


if __name__ == "__main__":
    main()
