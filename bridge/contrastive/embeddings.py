"""Pictures or texts without end into vectors: in batches, read ahead, with bounded memory.

``Embeddings`` is what comes of it: the vectors, which of what was given they are of, and what
could not be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike, fspath
from typing import Any, TypeVar

from torch import Tensor
from torch.nn.functional import normalize

from bridge.checks import whole
from bridge.errors import ImageError, WeightsError
from bridge.files import home_path, parse_json, write_whole
from bridge.threads import one_core_each

Item = TypeVar("Item")
Made = TypeVar("Made")

# Decoding lets go of Python's lock, so a few threads keep a tower fed; more only take turns.
_READERS = 4
_KEYS = "bridge.embeddings"


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be read: its place in what was given, its name, and why."""

    place: int
    name: str
    why: str


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors in one shared space, with what each is of.

    Attributes:
        vectors: ``(N, P)`` float32, each of length 1, on the CPU; ``(N, Q, P)`` for BLIP-2's
            pictures of Q query tokens.
        places: of each vector, the place of its picture or text in what was given.
        names: of each vector, the path or text, or its place where it had no name.
        unreadable: what was left out, and why.
    """

    vectors: Tensor
    places: tuple[int, ...]
    names: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()

    def __repr__(self) -> str:
        left_out = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"Embeddings({len(self)} of width {self.vectors.shape[-1]}{left_out})"

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises WriteError where it cannot be written.
        """
        from json import dumps

        from safetensors.torch import save

        told = {
            "places": self.places,
            "names": self.names,
            "unreadable": [[each.place, each.name, each.why] for each in self.unreadable],
        }
        data = save({"vectors": self.vectors.contiguous()}, {_KEYS: dumps(told)})
        write_whole(home_path(path), data)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Embeddings:
        """Read a file of `save`.

        Raises:
            WeightsError: it is missing, damaged, or holds something else.
        """
        from bridge.towers.tensors import load_tensors

        tensors, notes = load_tensors(home_path(path))
        told = parse_json(notes.get(_KEYS, "null"), str(path))
        try:
            found = cls(
                tensors["vectors"],
                tuple(map(int, told["places"])),
                tuple(map(str, told["names"])),
                tuple(Unreadable(int(a), str(b), str(c)) for a, b, c in told["unreadable"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{fspath(path)} does not hold embeddings of bridge") from error
        if not len(found.vectors) == len(found.places) == len(found.names):
            raise WeightsError(f"{fspath(path)}: vectors and names are not as many; it is damaged")
        return found


def unit(pooled: Tensor) -> Tensor:
    """Pooled states in float32 at length 1: the one place where bridge normalises them.

    Args:
        pooled: ``(..., P)``, of any floating type.

    Returns:
        The same shape; a state of zeros, which has no direction, stays zeros.
    """
    return normalize(pooled.float(), dim=-1)


def in_batches(given: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last of fewer, out of any iterable, one at a time."""
    waiting = iter(given)
    while some := list(islice(waiting, size)):
        yield some


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """Pictures of one pass: their vectors (None where none could be read), where they stood, what
    could not be read, and how many were looked at in all."""

    vectors: Tensor | None
    places: tuple[int, ...]
    names: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]
    done: int


Pool = Callable[[list[Any]], Tensor]
"""From what was read of several pictures to their vectors."""


def read_ahead(
    given: Iterable[Any], read: Callable[[Any], Any], pool: Pool, size: int
) -> Iterator[PictureBatch]:
    """Batches of pictures for a tower that has a device of its own: threads read ahead of it, two
    batches at most.

    Args:
        given: pictures or paths, of any number; a generator is read as it is needed.
        read: from one of them to what a tower takes. Raises ImageError.
        pool: the tower, called here.
        size: pictures a pass.
    """
    begun = _ahead(given, read, 2 * size, ThreadPoolExecutor(_READERS, "bridge-read"))
    for some in in_batches(enumerate(begun), size):
        yield _pooled([(place, item, future.result) for place, (item, future) in some], pool)


def side_by_side(
    given: Iterable[Any], read: Callable[[Any], Any], pool: Pool, size: int, threads: int
) -> Iterator[PictureBatch]:
    """The same for a tower on the CPU, in so many threads, each of which reads and pools whole
    batches on one core.

    One pass on all cores waits at the end of each operation for the slowest of them, and reading
    beside it slows one; passes side by side wait for nothing. On two cores the shipped tower takes
    a third more pictures a second (`benchmarks.clip_speed`).
    """

    def work(some: list[tuple[int, Any]]) -> PictureBatch:
        return _pooled([(place, item, partial(read, item)) for place, item in some], pool)

    with one_core_each(threads) as workers:
        for _, future in _ahead(in_batches(enumerate(given), size), work, threads + 1, workers):
            yield future.result()


def _pooled(some: list[tuple[int, Any, Callable[[], Any]]], pool: Pool) -> PictureBatch:
    """One batch: read what can be read, and pool it."""
    found, places, names, unreadable = [], [], [], []
    for place, item, read in some:
        name = str(fspath(item)) if isinstance(item, str | PathLike) else str(place)
        try:
            found.append(read())
        except ImageError as error:
            unreadable.append(Unreadable(place, name, str(error)))
            continue
        places.append(place)
        names.append(name)
    vectors = pool(found) if found else None
    return PictureBatch(vectors, tuple(places), tuple(names), tuple(unreadable), some[-1][0] + 1)


def _ahead(
    given: Iterable[Item], work: Callable[[Item], Made], ahead: int, workers: ThreadPoolExecutor
) -> Iterator[tuple[Item, Future[Made]]]:
    """Each item with what is made of it, in order; ``ahead`` at most are begun or waiting."""
    begun: deque[tuple[Item, Future[Made]]] = deque()
    with workers:
        try:
            for item in given:
                begun.append((item, workers.submit(work, item)))
                if len(begun) >= ahead:
                    yield begun.popleft()
            while begun:
                yield begun.popleft()
        finally:
            for _, future in begun:
                future.cancel()


def check_batch_size(batch_size: object) -> int:
    """A number of rows a pass. Raises OptionError."""
    return whole(batch_size, "batch_size", 1, 1 << 16)
