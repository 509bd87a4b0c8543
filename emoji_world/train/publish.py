"""What makes the trained parts a published set: pipeline index, loss curves, manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bridge.files import write_whole
from bridge.manifest import write_manifest

_POINTS = 90  # enough to see a curve by

_MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def publish(weights: Path, runs: Path) -> None:
    """Write emoji-xl/model_index.json, keep each run's loss curve in at most 90 rows, pack
    the vocabularies, and renew the manifest."""
    index = weights / "emoji-xl" / "model_index.json"
    write_whole(index, (json.dumps(_MODEL_INDEX, indent=2) + "\n").encode())
    curves = weights / "curves"
    curves.mkdir(exist_ok=True)
    for log in sorted(runs.glob("*/log.json")):
        logged = json.loads(log.read_text(encoding="utf-8"))
        rows = [_rounded(row) for row in thinned(logged, _POINTS)]
        name = log.parent.name
        write_whole(curves / f"{name}.json", _packed(columns(rows)))
    for words in sorted(weights.rglob("tokenizer.json")):
        _pack(words)
    write_manifest(weights)


def _pack(path: Path) -> None:
    """The same tokenizer in half of the bytes: no indentation, and each merge as one text.

    tokenizers and transformers read a merge as "a b" and as ["a", "b"]; the former is how
    tokenizers wrote them before version 0.20, and says the same while no symbol holds a space.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    merges = content.get("model", {}).get("merges")
    if merges and all(_joins(merge) for merge in merges):
        content["model"]["merges"] = [" ".join(merge) for merge in merges]
    write_whole(path, _packed(content))


def _joins(merge: Any) -> bool:
    return isinstance(merge, list) and not any(" " in symbol for symbol in merge)


def thinned(rows: Sequence[dict[str, float]], most: int) -> list[dict[str, float]]:
    """At most ``most`` (2 or more) rows: the first one, then the means of equal spans of time.

    A logged figure is a mean since the row before, so a span has the step and the minutes of its
    last row. Spans of time, not of rows, so that a curve whose beginning was thinned already
    loses no more of it when later rows are added; of steps, where a log has no ``minutes``. Neither
    may fall.
    """
    if len(rows) <= most:
        return list(rows)
    along = "minutes" if "minutes" in rows[-1] else "step"
    begin, end = rows[0][along], rows[-1][along]

    def span(row: dict[str, float]) -> int:
        return max(1, math.ceil((row[along] - begin) / (end - begin) * (most - 1)))

    return [rows[0], *(_mean(list(near)) for _, near in groupby(rows[1:], span))]


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    last = rows[-1]
    figures = {name: [row[name] for row in rows if name in row] for name in last}
    means = {name: sum(values) / len(values) for name, values in figures.items()}
    return means | {name: last[name] for name in ("step", "minutes") if name in last}


def _rounded(row: dict[str, float]) -> dict[str, float]:
    """Four significant digits, as much as a curve shows; counts stay whole."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float | None]]:
    """A list a figure instead of a dictionary a row: the names stand once, in 40 % of the bytes.

    None stands where a row lacks the figure.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _packed(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
