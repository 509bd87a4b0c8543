"""``clip``: which of 256 held-out scenes does a caption mean, and which caption a picture?

The captions are in held-out phrasings and name style and relation. R@1 is the share of queries
whose own partner scores highest; ``clip/r_at_1_of_256`` pools both directions of the
first model; its interval is over scenes, each of which is looked for both ways.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.results import Row, grouped_share_row, report, save, share_row, show
from emoji_world.art import load_sprites
from emoji_world.captions import caption
from emoji_world.render import render_scene
from emoji_world.scenes import Scene, sample_scene

SCENES = 256


def make_scenes(seed: int = 0, n: int = SCENES) -> dict[str, Scene]:
    """``n`` held-out scenes by a caption of each; no caption twice."""
    rng = random.Random(f"clip/{seed}")
    found: dict[str, Scene] = {}
    while len(found) < n:
        scene = sample_scene(rng, held_out=True)
        text = caption(scene, rng, held_out=True, relation=True, style=True)
        found.setdefault(text, scene)
    return found


def make_pairs(seed: int = 0, n: int = SCENES) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of ``n`` held-out scenes and a caption of each; no caption twice."""
    sprites = load_sprites()
    found = make_scenes(seed, n)
    return [render_scene(scene, sprites) for scene in found.values()], list(found)


def first_ranks(similarity: np.ndarray) -> tuple[list[bool], list[bool]]:
    """For a square matrix pictures x captions: does each caption find its picture first, and
    each picture its caption?"""
    partner = np.arange(len(similarity))
    to_image = similarity.argmax(axis=0) == partner
    to_text = similarity.argmax(axis=1) == partner
    return to_image.tolist(), to_text.tolist()


def run_clip(args: argparse.Namespace) -> None:
    """Measure every model of ``--clip``; writes clip.json."""
    pictures, texts = make_pairs(args.seed)
    rows: list[Row] = []
    for i, model in enumerate(args.clip):
        to_image, to_text = first_ranks(similarities(model, pictures, texts))
        name = Path(model).name
        if i == 0:
            pairs = list(zip(to_image, to_text, strict=True))
            rows.append(grouped_share_row("clip/r_at_1_of_256", pairs))
        rows.append(share_row(f"clip/r_at_1_of_256/{name}/text_to_image", to_image))
        rows.append(share_row(f"clip/r_at_1_of_256/{name}/image_to_text", to_text))
    show(rows)
    save(args.out / "clip.json", report(args.command, rows))


@torch.inference_mode()
def similarities(model: str, pictures: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """Cosines (pictures, captions) by a stock CLIPModel of an embedded name, folder or hub id."""
    from transformers import AutoTokenizer, CLIPModel

    from bridge.runtime import quiet_loading
    from bridge.store import resolve
    from bridge.towers.image_processor import load_image_processor
    from bridge.vlm.views import pixels

    folder = resolve(model)
    with quiet_loading():
        clip: Any = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    processor = load_image_processor(folder)
    # Padding past a text's end changes nothing that its EOS sees.
    tokens = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")
    scores = []
    for start in range(0, len(pictures), 32):
        part = [Image.fromarray(p) for p in pictures[start : start + 32]]
        output = clip(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=pixels(processor, part),
        )
        scores.append(output.image_embeds @ output.text_embeds.T)
    return np.asarray(torch.cat(scores).numpy())
