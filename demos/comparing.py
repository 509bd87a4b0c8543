"""Comparing: what pictures and which texts were sent, checked; how near each is to each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.checks import choice
from bridge.contrastive.templates import PLACE, read_templates, with_name
from bridge.embedded import EMBEDDED
from bridge.errors import ImageError, OptionError, PromptError
from bridge.towers.registry import ROWS, TowerRow
from demos.limits import (
    MOST_COMPARED,
    MOST_LABEL_CHARACTERS,
    MOST_LABELS,
    MOST_SENTENCES,
    UNREADABLE,
    read_lines,
)
from demos.models import Models
from demos.uploads import picture_of, uploaded

if TYPE_CHECKING:
    from PIL.Image import Image

HEAD, BARE, SEVEN, OWN = "head", "name", "clip-7", "own"
WORDINGS = {
    "The model's head and its sentences": HEAD,
    "Bare, as written": BARE,
    "CLIP's 7 sentences": SEVEN,
    "Sentences of your own": OWN,
}
"""How a text is put to a model, in words, and as a `Request` names it."""

_LONGEST_NAME = 60
_NO_PICTURE = "There are no pictures yet. Upload some first; this page compares up to {}."
_NO_LABEL = "There are no texts yet. Write labels or captions, one a line."
_NO_READER = "No model is ticked, so nobody compares; tick at least one."
_NO_SENTENCE = (
    f"There is no sentence of your own yet. Write one with {PLACE} for the text's place, such as "
    f"“a picture of a {PLACE}”."
)


@dataclass(frozen=True)
class Reader:
    """Two towers of one space that ship with bridge.

    Attributes:
        name: what `bridge.CLIP` calls them.
        image, text: the towers' names.
        notes: what the table of towers says of the text side.
        many_languages: whether it reads others than English.
    """

    name: str
    image: str
    text: str
    notes: str
    many_languages: bool


@cache
def readers() -> dict[str, Reader]:
    """The CLIPs that ship, by name: those of two sides first. Opens nothing."""
    rows = [row for row in ROWS if row.source in EMBEDDED and row.text_width]
    found = [_reader(row, row.name, row.name) for row in rows if row.patch]
    found += [
        _reader(row, row.partner, f"{row.name} + {row.partner}")
        for row in rows
        if row.partner and not row.patch
    ]
    return {reader.name: reader for reader in found}


def _reader(row: TowerRow, image: str, name: str) -> Reader:
    many = row.family == "multilingual_clip" or "multilingual" in row.notes
    return Reader(name, image, row.name, row.notes, many)


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Request:
    """What was asked, as it came, of whatever kind.

    Attributes:
        pictures: files of the upload cache, as a gallery sends them.
        labels: the texts, one a line.
        reads: names of `readers`.
        wording: a value of ``WORDINGS``.
        sentences: for the wording ``OWN``, one a line.
    """

    pictures: Any
    labels: Any
    reads: Any
    wording: Any = HEAD
    sentences: Any = ""


@dataclass(frozen=True)
class Task:
    """A `Request` that this page takes on: ``files`` by name, and the arguments of
    `bridge.CLIP.classifier` beside the labels."""

    files: tuple[tuple[str, Path], ...]
    labels: tuple[str, ...]
    readers: tuple[Reader, ...]
    options: Mapping[str, Any]


def checked(asked: Request) -> Task:
    """Read a request; opens no picture and no model.

    Raises ImageError, PromptError and OptionError for what is missing, wrong or too much.
    """
    files = _read_files(asked.pictures)
    return Task(
        files, _read_labels(asked.labels), _read_readers(asked.reads),
        _read_wording(asked.wording, asked.sentences),
    )  # fmt: skip


def _read_files(pictures: Any) -> tuple[tuple[str, Path], ...]:
    if pictures is None or pictures == []:
        raise ImageError(_NO_PICTURE.format(MOST_COMPARED))
    if not isinstance(pictures, list):
        raise ImageError(UNREADABLE)
    if len(pictures) > MOST_COMPARED:
        raise ImageError(
            f"These are {len(pictures)} pictures, and this page compares at most {MOST_COMPARED}; "
            "take some out."
        )
    return tuple(map(read_file, pictures))


def read_file(item: Any) -> tuple[str, Path]:
    """A picture's name and file, as a gallery has it, beside a caption, or by itself.

    Raises ImageError for what is no uploaded file.
    """
    given = item.get("image", item) if isinstance(item, Mapping) else item
    path = uploaded(given)
    if path is None:
        raise ImageError(UNREADABLE)
    told = [item.get("caption")] if isinstance(item, Mapping) else []
    told += [given.get("orig_name")] if isinstance(given, Mapping) else []
    name = next((each for each in told if isinstance(each, str) and each), path.name)
    # Half a character cannot be sent back.
    name = name[: _LONGEST_NAME + 1].encode("utf-8", "replace").decode()
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…", path


def gathered(pictures: Any) -> list[tuple[Path, str]]:
    """The pictures of a gallery that can be read, as a gallery takes them: file and caption.

    Raises ImageError for what no page sends.
    """
    given = pictures[:MOST_COMPARED] if isinstance(pictures, list) else []
    found = []
    for name, path in map(read_file, given):
        try:
            picture_of(path)
        except ImageError:
            continue
        found.append((path, name))
    return found


def _read_labels(value: Any) -> tuple[str, ...]:
    labels = read_lines(value, "texts", MOST_LABELS, MOST_LABEL_CHARACTERS)
    if not labels:
        raise PromptError(_NO_LABEL)
    for place, label in enumerate(labels):
        if label in labels[:place]:
            raise PromptError(f"“{label}” is written twice; leave one out.")
    return tuple(labels)


def _read_readers(names: Any) -> tuple[Reader, ...]:
    if names is None or names == []:
        raise OptionError(_NO_READER)
    if not isinstance(names, list | tuple):
        raise OptionError(UNREADABLE)
    there = readers()
    for name in names:
        choice(name, there, "model")
    # Each once, in the order of the page.
    return tuple(reader for reader in there.values() if reader.name in names)


def _read_wording(wording: Any, sentences: Any) -> dict[str, Any]:
    """The arguments of `bridge.CLIP.classifier`: a head is for its own sentences."""
    choice(wording, WORDINGS.values(), "wording")
    if wording == HEAD:
        return {}
    if wording != OWN:
        return {"templates": wording, "head": None}
    lines = read_lines(sentences, "sentences", MOST_SENTENCES, MOST_LABEL_CHARACTERS)
    if not lines:
        raise PromptError(_NO_SENTENCE)
    return {"templates": read_templates(lines), "head": None}


# ---------------------------------------------------------------- what is found

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Matrix:
    """What one reader finds.

    Attributes:
        reader: who.
        templates: the sentences that a text was put into.
        has_head: whether the similarities are through the model's head.
        similarities: of each picture, with each text: cosines.
        shares: of each picture, how likely each text is, as the model was trained to say it.
        bare: of each picture, the nearest text's place by bare names and plain cosines.
        cut: the texts that are longer than the model reads.
    """

    reader: Reader
    templates: tuple[str, ...]
    has_head: bool
    similarities: Rows
    shares: Rows
    bare: tuple[int, ...]
    cut: tuple[str, ...]

    @property
    def best(self) -> tuple[int, ...]:
        """Of each picture, the nearest text's place."""
        return tuple(row.index(max(row)) for row in self.similarities)

    @property
    def changed(self) -> tuple[int, ...]:
        """The pictures that bare names have another nearest text for."""
        pairs = enumerate(zip(self.best, self.bare, strict=True))
        return tuple(place for place, (now, before) in pairs if now != before)


@dataclass(frozen=True, eq=False)
class Compared:
    """The pictures that could be read, by name, the texts, and what each reader finds;
    ``unreadable`` says of each other picture why."""

    pictures: tuple[tuple[str, Image], ...]
    labels: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    unreadable: tuple[str, ...]
    seconds: float

    @property
    def alike(self) -> int:
        """For how many pictures all readers find the same text nearest."""
        found = zip(*(matrix.best for matrix in self.matrices), strict=True)
        return sum(len(set(nearest)) == 1 for nearest in found)


def compare(models: Models, asked: Request) -> Compared:
    """Every picture with every text, by each reader.

    Raises ImageError where no picture can be read, what `checked` raises, and what loading a
    model raises.
    """
    task = checked(asked)
    pictures, unreadable = _opened(task.files)
    if not pictures:
        raise ImageError(" ".join(unreadable))
    # One at a time: a tokenizer serves one thread at once.
    with models.comparing:
        clips = [models.clip(reader.image, reader.text) for reader in task.readers]
        began = time.monotonic()
        found = [
            _matrix(reader, clip, pictures, task)
            for reader, clip in zip(task.readers, clips, strict=True)
        ]
    return Compared(
        tuple(pictures), task.labels, tuple(found), tuple(unreadable), time.monotonic() - began
    )


def _opened(files: Sequence[tuple[str, Path]]) -> tuple[list[tuple[str, Image]], list[str]]:
    """The pictures that can be read, and why the others cannot."""
    pictures, unreadable = [], []
    for name, path in files:
        try:
            pictures.append((name, picture_of(path)))
        except ImageError as error:
            unreadable.append(str(error).replace(path.name, name).rstrip(".") + ".")
    return pictures, unreadable


def _matrix(reader: Reader, clip: Any, pictures: Sequence[tuple[str, Image]], task: Task) -> Matrix:
    vectors = clip.encode_image([image for _, image in pictures])
    classifier = clip.classifier(task.labels, **task.options)
    seen = vectors if classifier.head is None else classifier.head.images(vectors)
    bare = clip.classifier(task.labels, BARE, head=None)
    return Matrix(
        reader,
        classifier.templates,
        classifier.head is not None,
        _rows(clip.similarity(seen, classifier.weights)),
        _rows(classifier.probabilities(vectors)),
        tuple(bare.scores(vectors).argmax(1).tolist()),
        _cut(clip, task.labels, classifier.templates),
    )


def _rows(table: Any) -> Rows:
    return tuple(tuple(row) for row in table.tolist())


def _cut(clip: Any, labels: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        label
        for label in labels
        if any(clip.text.tokenize([with_name(each, label) for each in templates]).cut)
    )
