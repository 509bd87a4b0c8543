"""Questions about a scene, packed into one sequence that holds its picture once.

A scene allows about ten questions. Half of the scenes are learnt as separate one-turn chats
that share their image tokens: one sequence, a mask that hides the other questions, and
positions that restart after the image. The other half are chats of several turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bridge.vlm.chat import Turn
from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.art import Sprites
from emoji_world.questions import questions
from emoji_world.scenes import Scene
from emoji_world.train.data import PatchTruth, patch_truth, pixels, rendered

MAX_TURNS = 4
MORE_YES_NO = 3

Packed = tuple[list[int], list[int], list[int], list[int]]
"""Ids, labels, positions and segment numbers of one sequence."""


def as_typed(text: str, rng: random.Random) -> str:
    """A question as people type it: often with a capital, sometimes without its mark."""
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text[:-1] if rng.random() < 0.15 else text


def packed(
    encode: Callable[[Sequence[Turn]], tuple[list[int], list[int]]],
    image_id: int,
    scene: Scene,
    rng: random.Random,
) -> Packed:
    """One scene's questions. ``encode`` turns a chat about it into ids and labels, in which the
    image stands as a run of ``image_id``.

    Segment 0 is what every question may look at (the beginning and the image); a token sees
    segment 0 and its own segment. A chat of several turns is one segment.
    """
    asked = questions(scene, rng)
    # More of what is learnt last: to match a word of the question with what is seen.
    for _ in range(MORE_YES_NO):
        asked += [q for q in questions(scene, rng) if q.answer in ("yes", "no")]
    turns = [(as_typed(q.text, rng), q.answer) for q in asked]
    if rng.random() < 0.5:
        chat, taught = encode(turns[: rng.randint(1, MAX_TURNS)])
        return chat, taught, list(range(len(chat))), [0] * len(chat)
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    for number, turn in enumerate(turns, start=1):
        own_ids, own_labels = encode([turn])
        after = len(own_ids) - own_ids[::-1].index(image_id)
        start = 0 if number == 1 else after
        ids += own_ids[start:]
        labels += own_labels[start:]
        positions += range(start, len(own_ids))
        segments += [0 if place < after else number for place in range(start, len(own_ids))]
    return ids, labels, positions, segments


@dataclass(frozen=True)
class Chats:
    """Right-padded ids, labels, positions and segment numbers, long (B, T)."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor

    def to(self, device: torch.device) -> Chats:
        """The same on ``device``."""
        return Chats(*(column.to(device) for column in vars(self).values()))

    def may_look(self) -> torch.Tensor:
        """The mask (B, 1, T, T): True where a token (third dim) may look at one (fourth dim)."""
        segments = self.segments
        causal = segments.new_ones(2 * segments.shape[1:], dtype=torch.bool).tril()
        same = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        return (causal & same)[:, None]


@dataclass(frozen=True)
class QuestionBatch:
    """Scenes on the CPU: pictures uint8 (B, 128, 128, 3), their questions, the patches' truth."""

    pictures: torch.Tensor
    chats: Chats
    truth: PatchTruth

    def to(self, device: torch.device) -> QuestionBatch:
        """The same on ``device``, the pictures as a tower reads them, (B, 3, 128, 128)."""
        return QuestionBatch(
            pixels(self.pictures.to(device)), self.chats.to(device), self.truth.to(device)
        )


def ask(
    scenes: Sequence[Scene], example: Callable[[Scene], Packed], pad: int, sprites: Sprites
) -> QuestionBatch:
    """The scenes with what ``example`` packs of each."""
    chats = collate([example(scene) for scene in scenes], pad)
    return QuestionBatch(rendered(scenes, sprites), chats, patch_truth(scenes))


def collate(examples: Sequence[Packed], pad: int) -> Chats:
    """The sequences side by side; nobody looks at what pads them."""
    length = max(len(e[0]) for e in examples)

    def stack(part: int, fill: int) -> torch.Tensor:
        return torch.tensor(
            [e[part] + [fill] * (length - len(e[part])) for e in examples], dtype=torch.long
        )

    return Chats(stack(0, pad), stack(1, IGNORE_LABEL), stack(2, 0), stack(3, -1))
