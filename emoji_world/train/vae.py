"""The autoencoder: stock AutoencoderTiny, 16 times smaller a side, 32 latent channels.

One latent is one 16-pixel cell of the scenes' lattice, so a sprite has the same latents wherever
it stands, and the painter's 8 x 8 grid is the image tower's. AutoencoderTiny (the architecture
of TAESD) has no norms and no blocks at full resolution, so two CPU cores train it in minutes.

The loss is L1 plus L1 of the image gradients (edges are what makes an emoji crisp); objects
weigh more than the ground, which would otherwise be most of the loss. Most pictures are crowded
ones, for the same reason. Noise on the latents while training, in proportion to their spread so
that they cannot outgrow it, makes the decoder forgive what a sampler leaves and spends the
latents on what can be seen; a faint penalty keeps them near the origin, where the decoder's
soft clamp is linear.

Once the encoder is final the painter can start; the decoder alone is then deepened and goes on
training, as Stable Diffusion's did after release (sd-vae-ft-mse): latents keep their meaning.
Most of what it learns is 960 sprites by heart, and blocks at low resolution are the cheapest
memory; Muon trains them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

from bridge.files import write_whole
from emoji_world.art import Sprites
from emoji_world.train.data import pictures, pixels, rendered, scene_batch, scene_rng
from emoji_world.train.loop import Recipe, Run, load_averaged
from emoji_world.train.prefetch import ON_CPU, Setup, prefetch

ENCODER_BLOCKS = (0, 0, 1, 3, 4)
DECODER_BLOCKS = (5, 4, 2, 0, 0)
DEEP_DECODER_BLOCKS = (6, 12, 3, 0, 0)
BATCH = 16
CROWDED = 12  # pictures of a batch with three or four objects
AS_DRAWN = 4  # one in so many pictures that the image tower and the answerer learn from
LATENT_NOISE = 0.3  # standard deviation of each picture's noise level, in units of the latents'


def build(decoder_blocks: tuple[int, ...] = DECODER_BLOCKS) -> AutoencoderTiny:
    """The untrained autoencoder, 2.4 M parameters; all blocks stand at 1/4 to 1/16 size."""
    return AutoencoderTiny(
        latent_channels=32,
        encoder_block_out_channels=(64,) * 5,
        decoder_block_out_channels=(64,) * 5,
        num_encoder_blocks=ENCODER_BLOCKS,
        num_decoder_blocks=decoder_blocks,
    )


def load(folder: Path) -> AutoencoderTiny:
    """The autoencoder of an SDXL-layout folder in fp32."""
    return AutoencoderTiny.from_pretrained(
        folder / "vae", torch_dtype=torch.float32, trust_remote_code=False
    )


@torch.no_grad()
def as_drawn(vae: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    """``images`` (B, 3, 128, 128) in [-1, 1], one in `AS_DRAWN` as the autoencoder gives it back
    from noised latents: what is to be seen in what a painter drew."""
    with torch.autocast(images.device.type, torch.bfloat16):
        z = vae.encode(images[::AS_DRAWN]).latents
        drawn = vae.decode(_noised(z, LATENT_NOISE)).sample
    seen = images.clone()
    seen[::AS_DRAWN] = drawn.float().clamp(-1, 1)
    return seen


def deepened(vae: AutoencoderTiny) -> AutoencoderTiny:
    """The same autoencoder with ``DEEP_DECODER_BLOCKS``: it computes what ``vae`` computes.

    New blocks stand last in their stage and begin with a last convolution of zero, so that each
    passes on what it gets (a block ends in a ReLU, and so does what comes before it).
    """
    deep = build(DEEP_DECODER_BLOCKS)
    deep.register_to_config(scaling_factor=vae.config.scaling_factor)
    deep.encoder.load_state_dict(vae.encoder.state_dict())
    old, new = _stages(vae), _stages(deep)
    for before, after in zip(old, new, strict=True):
        for a, b in zip(before, after, strict=False):
            b.load_state_dict(a.state_dict())
        for block in after[len(before) :]:
            last = [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1]
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
    return deep


def _stages(vae: AutoencoderTiny) -> list[list[nn.Module]]:
    """The decoder's layers with weights: the blocks of each stage, and what lies between."""
    stages: list[list[nn.Module]] = []
    for layer in vae.decoder.layers:
        if isinstance(layer, AutoencoderTinyBlock):
            stages[-1].append(layer)
        elif isinstance(layer, nn.Conv2d):
            stages += [[layer], []]
    return stages


def _noised(z: torch.Tensor, level: float) -> torch.Tensor:
    """Latents with noise of |N(0, 1)| x ``level`` x their own standard deviation a picture."""
    sigma = (
        torch.randn(len(z), 1, 1, 1, device=z.device, dtype=torch.float32).abs()
        * level
        * z.detach().float().std()
    )
    return z + sigma * torch.randn(z.shape, device=z.device, dtype=torch.float32)


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def _distance(y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted L1 of pixels and of gradients, and figures to log."""
    weight = 1 + 4 * ((x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.04).float()
    error = (weight * (y - x).abs()).mean()
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
    psnr = -10 * torch.log10(((y - x).detach().clamp(-1, 1) / 2).square().mean())
    return error + 2 * edges, {"l1": error.item(), "psnr": psnr.item()}


def _batches(seed: int, sprites: Sprites, setup: Setup) -> Callable[[int], torch.Tensor]:
    """From a step's number to its pictures, (B, 3, 128, 128) on the setup's device."""

    def make(step: int) -> torch.Tensor:
        rng = scene_rng(seed, step)
        crowded, others = CROWDED * setup.times, (BATCH - CROWDED) * setup.times
        return rendered(scene_batch(rng, crowded, "list") + scene_batch(rng, others), sprites)

    made = prefetch(make, setup.workers)
    return lambda step: pixels(made(step).to(setup.device)).contiguous(
        memory_format=torch.channels_last
    )


def recipe(vae: AutoencoderTiny, sprites: Sprites, setup: Setup = ON_CPU) -> Recipe:
    vae.to(setup.device, memory_format=torch.channels_last)
    batches = _batches(11, sprites, setup)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = batches(step)
        with torch.autocast(setup.device.type, torch.bfloat16):
            z = vae.encode(x).latents
            y = vae.decode(_noised(z, LATENT_NOISE)).sample
        distance, figures = _distance(y.float(), x)
        z = z.float()
        return distance + 1e-3 * z.square().mean(), figures | {"latent_std": z.std().item()}

    return Recipe("vae", vae, loss, lr=1e-3, weight_decay=0.0, warmup=100, ema=0.998)


def recipe_decoder(vae: AutoencoderTiny, sprites: Sprites, setup: Setup = ON_CPU) -> Recipe:
    """The decoder alone, on latents with the little noise that a sampler leaves."""
    vae.to(setup.device, memory_format=torch.channels_last)
    batches = _batches(13, sprites, setup)
    vae.encoder.requires_grad_(False)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = batches(step)
        with torch.autocast(setup.device.type, torch.bfloat16):
            with torch.no_grad():
                z = vae.encode(x).latents
            y = vae.decode(_noised(z, LATENT_NOISE / 2)).sample
        return _distance(y.float(), x)

    kernels = frozenset(
        name
        for name, p in vae.named_parameters()
        if name.startswith("decoder.") and p.ndim == 4 and len(p) > 3
    )
    return Recipe(
        "decoder", vae, loss, lr=1e-3, weight_decay=0.0, warmup=100, ema=0.998, muon=kernels
    )


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
