"""Small heads trained on stored states: a contrastive run in seconds, to compare losses by.

Both towers of emoji-1 stay as they are, and what they make of scenes is stored once. A picture is
the mean penultimate patch state of each of its four quarters, ``(4 * 192,)``; a text the mean of
its word embeddings, ``(192,)``. Neither is in the shared space, so the heads, a layer of GELU each,
have the whole of the alignment to learn. Order of words is lost, which R@1 shows little of.

Scenes and captions to train on are of the training side; captions to score by name held-out scenes
in held-out phrasings, as ``clip.json`` has them. A point that was measured is kept, so a command
that was stopped goes on with those that are missing.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.results import Row
from benchmarks.retrieval import first_ranks, make_scenes
from bridge.contrastive import CLIP
from bridge.contrastive.embeddings import in_batches
from bridge.contrastive.losses import (
    CLIP_START,
    InfoNCE,
    PooledPairs,
    SigmoidLoss,
    clamp_scale_,
)
from bridge.files import parse_json, whole, write_whole
from bridge.towers import TextTower
from emoji_world.art import load_sprites
from emoji_world.captions import caption
from emoji_world.render import render_scene
from emoji_world.scenes import Scene, sample_scene

SCENES = 16_384
CAPTIONS = 2
GALLERY = 1024
_VALIDATION, _TEST = 101, 100  # seeds of held-out scenes, no other benchmark's
_HIDDEN, _WIDTH = 256, 128
SIGMOID_START, BIAS_START = math.log(10), -10.0  # Zhai et al. 2023, section 3.2


# ---------------------------------------------------------------- states


@dataclass(frozen=True, eq=False)
class Side:
    """Stored pairs: ``image`` (N, 768) and ``text`` (N, captions, 192), fp32, each dimension of
    mean 0 and variance 1 over the training pairs."""

    image: Tensor
    text: Tensor


@dataclass(frozen=True, eq=False)
class States:
    """Pairs to train on, to choose a learning rate by, and to score."""

    train: Side
    validation: Side
    test: Side


def load_states(folder: Path, scenes: int = SCENES, gallery: int = GALLERY) -> States:
    """The stored states; made first where they are missing (five minutes of one core)."""
    clip = CLIP("emoji-1")
    own = f"{clip.text.fingerprint()}-{clip.image.fingerprint()}-{scenes}-{gallery}"
    path = folder / f"states-{own}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        stored = _encode_all(clip, scenes, gallery)
        with whole(path) as target:
            save_file(stored, target)
    return standardised(load_file(path))


def standardised(stored: dict[str, Tensor]) -> States:
    """States with the mean and the spread of the training side taken out."""
    parts: dict[str, dict[str, Tensor]] = {}
    for kind in ("image", "text"):
        train = stored[f"train.{kind}"]
        middle = train.flatten(0, -2).mean(0)
        spread = train.flatten(0, -2).std(0) + 1e-6
        for part in ("train", "validation", "test"):
            parts.setdefault(part, {})[kind] = (stored[f"{part}.{kind}"] - middle) / spread
    return States(*(Side(**parts[part]) for part in ("train", "validation", "test")))


def _encode_all(clip: CLIP, scenes: int, gallery: int) -> dict[str, Tensor]:
    rng = random.Random("clip-lore/train")
    seen = [sample_scene(rng) for _ in range(scenes)]
    texts = [[caption(scene, rng) for scene in seen] for _ in range(CAPTIONS)]
    stored = {
        "train.image": _pictures(clip, seen),
        "train.text": torch.stack([_words(clip.text, each) for each in texts], 1),
    }
    for part, seed in (("validation", _VALIDATION), ("test", _TEST)):
        found = make_scenes(seed, gallery)
        stored[f"{part}.image"] = _pictures(clip, list(found.values()))
        stored[f"{part}.text"] = _words(clip.text, list(found))[:, None]
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def _pictures(clip: CLIP, scenes: Sequence[Scene]) -> Tensor:
    sprites = load_sprites()
    found = []
    for some in in_batches(scenes, 32):
        drawn = [Image.fromarray(render_scene(scene, sprites)) for scene in some]
        states = clip.image.encode(drawn, layers=(-2,))
        assert states.grid is not None
        found.append(quarters(states.patches[0], states.grid))
    return torch.cat(found)


def quarters(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(N, 4 D)``, the mean state of each quarter of a picture, from ``(N, h * w, D)``."""
    high, wide = grid
    split = patches.unflatten(1, (2, high // 2, 2, wide // 2))
    return split.mean((2, 4)).flatten(1)


@torch.no_grad()
def _words(tower: TextTower, texts: Sequence[str]) -> Tensor:
    embed = tower.module.get_input_embeddings()
    found = []
    for some in in_batches(texts, 256):
        batch = tower.tokenize(some)
        mask = batch.mask[:, :, None].float()
        found.append((embed(batch.ids) * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


# ---------------------------------------------------------------- a run


@dataclass(frozen=True)
class Recipe:
    """A run.

    Attributes:
        loss: "infonce" or "sigmoid".
        batch: pairs a step.
        samples: pairs seen in all; steps are as many as that makes.
        rate: the highest learning rate, after a warm-up of a twentieth, before a cosine to 0.
        seed: of the heads' first weights and of the order of the pairs.
        scale: "clamped", learnt between 0 and ln 100; "free", learnt without a limit; "fixed".
        start: ln of what cosines are multiplied by at first.
        scenes: so many of the stored ones.
        twins: every scene is twice in a batch, once by each of its captions.
    """

    loss: str
    batch: int
    samples: int
    rate: float
    seed: int
    scale: str = "clamped"
    start: float = CLIP_START
    scenes: int = SCENES
    twins: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        hits: a digit a scene of the test side: how many of its two directions found the partner
            first.
        validation: R@1 of the validation side, both directions, 0 to 1.
        scale: what cosines are multiplied by at the end.
        peak: the highest that it was.
        bias: the sigmoid's at the end.
        loss: the mean of the last tenth of the steps.
        worst: the highest loss after the first tenth.
    """

    hits: str
    validation: float
    scale: float
    peak: float
    bias: float
    loss: float
    worst: float


def free_info_nce(pairs: PooledPairs, logit_scale: Tensor) -> Tensor:
    """InfoNCE whose scale has no limit; the library's own never multiplies by more than 100."""
    image, text = (normalize(each, dim=-1) for each in (pairs.image, pairs.text))
    logits = logit_scale.exp() * image @ text.T
    target = torch.arange(len(image), device=image.device, dtype=torch.long)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def train(states: States, recipe: Recipe) -> Outcome:
    """Run it. The same recipe gives the same outcome on the same machine."""
    torch.manual_seed(recipe.seed)
    heads = tuple(_head(each.shape[-1]) for each in (states.train.image, states.train.text))
    scale = nn.Parameter(torch.tensor(recipe.start, dtype=torch.float32))
    bias = nn.Parameter(torch.tensor(BIAS_START, dtype=torch.float32))
    learnt = [parameter for head in heads for parameter in head.parameters()]
    learnt += [] if recipe.scale == "fixed" else [scale]
    learnt += [bias] if recipe.loss == "sigmoid" else []
    search = torch.optim.AdamW(learnt, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    loss_of = _loss(recipe, scale, bias)
    steps = recipe.samples // recipe.batch
    losses, peak = [], math.exp(recipe.start)
    for step, (rows, which) in zip(range(steps), batches(recipe), strict=False):
        for group in search.param_groups:
            group["lr"] = recipe.rate * warm_cosine(step, steps)
        pairs = PooledPairs(
            heads[0](states.train.image[rows]), heads[1](states.train.text[rows, which])
        )
        loss = loss_of(pairs)
        search.zero_grad()
        loss.backward()
        search.step()
        if recipe.scale == "clamped":
            clamp_scale_(scale)
        losses.append(loss.item())
        peak = max(peak, math.exp(scale.item()))
    both = [_scored(heads, side) for side in (states.validation, states.test)]
    return Outcome(
        hits="".join(map(str, both[1])),
        validation=float(np.mean(both[0]) / 2),
        scale=math.exp(scale.item()),
        peak=peak,
        bias=bias.item(),
        loss=float(np.mean(losses[-max(1, steps // 10) :])),
        worst=float(np.max(losses[steps // 10 :])),
    )


def _head(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, _HIDDEN, dtype=torch.float32),
        nn.GELU(),
        nn.Linear(_HIDDEN, _WIDTH, dtype=torch.float32),
    )


def _loss(recipe: Recipe, scale: Tensor, bias: Tensor) -> Callable[[PooledPairs], Tensor]:
    if recipe.loss == "sigmoid":
        return lambda pairs: SigmoidLoss()(pairs, scale, bias)
    if recipe.scale == "clamped":
        return lambda pairs: InfoNCE()(pairs, scale)
    return lambda pairs: free_info_nce(pairs, scale)


def warm_cosine(step: int, steps: int) -> float:
    """The share of the highest learning rate at a step, counted from 0."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def batches(recipe: Recipe) -> Any:
    """Without end, the scenes of a batch and the caption of each, ``(B,)`` int64 both.

    Every scene comes once before any comes again; the last that fill no batch wait for the next
    round. With ``twins`` a batch has half as many scenes, each by its two captions.
    """
    draws = torch.Generator().manual_seed(recipe.seed)
    each = recipe.batch // 2 if recipe.twins else recipe.batch
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < each:
            order = torch.cat([order, torch.randperm(recipe.scenes, generator=draws)])
        rows, order = order[:each], order[each:]
        if recipe.twins:
            yield rows.repeat(2), torch.arange(2, dtype=torch.long).repeat_interleave(each)
        else:
            yield rows, torch.randint(CAPTIONS, (each,), generator=draws)


@torch.no_grad()
def _scored(heads: Sequence[nn.Module], side: Side) -> list[int]:
    """Of each scene how many of its two directions find the partner first."""
    image = normalize(heads[0](side.image), dim=-1)
    text = normalize(heads[1](side.text[:, 0]), dim=-1)
    to_image, to_text = first_ranks((image @ text.T).numpy())
    return [int(a) + int(b) for a, b in zip(to_image, to_text, strict=True)]


# ---------------------------------------------------------------- points that are kept


class OutOfTime(Exception):
    """The time that was given is over; what was measured is kept."""


class Points:
    """Outcomes by recipe, kept in a file as they come.

    Args:
        path: the file.
        work: what makes an outcome of a recipe.
        is_over: whether the time is over, so that none is begun.
    """

    def __init__(
        self, path: Path, work: Callable[[Recipe], Outcome], is_over: Callable[[], bool]
    ) -> None:
        self._path, self._work, self._is_over = path, work, is_over
        self._known = self._read()

    def get(self, recipe: Recipe) -> Outcome:
        """The outcome, known or measured now. Raises OutOfTime."""
        key = json.dumps(asdict(recipe))
        if key not in self._known:
            if self._is_over():
                raise OutOfTime
            found = asdict(self._work(recipe))
            self._known = self._read() | {key: found}  # another command may have written meanwhile
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(self._known, indent=0).encode())
            told = {name: value for name, value in found.items() if name != "hits"}
            print(recipe, told, flush=True)
        return Outcome(**self._known[key])

    def _read(self) -> dict[str, Any]:
        if not self._path.is_file():
            return {}
        found: dict[str, Any] = parse_json(self._path.read_text("utf-8"), str(self._path))
        return found


# ---------------------------------------------------------------- intervals


def hits_of(outcomes: Sequence[Outcome]) -> np.ndarray:
    """``(seeds, scenes)``, of each the share of both directions that hit, 0 to 1."""
    return np.array([[int(digit) / 2 for digit in each.hits] for each in outcomes])


def crossed_row(name: str, hits: np.ndarray) -> Row:
    """The mean of ``(seeds, scenes)`` in percent (points, for differences), with the bootstrap's
    95 % interval over seeds and over scenes, both drawn anew each time (2,000, fixed seed)."""
    seeds, scenes = hits.shape
    rng = np.random.default_rng(0)
    means = [
        hits[rng.integers(0, seeds, seeds)].mean(0)[rng.integers(0, scenes, scenes)].mean()
        for _ in range(2000)
    ]
    ends = (hits.mean(), *np.quantile(means, (0.025, 0.975)))
    value, low, high = (round(100 * float(end), 2) for end in ends)
    return Row(name, value, low, high, hits.size, "%")


def spread_row(name: str, values: Sequence[float], unit: str = "") -> Row:
    """The mean over seeds between the least and the greatest."""
    ends = (float(np.mean(values)), min(values), max(values))
    value, low, high = (float(f"{end:.4g}") for end in ends)
    return Row(name, value, low, high, len(values), unit)
