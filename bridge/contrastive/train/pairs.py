"""Rows of training data as pictures with captions, and batches of them, read ahead in threads."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from bridge.contrastive.losses import caption_groups, caption_shares, log_shares
from bridge.contrastive.train.kept_states import KeptStates
from bridge.contrastive.train.options import ClipTrainOptions
from bridge.errors import DataError, ImageError
from bridge.towers.tower import ImageTower, TextTower, together
from bridge.training.records import Data, Picture, Record, Skipped, name_of, read_records

_CAPTIONS = ("text", "caption", "captions", "title")
# Batches that are begun before they are asked for, of so many rows at most: prepared pixels of
# thousands of rows are gigabytes, and what is compared with thousands is not waiting for data.
_AHEAD, _ROWS_AHEAD = 2, 1024


@dataclass(frozen=True, eq=False)
class Pair:
    """A picture and what is said of it: one caption, or several of which each epoch draws one.

    ``picture`` is None where text alone is learnt from; ``translation`` is what a student reads;
    ``fields`` is the whole row where more of it is learnt from than picture and caption.
    """

    picture: Picture | None
    captions: tuple[str, ...]
    where: str
    translation: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def caption(self, seed: int, step: int) -> str:
        """The caption that a step sees."""
        if len(self.captions) == 1:
            return self.captions[0]
        return random.Random(f"caption {seed} {step} {self.where}").choice(self.captions)


def read_pairs(
    data: Data,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    skipped: Skipped | None = None,
    pictures: bool = True,
    fields: bool = False,
) -> list[Pair]:
    """Rows as `bridge.training.records.read_records` reads them, each with its picture and caption.

    Captions are the field ``text``, ``caption``, ``captions`` or ``title``: a text, or several.

    Args:
        data, image_folder, skipped: as there.
        pictures: False where texts alone are learnt from; then none is asked for.
        fields: whether pairs keep all fields of their rows.

    Raises:
        DataError: a row without caption, with an empty one, or without exactly one picture; no row.
    """
    left: list[str] = []

    def told(where: str, why: str) -> None:
        left.append(f"{where}: {why}")
        if skipped is not None:
            skipped(where, why)

    told_to = told if skipped is not None else None
    records = read_records(data, image_folder=image_folder, skipped=told_to)
    pairs = [_pair(record, pictures, fields) for record in records]
    if not pairs:
        why = f"; {len(left)} are left out, the first as {left[0]}" if left else ""
        raise DataError(f"{name_of(data)} has no row to train on{why}")
    return pairs


def _pair(record: Record, pictures: bool, fields: bool) -> Pair:
    if pictures and len(record.pictures) != 1:
        raise DataError(
            f"{record.where} has {len(record.pictures)} pictures; a pair is one picture and its "
            "caption: give 'image' or 'file_name'"
        )
    named = next((key for key in _CAPTIONS if record.fields.get(key) is not None), None)
    if named is None:
        told = ", ".join(map(repr, record.fields)) or "none"
        raise DataError(
            f"{record.where} has the fields {told}; its caption is missing: give 'text' or "
            "'caption'"
        )
    found = record.fields[named]
    several = isinstance(found, Sequence) and not isinstance(found, str | bytes)
    captions = found if several else [found]
    other = next((type(each).__name__ for each in captions if not isinstance(each, str)), None)
    if other is not None:
        raise DataError(
            f"{record.where}: its {named!r} holds a {other}; a caption is a text, or a list of some"
        )
    texts = tuple(each.strip() for each in captions)
    if not texts or not all(texts):
        raise DataError(f"{record.where}: the caption is empty; write it or drop the row")
    translation = record.fields.get("translation")
    if not pictures and not isinstance(translation, str | None):
        raise DataError(
            f"{record.where}: its 'translation' is a {type(translation).__name__}; give a text"
        )
    return Pair(
        record.pictures[0] if pictures else None,
        texts,
        record.where,
        translation.strip() if isinstance(translation, str) else None,
        record.fields if fields else {},
    )


def digest(pairs: Sequence[Pair]) -> str:
    """16 hex digits of all texts, of where rows stand and of their pictures' sizes."""
    told = hashlib.sha256()
    for pair in pairs:
        size = pair.picture.size if pair.picture is not None else None
        told.update(repr((pair.where, pair.captions, pair.translation, size)).encode())
    return told.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Batch:
    """One process' rows of a step, on the CPU.

    ``pixels`` is what the image tower takes, ``(b, 3, H, W)`` or a mapping, or None where
    ``image`` says what it made of the pictures, ``(b, P)``; ids and mask ``(b, T)``; groups and
    log_q as `PooledPairs` has them; ``target`` is what a further loss learns, a row each.
    """

    pixels: Any
    ids: Tensor
    mask: Tensor
    groups: Tensor
    log_q: Tensor | None
    image: Tensor | None = None
    target: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """What its pixels take."""
        if self.pixels is None:
            return 0
        pixels = self.pixels
        tensors = pixels.values() if isinstance(pixels, Mapping) else [pixels]
        return sum(each.nbytes for each in tensors)

    def part(self, start: int, stop: int) -> Batch:
        """Some of the rows."""

        def some(column: Any) -> Any:
            if isinstance(column, Mapping):
                return {name: each[start:stop] for name, each in column.items()}
            return None if column is None else column[start:stop]

        return Batch(*(some(getattr(self, each.name)) for each in fields(self)))


class Batches:
    """The batches of a run, each read and prepared while earlier ones are computed.

    A picture whose pixels turn out to be damaged is told to ``skipped``, and the next row that can
    be read stands in its place: so a batch stays whole, and the same in every run.

    Args:
        pairs: all rows.
        rows_of: this process' rows of a step, by their numbers.
        towers: what they are prepared for.
        options: of the run: the seed of the captions that are drawn, and whether a batch says how
            often its captions are in the data (``popularity``).
        skipped: told of pictures that cannot be read.
        kept: states of a locked image tower, in the place of pixels.
        target: what a further loss learns of some rows, by their fields.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        rows_of: Callable[[int], Sequence[int]],
        towers: tuple[TextTower, ImageTower],
        options: ClipTrainOptions,
        skipped: Skipped,
        *,
        kept: KeptStates | None = None,
        target: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._pairs, self._rows_of, self._seed = pairs, rows_of, options.seed
        self._text, self._image = towers
        self._skipped, self._kept, self._target = skipped, kept, target
        self._told: set[int] = set()
        counted = options.popularity
        self._shares = caption_shares([pair.captions for pair in pairs]) if counted else None

    @contextmanager
    def reading(self, workers: int, start: int, stop: int) -> Iterator[Callable[[int], Batch]]:
        """Within the block, what gives the batch of a step; steps from ``start`` on, in order."""
        with ThreadPoolExecutor(workers, "bridge-train") as threads:
            begun: dict[int, tuple[list[int], list[Future[Any]]]] = {}

            def begin(step: int) -> None:
                if step < stop and step not in begun:
                    rows = list(self._rows_of(step))
                    begun[step] = rows, [threads.submit(self._read, row) for row in rows]

            def batch(step: int) -> Batch:
                begin(step)
                rows, futures = begun.pop(step)
                for number in range(1, 1 + _AHEAD):
                    if number * len(rows) <= _ROWS_AHEAD:
                        begin(step + number)
                return self._made(step, rows, [future.result() for future in futures])

            try:
                yield batch
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, row: int) -> tuple[int, Any]:
        """The row itself, or the next that can be read, and its pixels, if they are wanted."""
        for place in range(len(self._pairs)):
            found = (row + place) % len(self._pairs)
            if self._kept is not None and found in self._kept:
                return found, None
            picture = self._pairs[found].picture
            assert picture is not None
            try:
                return found, self._image.prepare(picture.load())
            except ImageError as error:
                if found not in self._told:
                    self._told.add(found)
                    self._skipped(self._pairs[found].where, str(error))
        raise DataError("no picture of the data can be read")

    def _made(self, step: int, rows: Sequence[int], read: Sequence[tuple[int, Any]]) -> Batch:
        found = [row for row, _ in read]
        captions = [self._pairs[row].caption(self._seed, step) for row in found]
        batch = self._text.tokenize(captions)
        log_q = None if self._shares is None else log_shares(self._shares, captions)
        each = [pixels for _, pixels in read]
        kept, target = self._kept, self._target
        return Batch(
            together(each) if kept is None else None,
            batch.ids,
            batch.mask,
            caption_groups(captions),
            log_q,
            None if kept is None else kept.states(found, each),
            None if target is None else target([self._pairs[row].fields for row in found]),
        )
