"""What the weights that ship make of emphasis, AND and regions."""

from __future__ import annotations

import random
import warnings
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch

import bridge
from bridge import Region
from bridge.encoding import OffManifoldWarning
from bridge.encoding.trace import LENGTH_LIMIT
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import STYLES

# ---------------------------------------------------------------- emphasis


@pytest.mark.parametrize("emphasis", ["a1111", "no_norm", "comfy", "compel"])
def test_usual_weights_are_silent_and_large_ones_are_not(emphasis: str) -> None:
    """The measurement that the limits come from, on other prompts: see bridge/encoding/trace.py."""
    prompts = ["a (penguin:{})", "two (bananas:{}) above a tree", "a (green:{}) car, twemoji style"]

    def made(weight: float) -> Any:
        return bridge.condition(
            [text.format(weight) for text in prompts], model="emoji-xl", emphasis=emphasis
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error", OffManifoldWarning)
        usual = made(1.4)
    assert not usual.report().is_off_manifold
    with pytest.warns(OffManifoldWarning, match="prompt 0.*text_encoder: a weighted"):
        large = made(3)
    # comfy and compel move a word on the line to the empty prompt's state, which is not nothing,
    # so that one tower of a prompt may stay within.
    for trace in large.traces:
        assert len(trace.drifts) == 2
        assert max(drift.length for drift in trace.drifts) > LENGTH_LIMIT
    assert large.report().is_off_manifold


def test_states_of_words_are_alike_in_length() -> None:
    """0.78 to 1.75 of the median, as bridge/encoding/trace.py says."""
    prompts = ["a penguin", "two bananas above a tree", "a green car, twemoji style", "seven keys"]
    cond = bridge.condition(prompts, model="emoji-xl")
    first = cond.plans[0][0]
    assert first.tower == "text_encoder"
    lengths = torch.cat(
        [
            states[1 : plans[0].windows[0].used - 1, :192].norm(dim=-1)
            for states, plans in zip(cond.prompt_embeds, cond.plans, strict=True)
        ]
    )
    ratios = lengths / lengths.median()
    assert ratios.min() > 0.77 and ratios.max() < 1.76


def test_emphasis_that_keeps_the_mean_has_one_to_keep_on_the_shipped_towers() -> None:
    """A1111's divides by the mean of a prompt, which was near zero for some captions."""
    rng = random.Random(7)
    nouns = [CONCEPTS[rng.randrange(len(CONCEPTS))].one for _ in range(40)]
    prompts = [
        f"two big ({noun}:1.5), {style} style"
        for noun, style in zip(nouns, cycle(STYLES), strict=False)
    ]
    cond = bridge.condition(prompts, model="emoji-xl", dialect="a1111")
    drifts = [drift for trace in cond.traces for drift in trace.drifts]
    assert len(drifts) == 80
    assert all(0.9 < drift.rest < 1.1 and drift.length < LENGTH_LIMIT for drift in drifts)


# ---------------------------------------------------------------- AND


def test_generate_on_the_embedded_model() -> None:
    def draw(prompt: str) -> np.ndarray:
        made = bridge.generate(prompt, seed=3, steps=4)
        return np.asarray(made.images[0], dtype=int)

    both = draw("a red apple AND a cat")
    for alone in ("a red apple", "a cat"):
        assert np.abs(both - draw(alone)).mean() > 1
    halves = draw("a cat :0.5 AND a cat :0.5")
    assert np.abs(halves - draw("a cat")).max() <= 2  # rounding, over four steps and a decoder


# ---------------------------------------------------------------- regions


def test_colours_stay_in_their_region_on_the_embedded_model() -> None:
    """An apple red on one side and green on the other, and the other way round."""
    pipe = bridge.load_pipeline()
    pipe.set_progress_bar_config(disable=True)

    left_half, right_half = (0, 0, 0.5, 1), (0.5, 0, 1, 1)

    def redness(left: str, right: str) -> list[float]:
        """Red less green, over the pixels of each half that are not white."""
        regions = [Region(left, box=left_half), Region(right, box=right_half)]
        plan = bridge.regional("an apple", regions, model=pipe)
        with bridge.inject(pipe, plan) as kwargs:
            made = pipe(
                **kwargs, num_inference_steps=6, guidance_scale=5.0,
                generator=torch.Generator().manual_seed(5),
            )  # fmt: skip
        pixels = np.asarray(made.images[0], dtype=float)
        halves = np.split(pixels, 2, axis=1)
        inked = [half[half.min(2) < 128] for half in halves]
        assert all(len(some) > 50 for some in inked)
        return [float((some[:, 0] - some[:, 1]).mean()) for some in inked]

    one, other = redness("a red apple", "a green apple"), redness("a green apple", "a red apple")
    # One apple lies across both halves, and shades off between them; each half has its own colour.
    assert one[0] > 40 and other[1] > 40 and other[0] < -10
    assert one[0] - other[0] > 60 and other[1] - one[1] > 60
