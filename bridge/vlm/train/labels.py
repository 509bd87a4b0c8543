"""A conversation to ids and labels: only what the assistant says is learnt."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bridge.errors import DataError, PromptError
from bridge.vlm.chat import IMAGE_TOKEN
from bridge.vlm.choice import n_common
from bridge.vlm.layout import IGNORE_LABEL
from bridge.vlm.prompting import ChatWriter
from bridge.vlm.train.rows import Picture, Row


@dataclass(frozen=True, eq=False)
class Encoded:
    """One row as the language model takes it.

    ``ids`` has every image mark repeated as its picture has soft tokens; ``labels`` is as long,
    the id itself where it is learnt (an answer and the token that ends it), else -100. Arrays of
    C ints, as a million rows are held at once.
    """

    ids: array[int]
    labels: array[int]
    pictures: tuple[Picture, ...]
    n_learnt: int


def encode(writer: ChatWriter, row: Row, n_soft: Sequence[int], limit: int | None) -> Encoded:
    """Ids and labels of a row whose pictures have ``n_soft`` soft tokens.

    The ids up to an answer are those that answering will see, so the text of training and of use
    is one. Turns that do not fit into ``limit`` positions are left out, with their pictures.
    Raises DataError when not even the first turn fits, or has nothing in it to learn.
    """
    if writer.context is not None:
        writer = replace(writer, context=None)  # the limit is judged here
    marked = any(IMAGE_TOKEN in question for question, _ in row.turns)
    ids: list[int] = []
    labels: list[int] = []
    used = 0
    try:
        for last in range(1, len(row.turns) + 1):
            turns = row.turns[:last]
            marks = sum(question.count(IMAGE_TOKEN) for question, _ in turns)
            count = marks if marked else len(row.pictures)
            asked = writer.ids(turns, n_soft[:count])
            told = writer.ids(turns, n_soft[:count], answer=turns[-1][1])
            if limit is not None and len(told) > limit:
                if last == 1:
                    raise DataError(
                        f"{row.where}: the first turn takes {len(told)} positions "
                        f"({sum(n_soft[:count])} of them pictures), and {limit} are allowed; "
                        "shorten it"
                    )
                break
            if told[: len(ids)] != ids:
                raise DataError(
                    f"{row.where}: the chat template of {writer.name} writes earlier turns anew "
                    "when a turn follows; split the conversation into rows of one turn"
                )
            # Where a tokenizer joins the last letter asked with the first one told, the joined
            # token is learnt.
            start = max(len(ids), n_common(asked, told))
            labels += [IGNORE_LABEL] * (start - len(labels)) + told[start:]
            ids, used = told, count
    except PromptError as error:
        raise DataError(f"{row.where}: {error}") from error
    n_learnt = sum(label != IGNORE_LABEL for label in labels[1:])
    if not n_learnt:
        raise DataError(f"{row.where}: no token of an answer is left to learn")
    return Encoded(array("i", ids), array("i", labels), row.pictures[:used], n_learnt)
