"""Zero-shot classifiers on a tiny random CLIP, their files, thresholds and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.drawn_pictures import picture
from support.tiny_folders import KINDS
from torch.nn.functional import normalize

import bridge
from bridge.contrastive import TEMPLATES, Classifier, Head, fit_head, template_gains
from bridge.errors import OptionError, WeightsError

LABELS = ["cat", "dog", "red apple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip") / "clip"
    KINDS["clip"].make(made)
    return made


@pytest.fixture(scope="module")
def clip(folder: Path) -> bridge.CLIP:
    return bridge.CLIP(folder)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(number).convert("RGB") for number in range(12)]


def test_weights_are_the_mean_of_the_sentences(clip: bridge.CLIP) -> None:
    found = clip.classifier(LABELS, "clip-7")
    for label, weight in zip(LABELS, found.weights, strict=True):
        texts = [each.format(label) for each in TEMPLATES["clip-7"]]
        mean = normalize(clip.encode_text(texts).mean(0), dim=0)
        assert torch.allclose(weight, mean, atol=1e-6)


def test_one_template_is_the_text_itself(clip: bridge.CLIP, pictures: list[Image.Image]) -> None:
    found = clip.classifier(LABELS, "a photo of a {}.")
    texts = clip.encode_text([f"a photo of a {label}." for label in LABELS])
    images = clip.encode_image(pictures)
    assert torch.allclose(found.scores(pictures), clip.scores(images, texts), atol=1e-4)
    assert torch.allclose(found.probabilities(images), clip.probabilities(images, texts), atol=1e-5)


def test_the_sets_of_sentences_are_whole() -> None:
    assert {name: len(each) for name, each in TEMPLATES.items()} == {
        "name": 1,
        "photo": 1,
        "clip-7": 7,
        "clip-80": 80,
    }
    assert set(TEMPLATES["clip-7"]) <= set(TEMPLATES["clip-80"])


def test_a_call_names_the_likeliest_first(clip: bridge.CLIP, pictures: list[Image.Image]) -> None:
    classify = clip.classifier(LABELS)
    one = classify(pictures[0])
    odds = classify.probabilities(pictures[0])[0]
    assert [label for label, _ in one] == [LABELS[i] for i in odds.argsort(descending=True)]
    assert sum(share for _, share in one) == pytest.approx(1)
    many = classify(pictures, k=1)
    assert len(many) == 12 and all(len(each) == 1 for each in many)
    assert many[0][0][0] == one[0][0] and many[0][0][1] == pytest.approx(one[0][1])


def test_siglip_judges_each_label_by_itself(tmp_path: Path) -> None:
    KINDS["siglip"].make(tmp_path / "siglip")
    classify = bridge.CLIP(tmp_path / "siglip").classifier(LABELS, "photo")
    found = classify.probabilities(picture(1).convert("RGB"))
    assert torch.allclose(found, classify.scores(picture(1).convert("RGB")).sigmoid())


def test_several_wordings_of_a_label_are_averaged(clip: bridge.CLIP) -> None:
    found = clip.classifier({"cat": ["cat", "kitten"], "dog": ["dog"]}, "name")
    mean = normalize(clip.encode_text(["cat", "kitten"]).mean(0), dim=0)
    assert found.labels == ("cat", "dog")
    assert torch.allclose(found.weights[0], mean, atol=1e-6)


def test_weights_are_built_once_until_the_tower_changes(clip: bridge.CLIP) -> None:
    passes: list[int] = []
    text = clip.text.module
    embeddings = getattr(text, "text_model", text).embeddings
    first = clip.classifier(LABELS)
    hook = embeddings.register_forward_pre_hook(lambda *_: passes.append(1))
    assert clip.classifier(list(LABELS)).labels == first.labels
    built = len(passes)  # a hook is a change
    assert clip.classifier(list(LABELS)) is clip.classifier(tuple(LABELS))
    assert len(passes) == built
    with torch.no_grad():
        next(text.parameters()).add_(0.5)
    assert not torch.equal(clip.classifier(LABELS).weights, first.weights)
    with torch.no_grad():
        next(text.parameters()).sub_(0.5)
    hook.remove()


def test_a_classifier_comes_back_from_its_file(
    clip: bridge.CLIP, pictures: list[Image.Image], tmp_path: Path
) -> None:
    truth = torch.eye(3, dtype=torch.bool).repeat(4, 1)
    found = clip.classifier(LABELS).calibrate(pictures, truth)
    found.save(tmp_path / "labels.safetensors")
    again = Classifier.load(tmp_path / "labels.safetensors", clip)
    assert (again.labels, again.templates) == (found.labels, found.templates)
    assert torch.equal(again.weights, found.weights)
    assert again.tags(pictures) == found.tags(pictures)
    other = tmp_path / "other"
    KINDS["open_clip"].make(other)
    with pytest.raises(WeightsError, match="another text tower"):
        Classifier.load(tmp_path / "labels.safetensors", bridge.CLIP(other))
    clip.embed_images(pictures).save(tmp_path / "not.safetensors")
    with pytest.raises(WeightsError, match="does not hold a classifier"):
        Classifier.load(tmp_path / "not.safetensors", clip)


@pytest.mark.parametrize(
    ("labels", "templates", "said"),
    [
        ([], None, "labels is empty"),
        ("cat", None, "labels is one text"),
        (None, None, "labels is None; give a list"),
        ({"cat": ["kitten"], 3: ["dog"]}, None, "a label is 3"),
        (["cat", "dog", "cat"], None, "'cat' is given twice"),
        (["cat", " "], None, "a label is ' '"),
        ({"cat": []}, None, "'cat' has no wordings"),
        (["cat"], "clip-8", "No set of templates 'clip-8'.*clip-80"),
        (["cat"], ["a photo of a cat"], "no place for the name"),
        (["cat"], ["{}", "{}"], "given twice"),
        (["cat"], [], "templates is empty"),
    ],
)
def test_what_cannot_be_classified_with_is_refused(
    clip: bridge.CLIP, labels: Any, templates: Any, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        clip.classifier(labels, templates)


def test_one_wording_as_a_text_is_not_read_letter_by_letter(clip: bridge.CLIP) -> None:
    one = clip.classifier({"cat": "a kitten", "dog": ["a dog"]}, "name", head=None)
    same = clip.classifier({"cat": ["a kitten"], "dog": ["a dog"]}, "name", head=None)
    assert torch.equal(one.weights, same.weights)


def test_a_classifier_that_is_kept_is_of_what_is_asked_now(
    clip: bridge.CLIP, pictures: list[Image.Image]
) -> None:
    """The CLIP's head may be another than before, and generators are all written alike."""
    plain = clip.classifier(LABELS, "name")
    vectors, texts = clip.encode_image(pictures), clip.encode_text(LABELS)
    clip.head = fit_head(vectors, texts, [0, 1, 2] * 4, templates=["{}"], rank=3)
    try:
        assert plain.head is None and clip.classifier(LABELS, "name").head is clip.head
    finally:
        clip.head = None
    found = [clip.classifier(iter(LABELS), iter([f"a {each} {{}}"])) for each in ("red", "blue")]  # type: ignore[arg-type]
    assert [each.templates for each in found] == [("a red {}",), ("a blue {}",)]
    assert clip.classifier(LABELS, ["a blue {}"]) is found[1]


# ---------------------------------------------------------------- several labels a picture


def test_thresholds_find_the_labels_that_they_were_set_by(clip: bridge.CLIP) -> None:
    """Pictures that are, or are not, near to a label; a threshold between the two parts them."""
    classify = clip.classifier(LABELS, "name", head=None)
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(200, 3, generator=generator) > 0.5
    # Vectors at known cosines with each label, found by least squares.
    wanted = 0.1 + 0.3 * truth.float() + 0.02 * torch.randn(200, 3, generator=generator)
    vectors = torch.linalg.lstsq(classify.weights, wanted.T).solution.T
    rest = torch.randn(200, vectors.shape[1], generator=generator)
    q, _ = torch.linalg.qr(classify.weights.T)
    rest = normalize(rest - rest @ q @ q.T, dim=1)
    vectors = vectors + rest * (1 - vectors.square().sum(1)).clamp(min=0).sqrt()[:, None]
    with pytest.raises(OptionError, match="no thresholds"):
        classify.tags(vectors)
    set_ = classify.calibrate(vectors[:100], truth[:100])
    found = set_.tags(vectors[100:])
    right = [{LABELS[i] for i in row.nonzero().flatten()} for row in truth[100:]]
    assert sum(set(a) == b for a, b in zip(found, right, strict=True)) >= 98
    with pytest.raises(OptionError, match="truth is of shape"):
        classify.calibrate(vectors, truth[:, :2])
    with pytest.raises(OptionError, match="with 0 labels"):
        classify.calibrate(vectors, torch.zeros(200, 3))


# ---------------------------------------------------------------- heads


def test_a_head_finds_what_pictures_are_of_beneath_what_else_they_hold() -> None:
    """Names and nuisances lie in directions of their own; a head fitted on some names serves
    others, which it never saw."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    meaning, nuisance = normal(8, 32), 3 * normal(6, 32)
    names = normal(60, 8) @ meaning
    texts = normalize(names + 4 * normal(1, 32), dim=1)
    which = torch.randint(0, 60, (3000,), generator=generator)
    images = normalize(names[which] + normal(3000, 6) @ nuisance + 5 * normal(1, 32), dim=1)
    fit = which < 30
    head = fit_head(images[fit], texts[:30], which[fit], templates=["{}"], rank=8)

    def accuracy(cosines: torch.Tensor) -> float:
        return float((cosines.argmax(1) == which[~fit] - 30).float().mean())

    plain = accuracy(images[~fit] @ texts[30:].T)
    found = accuracy(head.images(images[~fit]) @ head.texts(texts[30:]).T)
    assert plain < 0.4 and found > 0.9, (plain, found)


def test_a_classifier_takes_a_head_of_its_own_width(
    clip: bridge.CLIP, folder: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    vectors = clip.encode_image(pictures)
    texts = clip.encode_text(LABELS)
    head = fit_head(vectors, texts, [0, 1, 2] * 4, templates=["{}", "a {}"], rank=3)
    head.save(tmp_path / "head.safetensors")
    again = Head.load(tmp_path / "head.safetensors")
    classify = clip.classifier(LABELS, head=again)
    assert classify.templates == ("{}", "a {}") and classify.weights.shape == (3, 3)
    expected = again.scale * again.images(vectors) @ classify.weights.T
    assert torch.allclose(classify.scores(pictures), expected, atol=1e-4)
    # The head is in the file of the classifier: the CLIP may ship another, or none.
    classify.save(tmp_path / "classifier.safetensors")
    read = Classifier.load(tmp_path / "classifier.safetensors", clip)
    assert torch.equal(read.scores(pictures), classify.scores(pictures))
    with pytest.raises(OptionError, match="wide"):
        clip.classifier(LABELS, head=fit_head(vectors[:, :8], texts[:, :8], [0, 1, 2] * 4,
                                              templates=["{}"], rank=2))  # fmt: skip
    with pytest.raises(OptionError, match="head is 'mine'"):
        clip.classifier(LABELS, head="mine")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="row of texts for each"):
        fit_head(vectors, texts, [0, 1, 7] * 4, templates=["{}"])
    bad = tmp_path / "bad.safetensors"
    clip.embed_images(pictures).save(bad)
    with pytest.raises(WeightsError, match="does not hold a head"):
        Head.load(bad)


def test_gains_are_those_of_classifiers_built_apart(
    clip: bridge.CLIP, pictures: list[Image.Image]
) -> None:
    truth = [LABELS[n % 3] for n in range(12)]
    rows = template_gains(clip, LABELS, pictures, truth, "clip-7")
    assert [row.template for row in rows] == ["{}", *TEMPLATES["clip-7"], "7 averaged"]
    best = clip.classifier(LABELS, "clip-7").scores(pictures).argmax(1).tolist()
    share = sum(LABELS[found] == right for found, right in zip(best, truth, strict=True)) / 12
    assert rows[-1].accuracy == pytest.approx(share)
    assert rows[-1].gain == pytest.approx(share - rows[0].accuracy, abs=1e-6)
    with pytest.raises(OptionError, match="No label 'bird'"):
        template_gains(clip, LABELS, pictures, ["bird"] * 12)
