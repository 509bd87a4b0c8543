"""A tiny CLIP and captioned pictures to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from bridge.contrastive.train.run import ClipTraining, train_clip

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (20, 40, 210),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (120, 120, 120),
    "yellow": (240, 240, 20),
    "pink": (250, 100, 200),
}
# Learns within a dozen steps.
FAST = {"batch_size": 8, "steps": 6, "learning_rate": 1e-2, "seed": 3, "device": "cpu"}
# The forms that two processes are compared in.
RUNS: dict[str, dict[str, Any]] = {
    "whole": {},
    "parts": {"micro_batch": 2, "graph_memory": 0.0, "bank": 6},
    "sigmoid": {"loss": "sigmoid", "ema": 0.9},
}


def rows() -> list[dict[str, Any]]:
    return [
        {"image": Image.new("RGB", (40, 32), rgb), "text": f"a {name} cat"}
        for name, rgb in COLOURS.items()
    ]


def train(model: Any, output: Path, data: Any = None, **options: Any) -> ClipTraining:
    given = {**FAST, **options}
    return train_clip(model, rows() if data is None else data, output, progress=False, **given)
