"""The figures of an evaluation, each against its definition written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bridge.contrastive.evaluation import (
    Classification,
    average_precision,
    calibration,
    classification,
    retrieval,
    wilson,
    zero_shot,
)
from bridge.contrastive.linear_probe import STRENGTHS, Probe, fit, hold_back, linear_probe
from bridge.errors import OptionError
from bridge.progress import Progress
from bridge.towers.family import Scoring

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    """Scores ``(N, L)`` and targets; every third draw has many ties."""
    rng = np.random.default_rng(seed)
    n, labels = int(rng.integers(1, 40)), int(rng.integers(1, 12))
    scores = rng.normal(size=(n, labels))
    if seed % 3 == 0:
        scores = scores.round()
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(rng.integers(0, labels, n))


def names(scores: Tensor) -> list[str]:
    return [f"label {at}" for at in range(scores.shape[1])]


# ---------------------------------------------------------------- shares


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_is_scipys(n: int, share: float) -> None:
    hits = round(n * share)
    found = wilson(hits, n)
    wanted = binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert found.low <= found.value == hits / n <= found.high


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_what_is_not_a_share_is_refused(hits: int, n: int) -> None:
    with pytest.raises(OptionError, match=f"{hits} of {n} is not a share"):
        wilson(hits, n)


# ---------------------------------------------------------------- classification


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_top_k_by_a_stable_sort(seed: int) -> None:
    scores, targets = drawn(seed)
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")
    found = classification(scores, targets, names(scores))
    assert found.predicted.tolist() == order[:, 0].tolist()
    for k in (1, 5):
        share = found.top(k)
        if k > scores.shape[1]:
            assert share is None
            continue
        hits = [target in row[:k] for target, row in zip(targets.tolist(), order, strict=True)]
        assert share is not None and share.value == np.mean(hits)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_tables_by_counting(seed: int) -> None:
    scores, targets = drawn(seed)
    found = classification(scores, targets, names(scores))
    pairs = list(zip(targets.tolist(), found.predicted.tolist(), strict=True))
    recalls = []
    for own, row in enumerate(found.per_class):
        mine = [given for target, given in pairs if target == own]
        called = [target for target, given in pairs if given == own]
        assert row.recall == (wilson(mine.count(own), len(mine)) if mine else None)
        assert row.precision == (wilson(called.count(own), len(called)) if called else None)
        recalls += [row.recall.value] if row.recall else []
        for other in range(len(found.labels)):
            assert found.confusion[own, other] == pairs.count((own, other))
    mean = found.mean_per_class_recall
    assert mean.value == pytest.approx(np.mean(recalls)) and mean.low <= mean.value <= mean.high
    wrong = [(target, given) for target, given in pairs if target != given]
    worst = found.worst_confusions(1000)
    assert sum(len(each.places) for each in worst) == len(wrong)
    assert [len(each.places) for each in worst] == sorted(
        (wrong.count(pair) for pair in {*wrong}), reverse=True
    )
    for each in worst:
        labels = (found.labels.index(each.label), found.labels.index(each.taken_for))
        assert all(pairs[place] == labels for place in each.places)


def test_the_most_confident_mistakes_come_first() -> None:
    scores = torch.tensor([[0.0, 1], [0, 3], [0, 2], [5, 0]])
    found = classification(scores, torch.tensor([0, 0, 0, 0]), ["cat", "dog"], sigmoid=False)
    (worst,) = found.worst_confusions()
    assert (worst.label, worst.taken_for, worst.places) == ("cat", "dog", (1, 2, 0))
    assert worst.share.n == 4


def test_zero_shot_scores_as_the_model_does() -> None:
    rng = torch.Generator().manual_seed(0)
    images, weights = torch.randn(9, 8, generator=rng), torch.randn(6, 8, generator=rng)
    targets, labels = torch.arange(9) % 6, list("abcdef")
    cosines = normalize(images, dim=-1) @ normalize(weights, dim=-1).T
    for scoring, odds in (
        (Scoring(20.0), (20 * cosines).softmax(1)),
        (Scoring(10.0, -3.0, sigmoid=True), (10 * cosines - 3).sigmoid()),
    ):
        found = zero_shot(images, weights, targets, labels, scoring)
        assert torch.equal(found.predicted, cosines.argmax(1))
        assert found.confidences is not None
        assert torch.allclose(found.confidences, odds.amax(1), atol=1e-6)
    plain = zero_shot(images, weights, targets, labels, None)
    assert plain.confidences is None and plain.calibration is None
    assert torch.equal(plain.ranks, found.ranks)


def test_of_several_queries_the_best_counts() -> None:
    weights = torch.eye(3)
    images = torch.tensor([[[1.0, 0.9, 0], [0, 0, 1]]])  # the second query is nearer to its label
    found = zero_shot(images, weights, torch.tensor([2]), list("abc"), None)
    assert found.predicted.tolist() == [2]


@pytest.mark.parametrize(
    ("scores", "targets", "words"),
    [
        (torch.empty(0, 2), [], "no pictures"),
        (torch.zeros(2, 3), [0, 1], "do not fit 2 pictures and 2 labels"),
        (torch.zeros(2, 2), [0], "do not fit 1 pictures"),
        (torch.zeros(2, 2), [0, 2], "targets run from 0 to 2"),
        (torch.zeros(2, 2), [-1, 0], "targets run from -1 to 0"),
        (torch.tensor([[0.0, torch.nan]]), [0], "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(scores: Tensor, targets: list[int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        classification(scores, torch.tensor(targets, dtype=torch.long), ["a", "b"])


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.6, 0.0]])
    truth = torch.tensor([[True, False], [False, False], [True, False], [False, False]])
    # The two right pictures are first and third: (1/1 + 2/3) / 2. The second label has none.
    assert average_precision(scores, truth).tolist() == pytest.approx([5 / 6, 0])


# ---------------------------------------------------------------- calibration


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_calibration_error_by_guos_equation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    sure = rng.choice([rng.random(n), rng.integers(0, 16, n) / 15])  # on the ends of bins too
    right = rng.random(n) < sure
    error = 0.0
    found = calibration(torch.tensor(sure), torch.tensor(right))
    for at, each in enumerate(found.bins):
        inside = (sure > at / 15) & (sure <= (at + 1) / 15) | ((at == 0) & (sure == 0))
        # i/15 is not the same number by every way to it; those are left to either bin.
        on_end = np.abs(sure * 15 - np.round(sure * 15)) < 1e-9
        assert (inside & ~on_end).sum() <= each.n <= (inside | on_end).sum()
        if each.n and each.confidence is not None and each.right is not None:
            error += each.n / n * abs(each.confidence - each.right.value)
    assert sum(each.n for each in found.bins) == n
    assert found.error.value == pytest.approx(error, abs=1e-12)
    assert 0 <= found.error.low <= found.error.value <= found.error.high <= 1


def test_who_is_right_as_often_as_sure_is_calibrated() -> None:
    sure = torch.full((100,), 0.7)
    exact = calibration(sure, torch.arange(100) < 70)
    assert exact.error.value == pytest.approx(0, abs=1e-6)
    never = calibration(sure, torch.zeros(100, dtype=torch.bool))
    assert never.error.value == pytest.approx(0.7)
    with pytest.raises(OptionError, match="no predictions"):
        calibration(torch.empty(0), torch.empty(0))


def test_an_end_belongs_to_the_bin_below() -> None:
    sure = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    found = calibration(sure, torch.ones(3, dtype=torch.bool), bins=5)
    assert [each.n for each in found.bins] == [2, 0, 0, 0, 1]


# ---------------------------------------------------------------- retrieval


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_retrieval_by_a_stable_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 20))
    owners = rng.permutation(np.concatenate([np.arange(count), rng.integers(0, count, 30)]))
    images = torch.tensor(rng.normal(size=(count, 4)), dtype=torch.float32)
    texts = torch.tensor(rng.normal(size=(len(owners), 4)), dtype=torch.float32)
    scores = (normalize(texts, dim=-1) @ normalize(images, dim=-1).T).numpy()
    found = retrieval(images, texts, torch.tensor(owners))
    for k in (1, 5, 10):
        by_text = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        by_image = np.argsort(-scores.T, axis=1, kind="stable")[:, :k]
        hits = [owner in row for owner, row in zip(owners, by_text, strict=True)]
        share = found.image_recall(k)
        assert share is None if k >= count else share is not None
        if share is not None:
            assert share.value == pytest.approx(np.mean(hits))
            assert share.low <= share.value <= share.high
        hits = [at in owners[row] for at, row in enumerate(by_image)]
        share = found.text_recall(k)
        assert share is not None and share.value == pytest.approx(np.mean(hits))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    images, texts = torch.randn(11, 4, generator=rng), torch.randn(33, 4, generator=rng)
    owners = torch.arange(33) % 11
    whole = retrieval(images, texts, owners)
    monkeypatch.setattr("bridge.contrastive.evaluation._BLOCK", 4)
    parts = retrieval(images, texts, owners)
    assert torch.equal(whole.image_ranks, parts.image_ranks)
    assert torch.equal(whole.text_ranks, parts.text_ranks)


@pytest.mark.parametrize("owners", [[0, 0], [0, 2], [-1, 0], [0, 1, 1]])
def test_captions_and_pictures_that_do_not_fit_are_refused(owners: list[int]) -> None:
    with pytest.raises(OptionError, match="caption"):
        retrieval(torch.eye(2), torch.eye(2), torch.tensor(owners))


def test_captions_of_a_picture_count_as_one_for_the_interval() -> None:
    """Ten captions that are alike tell no more of a picture than one."""
    rng = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(40, 6, generator=rng), dim=-1)
    texts = images + 0.5 * torch.randn(40, 6, generator=rng)
    one = retrieval(images, texts, torch.arange(40)).image_recall(1)
    owners = torch.arange(40).repeat_interleave(10)
    ten = retrieval(images, texts.repeat_interleave(10, 0), owners).image_recall(1)
    assert one is not None and ten is not None and one.value == ten.value
    assert ten.high - ten.low > 0.8 * (one.high - one.low)


# ---------------------------------------------------------------- linear probe


def clouds(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors about five centres, near enough to be mistaken."""
    rng = torch.Generator().manual_seed(1)
    centres = torch.randn(5, 12, generator=rng)
    rng.manual_seed(seed)
    targets = torch.arange(n) % 5
    noise = 1.2 * torch.randn(n, 12, generator=rng)
    return normalize(centres[targets] + noise, dim=-1), targets


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_a_fit_is_where_the_slope_is_zero(strength: float) -> None:
    """The problem is convex: where its gradient is nothing, there is its one solution."""
    vectors, targets = clouds(120)
    probe = fit(vectors, targets, 5, strength)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = cross_entropy(vectors.double() @ weight.T + bias, targets)
    (loss + (weight**2).sum() / (2 * strength * 120)).backward()
    for slope in (weight.grad, bias.grad):
        assert slope is not None and slope.abs().max() < 1e-5
    started = fit(vectors, targets, 5, strength, Probe(probe.weight + 1, probe.bias, 1.0))
    assert torch.allclose(started.scores(vectors), probe.scores(vectors), atol=1e-2)


def test_the_sweep_finds_a_better_strength_than_its_ends() -> None:
    seen: list[Progress] = []
    found = linear_probe(clouds(200), clouds(300, seed=2), list("abcde"), on_progress=seen.append)
    tried = dict(found.sweep)
    assert {*tried} <= {*STRENGTHS} and len(tried) == len(found.sweep) == len(seen)
    assert {STRENGTHS[0], 1.0, STRENGTHS[-1]} <= {*tried}
    assert tried[found.probe.strength] == max(tried.values()) > tried[STRENGTHS[0]]
    share = found.classification.top(1)
    assert share is not None and share.value > 0.8 and found.n_train == 200
    again = linear_probe(clouds(200), clouds(300, seed=2), list("abcde"))
    assert torch.equal(found.probe.weight, again.probe.weight)


def test_too_few_to_choose_by_are_fitted_at_one() -> None:
    vectors, targets = clouds(5)
    found = linear_probe((vectors, targets), (vectors, targets), list("abcde"))
    assert found.sweep == () and found.probe.strength == 1.0


def test_a_probe_of_one_label_or_of_queries_is_refused() -> None:
    vectors, targets = clouds(10)
    with pytest.raises(OptionError, match="two labels"):
        linear_probe((vectors, targets * 0), (vectors, targets), list("abcde"))
    with pytest.raises(OptionError, match="one vector a picture"):
        linear_probe((vectors[:, None], targets), (vectors, targets), list("abcde"))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sampled_from([0.2, 0.5]), SEEDS)
def test_hold_back_parts_each_label(targets: list[int], share: float, seed: int) -> None:
    given_ = torch.tensor(targets)
    back, kept = hold_back(given_, share, seed)
    assert sorted([*back.tolist(), *kept.tolist()]) == list(range(len(targets)))
    for label in {*targets}:
        count = targets.count(label)
        least = 0 if count == 1 else 1
        assert int((given_[back] == label).sum()) == max(least, int(count * share + 1e-9))


def test_a_classification_is_as_long_as_its_pictures() -> None:
    found: Classification = classification(torch.eye(3), torch.arange(3), list("abc"))
    assert len(found) == 3
