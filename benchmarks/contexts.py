"""``contexts``: towers of unequal context on the embedded model, rule by rule.

Tower 1 is stretched to 248 positions as Long-CLIP does, and not trained after; tower 2 keeps its
77, or is stretched too, as Long-CLIP's authors have it in their SDXL. Each rule of
``bridge/encoding/planning.py`` draws the same prompts from the same noise as the ordinary towers
do. Run as ``python -m benchmarks.contexts``; writes contexts.json and contexts.webp.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.results import (
    RESULTS,
    Row,
    command_of,
    commit,
    median_row,
    report,
    results_file,
    save,
    show,
)
from bridge.encoding import Conditioning, condition
from bridge.pictures import save_figure
from bridge.prompt import LongPrompt
from bridge.prompt.windows import Uneven
from bridge.towers import stretch_positions

PROMPTS = (
    "a red apple",
    "a cat left of a tree, twemoji style",
    "a big yellow banana above a small green car on a light blue background, drawn in noto style, "
    "with nothing else in the picture at all",
    "a picture that shows one penguin and, to the right of the penguin, one rocket, both of them "
    "large, in fluent style, on a plain white background",
)


@dataclass(frozen=True)
class Way:
    """A choice of towers and rule: which towers are stretched, and the rule if they differ."""

    name: str
    stretched: tuple[str, ...] = ()
    rule: Uneven = "fill"


WAYS = (
    Way("ordinary"),
    *(Way(rule, ("text_encoder",), rule) for rule in get_args(Uneven)),
    Way("both_stretched", ("text_encoder", "text_encoder_2")),
)


def measure(pipe: Any, steps: int, guidance: float) -> tuple[list[Row], dict[str, list[Any]]]:
    """Rows, and the pictures of each way."""
    ordinary = {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2")}
    long = {name: stretch_positions(tower) for name, tower in ordinary.items()}
    states: dict[str, list[Conditioning]] = {}
    pictures: dict[str, list[Any]] = {}
    try:
        for way in WAYS:
            changed = {name: long[name] for name in way.stretched}
            pipe.register_modules(**{**ordinary, **changed})
            rule = LongPrompt("comma", uneven=way.rule)
            states[way.name] = [condition(p, "", model=pipe, long_prompt=rule) for p in PROMPTS]
            pictures[way.name] = [
                _drawn(pipe, cond, seed, steps, guidance)
                for seed, cond in enumerate(states[way.name])
            ]
    finally:
        pipe.register_modules(**ordinary)
    rows = _state_rows(states, ordinary["text_encoder"].config.hidden_size)
    for way in WAYS[1:]:
        pairs = zip(pictures[way.name], pictures["ordinary"], strict=True)
        values = [float(((a - b) ** 2).mean() ** 0.5 * 255) for a, b in pairs]
        rows.append(median_row(f"contexts/picture/{way.name}", values, "rms of 255", 1))
    return rows, pictures


def _drawn(pipe: Any, cond: Conditioning, seed: int, steps: int, guidance: float) -> Any:
    noise = torch.Generator().manual_seed(seed)
    call = {**cond.kwargs(), "num_inference_steps": steps, "guidance_scale": guidance}
    return pipe(**call, generator=noise, output_type="np").images[0]


def _state_rows(states: dict[str, list[Conditioning]], width: int) -> list[Row]:
    """How near the stretched tower's states are to the ordinary one's, word by word: before the
    twentieth token they are the same by construction."""
    found: dict[str, list[float]] = {"first_20": [], "after_20": []}
    for one, other in zip(states["ordinary"], states["fill"], strict=True):
        used = one.plans[0][0].used - 1
        a, b = (cond.prompt_embeds[0, 1:used, :width] for cond in (one, other))
        near = torch.nn.functional.cosine_similarity(a, b, dim=-1).tolist()
        found["first_20"] += near[:19]
        found["after_20"] += near[19:]
    return [
        median_row(f"contexts/states/{name}", values, "cosine", 4) for name, values in found.items()
    ]


def draw_grid(pictures: dict[str, list[Any]], path: Path) -> None:
    """One row a way, one column a prompt."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(pictures), len(PROMPTS), figsize=(1.5 * len(PROMPTS), 1.5 * len(pictures))
    )
    for line, (name, row) in zip(axes, pictures.items(), strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=7)
    figure.tight_layout()
    save_figure(path, figure, 80)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, measure, write."""
    from bridge.diffusion import load_pipeline

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contexts", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="emoji-xl")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    commit()
    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    rows, pictures = measure(pipe, args.steps, args.guidance)
    show(rows)
    command = command_of(parser, args, ("model", "steps", "guidance"))
    which = (args.model, "emoji-xl")
    save(results_file(args.out, "contexts.json", which), report(command, rows, pipe.device))
    draw_grid(pictures, results_file(args.out, "contexts.webp", which))


if __name__ == "__main__":
    main()
