"""The painter: a UNet2DConditionModel in SDXL's shape, trained on latents of scenes.

As SDXL's (Podell et al. 2023), it reads both towers' penultimate states side by side, and
pooled text and sizes enter through the time embedding. A latent is a cell of the scenes'
lattice, so one level is enough and every block attends. It predicts v (Salimans & Ho 2022)
under a cosine schedule rescaled to zero terminal SNR (Lin et al. 2023), since plain grounds of
an exact colour need the lowest frequency right. It learns in two stages: the sprites from close
views of single ones (``SPRITES``), then whole scenes (``SCENES``).

A second, dense loss teaches the middle block what stands where: its grid is the image tower's,
so the same linear heads that taught that tower (concept, tint, size and style of each patch,
from the scene's truth) read it while it trains. Representation alignment (REPA, Yu et al. 2025)
pulls a diffusion model's features towards an image encoder's for the same reason; here the
truth itself is at hand. The heads are dropped afterwards.

What it trains on comes out of a pool of views (`pool`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from emoji_world.art import Sprites
from emoji_world.scenes import CANVAS, LATTICE
from emoji_world.train import vae
from emoji_world.train.clip import DenseHeads
from emoji_world.train.loop import Recipe, Run, load_averaged
from emoji_world.train.pool import LATENT_CHANNELS, Encoder, Pool, Stage
from emoji_world.train.prefetch import ON_CPU, Setup
from emoji_world.train.whitening import whitening

DENSE_WEIGHT = 0.04  # of the dense loss, which starts near 9 where v's error starts near 1
# Without a text nearly all is unknown, so an eighth of the rows would be half of the loss.
UNCONDITIONAL_WEIGHT = 0.15
# v's error is the picture's over the noise's share of variance. At nearly clean times that is a
# large number about details nobody sees, so part of the loss is the picture's own error.
PICTURE_SHARE = 0.75
RIDGE = 0.01  # of the new states' variance, which is one in each direction
FAINTEST = 0.3  # standard deviation of any direction that the UNet reads after `realign_text`


SPRITES = Stage("sprites", side=64, batch=128, new=12, lr=1e-3)
SCENES = Stage("unet", side=CANVAS, batch=32, new=6, lr=7e-4)


def build() -> UNet2DConditionModel:
    """The untrained UNet, 10.4 M parameters."""
    return UNet2DConditionModel(
        sample_size=CANVAS // LATTICE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(192,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=6,
        cross_attention_dim=416,
        encoder_hid_dim=416,
        encoder_hid_dim_type="text_proj",
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=256 + 6 * 32,
    )


@torch.no_grad()
def whiten_text(unet: UNet2DConditionModel, painter: Painter, captions: list[str]) -> None:
    """Set the UNet's own text projection (``encoder_hid_proj``) to whiten the towers' states.

    Penultimate states hold a large constant, which keys and values have no bias to take off,
    and vary a hundred times more in some directions than in others. The projection subtracts
    the mean and scales each direction to unit variance; it stays as set. Statistics are those
    of the tokens up to the end of text, which are at most half of the 77.
    """
    mean, rows, directions = whitening(_token_states(painter, captions))
    _set_text_projection(unet, directions @ rows, mean)


@torch.no_grad()
def realign_text(
    unet: UNet2DConditionModel, before: Painter, after: Painter, captions: list[str]
) -> float:
    """Set the text projection for the towers of ``after``, where the UNet has learnt to read
    those of ``before``; the share of the old projection's variance that the new one explains.

    Ridge regression from the new states, whitened, to what the old projection made of the old
    ones. Its singular values are raised to ``FAINTEST``, so that what is new in the new states
    is there to be learnt as well.
    """
    old = unet.encoder_hid_proj(_token_states(before, captions))
    new = _token_states(after, captions)
    mean, rows, directions = whitening(new)
    white = (new - mean) @ (directions @ rows).T
    gram = white.T @ white + RIDGE * len(white) * torch.eye(white.shape[1], dtype=torch.float32)
    fitted = torch.linalg.solve(gram, white.T @ (old - old.mean(0))).T
    left, values, right = torch.linalg.svd(fitted)
    raised = left @ torch.diag(values.clamp(min=FAINTEST)) @ right
    _set_text_projection(unet, raised @ directions @ rows, mean, old.mean(0))
    missed = (unet.encoder_hid_proj(new) - old).square().sum()
    return 1 - (missed / (old - old.mean(0)).square().sum()).item()


def _set_text_projection(
    unet: UNet2DConditionModel,
    weight: torch.Tensor,
    mean: torch.Tensor,
    becomes: torch.Tensor | float = 0.0,
) -> None:
    """``weight`` applied to states less their ``mean``, which itself becomes ``becomes``."""
    unet.encoder_hid_proj.weight.copy_(weight)
    unet.encoder_hid_proj.bias.copy_(becomes - unet.encoder_hid_proj.weight @ mean)


def _token_states(painter: Painter, captions: list[str]) -> torch.Tensor:
    """(N, 416) states of all tokens of the captions, ends of text included, padding not."""
    states, ended = [], []
    for part in range(0, len(captions), 64):
        texts = captions[part : part + 64]
        states.append(painter.texts(texts)[0].float())
        ended.append(painter.tokenizers[0](texts, padding="max_length").attention_mask)
    kept = torch.tensor([row for rows in ended for row in rows], dtype=torch.bool)
    return torch.cat(states)[kept]


def _keep_text_projection(unet: UNet2DConditionModel) -> None:
    """Hold the text projection fixed and in float32: it subtracts large numbers."""
    projection = unet.encoder_hid_proj.requires_grad_(False)
    forward = projection.forward

    def exact(states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return forward(states.float())

    projection.forward = exact


def scheduler() -> DDIMScheduler:
    """v-prediction, cosine schedule, zero terminal SNR, trailing timesteps."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )


@dataclass(frozen=True)
class Painter:
    """The frozen parts that turn a scene into what the UNet trains on."""

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    towers: tuple[CLIPTextModel, CLIPTextModelWithProjection]
    vae: AutoencoderTiny

    @classmethod
    def load(cls, folder: Path) -> Painter:
        """The parts of an SDXL-layout folder, frozen."""
        names = ("tokenizer", "tokenizer_2")
        first, second = (
            CLIPTokenizer.from_pretrained(folder / name, trust_remote_code=False) for name in names
        )
        one = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, trust_remote_code=False
        )
        two = CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder_2",
            dtype=torch.float32,
            trust_remote_code=False,
        )
        drawing = vae.load(folder)
        for part in (one, two, drawing):
            part.eval().requires_grad_(False)
        return cls((first, second), (one, two), drawing)

    def to(self, device: torch.device) -> Painter:
        """The same, its towers and autoencoder on ``device``."""
        first, second = self.towers
        return replace(self, towers=(first.to(device), second.to(device)), vae=self.vae.to(device))

    def ids(self, captions: list[str]) -> torch.Tensor:
        """Both towers' token ids, long (2, B, 77), on the CPU."""
        return torch.stack(
            [
                each(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
                for each in self.tokenizers
            ]
        )

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both towers' penultimate states (B, 77, 416) and the pooled text (B, 256), bf16."""
        with torch.autocast(ids.device.type, torch.bfloat16):
            first, second = (
                tower(each, output_hidden_states=True)
                for tower, each in zip(self.towers, ids, strict=True)
            )
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return states.bfloat16(), second.text_embeds.bfloat16()

    def texts(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `read` makes of captions."""
        return self.read(self.ids(captions).to(self.vae.device))

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, 32, h / 16, w / 16) of images in [-1, 1], bf16."""
        with torch.autocast(images.device.type, torch.bfloat16):
            z = self.vae.encode(images).latents
        return (z.float() * self.vae.config.scaling_factor).bfloat16()


def recipe(
    unet: UNet2DConditionModel,
    encoder: Encoder,
    sprites: Sprites,
    stage: Stage,
    setup: Setup = ON_CPU,
    seed: int = 31,
) -> Recipe:
    """``encoder`` computes on the setup's device; the UNet is moved there."""
    size, device = stage.batch * setup.times, setup.device
    stage = replace(stage, batch=size, new=stage.new * setup.times)
    pool = Pool(encoder, sprites, stage, seed, setup)
    noise = scheduler()
    noise.alphas_cumprod = noise.alphas_cumprod.to(device)
    unet.to(device, memory_format=torch.channels_last)
    _keep_text_projection(unet)
    heads = DenseHeads(unet.config.block_out_channels[-1]).to(device)
    both = nn.ModuleDict({"unet": unet, "heads": heads})
    if device.type == "cpu":  # the fused attention's backward pass is slow on a CPU
        unet.set_attn_processor(AttnProcessor())

    middle: list[torch.Tensor] = []
    unet.mid_block.register_forward_hook(lambda _module, _inputs, out: middle.append(out))

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = pool.batch(step)
        x = batch.latents
        # Stratified times: every batch covers the whole schedule, which steadies the loss. The
        # square favours noisy times, where the text decides (two fifths lie above 850): from
        # half-clean latents on, the picture speaks for itself.
        late = (
            1
            - (torch.arange(size, dtype=torch.float32) + torch.rand(size, dtype=torch.float32))
            / size
        )
        t = ((1 - late**2) * 1000).long().clamp(max=999)
        t = t[torch.randperm(size)].to(device)
        e = torch.randn_like(x)
        noisy, target = noise.add_noise(x, e, t), noise.get_velocity(x, e, t)
        with torch.autocast(device.type, torch.bfloat16):
            guess = unet(
                noisy.contiguous(memory_format=torch.channels_last),
                t,
                batch.states,
                added_cond_kwargs={"text_embeds": batch.pooled, "time_ids": batch.time_ids},
            ).sample
            patches = middle.pop().flatten(2).transpose(1, 2)
            dense, seen_right = heads(patches, batch.truth)
        error = (guess.float() - target).square().mean((1, 2, 3))
        pool.learn(batch, t, error.detach())
        told = batch.told
        figures = {
            "v_mse": error[told].mean().item(),
            "v_mse_t700": error[told & (t >= 700)].mean().item(),
        }
        noisiness = 1 - noise.alphas_cumprod[t]
        weight = torch.where(told, 1.0, UNCONDITIONAL_WEIGHT)
        weight = weight * (1 - PICTURE_SHARE + PICTURE_SHARE * noisiness)
        return (weight * error).mean() + DENSE_WEIGHT * dense, figures | seen_right

    matrices = frozenset(
        name for name, p in both.named_parameters() if p.ndim == 2 and ".attentions." in name
    )
    return Recipe(
        stage.name,
        both,
        loss,
        lr=stage.lr,
        weight_decay=0.01,
        warmup=300,
        ema=0.996,
        muon=matrices,
    )


def export(run: Run, folder: Path) -> None:
    """Write the averaged UNet in half precision, and the scheduler."""
    unet = load_averaged(run, build(), "unet.")
    unet.half().save_pretrained(folder / "unet")
    scheduler().save_pretrained(folder / "scheduler")
