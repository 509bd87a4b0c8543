"""``adapters``: how much of the native towers' score does a foreign text tower keep?

The painter was trained with two towers together. Here one of them alone, or the small language
model of emoji-llava, stands for both, through each kind of adapter; the judge scores the same
held-out prompts with the same noise. Adapters are fitted on training captions, whose phrasings and
combinations the prompts do not share.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.painting import as_array, paint, with_progress
from benchmarks.results import Row, report, results_file, save, share_row, show
from benchmarks.tasks import KINDS, Task, interleaved, judge_task
from bridge.adapters.fitting import KINDS_OF_ADAPTER
from emoji_world.captions import caption
from emoji_world.judge import Judge
from emoji_world.scenes import sample_scene

TOWERS = ("emoji-1", "emoji-2", "emoji-llava's language model")
HELD_OUT = 100  # captions that the states are compared on


def run_adapters(args: argparse.Namespace) -> None:
    """Fit, draw, judge, and write adapters.json, anew after each adapter: they take an hour.

    The note ``done`` says how many of them a file has.
    """
    import bridge
    from bridge.diffusion import load_pipeline

    pipe = load_pipeline(args.model, device=args.device)
    judge = Judge()
    tasks = interleaved(args.adapter_prompts, args.seed)
    captions = make_captions(args.captions, args.seed)
    native = _right(pipe, judge, tasks, args)
    rows = _rows("adapters/native", tasks, native)
    show(rows)
    explained: dict[str, Any] = {}
    missed: dict[str, Any] = {}
    path = results_file(args.out, "adapters.json", (args.model, "emoji-xl"))
    notes = {"rules": "benchmarks/tasks.py", "explained": explained, "missed": missed}
    fresh = [each for each in make_captions(2 * HELD_OUT, args.seed + 1) if each not in captions]
    for name in TOWERS:
        tower = open_tower(name, args.device)
        for kind in KINDS_OF_ADAPTER:
            begun = time.monotonic()
            adapter = bridge.fit_adapter(
                tower, model=pipe, prompts=captions, kind=kind, steps=args.train_steps
            )
            spent = round(time.monotonic() - begun, 1)
            title = f"adapters/{name}/{kind}"
            explained[title] = adapter.explained
            missed[title] = missed_shares(pipe, tower, adapter, fresh[:HELD_OUT])
            right = _right(pipe, judge, tasks, args, towers=tower, adapter=adapter)
            new = [
                Row(f"{title}/fitting", spent, spent, spent, 1, "s"),
                *_rows(title, tasks, right),
                kept_row(f"{title}/kept", native, right),
            ]
            show(new)
            rows += new
            done = f"{len(explained)} of {len(TOWERS) * len(KINDS_OF_ADAPTER)} adapters"
            save(path, report(args.command, rows, pipe.device, done=done, **notes))


def make_captions(n: int, seed: int) -> list[str]:
    """``n`` different training captions; the same for the same seed."""
    rng = random.Random(f"adapters/{seed}")
    found: dict[str, None] = {}
    while len(found) < n:
        found[caption(sample_scene(rng), rng)] = None
    return list(found)


def missed_shares(pipe: Any, tower: Any, adapter: Any, captions: Sequence[str]) -> dict[str, float]:
    """How far mapped states are from native ones where the UNet reads them, by kind of place.

    The share of the variance after ``encoder_hid_proj``, which whitens both towers' states side by
    side; 1 is no better than the mean.
    """
    import torch

    from bridge.adapters.pairs import foreign_readings, native_states
    from bridge.adapters.reading import KINDS as PLACES
    from bridge.adapters.reading import Places
    from bridge.encoding import open_model

    model = open_model(pipe)
    towers = model.load()
    natives = native_states(model, towers, captions)
    readings = foreign_readings(tower, natives, adapter.layers, towers.device)
    device = pipe.unet.device
    mapped: dict[str, Any] = {}
    pooled: float | None = None
    for name, native in natives.items():
        mapped[name], found = adapter.maps[name].to(towers.device)(native.windows, readings)
        if native.pooled is not None and found is not None:
            pooled = _missed(native.pooled, found)
    both = [
        torch.cat([each.states for each in natives.values()], -1),
        torch.cat([*mapped.values()], -1),
    ]
    with torch.no_grad():
        read = [
            pipe.unet.encoder_hid_proj(each.to(device, pipe.unet.dtype)).float() for each in both
        ]
    windows = next(iter(natives.values())).windows
    shares = {}
    for kind in PLACES:
        at = [
            (row, place)
            for row, each in enumerate(windows)
            for place in Places.of(each.window)[kind]
        ]
        rows, places = (list(each) for each in zip(*at, strict=True))
        shares[kind] = _missed(*(each[rows, places] for each in read))
    return shares if pooled is None else shares | {"pooled": pooled}


def _missed(wanted: Any, found: Any) -> float:
    spread = (wanted - wanted.mean(0)).square().sum()
    return round(float((found - wanted).square().sum() / spread), 4)


def open_tower(name: str, device: str | None) -> Any:
    """A tower of the registry, or the language model inside the embedded LLaVA."""
    from bridge.towers import TextTower, open_text_tower
    from bridge.vlm import load_vlm

    if name != TOWERS[-1]:
        return open_text_tower(name, device=device)
    vlm = load_vlm("emoji-llava", device=device)
    return TextTower.from_modules(vlm.llm.model, vlm.tokenizer, name=name)


def kept_row(name: str, native: Sequence[bool], right: Sequence[bool]) -> Row:
    """The share of the native score that is kept, in percent; 95 % by bootstrap over prompts."""
    rng, n = random.Random(0), len(native)

    def kept(chosen: Sequence[int]) -> float:
        whole = sum(native[at] for at in chosen)
        return 100 * sum(right[at] for at in chosen) / max(whole, 1)

    drawn = sorted(kept(rng.choices(range(n), k=n)) for _ in range(2000))
    value, low, high = (round(v, 1) for v in (kept(range(n)), drawn[49], drawn[1949]))
    return Row(name, value, low, high, n, "%")


def _right(
    pipe: Any, judge: Judge, tasks: Sequence[Task], args: argparse.Namespace, **swap: Any
) -> list[bool]:
    settings = {"steps": args.steps, "guidance": args.guidance, "batch": args.batch}
    pairs = with_progress(paint(pipe, tasks, **settings, **swap), len(tasks), None)
    return [judge_task(task, judge.look(as_array(picture))).right for task, picture in pairs]


def _rows(title: str, tasks: Sequence[Task], right: Sequence[bool]) -> list[Row]:
    of_kinds = [
        share_row(
            f"{title}/{kind}", [r for t, r in zip(tasks, right, strict=True) if t.kind == kind]
        )
        for kind in KINDS
    ]
    return [*of_kinds, share_row(f"{title}/all_six", list(right))]
