"""Pictures with labels or captions, as people have them: folders, a table, COCO.

Nothing here opens a picture; paths alone are read, so that a mistake is told before any model
loads.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from bridge.checks import did_you_mean, keywords
from bridge.errors import DataError, quoted
from bridge.files import home_path
from bridge.training.records import IMAGE_FIELDS, TABLES, folder_rows

ENDINGS = frozenset(
    ".avif .bmp .gif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
"""What a picture's name ends in, in a folder for each class; other files there are no pictures."""

CLASSES = "classes.txt"
"""The file of names in a folder for each class."""

_TABLES = {".csv": ",", ".tsv": "\t"}
_PATHS, _LABELS, _CAPTIONS = ("path", *IMAGE_FIELDS), ("label",), ("caption", "text")
_SPLITS = frozenset(("train", "val", "valid", "validation", "test"))
_SHOWN = 5  # names in an error


@dataclass(frozen=True)
class EvalData:
    """Pictures to measure a CLIP on.

    Attributes:
        source: where they are from.
        paths: of the N pictures.
        labels: the L names, none twice; empty for data that has captions alone.
        targets: N places among ``labels``; empty likewise.
        captions: N tuples of one caption or more; empty for data that has labels alone.
    """

    source: str
    paths: tuple[Path, ...]
    labels: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


@keywords
def read_eval_data(
    source: str | PathLike[str],
    *,
    labels: Sequence[str] | str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
) -> EvalData:
    """Read what a person has.

    - A folder with a folder for each class, as torchvision's ImageFolder: a class is named as its
      folder, with spaces for underscores; or as ``classes.txt`` in it says.
    - A folder with captions, as `bridge.train_clip` takes it: a ``.txt`` beside each picture, or a
      ``metadata.jsonl``, ``metadata.csv`` or ``captions.csv`` for all.
    - A ``.csv`` or ``.tsv`` with the columns ``path`` (or ``file_name``) and ``label`` or
      ``caption`` (or ``text``), or both. Several rows of a picture are several captions.
    - A ``.json`` in the layout of COCO's captions: ``images`` and ``annotations``.

    Args:
        source: the folder or file. Paths within are relative to it or to its folder.
        labels: the names to choose among, or a file with one a line, in place of ``classes.txt``.
            A line ``FOLDER<TAB>NAME`` names a folder's class otherwise than the folder.
        images: the folder that paths within are relative to, in place of the usual one.

    Raises:
        DataError: no such data; no pictures, labels or columns; a label twice, one that is not
            among the labels, one without pictures; a picture with two labels or without caption.
    """
    path = home_path(source)
    base = None if images is None else home_path(images)
    if base is not None and not base.is_dir():
        raise DataError(f"images {quoted(base)} is not a folder; give the one with the pictures")
    names = _label_names(labels)
    if path.is_dir():
        if base is not None:
            raise DataError("images is for a table or a .json; a folder holds its own pictures")
        return _folder(path, names)
    if not path.is_file():
        raise DataError(f"no such data: {quoted(path)}; give a folder, a .csv, .tsv or .json")
    ending = path.suffix.lower()
    base = path.parent if base is None else base
    if ending in _TABLES:
        return _table(path, base, names)
    if ending == ".json":
        if names is not None:
            raise DataError(f"{quoted(path)} has captions and no labels, so labels= means nothing")
        return _coco(path, base)
    raise DataError(
        f"{quoted(path)} is not data that can be read; give a folder with a folder for each "
        "class or with captions, a .csv or .tsv, or a .json as COCO's captions"
    )


# ---------------------------------------------------------------- names of labels

_Names = Mapping[str, str]
"""What is written at a picture, a folder's name or a label, to the label's name."""


def _label_names(given: Sequence[str] | str | PathLike[str] | None) -> _Names | None:
    if given is None:
        return None
    if isinstance(given, str | PathLike):
        return _read_names(home_path(given))
    return _named([(str(name), str(name)) for name in given], "labels")


def _read_names(path: Path) -> _Names:
    lines = [line.strip("\r\n ") for line in _text(path).splitlines()]
    pairs = []
    for line in filter(None, lines):
        key, tab, name = line.partition("\t")
        pairs.append((key.strip(), name.strip() if tab else key.strip()))
    return _named(pairs, quoted(path))


def _named(pairs: Sequence[tuple[str, str]], where: str) -> _Names:
    """Keys to names, none of them twice. Raises DataError."""
    if not pairs:
        raise DataError(f"{where} has no labels; give one name a line")
    keys, names = [key for key, _ in pairs], [name for _, name in pairs]
    for each in (keys, names):
        if twice := next((name for at, name in enumerate(each) if name in each[:at]), None):
            raise DataError(f"{where} has the label {quoted(twice)} twice; give each once")
    if "" in names:
        raise DataError(f"{where} has a label without a name; write one, or leave the line out")
    return dict(pairs)


# ---------------------------------------------------------------- a folder for each class


def _folder(root: Path, names: _Names | None) -> EvalData:
    folders = {each.name: each for each in sorted(root.iterdir()) if _is_class(each)}
    if _is_captioned(root):
        rows = list(folder_rows(root))
        if strange := [at for at, row in rows if not isinstance(row, Mapping)]:
            raise DataError(f"{strange[0]} is not an object with named fields")
        columns = dict.fromkeys(key for _, row in rows for key in row)
        return _from_rows(root, rows, columns, root, names)
    if not folders:
        raise DataError(
            f"{quoted(root)} has no labels and no captions: put the pictures of each class into a "
            "folder of its own, named as the class; or write a .txt with its caption beside each "
            "picture; or give a .csv with the columns path and label or caption"
        )
    if _SPLITS.issuperset(folders):
        raise DataError(
            f"{quoted(root)} holds splits ({', '.join(folders)}) and not classes; give one of "
            "them, and --train with another for a linear probe"
        )
    where = "labels"
    if names is None and (root / CLASSES).is_file():
        names, where = _read_names(root / CLASSES), CLASSES
    if names is None:
        spoken = [(name, name.replace("_", " ").strip()) for name in folders]
        names, where = _named(spoken, f"the folder {quoted(root)}"), ""
    names = _by_folder(names, folders)
    if strange := [name for name in folders if name not in names]:
        raise DataError(f"{quoted(root)} has {_few('folder', strange)}, not among {where}")
    paths: list[Path] = []
    targets: list[int] = []
    for at, (key, name) in enumerate(names.items()):
        found = sorted(_pictures(folders[key])) if key in folders else []
        if not found:
            raise DataError(
                f"the class {quoted(name)} has no pictures in {quoted(root / key)}; add some, or "
                "take the class away"
            )
        paths += found
        targets += [at] * len(found)
    return EvalData(str(root), tuple(paths), tuple(names.values()), tuple(targets))


def _is_captioned(root: Path) -> bool:
    return any((root / name).is_file() for name in TABLES) or any(
        path.suffix.lower() in ENDINGS and path.with_suffix(".txt").is_file()
        for path in root.iterdir()
    )


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _by_folder(names: _Names, folders: Mapping[str, Path]) -> _Names:
    """Names by folders: a list of plain names may write spaces where folders have underscores."""
    spoken = {name.replace("_", " ").strip(): name for name in folders}
    return {key if key in folders else spoken.get(key, key): name for key, name in names.items()}


def _pictures(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    ]


# ---------------------------------------------------------------- a table


def _table(path: Path, base: Path, names: _Names | None) -> EvalData:
    reader = csv.DictReader(io.StringIO(_text(path)), delimiter=_TABLES[path.suffix.lower()])
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{quoted(path)} cannot be read as a table: {error}") from error
    placed = [(f"{quoted(path)}, row {line}", row) for line, row in enumerate(rows, 2)]
    return _from_rows(path, placed, reader.fieldnames or (), base, names)


def _from_rows(
    path: Path,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    fields: Iterable[str],
    base: Path,
    names: _Names | None,
) -> EvalData:
    """Rows, each with where it stands, and the fields they have between them."""
    columns = [name for name in fields if name]
    where, label, caption = (_column(columns, each) for each in (_PATHS, _LABELS, _CAPTIONS))
    if where is None or not (label or caption):
        raise DataError(
            f"{quoted(path)} has the columns {', '.join(columns) or '(none)'}; it needs path, and "
            "label or caption"
        )
    if names is not None and label is None:
        raise DataError(f"{quoted(path)} has captions and no labels, so labels= means nothing")
    if not rows:
        raise DataError(f"{quoted(path)} has no rows below its columns")
    captions: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for at, row in rows:
        picture = _cell(row.get(where), where, at)
        captions.setdefault(picture, [])
        if caption:
            several = row.get(caption)
            texts_of = several if isinstance(several, list) and several else [several]
            captions[picture] += [_cell(text, caption, at) for text in texts_of]
        if label:
            name = _cell(row.get(label), label, at)
            if given.setdefault(picture, name) != name:
                raise DataError(
                    f"{at}: {quoted(picture)} has the labels {quoted(given[picture])} and "
                    f"{quoted(name)}; give a picture one label"
                )
    paths = tuple(base / home_path(each) for each in captions)
    texts = tuple(map(tuple, captions.values())) if caption else ()
    if not label:
        return EvalData(str(path), paths, captions=texts)
    if names is None:
        names = {name: name for name in sorted({*given.values()})}
    labels = {key: at for at, key in enumerate(names)}
    if strange := [name for name in dict.fromkeys(given.values()) if name not in labels]:
        hint = did_you_mean(strange[0], labels)
        raise DataError(f"{quoted(path)} has {_few('label', strange)}, not among labels.{hint}")
    if bare := [name for key, name in names.items() if key not in given.values()]:
        raise DataError(
            f"the class {quoted(bare[0])} has no pictures in {quoted(path)}; take it away"
        )
    targets = tuple(labels[name] for name in given.values())
    return EvalData(str(path), paths, tuple(names.values()), targets, texts)


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.strip().lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _cell(found: Any, column: str, where: str) -> str:
    if found is not None and not isinstance(found, str):
        raise DataError(f"{where}: {column} is {found!r:.60}; give a text")
    text = (found or "").strip()
    if not text:
        raise DataError(f"{where}: {column} is empty")
    return text


# ---------------------------------------------------------------- COCO's captions


def _coco(path: Path, base: Path) -> EvalData:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{quoted(path)} cannot be read as JSON: {error}") from error
    wanted = "COCO's captions have a list 'images' (id, file_name) and a list 'annotations' "
    wanted += "(image_id, caption)"
    if not isinstance(found, dict) or not all(
        isinstance(found.get(name), list) for name in ("images", "annotations")
    ):
        raise DataError(f"{quoted(path)} is not in COCO's layout: {wanted}")
    files: dict[Any, str] = {}
    for at, each in enumerate(found["images"]):
        number, name = _fields(each, ("id", "file_name"), f"images[{at}] of {quoted(path)}", wanted)
        if number in files:
            raise DataError(f"images[{at}] of {quoted(path)}: the id {number!r} is there twice")
        files[number] = str(name)
    captions: dict[Any, list[str]] = {number: [] for number in files}
    for at, each in enumerate(found["annotations"]):
        place = f"annotations[{at}] of {quoted(path)}"
        number, text = _fields(each, ("image_id", "caption"), place, wanted)
        if number not in captions:
            raise DataError(f"{place}: there is no picture with the id {number!r}")
        if not str(text).strip():
            raise DataError(f"{place}: caption is empty")
        captions[number].append(str(text).strip())
    if not files:
        raise DataError(f"{quoted(path)} has no pictures: {wanted}")
    if bare := [files[number] for number, texts in captions.items() if not texts]:
        raise DataError(f"{quoted(path)} has no caption of {_few('picture', bare)}")
    paths = tuple(base / home_path(name) for name in files.values())
    return EvalData(str(path), paths, captions=tuple(map(tuple, captions.values())))


def _fields(record: Any, names: tuple[str, str], where: str, wanted: str) -> tuple[Any, Any]:
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name), str | int) for name in names
    ):
        raise DataError(f"{where} has no {' and '.join(names)}: {wanted}")
    return record[names[0]], record[names[1]]


# ---------------------------------------------------------------- files


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors begin with a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{quoted(path)} is not text in UTF-8; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{quoted(path)} cannot be read: {why}") from error


def _few(what: str, names: Sequence[str]) -> str:
    """Some names of many: "the labels 'a', 'b' and 7 more"."""
    shown = ", ".join(map(quoted, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return f"the {what}{'s' * (len(names) > 1)} {shown}" + (f" and {more} more" if more > 0 else "")
