"""The three pictures of the README, one a road, drawn by the models that ship.

    python -m benchmarks.front_page --out docs/pictures

- ``prompt.webp``: a prompt as its tokens and weights, what was drawn, and where its words were
  looked at.
- ``answer.webp``: a picture, two questions with their answers, and what an answer needed of it.
- ``study.webp``: whether "no" keeps a thing away; the shares are those of
  benchmarks/results/study-negation.json, the pictures are drawn here.

A card is 760 pixels wide, white with round corners, so that it reads on light pages and dark ones.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import bridge
from benchmarks.results import RESULTS, ROOT
from bridge.diffusion import heat_maps
from bridge.files import write_whole
from bridge.lab import overlay

WIDTH, MARGIN, ROUND = 760, 24, 14
INK, PALE, LINE, STRONG = (28, 28, 34), (110, 112, 122), (218, 220, 226), (199, 84, 20)
LARGEST = 25_000  # bytes a picture may take
_WEIGHED = ((232, 240, 250), (253, 228, 205))  # a token of weight 1, and one of more


class Card:
    """A white card with a title, drawn on from the top."""

    def __init__(self, height: int, title: str, below: str) -> None:
        self.image = Image.new("RGB", (WIDTH, height), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.text((MARGIN, 18), title, 21)
        self.text((MARGIN, 46), below, 14, PALE)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int = 15,
        colour: tuple[int, int, int] = INK,
        anchor: str = "la",
    ) -> float:
        """Write a line, and give how wide it is."""
        font = ImageFont.load_default(size)
        self.draw.text(at, text, fill=colour, font=font, anchor=anchor)
        return float(self.draw.textlength(text, font=font))

    def picture(
        self, at: tuple[int, int], picture: Image.Image, side: int, below: str = ""
    ) -> None:
        """A picture with a thin frame and what it is, in the middle below."""
        small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        self.image.paste(small, at)
        x, y = at
        self.draw.rectangle((x - 1, y - 1, x + side, y + side), outline=LINE)
        self.text((x + side / 2, y + side + 7), below, 15, anchor="ma")

    def save(self, path: Path) -> None:
        """Write it with round corners, whole, in as good a quality as the size allows."""
        large = Image.new("L", (WIDTH * 4, self.image.height * 4), 0)
        ImageDraw.Draw(large).rounded_rectangle((0, 0, *large.size), 4 * ROUND, fill=255)
        right, bottom = WIDTH - 1, self.image.height - 1
        self.draw.rounded_rectangle((0, 0, right, bottom), ROUND, outline=LINE)
        shown = self.image.copy()
        shown.putalpha(large.resize(shown.size, Image.Resampling.LANCZOS))
        for quality in range(92, 40, -4):
            data = io.BytesIO()
            shown.save(data, "WEBP", quality=quality, method=6)
            if len(data.getvalue()) <= LARGEST:
                write_whole(path, data.getvalue())
                return
        raise ValueError(f"{path.name} does not fit into {LARGEST} bytes")


def prompt_card(pipe: Any) -> Card:
    """A prompt, its tokens, its picture and where its words were looked at."""
    prompt = "two (red:1.3) apples left of a cat"
    cond = bridge.condition(prompt, "", model=pipe)
    with heat_maps(pipe, cond) as heat:
        noise = torch.Generator().manual_seed(7)
        drawn = pipe(**cond.kwargs(), guidance_scale=3.0, num_inference_steps=20, generator=noise)
    image = drawn.images[0]
    report = bridge.Encoder(pipe).tokens(prompt)
    tower = report.towers[0]
    card = Card(294, "From a prompt to a picture", f"bridge.condition({prompt!r}, model=pipe)")
    x: float = MARGIN
    for row in (row for row in tower.rows if not row.special):
        label = row.text if row.weight == 1 else f"{row.text}  {row.weight:g}"
        width = card.draw.textlength(label, font=ImageFont.load_default(15)) + 18
        card.draw.rounded_rectangle((x, 76, x + width, 102), 6, fill=_WEIGHED[row.weight != 1])
        card.text((x + 9, 89), label, colour=STRONG if row.weight != 1 else INK, anchor="lm")
        x += width + 6
    towers = "both towers" if len(report.towers) == 2 else "its tower"
    said = f"{tower.used} of {tower.limit} tokens in {towers}"
    card.text((WIDTH - MARGIN, 89), said, 14, PALE, anchor="rm")
    words = ["red", "apples", "left", "cat"]
    shown = [("drawn", image), *((word, overlay(image, heat.of(word))) for word in words)]
    side = 132
    step = (WIDTH - 2 * MARGIN - side) / (len(shown) - 1)
    for number, (label, picture) in enumerate(shown):
        card.picture((round(MARGIN + number * step), 120), picture, side, label)
    return card


def answer_card(image: Image.Image) -> Card:
    """A picture, two questions, and where each answer came from."""
    vlm = bridge.load_vlm("emoji-llava")
    card = Card(
        346,
        "From a picture to an answer",
        "bridge.describe(picture, question), and bridge.vlm.occlusion",
    )
    side = 218
    card.picture((MARGIN, 82), image, side, "the picture")
    for number, question in enumerate(("what is on the left?", "what is on the right?")):
        seen = bridge.vlm.occlusion(vlm, image, question)
        word = seen.words[-1]
        x = MARGIN + (number + 1) * (side + 29)
        shown = bridge.vlm.heat_overlay(image, seen.cells(len(seen.words) - 1))
        card.picture((x, 82), shown, side)
        left = card.text((x, 82 + side + 7), f"{question}  ")
        card.text((x + left, 82 + side + 7), seen.answer, colour=STRONG)
        card.text((x + 8, 88), f"what “{word}” needed", 13, PALE)
    return card


def study_card(pipe: Any) -> Card:
    """What "no" does: measured shares with their intervals, and one picture of each phrasing."""
    path = RESULTS / "study-negation.json"
    measured = {
        row["name"].split("/")[1]: row
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if row["name"].endswith("/X is drawn")
    }
    asked = {
        "original": "a cat",
        "no X": "no cat",
        "not X": "not a cat",
        "without X": "without a cat",
        "Y and X": "a key and a cat",
        "Y without X": "a key without a cat",
        "Y but no X": "a key but no cat",
    }
    height, top = 60, 84
    things = measured["original"]["n"]
    card = Card(
        top + height * len(asked) + 20,
        "Does “no” keep a thing away?",
        f"How often the thing is drawn, of {things} things (95 % intervals); one picture of each",
    )
    images = bridge.generate(
        [*asked.values()], model=pipe, seed=[7] * len(asked), guidance_scale=3.0
    )
    left, right = 300, WIDTH - MARGIN - 64
    for number, (kind, prompt) in enumerate(asked.items()):
        y, row = top + number * height, measured[kind]
        card.picture((MARGIN, y), images.images[number], height - 6)
        card.text((MARGIN + height + 10, y + height / 2 - 3), prompt, 16, anchor="lm")
        values = (row["value"], row["low"], row["high"])
        value, low, high = (left + (right - left) * each / 100 for each in values)
        middle = y + height / 2 - 3
        card.draw.rectangle((left, middle - 9, right, middle + 9), fill=(243, 244, 247))
        colour = (74, 120, 190) if row["value"] < 50 else (226, 132, 60)
        card.draw.rectangle((left, middle - 9, value, middle + 9), fill=colour)
        card.draw.line((low, middle, high, middle), fill=INK, width=2)
        for end in (low, high):
            card.draw.line((end, middle - 4, end, middle + 4), fill=INK, width=2)
        card.text((WIDTH - MARGIN, middle), f"{row['value']:g} %", 16, anchor="rm")
    return card


def main() -> None:
    """Draw all three."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.front_page")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="a folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = bridge.load_pipeline("emoji-xl", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    image = bridge.generate(
        "two red apples left of a cat", model=pipe, seed=7, guidance_scale=3.0
    ).images[0]
    cards = {"prompt": prompt_card(pipe), "answer": answer_card(image), "study": study_card(pipe)}
    for name, card in cards.items():
        path = args.out / f"{name}.webp"
        card.save(path)
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
