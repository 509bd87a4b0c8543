"""Zero-shot classification: class weights made of names and templates, built once.

Radford et al. 2021, section 3.1.4: a class's weight is the mean, at length 1, of the vectors of its
name in several sentences. A model's own `Head`, where it ships one, stands between the vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from bridge.checks import choice, keywords, whole
from bridge.contrastive.embeddings import unit
from bridge.contrastive.head import Head
from bridge.contrastive.templates import read_templates, with_name
from bridge.errors import OptionError, WeightsError
from bridge.files import home_path, parse_json, write_whole
from bridge.images import is_one_image
from bridge.towers.family import Scoring
from bridge.towers.tensors import check_finite, load_tensors

if TYPE_CHECKING:
    from bridge.contrastive.clip import CLIP

Labels: TypeAlias = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Names; or each name with its wording, or with several that are averaged for it."""

_NOTE = "bridge.classifier"
# A label with fewer right pictures has the threshold of all labels together.
_LEAST = 5


@dataclass(frozen=True, eq=False)
class Classifier:
    """Labels as directions in a CLIP's space, ready for any number of pictures.

    ::

        classify = clip.classifier(["apple", "dog", "key"])
        classify("picture.png")  # [("key", 0.98), ("dog", 0.01), ("apple", 0.01)]

    Attributes:
        clip: what encodes the pictures.
        labels: the L names.
        templates: the sentences that were averaged.
        weights: ``(L, P)`` float32 of length 1 on the CLIP's device; ``(L, K)`` with a head.
        head: what stands between the vectors, or None.
        scoring: how cosines become logits and probabilities.
        thresholds: ``(L,)`` logits from which a label counts as there, of `calibrate`; or None.
    """

    clip: CLIP
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    weights: Tensor
    head: Head | None
    scoring: Scoring
    thresholds: Tensor | None = None

    def __call__(self, images: Any, k: int = 5) -> Any:
        """The likeliest labels.

        Args:
            images: one picture or path, or several; or vectors of ``clip.encode_image``, ``(N,
                P)``.
            k: how many labels at most.

        Returns:
            ``[(label, probability), ...]``, the likeliest first; for several pictures a list of
            such lists.

        Raises:
            ImageError: a picture that cannot be read.
        """
        count = min(whole(k, "k", 1, 1 << 20), len(self.labels))
        best = self.probabilities(images).topk(count, dim=1)
        found = [
            [(self.labels[place], value) for place, value in zip(places, values, strict=True)]
            for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return found[0] if is_one_image(images) else found

    def scores(self, images: Any) -> Tensor:
        """Logits ``(N, L)``; ``images`` as for a call."""
        is_vectors = isinstance(images, Tensor) and images.ndim == 2
        vectors = unit(images) if is_vectors else self.clip.encode_image(images)
        if self.head is not None:
            vectors = self.head.images(vectors)
        return self.scoring.scores(self.weights.to(vectors.device), vectors).T

    def probabilities(self, images: Any) -> Tensor:
        """``(N, L)``: a softmax over the labels, or a sigmoid of each where the model was trained
        so; ``images`` as for a call."""
        scores = self.scores(images)
        return scores.sigmoid() if self.scoring.sigmoid else scores.softmax(1)

    def __repr__(self) -> str:
        labels = ", ".join(self.labels[:3]) + (", ..." if len(self.labels) > 3 else "")
        head = ", with a head" if self.head is not None else ""
        return (
            f"Classifier({self.clip.name}: {len(self.labels)} labels ({labels}), "
            f"{len(self.templates)} templates{head})"
        )

    # ------------------------------------------------------------ several labels a picture

    def calibrate(self, images: Any, truth: Tensor | Sequence[Sequence[bool]]) -> Classifier:
        """The same classifier with thresholds for `tags`, found on pictures whose labels are known.

        Each label's is the one of best F1 on these pictures; a label that fewer than five of them
        have gets the one that is best for all labels together. Measure on other pictures.

        Args:
            images: N pictures or vectors, as for a call.
            truth: ``(N, L)``, whether a picture has a label.

        Raises:
            OptionError: a truth of another shape, or with no label in it.
        """
        scores = self.scores(images).cpu()
        right = torch.as_tensor(truth, dtype=torch.bool)
        if right.shape != scores.shape or not bool(right.any()):
            raise OptionError(
                f"truth is of shape {tuple(right.shape)} with {int(right.sum())} labels; give "
                f"{tuple(scores.shape)}, pictures by labels, with some True"
            )
        shared = _best_threshold(scores.flatten(), right.flatten())
        each = [
            _best_threshold(scores[:, place], right[:, place])
            if int(right[:, place].sum()) >= _LEAST
            else shared
            for place in range(len(self.labels))
        ]
        return replace(self, thresholds=torch.tensor(each, dtype=torch.float32))

    def tags(self, images: Any) -> list[list[str]]:
        """The labels of each picture that reach their thresholds, the surest first.

        Raises:
            OptionError: a classifier that was not calibrated.
        """
        if self.thresholds is None:
            raise OptionError("this classifier has no thresholds; calibrate(images, truth) first")
        over = self.scores(images).cpu() - self.thresholds
        return [
            [self.labels[place] for place in row.argsort(descending=True) if row[place] >= 0]
            for row in over
        ]

    # ------------------------------------------------------------ on disk

    def save(self, path: str | PathLike[str]) -> None:
        """Write labels, templates, weights and head as one safetensors file, whole or not at all.

        Raises WriteError where it cannot be written.
        """
        from safetensors.torch import save

        parts, head = ({}, None) if self.head is None else self.head.packed()
        told = {
            "labels": self.labels,
            "templates": self.templates,
            "head": head,
            "tower": self.clip.text.fingerprint(),
        }
        tensors = {"weights": self.weights.cpu().contiguous(), **parts}
        if self.thresholds is not None:
            tensors["thresholds"] = self.thresholds
        write_whole(home_path(path), save(tensors, {_NOTE: json.dumps(told)}))

    @classmethod
    def load(cls, path: str | PathLike[str], clip: CLIP) -> Classifier:
        """Read a file of `save`.

        Args:
            path: the file.
            clip: the CLIP that it was made with.

        Raises:
            WeightsError: it is missing, damaged, or of another text tower.
        """
        file = home_path(path)
        tensors, notes = load_tensors(file)
        told = parse_json(notes.get(_NOTE, "null"), str(file))
        try:
            weights = tensors["weights"]
            labels, templates = (tuple(map(str, told[name])) for name in ("labels", "templates"))
            about_head, tower = told["head"], str(told["tower"])
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{file} does not hold a classifier of bridge") from error
        check_finite(file, tensors.items())
        if tower != clip.text.fingerprint():
            raise WeightsError(
                f"{file} was made with another text tower than {clip.text.name}; make it anew "
                "with clip.classifier(...)"
            )
        head = None if about_head is None else Head.unpacked(tensors, about_head, file)
        width = clip.width if head is None else head.text_map.shape[1]
        seen = width if head is None else len(head.image_mean)
        if weights.shape != (len(labels), width) or seen != clip.width:
            raise WeightsError(f"{file}: labels, weights and head do not fit together")
        return cls(
            clip, labels, templates, weights.to(clip.device), head, scoring_of(clip, head),
            tensors.get("thresholds"),
        )  # fmt: skip


@dataclass(frozen=True)
class TemplateGain:
    """What one template, or several averaged, make of a classifier.

    Attributes:
        template: the sentence, or the words "N averaged".
        accuracy: the share of pictures whose own label scores highest.
        gain: the same less that of the bare name.
    """

    template: str
    accuracy: float
    gain: float


HeadChoice: TypeAlias = Literal["own"] | Head | None


@dataclass(frozen=True)
class Wordings:
    """What a classifier's weights are made of, beside a text tower.

    Attributes:
        labels: each with its wordings.
        templates: the sentences that a wording is put into.
        head: what the texts go through, or None.
    """

    labels: tuple[tuple[str, tuple[str, ...]], ...]
    templates: tuple[str, ...]
    head: Head | None


def read_wordings(
    clip: CLIP, labels: Labels, templates: str | Sequence[str] | None, head: HeadChoice
) -> Wordings:
    """The arguments of ``bridge.CLIP.classifier``. Raises OptionError."""
    found = _head(clip, head)
    if templates is None:
        templates = found.templates if found else "clip-7"
    return Wordings(tuple(_names(labels).items()), read_templates(templates), found)


def build_classifier(clip: CLIP, made_of: Wordings) -> Classifier:
    """See ``bridge.CLIP.classifier``."""
    labels, wordings = zip(*made_of.labels, strict=True)
    weights = class_vectors(clip, wordings, made_of.templates)
    head = made_of.head
    if head is not None:
        weights = head.texts(weights)
    return Classifier(clip, labels, made_of.templates, weights, head, scoring_of(clip, head))


def class_vectors(
    clip: CLIP, wordings: Sequence[Sequence[str]], templates: Sequence[str]
) -> Tensor:
    """``(L, P)``: of each label the mean over its wordings in each template, at length 1."""
    texts = [with_name(each, name) for names in wordings for name in names for each in templates]
    counts = [len(names) * len(templates) for names in wordings]
    vectors = clip.encode_text(texts).split(counts)
    return unit(torch.stack([each.mean(0) for each in vectors]))


@keywords
def template_gains(
    clip: CLIP,
    labels: Labels,
    images: Any,
    truth: Sequence[str],
    templates: str | Sequence[str] = "clip-80",
    *,
    head: HeadChoice = "own",
) -> list[TemplateGain]:
    """What each template gains over the bare name, and what all of them averaged do.

    Args:
        clip, labels, templates, head: as ``bridge.CLIP.classifier``.
        images: N pictures or vectors.
        truth: of each picture its label.

    Returns:
        A row for the bare name, for each template, and for the average of all.

    Raises:
        OptionError: a truth that is none of the labels.
    """
    sentences = read_templates(templates)
    vectors = images if isinstance(images, Tensor) else clip.encode_image(images)
    places = {label: place for place, label in enumerate(_names(labels))}
    for each in truth:
        choice(each, places, "label")
    rows = [places[each] for each in truth]
    wanted = torch.tensor(rows, dtype=torch.long, device=vectors.device)
    if len(wanted) != len(vectors):
        raise OptionError(f"truth has {len(wanted)} labels for {len(vectors)} pictures")

    def accuracy(some: Sequence[str]) -> float:
        wordings = read_wordings(clip, labels, some, head)
        found = build_classifier(clip, wordings).scores(vectors)
        return float((found.argmax(1) == wanted).float().mean())

    bare = accuracy(["{}"])
    shares = {"{}": bare} | {each: accuracy([each]) for each in sentences}
    if len(sentences) > 1:
        shares[f"{len(sentences)} averaged"] = accuracy(sentences)
    return [TemplateGain(name, share, share - bare) for name, share in shares.items()]


def scoring_of(clip: CLIP, head: Head | None) -> Scoring:
    """How a classifier's cosines become logits: by the head's scale, or the model's."""
    if head is not None:
        return Scoring(head.scale)
    return clip.scoring if clip.scoring is not None else Scoring(1.0)


def _head(clip: CLIP, head: HeadChoice) -> Head | None:
    if head == "own":
        return clip.head
    if head is not None and not isinstance(head, Head):
        raise OptionError(f"head is {head!r}; give 'own', None, or a Head of fit_head(...)")
    if head is not None and len(head.image_mean) != clip.width:
        raise OptionError(
            f"the head is of vectors {len(head.image_mean)} wide, and {clip.name} has {clip.width}"
        )
    return head


def _names(labels: Labels) -> dict[str, tuple[str, ...]]:
    """Each label with its wordings. Raises OptionError."""
    if isinstance(labels, str):
        raise OptionError(f"labels is one text, {labels!r}; give a list of names")
    if not isinstance(labels, Iterable):
        raise OptionError(f"labels is {labels!r}; give a list of names")
    if isinstance(labels, Mapping):
        found = {
            name: (words,) if isinstance(words, str) else tuple(words)
            for name, words in labels.items()
        }
    else:
        found = {}
        for name in labels:
            if name in found:
                raise OptionError(f"the label {name!r} is given twice; leave one out")
            found[name] = (name,)
    for name, words in found.items():
        if not isinstance(name, str) or not name.strip():
            raise OptionError(f"a label is {name!r}; give names with letters in them")
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise OptionError(f"the label {name!r} has no wordings; give one at least")
    if not found:
        raise OptionError("labels is empty; give the names of two classes or more")
    return found


def _best_threshold(scores: Tensor, right: Tensor) -> float:
    """The score from which what is taken has the best F1 (van Rijsbergen 1979)."""
    order = scores.argsort(descending=True)
    hits = right[order].cumsum(0).double()
    taken = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    f1 = 2 * hits / (taken + int(right.sum()))
    best = int(f1.argmax())
    last = float(scores[order[best]])
    # Half way to the next, so that a score a little lower still counts.
    after = float(scores[order[best + 1]]) if best + 1 < len(scores) else last
    return (last + after) / 2
