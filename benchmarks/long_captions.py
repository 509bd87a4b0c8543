"""Captions longer than a tower's context, and what can be done about the part that is cut.

A long caption is a dozen sentences and more about one held-out scene. What decides, a caption that
names everything, is the first sentence ("early") or the last ("late"); or each fact is a sentence
of its own anywhere ("spread"). The other sentences are captions as the tower was trained on, which
name one of the things, and leave out its colour, its size, how many there are and all else: true,
and of little help.

==================  ==============================================================================
cut                 the tower's context, 77 tokens of emoji-1: what every CLIP does by itself
stretched           positions stretched to 248, not trained (Zhang et al. 2024, "Long-CLIP")
stretched_tuned     the same, tuned on long and short captions of training scenes, with the image
                    tower locked; cut_tuned, at 77, is its control
shards              whole sentences packed into texts that fit; the mean of their vectors
sentences           the mean of all sentences' vectors
centred             the same, without what the sentences of all texts have in common
central             the sentences nearest to the mean of all, as many as fit, in their order
informative         those furthest from the mean sentence of all texts, likewise
==================  ==============================================================================
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.results import Row, median_row
from benchmarks.retrieval import first_ranks, make_scenes
from benchmarks.stored_heads import OutOfTime, crossed_row, warm_cosine
from bridge.contrastive import CLIP
from bridge.contrastive.embeddings import unit
from bridge.contrastive.losses import InfoNCE, PooledPairs, clamp_scale_
from bridge.files import whole
from bridge.towers import TextTower, stretch_positions
from emoji_world.art import load_sprites
from emoji_world.captions import caption, noun_phrase
from emoji_world.render import render_scene
from emoji_world.scenes import Group, Scene, sample_scene

PLACES = ("early", "late", "spread")
GALLERY = 512
LONG = 248
FILLERS = 12
_SEED = 100  # of held-out scenes
_SIDES = {"left": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}


# ---------------------------------------------------------------- captions


def long_caption(scene: Scene, where: str, rng: random.Random, decides: str) -> list[str]:
    """The sentences of a long caption.

    Args:
        scene: what it is of.
        where: one of ``PLACES``.
        rng: draws the other sentences.
        decides: the caption that names everything.
    """
    fillers = fillers_of(scene, rng)
    if where == "early":
        return [decides, *fillers]
    if where == "late":
        return [*fillers, decides]
    mixed = [*facts_of(scene), *fillers]
    rng.shuffle(mixed)
    return mixed


def facts_of(scene: Scene) -> list[str]:
    """A sentence for each group of things; of two, each with its place."""
    phrases = [noun_phrase(group) for group in scene.groups]
    if scene.relation is None:
        return phrases
    return [f"{side} {each}" for side, each in zip(_SIDES[scene.relation], phrases, strict=True)]


def fillers_of(scene: Scene, rng: random.Random) -> list[str]:
    """``FILLERS`` different captions, each of one of the things by its bare name."""
    found: dict[str, None] = {}
    while len(found) < FILLERS:
        thing = (Group(rng.choice(scene.groups).concept),)
        vague = Scene(scene.style, scene.background, thing, None, ())
        found.setdefault(caption(vague, rng, relation=False, style=rng.random() < 0.5))
    return list(found)


def joined(sentences: Sequence[str]) -> str:
    """One text of several sentences."""
    return ". ".join(sentences)


def packed(sentences: Sequence[str], lengths: Sequence[int], room: int) -> list[list[str]]:
    """Sentences in their order in shards of at most ``room`` tokens, of one sentence at least."""
    shards: list[list[str]] = []
    left = 0
    for sentence, length in zip(sentences, lengths, strict=True):
        if not shards or length > left:
            shards.append([])
            left = room
        shards[-1].append(sentence)
        left -= length
    return shards


def best_that_fit(worth: Sequence[float], lengths: Sequence[int], room: int) -> list[int]:
    """The places of the worthiest sentences that fit together, in their order; one at least."""
    chosen: list[int] = []
    for place in sorted(range(len(worth)), key=lambda at: -worth[at]):
        if not chosen or lengths[place] <= room:
            chosen.append(place)
            room -= lengths[place]
    return sorted(chosen)


# ---------------------------------------------------------------- remedies


@dataclass(frozen=True, eq=False)
class LongTexts:
    """Long captions taken apart.

    Attributes:
        sentences: of each caption.
        lengths: tokens of each sentence with the full stop behind it.
        vectors: ``(S, P)`` of each sentence alone, of length 1.
        room: tokens of a context, without the first and the last.
    """

    sentences: list[list[str]]
    lengths: list[list[int]]
    vectors: list[Tensor]
    room: int

    @classmethod
    def of(cls, clip: CLIP, sentences: list[list[str]]) -> LongTexts:
        words = [each for text in sentences for each in text]
        ids = clip.text.tokenizer([f"{each}." for each in words])["input_ids"]
        counts = [len(text) for text in sentences]
        lengths = torch.tensor([len(row) - 2 for row in ids], dtype=torch.long).split(counts)
        vectors = clip.encode_text(words).split(counts)
        room = clip.text.spec.context - 2
        return cls(sentences, [each.tolist() for each in lengths], list(vectors), room)

    def tokens(self) -> list[int]:
        """Of each caption its length in tokens."""
        return [sum(each) + 2 for each in self.lengths]

    def cut(self, clip: CLIP) -> Tensor:
        return clip.encode_text([joined(each) for each in self.sentences])

    def mean_of_sentences(self) -> Tensor:
        return torch.stack([unit(each.mean(0)) for each in self.vectors])

    def mean_of_shards(self, clip: CLIP) -> Tensor:
        shards = [
            [joined(each) for each in packed(text, lengths, self.room)]
            for text, lengths in zip(self.sentences, self.lengths, strict=True)
        ]
        flat = clip.encode_text([each for text in shards for each in text])
        return torch.stack([unit(each.mean(0)) for each in flat.split([len(t) for t in shards])])

    def mean_of_centred(self) -> Tensor:
        usual = torch.cat(self.vectors).mean(0)
        return torch.stack([unit((each - usual).mean(0)) for each in self.vectors])

    def chosen(self, clip: CLIP, worth: Callable[[Tensor], Tensor]) -> Tensor:
        """Vectors of the texts that are left when the sentences of least worth are left out."""
        texts = []
        for sentences, lengths, vectors in zip(
            self.sentences, self.lengths, self.vectors, strict=True
        ):
            kept = best_that_fit(worth(vectors).tolist(), lengths, self.room)
            texts.append(joined([sentences[at] for at in kept]))
        return clip.encode_text(texts)

    def central(self, clip: CLIP) -> Tensor:
        return self.chosen(clip, lambda vectors: vectors @ unit(vectors.mean(0)))

    def informative(self, clip: CLIP) -> Tensor:
        usual = unit(torch.cat(self.vectors).mean(0))
        return self.chosen(clip, lambda vectors: -(vectors @ usual))


# ---------------------------------------------------------------- tuning


@dataclass(frozen=True)
class Tuning:
    """How a text tower is tuned on long captions, every fourth of them a short one.

    Attributes:
        positions: the tower's context, 77 as it is or 248 stretched.
        seed: of the captions and their order.
        steps, batch, rate: of AdamW, with the highest learning rate after a warm-up.
        scenes: training scenes, each with a caption drawn anew whenever it comes.
    """

    positions: int
    seed: int
    steps: int = 120
    batch: int = 32
    rate: float = 3e-4
    scenes: int = 3072


def tuned(clip: CLIP, how: Tuning, folder: Path, is_over: Callable[[], bool]) -> CLIP:
    """The CLIP with a text tower tuned against its locked pictures; kept in ``folder``."""
    module = with_positions(clip.text.module, how.positions)
    path = folder / f"tuned-{clip.text.fingerprint()}-{_named(how)}.safetensors"
    if not path.is_file():
        if is_over():
            raise OutOfTime
        _tune(clip, module, how, stored_pictures(clip, how.scenes, folder))
        folder.mkdir(parents=True, exist_ok=True)
        with whole(path) as target:
            save_file({n: t.contiguous() for n, t in module.state_dict().items()}, target)
    module.load_state_dict(load_file(path))
    return with_text(clip, module.eval())


def _named(how: Tuning) -> str:
    return "-".join(f"{value:g}" for value in vars(how).values())


def with_positions(module: Any, positions: int) -> Any:
    """A copy of a text tower with so many positions."""
    if positions == module.config.max_position_embeddings:
        return copy.deepcopy(module)
    return stretch_positions(module, positions)


def with_text(clip: CLIP, module: Any) -> CLIP:
    """The CLIP with another text module; its pictures stay."""
    tower = TextTower.from_modules(module, clip.text.tokenizer, name=clip.text.name)
    return CLIP(clip.name, text=tower, image=clip.image)


def _training_scenes(count: int) -> list[Scene]:
    rng = random.Random("clip-lore/long")
    return [sample_scene(rng) for _ in range(count)]


def stored_pictures(clip: CLIP, count: int, folder: Path) -> Tensor:
    """Vectors of the training scenes, kept in ``folder``."""
    path = folder / f"long-{clip.image.fingerprint()}-{count}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        vectors = clip.encode_image(drawn(_training_scenes(count)))
        with whole(path) as target:
            save_file({"image": vectors}, target)
    return load_file(path)["image"]


def drawn(scenes: Sequence[Scene]) -> list[Image.Image]:
    """Their pictures."""
    sprites = load_sprites()
    return [Image.fromarray(render_scene(scene, sprites)) for scene in scenes]


def _tune(clip: CLIP, module: Any, how: Tuning, pictures: Tensor) -> None:
    scenes = _training_scenes(how.scenes)
    rng = random.Random(f"clip-lore/tuning/{how.seed}")
    start = clip.scoring.scale if clip.scoring is not None else 100.0
    scale = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32).log())
    module.train().requires_grad_(True)
    search = torch.optim.AdamW([*module.parameters(), scale], lr=how.rate, weight_decay=0.0)
    for step in range(how.steps):
        for group in search.param_groups:
            group["lr"] = how.rate * warm_cosine(step, how.steps)
        rows = rng.sample(range(how.scenes), how.batch)
        texts = [joined(_training_caption(scenes[row], rng)) for row in rows]
        words = clip.text.tokenizer(
            texts, padding="longest", truncation=True, max_length=how.positions, return_tensors="pt"
        )
        pooled = module(words["input_ids"], attention_mask=words["attention_mask"]).text_embeds
        loss = InfoNCE()(PooledPairs(pictures[rows], pooled), scale)
        search.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        search.step()
        clamp_scale_(scale)
        if step % 8 == 0:
            print(f"tuning to {how.positions}: step {step}, loss {loss.item():.3f}", flush=True)


def _training_caption(scene: Scene, rng: random.Random) -> list[str]:
    where = rng.choice((*PLACES, "short"))
    decides = caption(scene, rng)
    return [decides] if where == "short" else long_caption(scene, where, rng, decides)


# ---------------------------------------------------------------- figures


def held_out(where: str, gallery: int = GALLERY) -> list[list[str]]:
    """The long captions of the held-out scenes; ``short`` is the deciding sentence alone."""
    rng = random.Random(f"clip-lore/long/{where}")
    scenes = make_scenes(_SEED, gallery)
    if where == "short":
        return [[decides] for decides in scenes]
    return [long_caption(scene, where, rng, decides) for decides, scene in scenes.items()]


def recall_row(name: str, texts: Sequence[Tensor], pictures: Tensor) -> Row:
    """R@1, both directions, of texts ``(N, P)`` by one tower or by those of several seeds; the
    interval is over scenes, and over seeds where there are several."""
    hits = np.array(
        [np.mean(first_ranks((pictures @ each.T).numpy()), axis=0, dtype=float) for each in texts]
    )
    return crossed_row(name, hits)


def measure(folder: Path, seeds: Sequence[int], is_over: Callable[[], bool]) -> list[Row]:
    """All rows of long captions."""
    clip = CLIP("emoji-1")
    context = clip.text.spec.context
    pictures = clip.encode_image(drawn(list(make_scenes(_SEED, GALLERY).values())))
    others = {
        "stretched": [with_text(clip, with_positions(clip.text.module, LONG))],
        "stretched_tuned": [tuned(clip, Tuning(LONG, each), folder, is_over) for each in seeds],
        "cut_tuned": [tuned(clip, Tuning(context, each), folder, is_over) for each in seeds],
    }
    rows = []
    for where in ("short", *PLACES):
        texts = LongTexts.of(clip, held_out(where))
        rows.append(median_row(f"long/{where}/tokens", texts.tokens(), "tokens"))
        found = {"cut": [texts.cut(clip)]}
        found |= {name: [texts.cut(each) for each in some] for name, some in others.items()}
        if where != "short":
            found |= {
                "shards": [texts.mean_of_shards(clip)],
                "sentences": [texts.mean_of_sentences()],
                "centred": [texts.mean_of_centred()],
                "central": [texts.central(clip)],
                "informative": [texts.informative(clip)],
            }
        rows += [
            recall_row(f"long/{where}/{name}", vectors, pictures) for name, vectors in found.items()
        ]
    return rows
