"""``languages``: how wide is the gap between languages, and how much of it is closed?

The 256 held-out scenes of ``clip`` are looked for by captions in each of 27 languages, in phrasings
that training does not show. Tower 1 of emoji-clip knows English only, so what it finds by foreign
captions against what it finds by English ones is the gap. The multilingual tower was taught to land
in tower 1's space; what it finds among the same pictures says how much of the gap it closes.

``ten_names`` are those of benchmarks/classify.py in each language: 320 things in three styles, any
size on any ground, each against nine other names, through emoji-multilingual's own head, and by
plain cosines and through emoji-1's head beside it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.classify import ALL, NAMES, among, encode, shown
from benchmarks.results import Row, grouped_share_row, ratio_interval, report, save, share_row, show
from benchmarks.retrieval import first_ranks, make_scenes
from bridge.contrastive import CLIP
from bridge.contrastive.classifier import HeadChoice
from bridge.lab.variants.vocabulary import LANGUAGES, names_in, words_in
from bridge.pictures import CHART, save_figure
from bridge.towers import TextTower, open_image_tower, open_text_tower
from emoji_world.art import load_sprites
from emoji_world.caption_meaning import held_out_caption
from emoji_world.render import render_scene
from emoji_world.scenes import Scene

ENGLISH, MULTILINGUAL = "emoji-1", "emoji-multilingual"
Hits = Mapping[str, Sequence[bool]]  # language -> was each caption's own picture first?


def run_languages(args: argparse.Namespace) -> None:
    """Measure both towers; writes languages.json and languages.webp."""
    towers = [open_text_tower(name, device=args.device) for name in (MULTILINGUAL, ENGLISH)]
    scenes = make_scenes(args.seed)
    sprites = load_sprites()
    pictures = [Image.fromarray(render_scene(scene, sprites)) for scene in scenes.values()]
    with torch.inference_mode():
        eye = open_image_tower(ENGLISH, device=args.device)
        seen = _stacked(
            eye.encode(pictures[at : at + 32]).pooled for at in range(0, len(pictures), 32)
        )
    texts = {"en": list(scenes)} | {
        language: captions_in(language, list(scenes.values()), args.seed) for language in LANGUAGES
    }
    multilingual, english = (
        {language: finds(tower, own, seen) for language, own in texts.items()} for tower in towers
    )
    rows = rows_of(english, multilingual) + name_rows(args.seed, args.device)
    show(rows)
    save(args.out / "languages.json", report(args.command, rows, towers[0].device))
    draw_chart(rows, args.out / "languages.webp")


def captions_in(language: str, scenes: Sequence[Scene], seed: int) -> list[str]:
    """A held-out caption of each scene, the same for the same seed."""
    rng = random.Random(f"languages/{language}/{seed}")
    return [held_out_caption(scene, language, rng) for scene in scenes]


def finds(tower: TextTower, texts: Sequence[str], pictures: np.ndarray) -> list[bool]:
    """Does each text find its own picture first, by cosine? Pictures are pooled (N, P)."""
    said = _stacked(tower.encode(texts[at : at + 64]).pooled for at in range(0, len(texts), 64))
    said, seen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (said, pictures))
    to_image, _ = first_ranks(seen @ said.T)
    return to_image


def _stacked(pooled: Iterable[torch.Tensor | None]) -> np.ndarray:
    return np.concatenate([each.float().cpu().numpy() for each in pooled if each is not None])


def rows_of(english: Hits, multilingual: Hits) -> list[Row]:
    """R@1 of both towers by language, and the share of the gap that is closed, over all languages
    but English and by each whose gap is beyond doubt (the intervals do not touch)."""
    rows: list[Row] = []
    ceiling = share_row("", english["en"])
    foreign = [language for language in english if language != "en"]
    closed = []
    for language in english:
        own = share_row(f"languages/{language}/english_tower", english[language])
        rows += [own, share_row(f"languages/{language}/multilingual_tower", multilingual[language])]
        if own.high < ceiling.low:
            name = f"languages/{language}/gap_closed"
            closed.append(gap_row(name, english, multilingual, [language]))
    return [gap_row("languages/gap_closed", english, multilingual, foreign), *rows, *closed]


def name_rows(seed: int, device: str | None) -> list[Row]:
    """Ten names in a language, which is the picture of? A row a language, and all by each way."""
    clip = CLIP(ENGLISH, text=MULTILINGUAL, device=device)
    english = CLIP(ENGLISH, device=device).head
    ways: dict[str, HeadChoice] = {"own_head": "own", "english_head": english, "cosine": None}
    scenes = shown(None, None, seed)
    truth = [scene.groups[0].concept for scene in scenes]
    vectors = encode(clip, scenes)
    named = {"en": NAMES} | {each: names_in(each) for each in LANGUAGES}
    right: dict[str, dict[str, list[bool]]] = {way: {} for way in ways}
    for language, names in named.items():
        for way, head in ways.items():
            scores = clip.classifier(names, "name", head=head).scores(vectors)
            right[way][language] = among(scores, truth, ALL, seed)
    rows = [  # one picture is asked for in every language
        grouped_share_row(f"languages/ten_names/{way}", [*zip(*some.values(), strict=True)])
        for way, some in right.items()
    ]
    own = right["own_head"].items()
    return rows + [share_row(f"languages/{each}/ten_names", found) for each, found in own]


def gap_row(name: str, english: Hits, multilingual: Hits, languages: Sequence[str]) -> Row:
    """The share of the gap that the multilingual tower closes, in percent, with the bootstrap's
    95 % interval over scenes (2,000 resamples, fixed seed).

    The gap is what tower 1 finds by English captions above what it finds by foreign ones; it is
    closed as far as the multilingual tower finds more than that. 100 is all of it; resamples
    without a gap say nothing and are left out. Raises ValueError where there is no gap.
    """
    top = np.asarray(english["en"], dtype=float)
    below = np.mean([english[language] for language in languages], axis=0)
    found = np.mean([multilingual[language] for language in languages], axis=0)
    gap, more = top - below, found - below
    if gap.mean() <= 0:
        raise ValueError(f"{name}: foreign captions find as much as English ones")
    ends = (more.mean() / gap.mean(), *ratio_interval(more, gap))
    value, low, high = (round(100 * float(share), 2) for share in ends)
    return Row(name, value, low, high, len(top) * len(languages), "%")


def draw_chart(rows: Sequence[Row], path: Path) -> None:
    """A line a language: R@1 of both towers with their intervals, and English as a rule."""
    from matplotlib.figure import Figure

    by_name = {row.name: row for row in rows}
    order = sorted(
        LANGUAGES, key=lambda language: by_name[f"languages/{language}/multilingual_tower"].value
    )
    figure = Figure(figsize=(6, 6.5))
    axis = figure.subplots()
    for tower, colour in (("multilingual_tower", "C1"), ("english_tower", "C0")):
        own = [by_name[f"languages/{language}/{tower}"] for language in order]
        values = np.array([row.value for row in own])
        spread = np.abs(np.array([[row.low, row.high] for row in own]).T - values)
        axis.errorbar(values, range(len(own)), xerr=spread, fmt="o", ms=4, lw=1, color=colour,
                      label=tower.replace("_", " "))  # fmt: skip
    ceiling = by_name["languages/en/english_tower"].value
    axis.axvline(ceiling, color="gray", lw=1, label="English tower, English captions")
    axis.set_yticks(range(len(order)), [words_in(language).language for language in order])
    axis.set(xlim=(0, 100), xlabel="own picture first among 256, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    save_figure(path, figure, 80, CHART)
