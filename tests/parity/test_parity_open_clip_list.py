"""Each side of every config of ``open_clip.list_models()`` beside open_clip 3.3's own module.

Ids are equal. States and pooled states are compared at 1e-5 of the largest entry in fp32: open_clip
runs ``nn.MultiheadAttention``, bridge one matrix product for query, key and value, whose sums come
in another order; the largest that differs is some 2e-6. `open_clip_list` says what is cut.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip_list import (
    Side,
    configs,
    few_blocks,
    opened_tokenizer,
    same_side,
    write_image,
    write_text,
)
from parity_support import Count, Equal
from support.comparisons import relative

from bridge.errors import BridgeError
from bridge.towers import Layer, open_image_tower, open_text_tower

TOLERANCE = 1e-5
TEXTS = ["two red apples left of a cat", "", "A cat!", "of the dog " * 60]
# What issue 20 asks for. All 144 of open_clip 3.3 run; a later list may have others.
LEAST_TEXTS, LEAST_PICTURES = 130, 120

Check = Callable[[Side, Count, str], None]


def first(found: Any) -> torch.Tensor:
    tensor: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return tensor


def same(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    return found is not None and found.shape == wanted.shape and relative(found, wanted) < TOLERANCE


def run(side: str, write: Callable[..., Side], check: Check, room: Path, count: Count) -> int:
    """Check each config's side, once for all that have the same. The number that open and agree."""
    done: dict[str, bool] = {}
    for name, model in configs().items():
        key = same_side(model, side)
        if key not in done:
            before = len(count.differing)
            try:
                check(write(room / "one", model), count, name)
            except BridgeError as error:
                count.check(False, f"{name} is refused: {error}")
            done[key] = len(count.differing) == before
            shutil.rmtree(room / "one", ignore_errors=True)  # together they would be 30 GB
    return sum(done[same_side(model, side)] for model in configs().values())


@torch.no_grad()
def check_text(side: Side, count: Count, name: str) -> None:
    tower = open_text_tower(side.folder, device="cpu")
    batch = tower.tokenize(TEXTS)
    count.check(torch.equal(batch.ids, opened_tokenizer(side.folder)(TEXTS)), f"{name}: ids")
    found = tower.encode(batch, (Layer(-1, False), Layer(-2, False), Layer(-1)))
    side.module.output_tokens = True
    pooled, tokens = side.module(batch.ids)
    count.check(same(found.pooled, pooled), f"{name}: pooled")
    if hasattr(side.module, "forward_intermediates"):
        inner = side.module.forward_intermediates(batch.ids, output_fmt="NLC")
        for place, states in enumerate(reversed(inner["text_intermediates"][-2:])):
            count.check(same(found.hidden[place], states), f"{name}: layer {-place - 1}")
        # A CoCa gives its tokens without their norm.
        last = found.hidden[2 if side.module.cls_emb is None else 0]
        count.check(same(last, tokens), f"{name}: tokens")
    else:
        # Of padding nobody asks: its states are what a masked place makes of itself.
        # Its class pooler leaves the first token out.
        length = tokens.shape[1]
        seen = batch.mask[:, -length:].bool()
        count.check(same(found.hidden[0][:, -length:][seen], tokens[seen]), f"{name}: tokens")


@torch.no_grad()
def check_picture(side: Side, count: Count, name: str) -> None:
    tower = open_image_tower(side.folder, device="cpu")
    edge = tower.module.config.image_size
    pixels = torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(0))
    found = tower.encode(pixels)
    count.check(same(found.pooled, first(side.module(pixels))), f"{name}: pooled")
    states = side.module.forward_intermediates(pixels)["image_intermediates"][-1]
    count.check(same(found.patches[0], states.flatten(2).mT), f"{name}: patches")
    count.check(found.grid == tuple(states.shape[2:]), f"{name}: grid")


def test_text_sides(tmp_path: Path, equal: Equal) -> None:
    with equal("open_clip: text sides of its list") as count:
        whole = run("text_cfg", write_text, check_text, tmp_path, count)
    print(f"{whole} of {len(configs())} text sides are open_clip's")
    assert whole >= LEAST_TEXTS


def test_image_sides(tmp_path: Path, equal: Equal) -> None:
    with equal("open_clip: image sides of its list") as count, few_blocks():
        whole = run("vision_cfg", write_image, check_picture, tmp_path, count)
    print(f"{whole} of {len(configs())} image sides are open_clip's")
    assert whole >= LEAST_PICTURES
