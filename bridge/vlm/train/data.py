"""Training data: LLaVA's conversation JSON, a folder with captions, or rows of `datasets`.

All become a list of `Row`: the records of `bridge.training.records`, read as conversations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.errors import DataError, PromptError
from bridge.training.records import Data, Picture, Record, name_of, read_records
from bridge.vlm.chat import IMAGE_TOKEN, Turn, checked_turns, marks_at_head, n_pictures_at_head


@dataclass(frozen=True, eq=False)
class Row:
    """One conversation and its pictures, and where it stood for errors to name."""

    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    where: str


CAPTION_QUESTION = "describe the picture."
"""What a caption is the answer to, where the data has captions and no questions."""

_SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


def read_data(
    data: Data,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    caption_question: str = CAPTION_QUESTION,
) -> list[Row]:
    """Rows of a file, a folder, shards or an iterable, as `read_records` reads them.

    - LLaVA's form: ``{"image": "a.png", "conversations": [{"from": "human", "value":
      "<image>\\n..."}, {"from": "gpt", ...}]}``, in a ``.json`` (list) or ``.jsonl`` file.
    - ``image`` or ``images``, and ``messages``, ``question`` and ``answer``, ``text`` or
      ``caption``, in any layout.

    Raises DataError, which names file and row.
    """
    records = read_records(data, image_folder=image_folder)
    if not records:
        raise DataError(f"{name_of(data)} has no row to train on")
    return [_row(record, caption_question) for record in records]


def _row(record: Record, caption_question: str) -> Row:
    turns = _turns(record.fields, record.where, caption_question)
    try:
        for question, answer in turns:
            checked_turns(question, [(question, answer)])
        n_pictures_at_head(turns, len(record.pictures))
    except PromptError as error:
        raise DataError(f"{record.where}: {error}") from error
    for number, (_, answer) in enumerate(turns, start=1):
        if not answer.strip():
            raise DataError(
                f"{record.where}: the answer of turn {number} is empty; write it or drop it"
            )
    return Row(record.pictures, marks_at_head(turns), record.where)


def _turns(record: Mapping[str, Any], where: str, caption_question: str) -> list[Turn]:
    for key, speaker, said in (("conversations", "from", "value"), ("messages", "role", "content")):
        if record.get(key) is not None:
            return _spoken(record[key], speaker, said, where)
    if record.get("question") is not None and record.get("answer") is not None:
        question, answer = (_plain(record[key], key, where) for key in ("question", "answer"))
        return [(question, answer.strip())]
    for key in ("text", "caption"):
        if isinstance(record.get(key), str):
            return [(caption_question, record[key].strip())]
    raise DataError(
        f"{where} has the fields {', '.join(map(repr, record)) or 'none'}; it needs "
        "'conversations', 'messages', 'question' and 'answer', 'text' or 'caption'"
    )


def _plain(value: Any, key: str, where: str) -> str:
    """A text or a number; of a list, the model would learn Python's way of writing it."""
    if isinstance(value, str | int | float):
        return str(value)
    raise DataError(
        f"{where}: its {key!r} is a {type(value).__name__}; give one text, such as the first of "
        "several answers"
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
