"""The autoencoder: stock AutoencoderTiny, 8 times smaller a side, 8 latent channels.

AutoencoderTiny (the architecture of TAESD) has no norms and no work at full resolution, so
two CPU cores train it in minutes. The loss is L1 plus L1 of the image gradients (edges are
what makes an emoji crisp); objects weigh more than the ground, which would otherwise be four
fifths of the loss. Noise on the latents while training smooths the space for the diffusion
model, and a faint penalty keeps it near the origin, where the decoder's soft clamp is linear.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from bridge.emoji.art import Sprites
from bridge.emoji.train.data import pictures, scene_batch, scene_rng
from bridge.emoji.train.loop import Recipe, Run

BATCH = 24
LATENT_NOISE = 0.08


def build() -> AutoencoderTiny:
    """The untrained autoencoder, 1.6 M parameters; all blocks stand at 1/4 and 1/8 size."""
    return AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(64,) * 4,
        decoder_block_out_channels=(64,) * 4,
        num_encoder_blocks=(0, 0, 2, 4),
        num_decoder_blocks=(4, 2, 0, 0),
    )


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def recipe(vae: AutoencoderTiny, sprites: Sprites) -> Recipe:
    vae.to(memory_format=torch.channels_last)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        scenes = scene_batch(scene_rng(11, step), BATCH)
        x = pictures(scenes, sprites).contiguous(memory_format=torch.channels_last)
        weight = 1 + 4 * ((x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.04).float()
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(x).latents
            y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample
        y, z = y.float(), z.float()
        error = (weight * (y - x).abs()).mean()
        edges = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
        psnr = -10 * torch.log10(((y - x).detach().clamp(-1, 1) / 2).square().mean())
        figures = {"l1": error.item(), "psnr": psnr.item(), "latent_std": z.std().item()}
        return error + 2 * edges + 1e-3 * z.square().mean(), figures

    return Recipe("vae", vae, loss, lr=8e-4, weight_decay=0.0, warmup=100, ema=0.999)


def export(run: Run, sprites: Sprites, folder: Path) -> None:
    """Write the averaged weights in half precision, with the measured scaling factor.

    The scaling factor makes latents of unit variance over many scenes, as Stable Diffusion's
    autoencoder does (Rombach et al. 2022).
    """
    vae = build()
    vae.load_state_dict(vae.state_dict() | run.averaged())
    vae.eval()
    with torch.no_grad():
        x = pictures(scene_batch(scene_rng(12, 0), 256), sprites)
        z = torch.cat([vae.encode(part).latents for part in x.split(32)])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    vae.half().save_pretrained(folder / "vae")
