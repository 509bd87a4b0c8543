"""The decoder's last lesson: the latents that the painter paints, beside those of the encoder.

A sampler leaves more than noise in a latent: where the painter is unsure it gives an average of
likely sprites, which decodes to a smudge of the right shape and colour. The decoder knows the
sprites by heart, so it can do the last step of denoising itself, as LTX-Video's does (HaCohen et
al. 2024, section 2.3): it sees latents painted from a scene's caption and is told the scene's
picture. Half of a batch stays what the encoder makes, so that decoding pictures gets no worse.

Some latents are painted from pure noise, as in use, others from the scene's own latents under
much noise, which keeps the painting closer to the picture that it is compared with.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from bridge.emoji.art import Sprites
from bridge.emoji.captions import caption
from bridge.emoji.scenes import CANVAS, Scene
from bridge.emoji.train.data import pictures, scene_batch, scene_rng
from bridge.emoji.train.loop import Recipe
from bridge.emoji.train.unet import Painter, scheduler
from bridge.emoji.train.vae import BATCH, CROWDED, LATENT_NOISE, decoder_kernels, distance, noised
from bridge.emoji.train.views import draw_views

STEPS = 8  # of the sampler; it starts at the first, second or third
GUIDANCE = 3.0
PAINTED = BATCH // 2  # of a batch
NEW, PERIOD = 16, 4  # paintings made at once, and after how many steps
WHOLE = (CANVAS, CANVAS, 0, 0, CANVAS, CANVAS)  # SDXL's sizes of an uncropped picture
FIRST, POOL = 256, 12_000  # how many there are at the start, and at most; 4 KB each


class Paintings:
    """Training scenes with latents (n, 32, 8, 8) painted from their captions."""

    def __init__(self, unet: UNet2DConditionModel, painter: Painter, sprites: Sprites) -> None:
        self.unet, self.painter, self.sprites = unet, painter, sprites
        self.scenes: list[Scene] = []
        self.latents: list[torch.Tensor] = []

    def grow(self, rng: random.Random) -> None:
        """Paint ``NEW`` scenes more; the oldest go when the pool is full."""
        scenes = [view.scene for view in draw_views(rng, NEW, CANVAS)]
        captions = [caption(scene, rng, in_order=True, style=True) for scene in scenes]
        clean = self.painter.latents(pictures(scenes, self.sprites)).float()
        self.scenes += scenes
        self.latents += paint(self.unet, self.painter, captions, clean, rng.randrange(3))
        del self.scenes[:-POOL], self.latents[:-POOL]

    def draw(self, rng: random.Random, count: int) -> tuple[list[Scene], torch.Tensor]:
        """``count`` of them at random, none twice."""
        places = rng.sample(range(len(self.scenes)), count)
        return [self.scenes[i] for i in places], torch.stack([self.latents[i] for i in places])


@torch.no_grad()
def paint(
    unet: UNet2DConditionModel,
    painter: Painter,
    captions: Sequence[str],
    clean: torch.Tensor,
    start: int,
) -> torch.Tensor:
    """Latents (B, 32, 8, 8), float32 and scaled, sampled with guidance from ``clean`` ones under
    the noise of step ``start`` of ``STEPS``; at step 0 that is pure noise."""
    sampler = scheduler()
    sampler.set_timesteps(STEPS)
    times = sampler.timesteps[start:]
    states, pooled = painter.texts(list(captions))
    states = torch.cat([torch.zeros_like(states), states]).float()
    pooled = torch.cat([torch.zeros_like(pooled), pooled]).float()
    extra = {
        "text_embeds": pooled,
        "time_ids": torch.tensor([WHOLE] * len(pooled)),
    }
    x = sampler.add_noise(clean, torch.randn_like(clean), times[:1])
    for t in times:
        with torch.autocast("cpu", torch.bfloat16):
            both = unet(torch.cat([x, x]), t, states, added_cond_kwargs=extra).sample.float()
        without, told = both.chunk(2)
        x = sampler.step(without + GUIDANCE * (told - without), t, x).prev_sample
    return x


def recipe(
    vae: AutoencoderTiny, unet: UNet2DConditionModel, painter: Painter, sprites: Sprites
) -> Recipe:
    """The decoder alone, on encoded latents and painted ones."""
    vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    unet.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    paintings = Paintings(unet, painter, sprites)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = scene_rng(15, step)
        while len(paintings.scenes) < FIRST:
            paintings.grow(rng)
        if step % PERIOD == 0:
            paintings.grow(rng)
        crowded = CROWDED * (BATCH - PAINTED) // BATCH
        seen = scene_batch(rng, crowded, "list") + scene_batch(rng, BATCH - PAINTED - crowded)
        told, painted = paintings.draw(rng, PAINTED)
        x = pictures(seen + told, sprites).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                z = noised(vae.encode(x[: len(seen)]).latents, LATENT_NOISE / 2)
            z = torch.cat([z, painted / vae.config.scaling_factor])
            y = vae.decode(z.contiguous(memory_format=torch.channels_last)).sample.float()
        both, _ = distance(y, x)
        _, of_seen = distance(y[: len(seen)], x[: len(seen)])
        _, of_painted = distance(y[len(seen) :], x[len(seen) :])
        figures = {"psnr": of_seen["psnr"], "psnr_painted": of_painted["psnr"]}
        return both, figures

    return Recipe(
        "polish",
        vae,
        loss,
        lr=1e-3,
        weight_decay=0.0,
        warmup=100,
        ema=0.998,
        muon=decoder_kernels(vae),
    )
