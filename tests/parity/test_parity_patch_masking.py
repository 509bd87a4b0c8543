"""Patches left out of timm's networks, as timm's own PatchDropout leaves them out.

Each network that a config of open_clip names, cut to two blocks; the same random numbers draw the
same patches on both sides.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from parity_support import Count, Equal
from peers import package
from support.comparisons import relative
from torch import Tensor

from bridge.contrastive import patch_masking
from bridge.errors import UnsupportedModelError
from bridge.towers.timm_images import TimmImage, TimmShape

# Networks of open_clip's list that are run: wider ones and larger pictures are the same classes
# again, in minutes and gigabytes.
LEAST, _WIDEST, _LARGEST = 8, 800, 256


def drawn(shape: Any, count: int, like: Tensor) -> Tensor:
    """As timm draws."""
    return torch.argsort(torch.randn(*shape, device=like.device), dim=-1)[:, :count]


def networks() -> dict[str, TimmShape]:
    peer = package("open_clip")
    every = (peer.get_model_config(name)["vision_cfg"] for name in peer.list_models())
    return {
        told["timm_model_name"]: TimmShape(
            told["timm_model_name"], told.get("timm_pool", "avg") or "",
            told.get("timm_proj", "linear") or "", False, int(told.get("image_size", 224)), 16,
        )
        for told in every
        if "timm_model_name" in told
    }  # fmt: skip


def test_timms_transformers_are_masked_as_timm_masks_them(
    equal: Equal, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = package("timm")
    monkeypatch.setattr(patch_masking, "_drawn", drawn)
    masked, refused = [], []
    with equal("timm: PatchDropout") as count:
        for name, shape in networks().items():
            with torch.device("meta"):
                large = TimmImage(shape)
            try:
                with patch_masking.masked_patches(large, 0.5):
                    masked.append(name)
            except UnsupportedModelError as error:
                assert f"{name} has no patches" in str(error)
                refused.append(name)
                continue
            if large.trunk.num_features > _WIDEST or shape.image_size > _LARGEST:
                continue
            with monkeypatch.context() as patched, torch.no_grad():
                cut = functools.partial(timm.create_model, depth=2)
                patched.setattr(timm, "create_model", cut)
                torch.manual_seed(0)
                compare(count, timm, TimmImage(shape).train())
        assert count.tried >= 4 * LEAST
    kinds = ("convnext", "fastvit", "swin", "vit_relpos")
    assert all(name.startswith(kinds) for name in refused) and len(masked) >= 35, refused


def compare(count: Count, timm: Any, ours: TimmImage) -> None:
    name, side = ours.config.name, ours.config.image_size
    pixels = torch.randn(1, 3, side, side, dtype=torch.float32)
    whole = ours.head(ours.trunk(pixels))
    count.check(relative(ours.pool(pixels), whole) < 1e-5, f"{name}: whole")
    torch.manual_seed(5)
    with patch_masking.masked_patches(ours, 0.5):
        found = ours.pool(pixels)
    count.check(relative(ours.pool(pixels), whole) < 1e-5, f"{name}: whole again")
    count.check(relative(found, whole) > 1e-3, f"{name}: something is left out")
    layers = timm.layers
    asked = ours.trunk.patch_drop is None
    kind = layers.PatchDropoutWithIndices if asked else layers.PatchDropout
    ours.trunk.patch_drop = kind(0.5, ours.trunk.num_prefix_tokens, ordered=True)
    torch.manual_seed(5)
    count.check(relative(found, ours.head(ours.trunk(pixels))) < 1e-5, f"{name}: masked")
