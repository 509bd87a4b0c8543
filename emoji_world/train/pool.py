"""The painter's pool: views' latents and text states, computed once and replayed.

Latents and text states of a view cost as much as half a training step, so each is computed
once and kept; every step draws some new views and replays others, those more often that went
worse than others of their noise the last time (prioritised replay, Schaul et al. 2016).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from emoji_world.art import Sprites
from emoji_world.captions import caption
from emoji_world.scenes import LATTICE
from emoji_world.train.data import PATCH, PatchTruth, pixels, scene_rng
from emoji_world.train.prefetch import Setup, prefetch
from emoji_world.train.views import draw_views, view_pictures, view_truth

LATENT_CHANNELS = 32
FIRST = 2048  # views that a pool begins with, or a batch if that is larger
DROP_ZERO, DROP_EMPTY = 0.09, 0.03  # unconditional rows: zeros (SDXL's rule), or "" encoded
HARDEST = 4.0  # how much oftener than an average view the hardest is replayed, at most
TIME_BINS = 20  # errors are compared within one
USUAL_SHARE = 0.02  # of a new error in the usual one of its bin


@dataclass(frozen=True)
class Stage:
    """What a run trains on: ``batch`` views of ``side`` pixels a step, ``new`` of them new, the
    others out of the last ``pool`` (77 x 416 half-precision numbers each: 80,000 are 5 GB)."""

    name: str
    side: int
    batch: int
    new: int
    lr: float
    pool: int = 80_000


class Encoder(Protocol):
    """What turns captions and pictures into what the UNet trains on."""

    def ids(self, captions: list[str]) -> torch.Tensor:
        """Both towers' token ids, long (2, B, 77), on the CPU."""

    def read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states (B, 77, 416) and the pooled text (B, 256), bf16."""

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents, bf16, of images (B, 3, h, w) in [-1, 1]."""


@dataclass(frozen=True)
class Views:
    """New views on the CPU: pictures uint8 (N, side, side, 3), token ids (2, N, 77), their
    patches' truth and micro-conditioning (N, 6)."""

    pictures: torch.Tensor
    ids: torch.Tensor
    truth: PatchTruth
    time_ids: torch.Tensor


def make_views(
    ids: Callable[[list[str]], torch.Tensor],
    sprites: Sprites,
    side: int,
    count: int,
    rng: random.Random,
) -> Views:
    """``count`` new views with a caption each."""
    views = draw_views(rng, count, side)
    captions = [caption(view.scene, rng, in_order=True) for view in views]
    return Views(
        view_pictures(views, sprites),
        ids(captions),
        view_truth(views),
        torch.tensor([view.time_ids for view in views], dtype=torch.long),
    )


@dataclass(frozen=True)
class Batch:
    """Latents (B, 32, h, w), text states (B, 77, 416), pooled text (B, 256), micro-conditioning
    (B, 6), the patches' truth, which rows are told their text (B,), and the views' places."""

    latents: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    truth: PatchTruth
    told: torch.Tensor
    places: torch.Tensor


class Pool:
    """Views with all that is known of them, grown step by step and replayed."""

    def __init__(
        self, encoder: Encoder, sprites: Sprites, stage: Stage, seed: int, setup: Setup
    ) -> None:
        self.encoder, self.stage, self.seed, self.device = encoder, stage, seed, setup.device
        self._make = partial(make_views, encoder.ids, sprites, stage.side)
        self._new = prefetch(
            lambda step: self._make(stage.new, scene_rng(seed, step)), setup.workers
        )
        grid, patches = stage.side // LATTICE, (stage.side // PATCH) ** 2

        def store(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.empty(stage.pool, *shape, dtype=dtype, device=self.device)

        self.latents = store(LATENT_CHANNELS, grid, grid)
        self.states, self.pooled = store(77, 416), store(256)
        self.time_ids = store(6, dtype=torch.int16)
        self.truth = PatchTruth(*(store(patches, dtype=torch.int16) for _ in range(4)))
        # A view's last error over the usual one of its time.
        self.hardness = torch.ones(stage.pool, device=self.device, dtype=torch.float32)
        # By time: the mean error of the last rows, of all at first; and how many there were.
        self.usual = torch.zeros(TIME_BINS, device=self.device, dtype=torch.float32)
        self.counted = torch.zeros(TIME_BINS, device=self.device, dtype=torch.float32)
        self.filled = 0
        self.next = 0
        states, pooled = encoder.read(encoder.ids([""]).to(self.device))
        self.empty = states[0].float(), pooled[0].float()

    def add(self, views: Views) -> range:
        """Encode new views and return their places; old places are reused when it is full."""
        count = len(views.pictures)
        start = self.next if self.next + count <= self.stage.pool else 0
        kept = slice(start, start + count)
        self.latents[kept] = self.encoder.latents(pixels(views.pictures.to(self.device)))
        self.states[kept], self.pooled[kept] = self.encoder.read(views.ids.to(self.device))
        self.time_ids[kept] = views.time_ids.to(self.device, torch.int16)
        for name, column in vars(self.truth).items():
            column[kept] = getattr(views.truth, name).to(self.device, torch.int16)
        self.hardness[kept] = 1
        self.next = start + count
        self.filled = max(self.filled, self.next)
        return range(start, start + count)

    def batch(self, step: int) -> Batch:
        """One step's rows, a few of them made unconditional."""
        if self.filled == 0:
            for part in range(0, max(FIRST, self.stage.batch), 256):
                self.add(self._make(256, scene_rng(self.seed, -1 - part)))
        new = self.add(self._new(step))
        draws = torch.Generator(self.device)
        draws.manual_seed(scene_rng(self.seed, step).getrandbits(62))
        rows = torch.arange(new.start, new.stop, device=self.device, dtype=torch.long)
        if len(new) < self.stage.batch:  # else there is nothing to replay
            rows = torch.cat([rows, self._replayed(self.stage.batch - len(new), new, draws)])
        draw = torch.rand(len(rows), generator=draws, device=self.device, dtype=torch.float32)
        zero, told = draw < DROP_ZERO, draw >= DROP_ZERO + DROP_EMPTY
        states, pooled = self.states[rows].float(), self.pooled[rows].float()
        states[~told], pooled[~told] = self.empty
        states[zero], pooled[zero] = 0, 0
        return Batch(
            self.latents[rows].float(),
            states,
            pooled,
            self.time_ids[rows].long(),
            self.truth.each(lambda column: column[rows].long()),
            told,
            rows,
        )

    def _replayed(self, count: int, new: range, draws: torch.Generator) -> torch.Tensor:
        """Places of the pool but the ``new`` ones, hard views likelier, none twice.

        The largest of log weight plus Gumbel noise (Efraimidis & Spirakis 2006).
        """
        keys = torch.rand(self.filled, generator=draws, device=self.device, dtype=torch.float32)
        keys = self.hardness[: self.filled].log() - (-keys.log()).log()
        keys[new.start : new.stop] = -torch.inf
        return keys.topk(count).indices

    def learn(self, batch: Batch, t: torch.Tensor, error: torch.Tensor) -> None:
        """Note how hard the batch's views were: ``error`` (B,) at times ``t`` (B,) of 1000."""
        bins, places, error = (
            of_all[batch.told] for of_all in (t * TIME_BINS // 1000, batch.places, error)
        )
        here = torch.zeros_like(self.usual).index_add(0, bins, torch.ones_like(error))
        mean = torch.zeros_like(self.usual).index_add(0, bins, error) / here.clamp(min=1)
        self.counted += here
        share = (1 - (1 - USUAL_SHARE) ** here).maximum(here / self.counted.clamp(min=1))
        self.usual = self.usual.lerp(mean, share)
        self.hardness[places] = (error / self.usual[bins]).clamp(1 / HARDEST, HARDEST)
