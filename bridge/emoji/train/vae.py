"""The autoencoder: stock AutoencoderTiny, 8 times smaller a side, 8 latent channels.

AutoencoderTiny (the architecture of TAESD) has no norms and no work at full resolution, so
two CPU cores train it in minutes. The loss is L1 plus L1 of the image gradients (edges are
what makes an emoji crisp); objects weigh more than the ground, which would otherwise be four
fifths of the loss. Noise on the latents while training smooths the space for the diffusion
model, and a faint penalty keeps it near the origin, where the decoder's soft clamp is linear.

Once the encoder is final the painter can start; the decoder alone goes on training beside it,
as Stable Diffusion's did after release (sd-vae-ft-mse): latents keep their meaning.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from bridge.emoji.art import Sprites
from bridge.emoji.train.data import pictures, scene_batch, scene_rng
from bridge.emoji.train.loop import Recipe, Run, load_averaged
from bridge.files import write_whole

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


def _distance(y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted L1 of pixels and of gradients, and figures to log."""
    weight = 1 + 4 * ((x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.04).float()
    error = (weight * (y - x).abs()).mean()
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
    psnr = -10 * torch.log10(((y - x).detach().clamp(-1, 1) / 2).square().mean())
    return error + 2 * edges, {"l1": error.item(), "psnr": psnr.item()}


def _batch(seed: int, step: int, sprites: Sprites) -> torch.Tensor:
    x = pictures(scene_batch(scene_rng(seed, step), BATCH), sprites)
    return x.contiguous(memory_format=torch.channels_last)


def recipe(vae: AutoencoderTiny, sprites: Sprites) -> Recipe:
    vae.to(memory_format=torch.channels_last)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = _batch(11, step, sprites)
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(x).latents
            y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample
        distance, figures = _distance(y.float(), x)
        z = z.float()
        return distance + 1e-3 * z.square().mean(), figures | {"latent_std": z.std().item()}

    return Recipe("vae", vae, loss, lr=8e-4, weight_decay=0.0, warmup=100, ema=0.999)


def recipe_decoder(vae: AutoencoderTiny, sprites: Sprites) -> Recipe:
    """The decoder alone, on latents with the little noise that a sampler leaves."""
    vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = _batch(13, step, sprites)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                z = vae.encode(x).latents
            y = vae.decode(z + LATENT_NOISE / 2 * torch.randn_like(z)).sample
        return _distance(y.float(), x)

    return Recipe("decoder", vae, loss, lr=8e-4, weight_decay=0.0, warmup=100, ema=0.999)


def export_decoder(run: Run, vae: AutoencoderTiny, folder: Path) -> None:
    """Write the averaged decoder beside the unchanged encoder and scaling factor."""
    _save(load_averaged(run, vae), folder)


def _save(vae: AutoencoderTiny, folder: Path) -> None:
    """``block_out_channels`` is worked out on construction; a stored one makes diffusers warn."""
    vae.half().save_pretrained(folder / "vae")
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["block_out_channels"]
    write_whole(path, (json.dumps(config, indent=2) + "\n").encode())


def export(run: Run, sprites: Sprites, folder: Path) -> None:
    """Write the averaged weights in half precision, with the measured scaling factor.

    The scaling factor makes latents of unit variance over many scenes, as Stable Diffusion's
    autoencoder does (Rombach et al. 2022).
    """
    vae = load_averaged(run, build())
    with torch.no_grad():
        x = pictures(scene_batch(scene_rng(12, 0), 256), sprites)
        z = torch.cat([vae.encode(part).latents for part in x.split(32)])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    _save(vae, folder)
