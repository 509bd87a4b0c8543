"""Training data: LLaVA's conversation JSON, a folder with captions, or rows of `datasets`.

All become a list of `Row`. Text is read and checked and every picture file's header is looked at
here, so that bad data is said before any model loads; pixels are read when they are needed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bridge.errors import DataError, ImageError, PromptError, quoted
from bridge.files import hash_file, home_path
from bridge.images import ImageInput, image_size, load_image
from bridge.vlm.chat import IMAGE_TOKEN, Turn, checked_turns, marks_at_head, n_pictures_at_head

if TYPE_CHECKING:
    from PIL.Image import Image


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
class Row:
    """One conversation and its pictures, and where it stood for errors to name."""

    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    where: str


Data: TypeAlias = "str | os.PathLike[str] | Iterable[Mapping[str, Any]]"

CAPTION_QUESTION = "describe the picture."
"""What a caption is the answer to, where the data has captions and no questions."""

_TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv")
_PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


def read_data(
    data: Data,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    caption_question: str = CAPTION_QUESTION,
) -> list[Row]:
    """Rows of a file, a folder or an iterable.

    - A ``.json`` (list) or ``.jsonl`` file in LLaVA's form: ``{"image": "a.png",
      "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]}``.
      Pictures lie in ``image_folder``, by default the file's own folder.
    - A folder as `datasets`' imagefolder has it: ``metadata.jsonl``, ``metadata.csv`` or
      ``captions.csv`` with ``file_name`` and ``text`` (or ``caption``, or ``question`` and
      ``answer``); or pictures, each beside a ``.txt`` of its name.
    - Any iterable of mappings, a `datasets.Dataset` among them: ``image`` or ``images`` (whatever
      `load_image` reads), and ``conversations``, ``messages``, ``question`` and ``answer``,
      ``text`` or ``caption``. Rows of a sequence are read again when their pixels are needed.

    Raises DataError, which names file and row.
    """
    if isinstance(data, str | os.PathLike):
        if not os.fspath(data):
            raise DataError("data is an empty path; give a file or a folder")
        path = home_path(data)
        is_folder = os.path.isdir(path)
        base = path if is_folder else path.parent
        pictures = base if image_folder is None else home_path(image_folder)
        records = _folder(path) if is_folder else _file(path)
        rows = [_row(each, where, caption_question, _from(pictures)) for where, each in records]
        name = repr(str(path))
    elif isinstance(data, Iterable) and not isinstance(data, bytes | Mapping):
        rows, name = _iterable(data, image_folder, caption_question), "the iterable"
    else:
        raise DataError(f"data is a {type(data).__name__}; give a file, a folder or rows")
    if not rows:
        raise DataError(f"{name} has no row to train on")
    return rows


# -- where rows come from -----------------------------------------------------------------

Records: TypeAlias = Iterable[tuple[str, Mapping[str, Any]]]


def _file(path: Path) -> Records:
    if not os.path.isfile(path):
        raise DataError(f"no such file or folder of training data: {quoted(path)}")
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(
            f"{str(path)!r} is not training data; give LLaVA's .json or .jsonl, or a folder"
        )
    text = _text(path)
    if path.suffix.lower() == ".jsonl":
        # Not splitlines(), which cuts at U+2028 and others that JSON allows inside of a string.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}, line {number}", _json(line, f"{path}, line {number}")
        return
    records = _json(text, str(path))
    if not isinstance(records, list):
        raise DataError(f"{path} holds no list; LLaVA's form is a list of conversations")
    for number, record in enumerate(records, start=1):
        yield f"{path}, row {number}", record


def _folder(folder: Path) -> Records:
    for name in _TABLES:
        table = folder / name
        if table.is_file() and table.suffix == ".jsonl":
            return _file(table)
        if table.is_file():
            lines = csv.DictReader(io.StringIO(_text(table), newline=""))
            return [(f"{table}, row {n}", line) for n, line in enumerate(lines, start=1)]
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES)
    alone = [p for p in found if not p.with_suffix(".txt").is_file()]
    if alone:
        raise DataError(
            f"{alone[0]} has no caption ({len(alone)} of {len(found)} pictures have none); write "
            f"{alone[0].with_suffix('.txt').name} beside it, or a {_TABLES[0]} for all"
        )
    return [
        (str(p), {"image": str(p.relative_to(folder)), "text": _text(p.with_suffix(".txt"))})
        for p in found
    ]


def _iterable(data: Any, image_folder: Any, caption_question: str) -> list[Row]:
    # A sequence can be asked again, so no picture of it need be kept.
    again = isinstance(data, Sequence) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    )
    base = home_path(image_folder) if image_folder is not None else Path()
    rows = []
    for index, record in enumerate(data):

        def read(place: int, index: int = index) -> Any:
            return _images(data[index])[place]

        rows.append(
            _row(
                record,
                f"row {index + 1}",
                caption_question,
                _from(base, read if again else None),
            )
        )
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error


# -- one row ------------------------------------------------------------------------------

Opener: TypeAlias = Callable[[Any, int, str], Picture]


def _row(record: Any, where: str, caption_question: str, opened: Opener) -> Row:
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is a {type(record).__name__}, not an object with named fields")
    where = f"{where} (id {record['id']!r})" if "id" in record else where
    pictures = tuple(opened(each, n, where) for n, each in enumerate(_images(record)))
    turns = _turns(record, where, caption_question)
    try:
        for question, answer in turns:
            checked_turns(question, [(question, answer)])
        n_pictures_at_head(turns, len(pictures))
    except PromptError as error:
        raise DataError(f"{where}: {error}") from error
    for number, (_, answer) in enumerate(turns, start=1):
        if not answer.strip():
            raise DataError(f"{where}: the answer of turn {number} is empty; write it or drop it")
    return Row(pictures, marks_at_head(turns), where)


def _images(record: Mapping[str, Any]) -> list[Any]:
    found: Any = next(
        (record[k] for k in ("image", "images", "file_name") if record.get(k) is not None), []
    )
    return list(found) if isinstance(found, list | tuple) else [found]


def _turns(record: Mapping[str, Any], where: str, caption_question: str) -> list[Turn]:
    for key, speaker, said in (("conversations", "from", "value"), ("messages", "role", "content")):
        if record.get(key) is not None:
            return _spoken(record[key], speaker, said, where)
    if record.get("question") is not None and record.get("answer") is not None:
        return [(str(record["question"]), str(record["answer"]).strip())]
    for key in ("text", "caption"):
        if isinstance(record.get(key), str):
            return [(caption_question, record[key].strip())]
    raise DataError(
        f"{where} has the fields {', '.join(map(repr, record)) or 'none'}; it needs "
        "'conversations', 'messages', 'question' and 'answer', 'text' or 'caption'"
    )


def _spoken(said: Any, speaker_key: str, text_key: str, where: str) -> list[Turn]:
    if not isinstance(said, Sequence) or isinstance(said, str) or not said:
        raise DataError(f"{where}: the conversation is not a list of messages")
    texts: list[str] = []
    for number, message in enumerate(said, start=1):
        speaker = message.get(speaker_key) if isinstance(message, Mapping) else None
        if speaker not in _SPEAKERS:
            raise DataError(
                f"{where}: message {number} is from {speaker!r}; it is 'human' or 'gpt' "
                "('user' or 'assistant') that speak"
            )
        if number == 1 and _SPEAKERS[speaker] == 1:
            continue  # an answer to nothing; LLaVA leaves it out too
        if _SPEAKERS[speaker] != len(texts) % 2:
            raise DataError(f"{where}: message {number} is from {speaker!r} again; they take turns")
        texts.append(_said(message.get(text_key), f"{where}: message {number}"))
    if not texts or len(texts) % 2:
        raise DataError(f"{where}: the conversation ends without an answer; add one or drop it")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _said(content: Any, where: str) -> str:
    """A text, or a message's parts as one; an image part is a mark."""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        pieces = [
            f"{IMAGE_TOKEN}\n" if part.get("type") == "image" else part.get("text")
            for part in content
        ]
        if all(isinstance(piece, str) for piece in pieces):
            return "".join(map(str, pieces)).strip()
    raise DataError(f"{where} has no text")


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
            return Picture(name, (image.height, image.width), lambda: image)
        read = again
        return Picture(
            name,
            (image.height, image.width),
            lambda: read(place) if decode is None else decode(read(place)),
        )

    return opened


def _undecoded(source: Mapping[str, Any]) -> Any:
    return source["bytes"] if source.get("bytes") is not None else source.get("path")
