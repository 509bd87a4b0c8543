"""`bridge.train_clip` on the CLIP that ships: its first loss is the one of transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from support.tiny_world import scenes_at, synthetic_sprites

import bridge
from bridge.training import run_state
from emoji_world.captions import caption
from emoji_world.render import render_scene

pytestmark = pytest.mark.models


def test_the_loss_of_the_first_step_is_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "draw_curve", lambda *_, **__: None)
    rng, sprites = random.Random(1), synthetic_sprites()
    scenes = scenes_at(4, 8)
    data = [
        {"image": Image.fromarray(render_scene(scene, sprites)), "text": caption(scene, rng)}
        for scene in scenes
    ]
    done = bridge.train_clip(
        "emoji-clip", data, tmp_path / "out", mode="lora", steps=3, learning_rate=1e-3,
        batch_size=8, device="cpu", progress=False,
    )  # fmt: skip
    clip = bridge.CLIP("emoji-clip", device="cpu")
    model = transformers.CLIPModel.from_pretrained(
        bridge.towers.registry.find_source("emoji-clip")[1], dtype=torch.float32
    ).eval()
    with torch.no_grad():
        model.logit_scale.clamp_(max=torch.tensor(100.0).log())
        whole = model(
            input_ids=clip.tokenizer([row["text"] for row in data]),
            pixel_values=torch.stack([clip.preprocess(row["image"]) for row in data]),
            return_loss=True,
        )
    assert done.losses[0] == pytest.approx(float(whole.loss), rel=1e-4)
    assert done.losses[-1] < done.losses[0]
