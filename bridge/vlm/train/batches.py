"""Conversations to ids and labels, and to batches. Only what the assistant says is learnt."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bridge.errors import DataError, PromptError
from bridge.vlm.answering import n_common
from bridge.vlm.chat import IMAGE_TOKEN, Turn
from bridge.vlm.chat_writer import ChatWriter
from bridge.vlm.merge_embeddings import pad_rows
from bridge.vlm.train.data import Picture, Row
from bridge.vlm.train.feature_cache import FeatureSource

IGNORE_LABEL = -100  # what torch's cross entropy leaves out


@dataclass(frozen=True, eq=False)
class LabelledRow:
    """One row as the language model takes it.

    ``ids`` has every image mark repeated as its picture has soft tokens; ``labels`` is as long,
    the id itself where it is learnt (an answer and the token that ends it), else -100. Arrays of
    C ints, as a million rows are held at once.
    """

    ids: array[int]
    labels: array[int]
    pictures: tuple[Picture, ...]
    n_learnt: int


def encode(writer: ChatWriter, row: Row, n_soft: Sequence[int], limit: int | None) -> LabelledRow:
    """Ids and labels of a row whose pictures have ``n_soft`` soft tokens.

    The ids up to an answer are those that answering will see, so the text of training and of use
    is one; where the chat layout has no token that ends an answer, the last one alone is followed
    by the end of text. Turns that do not fit into ``limit`` positions are left out, with their
    pictures. Raises DataError when not even the first turn fits, or has nothing in it to learn.
    """
    if writer.context is not None:
        writer = replace(writer, context=None)  # the limit is judged here
    marked = any(IMAGE_TOKEN in question for question, _ in row.turns)
    prefixes: list[_Prefix] = []
    try:
        for last in range(1, len(row.turns) + 1):
            turns = row.turns[:last]
            marks = sum(question.count(IMAGE_TOKEN) for question, _ in turns)
            soft = n_soft[: marks if marked else len(row.pictures)]
            answered = writer.ids(turns, soft, answer=turns[-1][1])
            if limit is not None and len(answered) > limit:
                if last == 1:
                    raise DataError(
                        f"{row.where}: the first turn takes {len(answered)} positions "
                        f"({sum(soft)} of them pictures), and {limit} are allowed; shorten it"
                    )
                break
            prefixes.append(_Prefix(turns, soft, writer.ids(turns, soft), answered))
        ids = prefixes[-1].answered
        labels = _labels(writer, prefixes, row.where)
    except PromptError as error:
        raise DataError(f"{row.where}: {error}") from error
    n_learnt = sum(label != IGNORE_LABEL for label in labels[1:])
    if not n_learnt:
        raise DataError(f"{row.where}: no token of an answer is left to learn")
    pictures = row.pictures[: len(prefixes[-1].soft)]
    return LabelledRow(array("i", ids), array("i", labels), pictures, n_learnt)


@dataclass(frozen=True, eq=False)
class _Prefix:
    """A row up to one of its answers: ids before it, and to its end if the row ended there."""

    turns: Sequence[Turn]
    soft: Sequence[int]
    prompt: list[int]
    answered: list[int]


def _labels(writer: ChatWriter, prefixes: Sequence[_Prefix], where: str) -> list[int]:
    """The labels of the last of ``prefixes``, which is the whole row."""
    whole = prefixes[-1].answered
    labels: list[int] = []
    for each in prefixes:
        answered = each.answered
        if whole[: len(answered)] != answered:
            answered = writer.ids_when_followed(each.turns, each.soft)
        if whole[: len(answered)] != answered:
            raise DataError(
                f"{where}: the chat template of {writer.name} writes earlier turns anew "
                "when a turn follows; split the conversation into rows of one turn"
            )
        # Where a tokenizer joins the last letter of a question with the first of its answer, the
        # joined token is learnt.
        start = max(len(labels), n_common(each.prompt, answered))
        labels += [IGNORE_LABEL] * (start - len(labels)) + answered[start:]
    return labels


@dataclass(frozen=True, eq=False)
class Batch:
    """Ragged conversations, padded on the right, and the states of their pictures."""

    ids: torch.Tensor  # (B, T) int64
    mask: torch.Tensor  # (B, T) int64, 0 on padding
    labels: torch.Tensor  # (B, T) int64, -100 where nothing is learnt
    states: torch.Tensor  # (V, N, D_vision), the views of all pictures in reading order
    counts: tuple[int, ...]  # views of each picture
    sizes: tuple[tuple[int, int], ...]  # height and width of each picture


def make_batch(
    rows: Sequence[LabelledRow], features: FeatureSource, pad_id: int, device: torch.device
) -> Batch:
    """Rows as one batch on ``device``. Without any picture, ``states`` is empty: (0,)."""
    ids, mask = pad_rows([row.ids for row in rows], pad_id, "right")
    labels, _ = pad_rows([row.labels for row in rows], IGNORE_LABEL, "right")
    pictures = [picture for row in rows for picture in row.pictures]
    states = features(pictures)
    return Batch(
        ids.to(device),
        mask.to(device),
        labels.to(device),
        torch.cat([each.to(device) for each in states])
        if states
        else torch.empty(0, dtype=torch.float32),
        tuple(len(each) for each in states),
        tuple(picture.size for picture in pictures),
    )
