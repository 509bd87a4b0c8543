"""What a picture looks like so far, while the sampler still works on it.

Two questions. Which latents: the noisy ones say little for half of the way, so the sampler's
present estimate of the clean picture is shown. How to see them: a small VAE simply decodes
them; a big one would cost as much as a step, so there a linear map from latent channels to
RGB is fitted once to the VAE, as in the "latent2rgb" previews of Birch-san and ComfyUI,
but from the VAE at hand instead of a table of constants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

# SD's VAE has 84 million parameters, a tiny one (TAESD) 2.4 million.
_SMALL_VAE = 20_000_000

_FACTORS: WeakKeyDictionary[Any, torch.Tensor] = WeakKeyDictionary()


def watch_clean_estimate(scheduler: Any) -> Callable[[], torch.Tensor | None]:
    """Follow ``scheduler`` (a private copy) and give its latest estimate of the clean latents.

    Schedulers that return `pred_original_sample` are taken at their word. For the rest it is
    worked out from the network's output, the noise level and the kind of prediction.
    """
    latest: list[torch.Tensor | None] = [None]
    step = scheduler.step

    @functools.wraps(step)
    def watched(model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        as_tuple = not options.pop("return_dict", True)
        result = step(model_output, timestep, sample, return_dict=True, **options)
        clean = result.get("pred_original_sample")
        if clean is None:
            clean = _clean_from_output(scheduler, model_output, timestep, sample)
        latest[0] = clean
        return (result.prev_sample,) if as_tuple else result

    scheduler.step = watched
    return lambda: latest[0]


def _clean_from_output(
    scheduler: Any, output: torch.Tensor, timestep: Any, sample: torch.Tensor
) -> torch.Tensor | None:
    """x0 under the variance-preserving convention, or None where that does not apply."""
    table = getattr(scheduler, "alphas_cumprod", None)
    # Samplers that work on unscaled noise levels start from more than unit noise.
    if table is None or float(scheduler.init_noise_sigma) != 1.0:
        return None
    index = int(min(max(float(timestep), 0), len(table) - 1))
    alpha = table[index].to(sample.device, torch.float32)
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "v_prediction":
        return (signal * sample - noise * output).to(sample.dtype)
    if kind == "sample":
        return output
    if kind == "epsilon":
        return ((sample - noise * output) / signal.clamp(min=1e-4)).to(sample.dtype)
    return None


@torch.inference_mode()
def render(pipe: Any, latents: torch.Tensor) -> list[Image]:
    """Latents (B, C, h, w), as the sampler has them, to B RGB pictures of the full size."""
    vae = pipe.vae
    raw = unscaled(vae, latents)
    if sum(p.numel() for p in vae.parameters()) <= _SMALL_VAE:
        rgb = vae.decode(raw.to(vae.dtype), return_dict=False)[0]
        return list(pipe.image_processor.postprocess(rgb, output_type="pil"))
    small = linear_rgb(raw.float(), latent_factors(vae))
    full = torch.nn.functional.interpolate(
        small, scale_factor=float(pipe.vae_scale_factor), mode="bicubic", align_corners=False
    )
    return list(pipe.image_processor.postprocess(full.cpu(), output_type="pil"))


def unscaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """From the sampler's latents to the VAE's own, as the stock pipelines do it."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    raw = latents / config.scaling_factor
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        raw = raw * raw.new_tensor(std).view(shape) + raw.new_tensor(mean).view(shape)
    return raw


def linear_rgb(raw: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) latents and (C + 1, 3) factors to (B, 3, h, w) in -1..1."""
    weights, bias = factors[:-1].to(raw.device), factors[-1].to(raw.device)
    rgb = torch.einsum("bchw,cr->brhw", raw, weights) + bias.view(1, 3, 1, 1)
    return rgb.clamp(-1, 1)


def latent_factors(vae: Any) -> torch.Tensor:
    """(C + 1, 3) factors from the VAE's latents, with a bias, to RGB; fitted once a VAE."""
    if vae not in _FACTORS:
        _FACTORS[vae] = fit_latent_factors(vae)
    return _FACTORS[vae]


@torch.inference_mode()
def fit_latent_factors(vae: Any, *, pictures: int = 4, side: int = 16) -> torch.Tensor:
    """Least squares between encoded colour fields and their colours, a pair a latent.

    ``pictures`` smooth random fields, ``side`` latents wide, of all colours and slopes, are
    encoded by the VAE itself; each latent is paired with the mean colour of its pixels.
    Deterministic; float32 on the CPU.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    generator = torch.Generator().manual_seed(0)
    size = side * factor
    fields = []
    for index in range(pictures):
        cells = 2 ** (index % 4 + 1)
        coarse = torch.rand(1, 3, cells, cells, generator=generator, dtype=torch.float32) * 2 - 1
        fields.append(
            torch.nn.functional.interpolate(
                coarse, size=(size, size), mode="bilinear", align_corners=False
            )
        )
    rgb = torch.cat(fields)
    encoded = vae.encode(rgb.to(vae.device, vae.dtype))
    raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    latents = raw.float().cpu().permute(0, 2, 3, 1).flatten(0, 2)
    colours = torch.nn.functional.avg_pool2d(rgb, factor).permute(0, 2, 3, 1).flatten(0, 2)
    ones = torch.ones(len(latents), 1, dtype=torch.float32)
    # A little ridge keeps channels that say nothing about colour from exploding.
    design = torch.cat([latents, ones], dim=1)
    normal = design.T @ design + 1e-3 * len(latents) * torch.eye(
        design.shape[1], dtype=torch.float32
    )
    return torch.linalg.solve(normal, design.T @ colours)
