"""CLIP_benchmark 1.6.1 and scikit-learn beside bridge, on the same embeddings.

Classification and retrieval are the same figures to the last digit that a float has. A linear probe
is fitted by CLIP_benchmark with AdamW in batches drawn by chance and by bridge with L-BFGS: the one
solution of the problem is scikit-learn's too, and the peer's training comes near it and never
below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from clip_benchmark_peer import Cpu, load_metrics
from parity_support import Equal
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, TensorDataset

from bridge.contrastive.evaluation import average_precision, retrieval, zero_shot
from bridge.contrastive.linear_probe import fit, linear_probe
from bridge.towers.family import Scoring

Metrics = tuple[ModuleType, ModuleType, ModuleType]
# Sums of float32 in another order.
TOLERANCE = 1e-6


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    return load_metrics(monkeypatch)


@dataclass(frozen=True)
class Case:
    """Pictures about their labels' vectors, some nearer and some further."""

    images: Tensor
    weights: Tensor
    targets: Tensor

    @property
    def labels(self) -> list[str]:
        return [f"label {at}" for at in range(len(self.weights))]


def cases(count: int) -> Iterator[Case]:
    for seed in range(count):
        rng = torch.Generator().manual_seed(seed)
        labels = int(torch.randint(2, 40, (1,), generator=rng))
        n = int(torch.randint(1, 300, (1,), generator=rng))
        weights = normalize(torch.randn(labels, 16, generator=rng), dim=-1)
        targets = torch.randint(labels, (n,), generator=rng)
        noise = torch.rand(1, generator=rng) * torch.randn(n, 16, generator=rng)
        yield Case(normalize(weights[targets] + noise, dim=-1), weights, targets)


class _Model(torch.nn.Module):
    """What CLIP_benchmark asks of a model; its pictures and texts are vectors already."""

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def encode_text(self, texts: Tensor) -> Tensor:
        return texts


class _Pictures(TensorDataset):
    classes: list[str]


def near(found: float | None, wanted: float) -> bool:
    if found is None:
        return math.isnan(wanted)
    return abs(found - wanted) <= TOLERANCE


def test_zero_shot_classification(metrics: Metrics, equal: Equal) -> None:
    """Its whole `evaluate`, from embeddings to figures."""
    with equal("CLIP_benchmark: top-1, top-5, mean per-class recall") as count:
        for number, case in enumerate(cases(200)):
            pictures = _Pictures(case.images, case.targets)
            pictures.classes = case.labels
            by_name = dict(zip(case.labels, case.weights, strict=True))
            wanted = metrics[0].evaluate(
                _Model(), DataLoader(pictures, 64),
                lambda texts, by_name=by_name: torch.stack([by_name[each] for each in texts]),
                case.labels, ["{c}"], "cpu", amp=False,
            )  # fmt: skip
            found = zero_shot(case.images, case.weights, case.targets, case.labels, Scoring(100.0))
            first, fifth = found.top(1), found.top(5)
            assert first is not None
            same = (
                near(first.value, wanted["acc1"])
                and near(fifth and fifth.value, wanted["acc5"])
                and near(found.mean_per_class_recall.value, wanted["mean_per_class_recall"])
            )
            count.check(same, f"draw {number}: {wanted}")


def test_average_precision(metrics: Metrics, equal: Equal) -> None:
    with equal("CLIP_benchmark: average precision of each label") as count:
        for number, case in enumerate(cases(200)):
            rng = torch.Generator().manual_seed(number)
            truth = torch.rand(len(case.images), len(case.weights), generator=rng) < 0.2
            # In double, for among thousands of scores two are equal in float32.
            scores = case.images.double() @ case.weights.double().T
            wanted = metrics[0].average_precision_per_class(scores, truth)
            found = average_precision(scores, truth)
            count.check(torch.allclose(found, wanted, atol=TOLERANCE), f"draw {number}")


def test_retrieval(metrics: Metrics, equal: Equal) -> None:
    """Its whole `evaluate`, with one caption a picture and with several."""

    class Captioned(torch.utils.data.Dataset[Any]):
        def __init__(self, images: Tensor, captions: list[Tensor]) -> None:
            self.images, self.captions = images, captions

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
            return self.images[at], self.captions[at]

    def together(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        return torch.stack([image for image, _ in batch]), [texts for _, texts in batch]

    with equal("CLIP_benchmark: image and text retrieval, R@1, R@5, R@10") as count:
        for seed in range(120):
            rng = torch.Generator().manual_seed(seed)
            pictures = int(torch.randint(11, 150, (1,), generator=rng))
            images = normalize(torch.randn(pictures, 16, generator=rng), dim=-1)
            most = 2 if seed % 2 else 7
            each = torch.randint(1, most, (pictures,), generator=rng).tolist()
            captions = [
                normalize(images[at] + 0.35 * torch.randn(n, 16, generator=rng), dim=-1)
                for at, n in enumerate(each)
            ]
            wanted = metrics[1].evaluate(
                _Model(), DataLoader(Captioned(images, captions), 32, collate_fn=together),
                torch.stack, "cpu", amp=False, recall_k_list=[1, 5, 10],
            )  # fmt: skip
            owners = torch.arange(pictures).repeat_interleave(torch.tensor(each))
            found = retrieval(images, torch.cat(captions), owners)
            for k in (1, 5, 10):
                image, text = found.image_recall(k), found.text_recall(k)
                assert image is not None and text is not None
                same = near(image.value, wanted[f"image_retrieval_recall@{k}"])
                same &= near(text.value, wanted[f"text_retrieval_recall@{k}"])
                count.check(same, f"draw {seed}, k {k}: {image.value}, {text.value}, {wanted}")


# ---------------------------------------------------------------- linear probe


def clouds(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors of eight labels that no plane parts, so that the best fit is a finite one."""
    rng = torch.Generator().manual_seed(99)
    centres = torch.randn(8, 24, generator=rng)
    rng.manual_seed(seed)
    targets = torch.arange(n) % 8
    noise = 3 * torch.randn(n, 24, generator=rng)
    return normalize(centres[targets] + noise, dim=-1), targets


def test_a_probe_is_scikit_learns(metrics: Metrics, equal: Equal) -> None:
    """The CLIP paper's own tool, by L-BFGS too."""
    from sklearn.linear_model import LogisticRegression

    vectors, targets = clouds(600, 0)
    others, _ = clouds(600, 1)
    with equal("scikit-learn: logistic regression, probabilities") as count:
        for strength in (1e-4, 1e-2, 1.0, 31.6, 1e3):
            peer = LogisticRegression(C=strength, max_iter=10_000, tol=1e-9)
            peer.fit(vectors.double().numpy(), targets.numpy())
            wanted = torch.tensor(peer.predict_proba(others.double().numpy()))
            found = fit(vectors, targets, 8, strength).scores(others).softmax(1)
            count.check(torch.allclose(found, wanted, atol=5e-4), f"C {strength}")


def loader(vectors: Tensor, targets: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(vectors, targets), 64, shuffle=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_its_training_comes_near_our_solution_and_never_below(metrics: Metrics, seed: int) -> None:
    """Without weight decay both lessen the plain cross-entropy."""
    vectors, targets = clouds(600, 0)
    peer = metrics[2].train(loader(vectors, targets), 24, 8, 0.0, 0.1, 60, False, "cpu", seed)
    logits, true = metrics[2].infer(
        peer, DataLoader(TensorDataset(vectors, targets), 64), False, "cpu"
    )
    theirs = float(cross_entropy(logits, true))
    ours = float(cross_entropy(fit(vectors, targets, 8, 1e6).scores(vectors), targets))
    assert ours <= theirs + 1e-6
    assert theirs - ours < 0.02


def test_its_whole_probe_with_its_sweep(
    metrics: Metrics, tmp_path: Path, equal: Equal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its `evaluate` on the same embeddings: sweep, fit on both splits, figures. Its accuracy is
    within ours' 95 % interval."""
    folder = tmp_path / "model"
    folder.mkdir()
    splits = {"train": clouds(320, 0), "val": clouds(80, 1), "test": clouds(800, 2)}
    for name, (vectors, targets) in splits.items():
        torch.save(vectors, folder / f"features_{name}.pt")
        torch.save(targets, folder / f"targets_{name}.pt")
    wanted = metrics[2].evaluate(
        _Model(), None, None, -1, 64, 0, 0.1, 20, "model", 0, str(tmp_path), Cpu(),
        val_dataloader=[], amp=False,
    )  # fmt: skip
    both = tuple(torch.cat(pair) for pair in zip(splits["train"], splits["val"], strict=True))
    found = linear_probe((both[0], both[1]), splits["test"], list("abcdefgh"))
    shares = found.classification.top(1), found.classification.mean_per_class_recall
    names = ("lp_acc1", "lp_mean_per_class_recall")
    with equal("CLIP_benchmark: linear probe, within the interval") as count:
        for name, share in zip(names, shares, strict=True):
            assert share is not None
            same = share.low - 1e-9 <= wanted[name] <= share.high + 1e-9
            count.check(same, f"{name}: {wanted[name]}, ours {share}")
    fifth = found.classification.top(5)
    assert fifth is not None and abs(fifth.value - wanted["lp_acc5"]) < 0.03
