"""The measures against worked cases, naive loops and scipy.

All arithmetic is float64; 1e-9 allows for its rounding in another order of summing.
"""

from __future__ import annotations

import math
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import bridge
from bridge.errors import MissingDependencyError
from bridge.lab.measures import (
    UNRELATED,
    above_chance,
    cosine,
    cosines,
    effective_rank,
    effects,
    kendall_tau,
    linear_cka,
    matched,
    mean_cosine,
    mean_interval,
    pieces_per_word,
    texts_without,
    token_cosine,
    tokens_of_words,
    word_shares,
)
from bridge.towers import rollout

EXACT = 1e-9


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- splitting


def test_pieces_are_counted_by_word() -> None:
    # "unlikely cat" as un|like|ly cat, between BOS and EOS.
    offsets = [None, (0, 2), (2, 6), (6, 8), (9, 12), None]
    assert tokens_of_words("unlikely cat", offsets) == [[1, 2, 3], [4]]
    assert pieces_per_word("unlikely cat", offsets) == 2
    # What was cut off does not count.
    assert pieces_per_word("unlikely cat", offsets[:4]) == 3
    assert math.isnan(pieces_per_word("!!", [(0, 2)]))


# ---------------------------------------------------------------- drift


def test_cosines_plain_and_centred() -> None:
    a, b, mean = noise(7), noise(7, seed=1), noise(7, seed=2)
    wanted = float(a @ b / a.norm() / b.norm())
    assert cosine(a, b) == pytest.approx(wanted, abs=EXACT)
    x, y = a - mean, b - mean
    assert cosine(a, b, mean) == pytest.approx(float(x @ y / x.norm() / y.norm()), abs=EXACT)
    zero = torch.zeros(7)
    assert cosine(zero, zero) == 1 and cosine(zero, a) == 0


def test_token_drift_is_of_the_tokens_that_both_have() -> None:
    a, b = noise(4, 5), noise(3, 5, seed=1)
    assert matched([1, 2, 3, 4], [2, 9, 4]) == [(1, 0), (3, 2)]
    wanted = cosines(a[[1, 3]], b[[0, 2]]).mean()
    found = token_cosine(a, b, [1, 2, 3, 4], [2, 9, 4])
    assert found == pytest.approx(float(wanted), abs=EXACT)
    assert math.isnan(token_cosine(a, b, [1, 2, 3, 4], [5, 6, 7]))
    assert token_cosine(a, a, [1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)


def test_a_cosine_is_read_against_chance() -> None:
    assert above_chance(1.0, 0.6) == 1 and above_chance(0.6, 0.6) == 0
    assert above_chance(0.8, 0.6) == pytest.approx(0.5)
    states = noise(6, 4) + 2
    pairs = [cosine(states[i], states[j]) for i, j in combinations(range(6), 2)]
    assert mean_cosine(states) == pytest.approx(sum(pairs) / len(pairs), abs=EXACT)
    assert len(set(UNRELATED)) == len(UNRELATED) >= 32


# ---------------------------------------------------------------- words


def test_leaving_words_out() -> None:
    assert texts_without("a red cat, asleep") == [
        "red cat, asleep", "a cat, asleep", "a red, asleep", "a red cat",
    ]  # fmt: skip
    assert texts_without("") == [] and texts_without("cat") == [""]
    whole, without = noise(5), torch.stack([noise(5), noise(5, seed=3)])
    found = effects(whole, without)
    assert found[0] == pytest.approx(0, abs=EXACT)
    assert found[1] == pytest.approx(1 - cosine(whole, without[1]), abs=EXACT)


def test_rollout_is_the_product_of_its_layers() -> None:
    layers = [noise(3, 4, 4, seed=s).softmax(-1) for s in range(3)]
    wanted = np.eye(4)
    for layer in layers:
        wanted = (layer.mean(0).numpy() / 2 + np.eye(4) / 2) @ wanted
    found = rollout(layers)
    assert np.allclose(found.numpy(), wanted, atol=EXACT)
    assert torch.allclose(found.sum(-1), torch.ones(4, dtype=torch.float64))
    # Later layers act on what earlier ones made: the order matters.
    assert not np.allclose(rollout(layers[::-1]).numpy(), wanted)
    assert torch.allclose(rollout(layers, [2]), found[2:3], atol=EXACT)
    # A place that sees nothing passes on itself.
    layers[0][:, 2] = 0
    assert rollout(layers[:1])[2].tolist() == [0, 0, 1, 0]
    shares = word_shares(found[-1], [[1], [2, 3]])
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == pytest.approx(float(found[-1, 1] / found[-1, 1:].sum()))
    assert word_shares(torch.zeros(3), [[1], []])[1] != 0  # NaN: nothing to share


# ---------------------------------------------------------------- sets


def test_effective_rank_of_known_sets() -> None:
    assert effective_rank(torch.ones(5, 3) * 0.1) == 0
    line = torch.arange(5.0)[:, None] * torch.tensor([[1.0, 2.0, -1.0]])
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    # The four corners of a square differ in two directions alike.
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert effective_rank(square) == pytest.approx(2, abs=1e-6)
    values = torch.linalg.svdvals(noise(9, 4) - noise(9, 4).mean(0))
    shares = (values / values.sum()).numpy()
    wanted = np.exp(stats.entropy(shares))
    assert effective_rank(noise(9, 4)) == pytest.approx(wanted, abs=1e-9)


@given(
    pairs=st.lists(
        st.tuples(st.integers(-4, 4), st.one_of(st.integers(-4, 4), st.just(float("nan")))),
        max_size=30,
    )
)
@settings(max_examples=60, deadline=None)
def test_tau_is_scipys(pairs: list[tuple[float, float]]) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    known = [(a, b) for a, b in pairs if not math.isnan(b)]
    wanted = float("nan")
    if len(known) > 1:
        wanted = stats.kendalltau(*zip(*known, strict=True), variant="b").statistic
    assert kendall_tau(x, y) == pytest.approx(wanted, abs=EXACT, nan_ok=True)


def test_cka_is_that_of_the_features() -> None:
    x, y = noise(8, 5) + 3, noise(8, 3, seed=1)
    a, b = x - x.mean(0), y - y.mean(0)
    wanted = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(float(wanted), abs=EXACT)
    # Turning and scaling a space does not matter.
    turn, _ = torch.linalg.qr(noise(5, 5, seed=2))
    assert linear_cka(x, 7 * x @ turn + 1) == pytest.approx(1, abs=EXACT)
    assert math.isnan(linear_cka(x, torch.ones(8, 2)))
    assert math.isnan(linear_cka(x[:2], y[:2]))  # by the formula 1, whatever the two are


def test_intervals() -> None:
    for hits, count in ((0, 5), (3, 7), (10, 10)):
        values = [1.0] * hits + [0.0] * (count - hits)
        wanted = stats.binomtest(hits, count).proportion_ci(method="wilson")
        mean, low, high = mean_interval(values)
        assert (mean, low, high) == pytest.approx((hits / count, wanted.low, wanted.high))
    mean, low, high = mean_interval([0.2, 0.4, 0.9, float("nan")])
    assert mean == pytest.approx(0.5) and low < mean < high
    assert all(math.isnan(value) for value in mean_interval([]))


def test_a_study_without_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'bridge\[lab\]'"):
        bridge.study("a cat", towers="no such tower", variants=["case"])
