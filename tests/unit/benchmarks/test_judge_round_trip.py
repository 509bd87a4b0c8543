"""Round trips without models: what is drawn with which noise."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from support.tiny_world import synthetic_sprites

from benchmarks import round_trip
from emoji_world.judge import PictureContent
from emoji_world.scenes import sample_scene


def test_no_two_drawings_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same caption with the same noise is the same picture, and so the same caption again."""
    drawn: list[round_trip.Drawing] = []

    def paint(pipe: Any, drawings: Sequence[Any], **how: Any) -> Iterator[tuple[Any, Image.Image]]:
        drawn.extend(drawings)
        yield from ((each, Image.new("RGB", (128, 128))) for each in drawings)

    monkeypatch.setattr(round_trip, "paint", paint)
    monkeypatch.setattr(round_trip, "load_sprites", synthetic_sprites)
    judge = SimpleNamespace(look=lambda pixels: PictureContent(None, None, (), 0))
    vlm = SimpleNamespace(answers=lambda pictures, asked: ["a cat"] * len(pictures))
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(3)]
    trips = round_trip.travel(None, vlm, judge, scenes, 4, 7)  # type: ignore[arg-type]
    assert len({each.seed for each in drawn}) == len(drawn) == 3 * 4
    assert all(len(trip.pictures) == len(trip.captions) == 5 for trip in trips)
    rows = {row.name: row for row in round_trip.trip_rows(trips)}
    assert rows["round_trip/4/caption_unchanged"].value == 100
    assert rows["round_trip/4/things_kept"].n == sum(len(scene.objects) for scene in scenes)
