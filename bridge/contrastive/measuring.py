"""One CLIP measured on one set of pictures: every task that the data has what it needs for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bridge.checks import choice, keywords
from bridge.contrastive.classifier import Classifier
from bridge.contrastive.clip import CLIP
from bridge.contrastive.embeddings import Embeddings, Unreadable
from bridge.contrastive.eval_data import EvalData, read_eval_data
from bridge.contrastive.evaluation import (
    Classification,
    Retrieval,
    Share,
    retrieval,
    zero_shot,
)
from bridge.contrastive.linear_probe import LinearProbe, hold_back, linear_probe
from bridge.errors import DataError, OptionError, quoted
from bridge.progress import OnProgress, unwatched

TaskName = Literal["classification", "retrieval", "probe", "all"]
TASKS = ("classification", "retrieval", "probe")
RECALLS = (1, 5, 10)
"""The k of retrieval's R@k."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured of a CLIP; a task that was not asked for, or not possible, is None.

    Attributes:
        model: the CLIP's name; of a folder its last part.
        data: where the pictures are from.
        paths: of the pictures that could be read, in the order of every result.
        unreadable: those that could not, of the training pictures too.
        classification: zero-shot.
        retrieval: captions by pictures and pictures by captions.
        probe: a linear probe; its pictures are those of ``probe_places`` among ``paths``.
        probe_places: see there.
        notes: why a task was left out.
    """

    model: str
    data: str
    paths: tuple[Path, ...]
    unreadable: tuple[Unreadable, ...]
    classification: Classification | None = None
    retrieval: Retrieval | None = None
    probe: LinearProbe | None = None
    probe_places: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def figures(self) -> Mapping[str, Share]:
        """Every figure with its interval, by names such as ``classification/top_1``."""
        found: dict[str, Share | None] = {}
        if self.classification is not None:
            found |= _classified("classification", self.classification)
        if self.probe is not None:
            found |= _classified("probe", self.probe.classification)
        if self.retrieval is not None:
            for k in RECALLS:
                found[f"retrieval/image_recall_at_{k}"] = self.retrieval.image_recall(k)
                found[f"retrieval/text_recall_at_{k}"] = self.retrieval.text_recall(k)
        return {name: share for name, share in found.items() if share is not None}


def _classified(task: str, found: Classification) -> dict[str, Share | None]:
    calibrated = found.calibration
    return {
        f"{task}/top_1": found.top(1),
        f"{task}/top_5": found.top(5),
        f"{task}/mean_per_class_recall": found.mean_per_class_recall,
        f"{task}/calibration_error": None if calibrated is None else calibrated.error,
    }


@keywords
def evaluate(
    clip: CLIP,
    data: EvalData | str | PathLike[str],
    *,
    task: TaskName = "all",
    classifier: Classifier | None = None,
    train: EvalData | str | PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: OnProgress = unwatched,
) -> Evaluation:
    """Measure a CLIP on pictures with labels, with captions, or with both.

    Args:
        clip: the model.
        data: what `read_eval_data` reads, or has read.
        task: ``classification`` (zero-shot), ``retrieval``, ``probe``, or ``all`` that the data
            has what it needs for.
        classifier: how labels are said, ``clip.classifier(data.labels, templates=...)``; None for
            the model's usual way.
        train: pictures to fit the probe on; without them on half of ``data``, by chance within
            each label, and it is measured on the other half.
        seed: of that choice.
        batch_size: pictures and texts a pass.
        on_progress: told of pictures, texts and fits.

    Raises:
        DataError: as `read_eval_data`; data that lacks what the task needs; training pictures of
            other labels.
        OptionError: another task; training pictures where no probe is fitted; a classifier of
            other labels.
        ImageError: none of the pictures can be read.
    """
    if not isinstance(data, EvalData):
        data = read_eval_data(data)
    if train is not None and not isinstance(train, EvalData):
        train = read_eval_data(train)
    tasks = check_run(data, task, train)
    if classifier is not None and classifier.labels != data.labels:
        raise OptionError(f"the classifier has other labels than {quoted(data.source)}")
    run = _Run(clip, data, seed, batch_size, on_progress)
    for each in tasks:
        if each == "classification":
            run.classify(clip.classifier(data.labels) if classifier is None else classifier)
        elif each == "retrieval":
            run.retrieve()
        else:
            run.fit_probe(train, wanted=task == "probe")
    return run.result()


def check_run(data: EvalData, task: str, train: EvalData | None = None) -> tuple[str, ...]:
    """The tasks that a word means for this data.

    Raises:
        OptionError, DataError: as `evaluate`, of what can be told before a model is open.
    """
    choice(task, (*TASKS, "all"), "task")
    needs = {"classification": data.labels, "retrieval": data.captions, "probe": data.labels}
    tasks = tuple(each for each in TASKS if needs[each]) if task == "all" else (task,)
    if not needs[tasks[0]]:
        what = "captions" if task == "retrieval" else "labels"
        raise DataError(f"{task} needs {what}, and {quoted(data.source)} has none")
    if train is None:
        return tasks
    if "probe" not in tasks:
        raise OptionError("train is for a linear probe, which is not among the tasks")
    if not train.labels:
        raise DataError(f"a linear probe needs labels, and {quoted(train.source)} has none")
    if strange := sorted({*train.labels} - {*data.labels}):
        raise DataError(
            f"{quoted(train.source)} has the label {quoted(strange[0])}, which is not among those "
            f"of {quoted(data.source)}"
        )
    return tasks


@dataclass(eq=False)
class _Run:
    """An evaluation as it comes about: pictures are embedded once for all tasks."""

    clip: CLIP
    data: EvalData
    seed: int
    batch_size: int
    on_progress: OnProgress
    unreadable: list[Unreadable] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = self._embed(self.data)
        self.targets = _targets(self.data, self.images)

    def _embed(self, data: EvalData) -> Embeddings:
        found = self.clip.embed_images(
            data.paths, batch_size=self.batch_size, on_progress=self.on_progress
        )
        self.unreadable += found.unreadable
        return found

    def classify(self, by: Classifier) -> None:
        vectors = self.images.vectors
        if by.head is not None:
            vectors = by.head.images(vectors.to(by.weights.device)).cpu()
        is_scored = by.head is not None or self.clip.scoring is not None
        self.found["classification"] = zero_shot(
            vectors,
            by.weights.cpu(),
            self.targets,
            self.data.labels,
            by.scoring if is_scored else None,
        )

    def retrieve(self) -> None:
        theirs = [self.data.captions[place] for place in self.images.places]
        owners = [at for at, captions in enumerate(theirs) for _ in captions]
        texts = self.clip.encode_text(
            [caption for captions in theirs for caption in captions],
            batch_size=self.batch_size,
            on_progress=self.on_progress,
        )
        self.found["retrieval"] = retrieval(
            self.images.vectors, texts, torch.tensor(owners, dtype=torch.long)
        )

    def fit_probe(self, train: EvalData | None, wanted: bool) -> None:
        """Raises DataError where it cannot be fitted and was wanted; else that is noted."""
        vectors = self.images.vectors
        if train is not None:
            learned = self._embed(train)
            places = torch.tensor(
                [self.data.labels.index(label) for label in train.labels], dtype=torch.long
            )
            fitted = learned.vectors, places[_targets(train, learned)]
            tested = torch.arange(len(vectors), dtype=torch.long)
        else:
            tested, kept = hold_back(self.targets, 0.5, self.seed)
            fitted = vectors[kept], self.targets[kept]
        why = _no_probe(vectors, fitted[1], tested)
        if why and wanted:
            raise DataError(f"{quoted(self.data.source)}: {why}")
        if why:
            self.found["notes"] = (why,)
            return
        self.found["probe_places"] = tuple(tested.tolist())
        self.found["probe"] = linear_probe(
            fitted,
            (vectors[tested], self.targets[tested]),
            self.data.labels,
            seed=self.seed,
            on_progress=self.on_progress,
        )

    def result(self) -> Evaluation:
        paths = tuple(self.data.paths[place] for place in self.images.places)
        name = self.clip.name
        model = Path(name).name if Path(name).is_dir() else name
        return Evaluation(model, self.data.source, paths, tuple(self.unreadable), **self.found)


def _targets(data: EvalData, images: Embeddings) -> Tensor:
    """The right label of each picture that could be read; none for data without labels."""
    places: Iterator[int] = iter(images.places if data.targets else ())
    return torch.tensor([data.targets[place] for place in places], dtype=torch.long)


def _no_probe(vectors: Tensor, fitted: Tensor, tested: Tensor) -> str:
    """Why a probe cannot be fitted; "" where it can."""
    if vectors.ndim != 2:
        return f"no linear probe: this model makes {vectors.shape[1]} vectors of a picture"
    if not len(tested) or len(fitted.unique()) < 2:
        return "no linear probe: it needs two labels, and two pictures of one of them; or --train"
    return ""
