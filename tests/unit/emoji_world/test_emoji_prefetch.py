"""Batches made by other processes are those that the training process would make itself."""

from __future__ import annotations

import os

import pytest
import torch
from support.tiny_world import synthetic_sprites, tiny_vae

from emoji_world.train import vae
from emoji_world.train.prefetch import ON_CPU, Setup, prefetch


def made(step: int) -> tuple[int, torch.Tensor, int]:
    return step, torch.full((3,), step), os.getpid()


def test_without_workers_it_is_the_function_itself() -> None:
    assert prefetch(made, 0) is made
    assert ON_CPU.workers == 0 and ON_CPU.times == 1


def test_workers_give_the_same_in_the_steps_order_from_any_step_on() -> None:
    get = prefetch(made, 2)
    found = [get(step) for step in range(7, 19)]
    assert [step for step, _, _ in found] == list(range(7, 19))
    assert all(torch.equal(rows, torch.full((3,), step)) for step, rows, _ in found)
    processes = {process for _, _, process in found}
    assert len(processes) == 2 and os.getpid() not in processes
    with pytest.raises(RuntimeError, match="step 30 was asked for, 19 was prepared"):
        get(30)


def test_a_recipe_learns_the_same_from_batches_made_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vae, "BATCH", 3)
    monkeypatch.setattr(vae, "CROWDED", 2)

    def losses(setup: Setup) -> list[float]:
        loss = vae.recipe(tiny_vae(), synthetic_sprites(), setup).loss
        out = []
        for step in (4, 5):
            torch.manual_seed(step)
            out.append(loss(step)[0].item())
        return out

    cpu = torch.device("cpu")
    assert losses(Setup(cpu, workers=1)) == losses(ON_CPU)
    assert losses(Setup(cpu, times=2)) != losses(ON_CPU)


def test_batches_are_so_many_times_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "BATCH", 3)
    monkeypatch.setattr(vae, "CROWDED", 2)
    get = vae._batches(11, synthetic_sprites(), Setup(torch.device("cpu"), times=3))
    assert get(0).shape == (9, 3, 128, 128)


def test_one_picture_in_four_is_seen_as_the_autoencoder_gives_it_back() -> None:
    painter = tiny_vae()
    images = torch.rand(6, 3, 128, 128) * 2 - 1
    torch.manual_seed(1)
    seen = vae.as_drawn(painter, images)
    assert seen.shape == images.shape and seen.dtype == torch.float32
    changed = [not torch.equal(a, b) for a, b in zip(seen, images, strict=True)]
    assert changed == [True, False, False, False, True, False]
    torch.manual_seed(1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z = vae._noised(painter.encode(images[[0, 4]]).latents, vae.LATENT_NOISE)
        wanted = painter.decode(z).sample.float().clamp(-1, 1)
    assert torch.equal(seen[[0, 4]], wanted)
