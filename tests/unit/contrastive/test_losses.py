"""The contrastive losses beside their formulas, written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from support.loss_cases import CAPTIONS, full_bank
from torch import Tensor
from torch.nn import functional as F

from bridge.contrastive.losses import (
    LOG_MOST,
    CoCaLoss,
    InfoNCE,
    MemoryBank,
    PooledPairs,
    SigmoidLoss,
    caption_groups,
    clamp_scale_,
    exp_scale,
    log_popularity,
)
from bridge.errors import OptionError

N, WIDTH = len(CAPTIONS), 6
SCALE = torch.tensor(math.log(5.0), dtype=torch.float64)
BIAS = torch.tensor(-2.0, dtype=torch.float64)


def pairs(captions: list[str] = CAPTIONS, count: int = N, popular: bool = False) -> PooledPairs:
    draws = torch.Generator().manual_seed(1)
    image, text = (torch.randn(count, WIDTH, generator=draws, dtype=torch.float64) for _ in "it")
    log_q = log_popularity(captions).double() if popular else None
    return PooledPairs(image, text, caption_groups(captions), log_q)


def logits(some: PooledPairs) -> Tensor:
    image, text = (F.normalize(each, dim=1) for each in (some.image, some.text))
    return 5.0 * image @ text.T


def written_out(
    scores: Tensor, way: str = "negative", beta: float = 0.0, captions: list[str] = CAPTIONS
) -> float:
    """InfoNCE of one direction, row k's own column k, by loops over the definition."""
    total = 0.0
    for row, line in enumerate(scores.tolist()):
        same = [captions[row] == each for each in captions]
        alike = same if way != "negative" else [k == row for k in range(len(line))]
        negatives = [k for k in range(len(line)) if not alike[k]]
        mean = sum(math.exp(beta * line[k]) for k in negatives) / len(negatives)
        below = sum(math.exp(beta * line[k]) / mean * math.exp(line[k]) for k in negatives)
        targets = [k for k in range(len(line)) if alike[k]] if way == "positive" else [row]
        below += sum(math.exp(line[k]) for k in targets)
        total += sum(math.log(below) - line[k] for k in targets) / len(targets)
    return total / len(scores)


@pytest.mark.parametrize("way", ["negative", "mask", "positive"])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_infonce_is_its_formula(way: str, beta: float) -> None:
    some = pairs()
    want = (written_out(logits(some), way, beta) + written_out(logits(some).T, way, beta)) / 2
    assert InfoNCE(way, beta)(some, SCALE).item() == pytest.approx(want, rel=1e-12)


def test_equal_captions_count_only_when_asked() -> None:
    some = pairs()
    ways = {way: InfoNCE(way)(some, SCALE).item() for way in ("negative", "mask", "positive")}
    assert len({round(value, 9) for value in ways.values()}) == 3
    different = pairs([f"a {k}" for k in range(N)])
    alone = {InfoNCE(way)(different, SCALE).item() for way in ("negative", "mask", "positive")}
    assert max(alone) - min(alone) < 1e-12


@pytest.mark.parametrize("way", ["mask", "positive"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_batch_of_one_caption_has_finite_gradients(way: str, beta: float) -> None:
    some = pairs(["a cat"] * N)
    image = some.image.clone().requires_grad_(True)
    loss = InfoNCE(way, beta)(PooledPairs(image, some.text, some.groups), SCALE)
    loss.backward()
    assert torch.isfinite(loss) and image.grad is not None and image.grad.isfinite().all()


def test_popular_captions_weigh_less_as_negatives() -> None:
    some = pairs(popular=True)
    shares = torch.tensor([CAPTIONS.count(each) / N for each in CAPTIONS], dtype=torch.float64)
    to_text = written_out(logits(some) - shares.log())
    want = (to_text + written_out(logits(some).T)) / 2
    # The shares are kept in fp32.
    assert InfoNCE()(some, SCALE).item() == pytest.approx(want, rel=1e-7)


def test_the_bank_gives_negatives_and_its_equals_are_left_out() -> None:
    some, bank = pairs(), full_bank()
    captions = [*CAPTIONS, "a dog", "a hare", "a newt"]
    image, text = (F.normalize(each, dim=1) for each in (some.image, some.text))
    to_text = 5.0 * image @ torch.cat([text, bank.text[:3]]).T
    to_image = 5.0 * text @ torch.cat([image, bank.image[:3]]).T
    parts = [written_out(scores, "mask", captions=captions) for scores in (to_text, to_image)]
    found = InfoNCE("mask")(some, SCALE, bank).item()
    assert found == pytest.approx(sum(parts) / 2, rel=1e-12)


def test_a_bank_forgets_the_oldest() -> None:
    bank = MemoryBank(5, WIDTH)
    assert bank.filled == 0
    draws = torch.Generator().manual_seed(2)
    rows = torch.randn(7, WIDTH, generator=draws)
    numbers = torch.arange(7)
    for at in (slice(0, 3), slice(3, 5), slice(5, 7)):
        bank.push(PooledPairs(rows[at], -rows[at], numbers[at]))
    assert bank.filled == 5 and bank.groups.tolist() == [5, 6, 2, 3, 4]
    assert torch.allclose(bank.image[0], F.normalize(rows[5], dim=0))
    assert torch.equal(bank.image, -bank.text)
    bank.push(PooledPairs(rows, rows, numbers))  # more than it holds: the last five
    assert sorted(bank.groups.tolist()) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("way", ["negative", "mask", "positive"])
def test_sigmoid_is_its_formula(way: str) -> None:
    some, want = pairs(), 0.0
    for i, line in enumerate((logits(some) + BIAS).tolist()):
        for j, score in enumerate(line):
            same = CAPTIONS[i] == CAPTIONS[j]
            positive = i == j or (same and way == "positive")
            if way == "mask" and same and i != j:
                continue
            want += math.log1p(math.exp(-score if positive else score))
    found = SigmoidLoss(way)(some, SCALE, BIAS).item()
    assert found == pytest.approx(want / N, rel=1e-12)


def test_captioning_of_parts_adds_up_to_the_mean_over_tokens() -> None:
    draws = torch.Generator().manual_seed(4)
    scores = torch.randn(4, 5, 9, generator=draws, dtype=torch.float64)
    labels = torch.tensor([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7], [8, 0, 0, 0, 0], [2, 2, 2, 2, 0]])
    loss = CoCaLoss(captioning=3.0)
    tokens = loss.tokens(labels)
    assert tokens == 12
    parts = [loss.caption(scores[at : at + 2], labels[at : at + 2], tokens) for at in (0, 2)]
    want = 3 * F.cross_entropy(scores.transpose(1, 2), labels, ignore_index=0)
    assert sum(parts).item() == pytest.approx(want.item(), rel=1e-12)  # type: ignore[union-attr]


def test_the_temperature_stops_at_a_hundred_and_comes_back() -> None:
    for start in (LOG_MOST, LOG_MOST + 2):
        scale = torch.nn.Parameter(torch.tensor(start))
        assert exp_scale(scale).item() == pytest.approx(100, rel=1e-6)
        clamp_scale_(scale)
        exp_scale(scale).backward()
        assert scale.grad is not None and scale.grad > 99
    cold = torch.nn.Parameter(torch.tensor(-1.0))
    clamp_scale_(cold)
    assert cold.item() == 0


def test_half_precision_is_computed_in_single() -> None:
    some = pairs()
    half = PooledPairs(some.image.bfloat16(), some.text.bfloat16())
    exact = PooledPairs(half.image.double(), half.text.double())
    found = InfoNCE()(half, SCALE.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(InfoNCE()(exact, SCALE).item(), rel=1e-6)


def test_a_batch_of_one_is_told() -> None:
    one = pairs(["a cat"], count=1)
    with pytest.raises(OptionError, match="batch_size of 2 or more, or the sigmoid loss"):
        InfoNCE()(one, SCALE)
    assert torch.isfinite(SigmoidLoss()(one, SCALE, BIAS))
    assert torch.isfinite(InfoNCE()(one, SCALE, full_bank()))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: InfoNCE("both"), "'negative', 'mask', 'positive'|negative, mask, positive"),
        (lambda: InfoNCE(hardness=float("nan")), "hardness is nan"),
        (lambda: SigmoidLoss("none"), "equal captions"),
        (lambda: MemoryBank(0, 4), "memory bank has 0 places"),
        (
            lambda: InfoNCE("mask")(PooledPairs(torch.ones(2, 3), torch.ones(2, 3)), SCALE),
            r"groups=caption_groups\(captions\)",
        ),
        (
            lambda: InfoNCE()(PooledPairs(torch.ones(2, 3), torch.ones(3, 3)), SCALE),
            "2 pictures and 3 texts",
        ),
    ],
)
def test_what_cannot_be_is_told(made: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        made()  # type: ignore[operator]


def test_groups_are_of_the_caption_alone() -> None:
    one, two, three = caption_groups(["a  cat ", "a cat", "a Cat"]).tolist()
    assert one == two != three
