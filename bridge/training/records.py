"""Training data of any layout, as rows with named fields and pictures.

=====================  ===========================================================================
``.json``, ``.jsonl``  a list of objects, or one a line
``.csv``, ``.tsv``     a header and rows
``.parquet``           as `datasets` writes it, pictures in it or beside it; read by pyarrow
a folder               as `datasets`' imagefolder has it: ``metadata.jsonl``, ``metadata.csv`` or
                       ``captions.csv``; or pictures, each beside a ``.txt`` of its name
``.tar``               a WebDataset shard: members of one name are a row, as ``0001.jpg`` and
                       ``0001.txt`` (``.json``); also a folder of shards, or
                       ``shard-{0000..0012}.tar``
an iterable            of mappings, a `datasets.Dataset` among them
=====================  ===========================================================================

Text is read and every picture's header is looked at here, so that bad data is said before any model
loads; pixels are read when they are needed. Shards are read where they lie, by the place of each
member: so any row can be had at any time, and a run that stopped goes on exactly (a stream of
shards, as the package `webdataset` gives, could not be entered in its middle).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bridge.errors import DataError, ImageError, MissingDependencyError, quoted
from bridge.files import hash_file, home_path
from bridge.images import ImageInput, image_size, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

Data: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is read when asked for. ``size`` is its (height, width)."""

    name: str
    size: tuple[int, int]
    read: Callable[[], ImageInput]

    def load(self) -> Image:
        """RGB, as `load_image` reads it. Raises ImageError that names the picture."""
        try:
            return load_image(self.read())
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from error

    def key(self) -> str:
        """16 hex digits of a sha256 over the file, or over size and pixels where it is none."""
        source = self.read()
        if isinstance(source, str | os.PathLike):
            return hash_file(home_path(source))
        image = load_image(source)
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Record:
    """One row: its fields, its pictures, and where it stood for errors to name."""

    fields: Mapping[str, Any]
    pictures: tuple[Picture, ...]
    where: str


Skipped = Callable[[str, str], None]
"""Told where a row stood whose picture cannot be read, and why."""

IMAGE_FIELDS = ("image", "images", "file_name", "filepath")
TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv")
_PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_KINDS = ".json, .jsonl, .csv, .tsv, .parquet or .tar"


def read_records(
    data: Data,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    skipped: Skipped | None = None,
) -> list[Record]:
    """Rows of a file, a folder, shards or an iterable, as above.

    Pictures are the field ``image``, ``images``, ``file_name`` or ``filepath``. Paths are those
    below ``image_folder``, by default the data's own folder. Rows of a sequence are read again when
    their pixels are needed.

    Args:
        data: where the rows are.
        image_folder: where their pictures lie.
        skipped: told of each row with an unreadable picture, which is then left out; without it,
            the first such row is an error.

    Raises:
        DataError: it names file and row.
        MissingDependencyError: a Parquet file without pyarrow.
    """
    made: list[Record] = []
    for where, fields, opened in _rows(data, image_folder):
        if not isinstance(fields, Mapping):
            kind = type(fields).__name__
            raise DataError(f"{where} is a {kind}, not an object with named fields")
        place = f"{where} (id {fields['id']!r})" if "id" in fields else where
        try:
            pictures = tuple(opened(each, n, place) for n, each in enumerate(_images(fields)))
        except DataError as error:
            if skipped is None:
                raise
            skipped(place, str(error).removeprefix(f"{place}: "))
            continue
        made.append(Record(fields, pictures, place))
    return made


def name_of(data: Data) -> str:
    """What errors call the data."""
    return repr(str(home_path(data))) if isinstance(data, str | os.PathLike) else "the iterable"


# -- where rows come from -----------------------------------------------------------------

Opener: TypeAlias = Callable[[Any, int, str], Picture]
Rows: TypeAlias = Iterator[tuple[str, Any, Opener]]


def _rows(data: Data, image_folder: str | os.PathLike[str] | None) -> Rows:
    if not isinstance(data, str | os.PathLike):
        if not isinstance(data, Iterable) or isinstance(data, bytes | Mapping):
            raise DataError(f"data is a {type(data).__name__}; give a file, a folder or rows")
        yield from _iterable(data, image_folder)
        return
    if not os.fspath(data):
        raise DataError("data is an empty path; give a file or a folder")
    path = home_path(data)
    shards = _shards(path)
    if shards:
        for shard in shards:
            yield from _shard(shard)
        return
    is_folder = os.path.isdir(path)
    base = path if is_folder else path.parent
    opened = _from(base if image_folder is None else home_path(image_folder))
    for where, fields in folder_rows(path) if is_folder else _file(path):
        yield where, fields, opened


def _file(path: Path) -> Iterable[tuple[str, Any]]:
    if not os.path.isfile(path):
        raise DataError(f"no such file or folder of training data: {quoted(path)}")
    kind = path.suffix.lower()
    if kind == ".jsonl":
        # Not splitlines(), which cuts at U+2028 and others that JSON allows inside of a string.
        for number, line in enumerate(_text(path).split("\n"), start=1):
            if line.strip():
                yield f"{path}, line {number}", _json(line, f"{path}, line {number}")
    elif kind in (".csv", ".tsv"):
        separator = "\t" if kind == ".tsv" else ","
        yield from _table(path, separator)
    elif kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".json":
        records = _json(_text(path), str(path))
        if not isinstance(records, list):
            raise DataError(f"{path} holds no list; LLaVA's form is a list of conversations")
        for number, record in enumerate(records, start=1):
            yield f"{path}, row {number}", record
    else:
        raise DataError(f"{str(path)!r} is not training data; give {_KINDS}, or a folder")


def _table(path: Path, separator: str) -> Iterator[tuple[str, Any]]:
    """A header and rows. A lone quotation mark, and a comma in a text without quotes, are refused:
    the one would join rows into one text, the other cut a text short."""
    number = 0
    try:
        lines = csv.DictReader(
            io.StringIO(_text(path), newline=""), delimiter=separator, strict=True
        )
        for number, fields in enumerate(lines, start=1):
            if any(cell.strip() for cell in fields.pop(None, ())):
                raise DataError(
                    f"{path}, row {number} has more cells than the header has names; put a text "
                    f"with {separator!r} in it in quotes"
                )
            yield f"{path}, row {number}", fields
    except csv.Error as error:
        raise DataError(
            f"{path}, row {number + 1} cannot be read: {error}; a text that begins with a "
            'quotation mark stands in quotes, each mark in it doubled: """So"", he said."'
        ) from error


def folder_rows(folder: Path) -> Iterable[tuple[str, Any]]:
    """The rows of a folder's table, or of its pictures with a ``.txt`` beside each; no picture is
    opened.

    Yields ``(where, fields)``; paths are relative to the folder. Raises DataError.
    """
    for name in TABLES:
        if (folder / name).is_file():
            return _file(folder / name)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES)
    alone = [p for p in found if not p.with_suffix(".txt").is_file()]
    if alone:
        raise DataError(
            f"{alone[0]} has no caption ({len(alone)} of {len(found)} pictures have none); write "
            f"{alone[0].with_suffix('.txt').name} beside it, or a {TABLES[0]} for all"
        )
    return [
        (str(p), {"image": str(p.relative_to(folder)), "text": _text(p.with_suffix(".txt"))})
        for p in found
    ]


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is read by pyarrow; install it with: pip install pyarrow"
        ) from error
    try:
        table = parquet.read_table(path, memory_map=True)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    number = 0
    for batch in table.to_batches(max_chunksize=64):
        for record in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", record


def _iterable(data: Any, image_folder: Any) -> Rows:
    # A sequence can be asked again, so no picture of it need be kept.
    again = isinstance(data, Sequence) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    )
    base = home_path(image_folder) if image_folder is not None else Path()
    for index, record in enumerate(data):

        def read(place: int, index: int = index) -> Any:
            return _images(data[index])[place]

        yield f"row {index + 1}", record, _from(base, read if again else None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _json(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


# -- WebDataset shards --------------------------------------------------------------------

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_MOST_SHARDS = 1_000_000
_TEXTS = {"txt": "text", "text": "text", "caption": "text"}


def _shards(path: Path) -> list[Path]:
    """The shards that a path means: one, a folder of some, or those of a ``{0..9}``; else none."""
    found = _RANGE.search(str(path))
    if found and path.suffix.lower() == ".tar":
        first, last = int(found[1]), int(found[2])
        if not 0 <= last - first < _MOST_SHARDS:
            raise DataError(f"{quoted(path)}: {found[0]} does not count up to a number of shards")
        start, end = str(path)[: found.start()], str(path)[found.end() :]
        names = [f"{start}{n:0{len(found[1])}}{end}" for n in range(first, last + 1)]
        return [shard for name in names for shard in _shards(Path(name)) or [Path(name)]]
    if path.suffix.lower() == ".tar" and not os.path.isdir(path):
        return [path]
    return sorted(path.glob("*.tar")) if os.path.isdir(path) else []


def _shard(path: Path) -> Rows:
    """The rows of one shard, in its order; pictures are read from it when they are asked for."""
    opened = _from_bytes()
    row: dict[str, Any] = {}
    name = ""
    for member, key, kind in _members(path):
        if key != name and row:
            yield f"{path}, {name}", row, opened
            row = {}
        name = key
        read = _Slice(path, member.offset_data, member.size)
        if f".{kind}" in _PICTURES:
            row["image"] = read
        elif kind in _TEXTS:
            row[_TEXTS[kind]] = _decoded(read(), f"{path}, {member.name}")
        elif kind == "json":
            fields = _json(read(), f"{path}, {member.name}")
            told = fields if isinstance(fields, Mapping) else {"json": fields}
            # The members are the row's picture and text; a JSON may name where they came from.
            row = {k: v for k, v in told.items() if k not in IMAGE_FIELDS} | row
    if row:
        yield f"{path}, {name}", row, opened


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """The files of a shard with their key, all before the name's first point, and what follows."""
    if not os.path.isfile(path):
        raise DataError(f"no such shard of training data: {quoted(path)}")
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, base = member.name.rpartition("/")
                stem, point, kind = base.partition(".")
                if member.isfile() and stem and point:
                    yield member, f"{folder}/{stem}" if folder else stem, kind.lower()
            _check_end(path, shard.offset)
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a shard: {error}; it is an uncompressed .tar"
        ) from error


def _check_end(path: Path, end: int) -> None:
    """Refuse more behind the end that `tarfile` found: it takes a damaged header for the end."""
    with path.open("rb") as stream:
        stream.seek(end)
        while block := stream.read(1 << 20):
            if block.strip(b"\0"):
                raise DataError(
                    f"{path} is damaged at byte {end}: rows behind it cannot be found; fetch it "
                    "again, and of shards that were joined give each by itself"
                )


@dataclass(frozen=True)
class _Slice:
    """Some bytes of a file."""

    path: Path
    start: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size)


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} cannot be read as UTF-8 text: {error}") from error


# -- pictures -----------------------------------------------------------------------------


def _images(record: Mapping[str, Any]) -> list[Any]:
    found: Any = next((record[k] for k in IMAGE_FIELDS if record.get(k) is not None), [])
    return list(found) if isinstance(found, list | tuple) else [found]


def _from(base: Path, again: Callable[[int], Any] | None = None) -> Opener:
    """Opens a row's picture: a path below ``base``, or a picture itself."""

    def opened(source: Any, place: int, where: str) -> Picture:
        if isinstance(source, Mapping):  # as `datasets` writes undecoded pictures
            source, decode = _undecoded(source), _undecoded
        else:
            decode = None
        name = f"{where}, picture {place + 1}"
        try:
            if isinstance(source, str | os.PathLike):
                path = base / source
                return Picture(name, image_size(path), lambda: path)
            image = load_image(source)
        except ImageError as error:
            raise DataError(f"{where}: {error}") from error
        if again is None:
            kept = source if isinstance(source, bytes) else image  # as it was packed is smaller
            return Picture(name, (image.height, image.width), lambda: kept)
        read = again
        return Picture(
            name,
            (image.height, image.width),
            lambda: read(place) if decode is None else decode(read(place)),
        )

    return opened


def _from_bytes() -> Opener:
    """Opens a picture that some call gives the bytes of."""

    def opened(source: Any, place: int, where: str) -> Picture:
        try:
            image = load_image(source())
        except ImageError as error:
            raise DataError(f"{where}: {error}") from error
        return Picture(f"{where}, picture {place + 1}", (image.height, image.width), source)

    return opened


def _undecoded(source: Mapping[str, Any]) -> Any:
    return source["bytes"] if source.get("bytes") is not None else source.get("path")
