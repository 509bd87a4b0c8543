"""The text towers go on training until what a prompt binds can be read off their states.

Contrastive training leaves CLIP's text towers bags of words (Yuksekgonul et al. 2023,
arXiv:2210.01936), and ours were: of a picture and its caption with the two things exchanged, they
told the right one in half of the cases. A UNet reads the towers' token states by cross-attention
and mixes no tokens itself, so what stands where and which thing is red must be in the states.

Here a reader of one cross-attention layer stands for the UNet. It asks about a place ("what is on
the left?") or a thing ("which colour has the cat, how many, where?"); its answers' loss trains
the towers. It reads through the UNet's own text projection, so that what it asks for lands where
the UNet looks. The pooled texts are held to what they were, so that retrieval, and all that was
distilled from them, stays. Needs no pictures.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import BACKGROUNDS, SIZES, TINTS, Scene
from emoji_world.train.clip import tokenise
from emoji_world.train.data import scene_batch, scene_rng
from emoji_world.train.loop import Recipe, plain_attention

BATCH = 96
WIDTH = 160
PLACES = ("left", "right", "top", "bottom", "alone")
ANSWERS = {
    "concept": len(CONCEPTS),
    "tint": len(TINTS) + 1,
    "size": len(SIZES),
    "count": 4,
    "place": len(PLACES),
    "background": len(BACKGROUNDS),
}
WEIGHTS = {"size": 0.5, "background": 0.5}
POOLED_WEIGHT = 10.0
NAMED = 0.75  # of the captions surely name the relation; of the others nobody asks for places
ANCHOR = 0.2  # mean of the states' entries in their standard deviations; prompts differ by 0.05
_UNASKED = -100  # which cross-entropy ignores
_THINGS = len(PLACES)
_GROUND = _THINGS + len(CONCEPTS)


@dataclass(frozen=True)
class Questions:
    """Questions about a batch of texts: the text's row (N,), what is asked about (N,) and the
    answers (N,) by attribute, -100 where there is none."""

    row: torch.Tensor
    about: torch.Tensor
    answers: dict[str, torch.Tensor]


def places(scene: Scene) -> list[str | None]:
    """Where each group stands, as far as a caption that names the relation tells."""
    if len(scene.groups) == 1:
        return ["alone"]
    if scene.relation is None:
        return [None] * len(scene.groups)
    return ["left", "right"] if scene.relation == "left" else ["top", "bottom"]


def ask(scenes: Sequence[Scene], named: Sequence[bool]) -> Questions:
    """All questions about the scenes; ``named`` says whose caption surely names the relation."""
    tints, sizes, grounds = (None, *TINTS), tuple(SIZES), tuple(BACKGROUNDS)
    rows: list[int] = []
    about: list[int] = []
    answers: dict[str, list[int]] = {name: [] for name in ANSWERS}

    def add(row: int, what: int, **known: int) -> None:
        rows.append(row)
        about.append(what)
        for name, column in answers.items():
            column.append(known.get(name, _UNASKED))

    for row, scene in enumerate(scenes):
        for group, place in zip(scene.groups, places(scene), strict=True):
            looks = {
                "tint": tints.index(group.tint),
                "size": sizes.index(group.size),
                "count": group.count - 1,
            }
            told = place == "alone" or (place is not None and named[row])
            if told:
                add(row, PLACES.index(place), concept=group.concept, **looks)
                looks["place"] = PLACES.index(place)
            add(row, _THINGS + group.concept, **looks)
        add(row, _GROUND, background=grounds.index(scene.background))
    columns = {name: torch.tensor(column, dtype=torch.long) for name, column in answers.items()}
    return Questions(
        torch.tensor(rows, dtype=torch.long), torch.tensor(about, dtype=torch.long), columns
    )


class Reader(nn.Module):
    """One cross-attention layer and linear read-outs: what a UNet's block could read.

    ``projection`` is the UNet's text projection (its ``encoder_hid_proj``), which stays fixed.
    """

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = [projection]  # in a list: not trained, not saved
        self.about = nn.Embedding(_GROUND + 1, WIDTH, dtype=torch.float32)
        self.attention = nn.MultiheadAttention(
            WIDTH,
            5,
            kdim=projection.out_features,
            vdim=projection.out_features,
            batch_first=True,
            dtype=torch.float32,
        )
        self.norm = nn.LayerNorm(WIDTH, dtype=torch.float32)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH, dtype=torch.float32),
            nn.GELU(),
            nn.Linear(2 * WIDTH, WIDTH, dtype=torch.float32),
        )
        self.last = nn.LayerNorm(WIDTH, dtype=torch.float32)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(WIDTH, n, dtype=torch.float32) for name, n in ANSWERS.items()}
        )

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, asked: Questions
    ) -> dict[str, torch.Tensor]:
        """Logits (N, classes) by attribute of texts' states (B, T, 416), mask (B, T) True where
        a token is."""
        with torch.autocast("cpu", enabled=False):  # it subtracts large numbers
            keys = self.projection[0](states.float())[asked.row]
        query = self.about(asked.about)[:, None]
        read, _ = self.attention(
            query, keys, keys, key_padding_mask=~mask[asked.row], need_weights=False
        )
        state = (query + read)[:, 0]
        state = self.last(state + self.mlp(self.norm(state)))
        return {name: head(state) for name, head in self.heads.items()}


def captioned(
    rng: random.Random, scenes: Sequence[Scene], *, held_out: bool = False
) -> tuple[list[str], list[bool]]:
    """A caption of each scene, and whether it surely names the relation."""
    named = [rng.random() < NAMED for _ in scenes]
    texts = [
        caption(scene, rng, held_out=held_out, relation=True if told else None)
        for scene, told in zip(scenes, named, strict=True)
    ]
    return texts, named


def states_of(
    models: Sequence[CLIPModel], texts: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Both towers' penultimate states (B, T, 416) and each one's pooled text."""
    seen = [model.text_model(**texts, output_hidden_states=True) for model in models]
    pooled = [
        model.text_projection(each.pooler_output) for model, each in zip(models, seen, strict=True)
    ]
    return torch.cat([each.hidden_states[-2] for each in seen], -1), pooled


@torch.no_grad()
def anchor(tower: Any, ids: torch.Tensor) -> torch.Tensor:
    """Shift the penultimate states of a CLIP text transformer, so that the mean of their entries
    is `ANCHOR` of their standard deviations, and return what was added (D,).

    A1111's emphasis keeps a prompt's mean, and so divides by it: near zero, as it was by chance,
    a weight of 1.5 made states a hundred times as long. All that comes after begins with a
    LayerNorm, which takes off what all channels share, so the pooled text does not change. But a
    picture without a text is drawn from zeros, which are not shifted with it, so a painter must go
    on training afterwards (without, it drew 60 % of its tasks right instead of 72).

    Args:
        tower: whose last layer but one is given the shift, as a part of its bias.
        ids: (B, T) tokens of usual prompts, padding included.
    """
    states = tower(ids, output_hidden_states=True).hidden_states[-2]
    shift = torch.full_like(states[0, 0], ANCHOR * states.std().item() - states.mean().item())
    tower.encoder.layers[-2].mlp.fc2.bias.add_(shift)
    return shift


def recipe(
    models: tuple[CLIPModel, CLIPModel],
    projection: nn.Linear,
    tokenizer: CLIPTokenizer,
) -> Recipe:
    """Train the text towers of ``models``, held by their pooled texts to what they are now.

    Both towers read ``tokenizer``'s ids: their tokenizers differ in the padding alone, which
    comes after all that is read here.
    """
    for model in models:
        plain_attention(model)
        model.requires_grad_(False)
    before = copy.deepcopy(models)
    for model in models:
        model.text_model.requires_grad_(True)
    projection.requires_grad_(False)
    reader = Reader(projection)
    first, second = models
    trained = nn.ModuleDict(
        {"first": first.text_model, "second": second.text_model, "reader": reader}
    )

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = scene_rng(24, step)
        scenes = scene_batch(rng, BATCH)
        texts, named = captioned(rng, scenes)
        tokens = tokenise(tokenizer, texts)
        asked = ask(scenes, named)
        with torch.autocast("cpu", torch.bfloat16):
            states, pooled = states_of(models, tokens)
            with torch.no_grad():
                _, wanted = states_of(before, tokens)
            logits = reader(states, tokens["attention_mask"].bool(), asked)
        losses = {
            name: F.cross_entropy(logits[name].float(), truth, ignore_index=_UNASKED)
            for name, truth in asked.answers.items()
        }
        apart = [
            1 - F.cosine_similarity(a.float(), b.float()).mean()
            for a, b in zip(pooled, wanted, strict=True)
        ]
        moved = torch.stack(apart).mean()
        read = torch.stack([WEIGHTS.get(name, 1.0) * each for name, each in losses.items()]).sum()
        figures = {name: each.item() for name, each in losses.items()}
        return read + POOLED_WEIGHT * moved, figures | {"pooled_moved": moved.item()}

    return Recipe("texts", trained, loss, lr=7e-4, weight_decay=0.01, warmup=50, ema=0.995)
