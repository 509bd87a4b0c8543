"""open_clip 3.3's losses beside bridge's, values and gradients, in fp64: one process and two.

bridge's form in two processes is compared with its own in one by `tests/unit/contrastive`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from open_clip_losses import inputs, peer_losses
from parity_support import Equal
from peers import package
from safetensors.torch import load_file
from support.places import ROOT, TESTS
from torch import Tensor

from bridge.contrastive.losses import CoCaLoss, InfoNCE, PooledPairs, SigmoidLoss

TOLERANCE = 1e-6


def ours(name: str) -> dict[str, Tensor]:
    leaves = inputs()
    pairs = PooledPairs(leaves["image"], leaves["text"])
    if name.startswith("ClipLoss"):
        value = InfoNCE()(pairs, leaves["logit_scale"])
    else:
        value = SigmoidLoss()(pairs, leaves["logit_scale"], leaves["logit_bias"])
    return _gradients(value, leaves)


def _gradients(value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    value.backward()
    found = {"loss": value.detach()}
    return found | {n: p.grad for n, p in leaves.items() if p.grad is not None}


def along_the_sphere(name: str, gradient: Tensor) -> Tensor:
    """bridge normalises within the loss, so it has no gradient along a vector itself."""
    if name not in ("image", "text"):
        return gradient
    vectors = inputs()[name].detach()
    return gradient - (gradient * vectors).sum(1, keepdim=True) * vectors


def same(found: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return found.keys() == want.keys() and all(
        bool((found[n] - along_the_sphere(n, each)).abs().max() <= TOLERANCE)
        for n, each in want.items()
    )


def test_losses_in_one_process(equal: Equal) -> None:
    with equal("open_clip: losses") as count:
        for name, loss in peer_losses().items():
            leaves = inputs()
            value = loss(*(leaves[n] for n in ("image", "text", "logit_scale", "logit_bias")))
            count.check(same(ours(name), _gradients(value, leaves)), name)


def test_losses_in_two_processes(equal: Equal, tmp_path: Path) -> None:
    package("open_clip")
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, TESTS, ROOT)))
    subprocess.run(
        [sys.executable, here / "open_clip_losses.py", tmp_path],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=300,
    )
    with equal("open_clip: losses in two processes") as count:
        for name in peer_losses():
            want = load_file(tmp_path / f"{name}.safetensors")
            count.check(same(ours(name), want), name)


def test_coca(equal: Equal) -> None:
    peer = package("open_clip")
    draws = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 7, 30, generator=draws, dtype=torch.float64)
    labels = torch.randint(0, 30, (8, 7), generator=draws)
    labels[2:, 4:] = 0
    theirs = peer.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)
    loss = CoCaLoss()
    with equal("open_clip: CoCaLoss") as count:
        leaves = inputs() | {"logits": logits.clone().requires_grad_(True)}
        both = theirs(
            leaves["image"], leaves["text"], leaves["logits"], labels, leaves["logit_scale"].exp()
        )
        want = _gradients(sum(both), leaves)
        leaves = inputs() | {"logits": logits.clone().requires_grad_(True)}
        pairs = PooledPairs(leaves["image"], leaves["text"])
        contrast = loss.contrast(pairs, leaves["logit_scale"])
        found = contrast + loss.caption(leaves["logits"], labels, loss.tokens(labels))
        count.check(same(_gradients(found, leaves), want), "both halves")
