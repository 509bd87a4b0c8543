"""A CLIP that bridge trained, opened by open_clip 3.3: its vectors, its tokens, its pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip_peer import TOKENIZER, opened, small_model, write
from parity_support import Equal
from peers import package
from support.clip_training import FAST, rows, train
from support.comparisons import relative
from support.tiny_folders import KINDS

import bridge
from bridge.training.order import Shuffled

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16}
COCA = {
    "embed_dim": 32,
    "text_cfg": {"embed_cls": True, "context_length": 76, "output_tokens": True},
    "vision_cfg": {
        **VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "multimodal_cfg": {
        "width": 32, "context_length": 76, "vocab_size": len(TOKENIZER), "heads": 2, "layers": 2,
        "mlp_ratio": 2.0,
    },
}  # fmt: skip
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


FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "infonce"),
    "custom_text": ({"custom_text": True}, "infonce"),
    "norms and scales": (
        {
            "text_cfg": {"ls_init_value": 0.1, "pool_type": "last", "heads": 2, "width": 32},
            "vision_cfg": {**VISION, "ls_init_value": 0.1, "pool_type": "avg"},
            "custom_text": True,
        },
        "infonce",
    ),
    "sigmoid": ({"init_logit_bias": -10.0}, "sigmoid"),
    "ResNet": ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}, "infonce"),
    "timm": (
        {
            "vision_cfg": {
                "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg",
                "timm_proj": "linear", "image_size": 224,
            },
            "custom_text": True,
        },
        "infonce",
    ),
    "CoCa": ({**COCA, "custom_text": True}, "coca"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_open_clips_is_trained_as_it_trains_it(
    kind: str, equal: Equal, tmp_path: Path
) -> None:
    """Three steps of both, from the same weights with the same rows; then it opens our result."""
    more, loss = FOLDERS[kind]
    source = write(tmp_path / "source", small(more), {}, TOKENIZER)
    model, transform = opened(source)
    done = train(source, tmp_path / "out", loss=loss, warmup_ratio=0.0, learning_rate=1e-3, steps=3)
    with equal("open_clip: its folders trained") as count:
        theirs = their_steps(model, transform, source, loss, [r["learning_rate"] for r in done.log])
        for step, (row, (value, norm)) in enumerate(zip(done.log, theirs, strict=True)):
            count.check(abs(row["loss"] / value - 1) < 1e-4, f"{kind}, step {step}: loss")
            count.check(abs(row["grad_norm"] / norm - 1) < 1e-3, f"{kind}, step {step}: gradient")
        again, _ = opened(tmp_path / "out")
        with torch.no_grad():
            pixels = torch.stack([transform(row["image"]) for row in rows()])
            clip = bridge.CLIP(tmp_path / "out", device="cpu")
            images = clip.encode_image([row["image"] for row in rows()], normalize=False)
            found = again.encode_image(pixels, normalize=False)
            count.check(relative(found, images) < TOLERANCE, f"{kind}: images")
            ids = clip.text.tokenize(TEXTS).ids
            texts = clip.encode_text(TEXTS, normalize=False)
            found = again.encode_text(ids, normalize=False)
            count.check(relative(found, texts) < TOLERANCE, f"{kind}: texts")


def small(more: Mapping[str, Any]) -> dict[str, Any]:
    made = small_model({"width": 32, "heads": 2}, VISION)
    return {**made, **more, "text_cfg": {**made["text_cfg"], **more.get("text_cfg", {})}}


def their_steps(
    model: Any, transform: Any, folder: Path, loss: str, rates: Sequence[float]
) -> list[tuple[float, float]]:
    """Losses and gradients' norms of open_clip's own model, loss and groups of AdamW."""
    peer = package("open_clip")
    clip = bridge.CLIP(folder, device="cpu")
    kinds = {
        "infonce": peer.loss.ClipLoss,
        "sigmoid": peer.loss.SigLipLoss,
        "coca": lambda: peer.loss.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0),
    }
    model.train()
    model.output_dict = True
    ours = kinds[loss]()
    wide = [p for p in model.parameters() if p.ndim > 1]
    narrow = [p for p in model.parameters() if p.ndim <= 1]
    adam = torch.optim.AdamW(
        [{"params": wide, "weight_decay": 0.1}, {"params": narrow, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    order, made = Shuffled(8, 8, FAST["seed"]), []
    for step, rate in enumerate(rates):
        some = [rows()[row] for row in order.batch(step)]
        pixels = torch.stack([transform(row["image"]) for row in some])
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        value = sum(ours(**model(pixels, clip.text.tokenize([r["text"] for r in some]).ids),
                         output_dict=True).values())  # fmt: skip
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        made.append((float(value), float(norm)))
    return made
