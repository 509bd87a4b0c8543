"""A CLIP that bridge trained, opened by open_clip 3.3: its vectors, its tokens, its pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from open_clip_peer import opened
from parity_support import Equal
from peers import package
from support.clip_training import rows, train
from support.comparisons import relative
from support.tiny_folders import KINDS

import bridge

TOLERANCE = 1e-5
TEXTS = ["a red cat", "two blue cats left of a dog", ""]


def test_a_trained_clip_in_open_clip(equal: Equal, tmp_path: Path) -> None:
    peer = package("open_clip")
    KINDS["clip"].make(tmp_path / "tiny")
    train(tmp_path / "tiny", tmp_path / "out", open_clip=True)
    from bridge.contrastive import save_open_clip

    shipped = bridge.CLIP("emoji-clip", device="cpu")
    folders = {
        "trained": (bridge.CLIP(tmp_path / "out", device="cpu"), tmp_path / "out" / "open_clip"),
        "emoji-clip": (shipped, save_open_clip(shipped, tmp_path / "shipped")),
    }
    pictures = [row["image"] for row in rows()]
    with equal("open_clip: a CLIP of train_clip") as count, torch.no_grad():
        for name, (clip, folder) in folders.items():
            model, transform = opened(folder)
            pixels = torch.stack([transform(each) for each in pictures])
            ours = torch.stack([clip.preprocess(each) for each in pictures])
            count.check(bool((pixels - ours).abs().max() < 1e-5), f"{name}: pixels")
            images = clip.encode_image(pictures, normalize=False)
            count.check(relative(model.encode_image(pixels), images) < TOLERANCE, f"{name}: images")
            ids = peer.get_tokenizer(f"local-dir:{folder}")(TEXTS)
            texts = clip.encode_text(TEXTS, normalize=False)
            count.check(relative(model.encode_text(ids), texts) < TOLERANCE, f"{name}: texts")
            assert clip.scoring is not None
            apart = abs(float(model.logit_scale.exp()) / clip.scoring.scale - 1)
            count.check(apart < 1e-5, f"{name}: scale")
