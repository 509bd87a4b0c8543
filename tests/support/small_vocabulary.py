"""The towers' vocabulary, trained from a smaller corpus: the real one takes half a minute."""

from __future__ import annotations

import random

from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import BACKGROUNDS, STYLES, TINTS, draw_scene

SMALL = 1600


def small_corpus() -> list[str]:
    rng = random.Random(7)
    lines = [caption(draw_scene(rng), rng) for _ in range(1500)]
    words = [w for c in CONCEPTS for w in (c.name, c.one, c.many, c.emoji)]
    return lines + 3 * [*words, *BACKGROUNDS, *TINTS, *STYLES]
