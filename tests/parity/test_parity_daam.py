"""DAAM 0.2 beside bridge: where each key of a prompt was looked at.

Its maps are sums over the steps and ours means, so both are taken in units of the step. DAAM
enlarges each head's map and cuts off its negative overshoot before it takes the mean; here it is
cut off once, at the end (docs/study.md). The row is of its own maps, added up as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from daam_peer import load_daam
from parity_support import Equal
from support.comparisons import relative
from support.tiny_models import tiny_sd_pipeline
from torch.nn.functional import interpolate

import bridge
from bridge.diffusion import heat_maps

TOLERANCE = 1e-5
STEPS, SIDE = 2, 64  # DAAM knows latents of 64 and 96 places alone
PROMPTS = ("a red cat left of two apples", "dog", "a photo of a red castle at night")


@pytest.fixture
def daam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HOME", str(tmp_path))  # it makes a cache there
    return load_daam()


@pytest.fixture
def pipe() -> Any:
    made = tiny_sd_pipeline()
    made.set_progress_bar_config(disable=True)
    made.unet.register_to_config(sample_size=512 // made.vae_scale_factor)
    return made


def draw(pipe: Any, side: int = SIDE, **said: Any) -> None:
    pixels = side * pipe.vae_scale_factor
    pipe(
        **said, num_inference_steps=STEPS, height=pixels, width=pixels, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


@torch.no_grad()
def test_heat_maps(daam: Any, pipe: Any, equal: Equal, tmp_path: Path) -> None:
    with equal("DAAM: heat maps") as count:
        for prompt in PROMPTS:
            conditioning = bridge.condition(prompt, "blurry", model=pipe)
            with heat_maps(pipe, conditioning) as heat:
                draw(pipe, **conditioning.kwargs())
            found = heat.keys()
            with daam.trace(pipe, data_dir=str(tmp_path)) as peer:
                draw(pipe, prompt=prompt, negative_prompt="blurry")
            raw = [
                interpolate(each[:, None], (SIDE, SIDE), mode="bicubic")
                for _, each in peer.all_heat_maps
            ]
            wanted = torch.stack(raw).mean(0)[:, 0] / STEPS
            count.check(relative(found, wanted.clamp_min(0)) <= TOLERANCE, prompt)
            # Cut off one by one there is less to take away from the others.
            theirs = torch.stack([each.clamp_min(0) for each in raw]).mean(0)[:, 0] / STEPS
            own = peer.compute_global_heat_map(prompt).heat_maps / STEPS
            count.check(relative(theirs[: len(own)], own) <= TOLERANCE, f"{prompt}: global")
            assert bool((theirs >= found - TOLERANCE * found.max()).all())
            count.differs_by("overshoot is cut off once, at the end")


@torch.no_grad()
def test_maps_of_an_eighth_are_left_out_by_daam_alone(daam: Any, pipe: Any, tmp_path: Path) -> None:
    """The layers of this UNet that look at the prompt have maps of half its latents' side: of 16
    places 8, an eighth of the 64 that DAAM counts from."""
    conditioning = bridge.condition(PROMPTS[0], model=pipe)
    with heat_maps(pipe, conditioning) as heat:
        draw(pipe, 16, **conditioning.kwargs())
    with daam.trace(pipe, data_dir=str(tmp_path)) as peer:
        draw(pipe, 16, prompt=PROMPTS[0])
    assert not peer.all_heat_maps.factors()
    assert heat.keys().shape == (77, 16, 16) and bool((heat.keys().amax((1, 2)) > 0).all())
