"""Occlusion: how much likelier each word of an answer is for what stands in a patch.

Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (2014): a blank window
slides over the picture, and what the answer loses is laid where the window was. It asks of the
model what it does, not how, so it holds for every tower, projector and language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import OptionError
from bridge.vlm.chat import Turn
from bridge.vlm.inside.blanks import Fill, canvas, mask_of
from bridge.vlm.inside.places import check_index, one_picture
from bridge.vlm.inside.words import tell, word_log_probs
from bridge.vlm.projectors.protocol import Grid
from bridge.vlm.question import checked_turns

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.vlm.model import BridgeVLM


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What an answer of W words loses without each of K windows of patches.

    Log-probabilities are natural, summed over a word's tokens.
    """

    question: str
    answer: str
    words: tuple[str, ...]
    log_probs: np.ndarray  # (W,) with the whole picture
    blanked: np.ndarray  # (K, W) with one window blank
    windows: np.ndarray  # bool (K, rows, columns) of the tower's patches, True where blank
    picture: Image  # as the tower saw it
    fill: Fill

    @property
    def drops(self) -> np.ndarray:
        """(K, W): how much log-probability a word loses; below 0 where it gains."""
        return self.log_probs - self.blanked

    def cells(self, word: int | None = None) -> np.ndarray:
        """(rows, columns): the mean drop over the windows that cover a patch, of one word or,
        without ``word``, of the whole answer."""
        n_words = len(self.words)
        drops = self.drops
        drops = drops.sum(1) if word is None else drops[:, check_index(word, n_words, "word")]
        total = np.tensordot(drops, self.windows.astype(float), axes=1)
        return total / self.windows.sum(0)


def occlusion(
    vlm: BridgeVLM,
    image: Any,
    question: str,
    answer: str | None = None,
    *,
    history: Sequence[Turn] = (),
    fill: Fill = "colour",
    window: int | None = None,
    stride: int | None = None,
    batch: int = 16,
) -> Occlusion:
    """Slide a blank window over the picture and weigh each word of ``answer`` anew.

    ``answer`` is by default the model's own. ``window`` is the window's side in patches of the
    tower (default: a quarter of the grid's longer side), ``stride`` how far it moves (default:
    half its side), ``fill`` how patches are blanked (see `bridge.vlm.inside.blanks`). ``batch``
    windows go through the model at once.

    Raises OptionError (several pictures, a window larger than the grid), UnsupportedModelError
    for a model of text alone, and what `BridgeVLM.answer` raises.
    """
    checked_turns(question, history)
    picture = one_picture(image)
    board = canvas(vlm, picture, fill)
    side = max(1, round(max(board.grid) / 4)) if window is None else window
    masks = sliding_windows(board.grid, side, max(1, side // 2) if stride is None else stride)
    if answer is None:
        answer = vlm.answer(picture, question, history=history)
    soft = vlm.picture_tokens(board.views)
    told = tell(vlm, question, answer, history, [len(each) for each in soft])
    whole = word_log_probs(vlm, told, soft)[0].numpy()
    less = word_log_probs(vlm, told, board.soft(masks, fill, batch), batch).numpy()
    return Occlusion(question, answer, told.texts, whole, less, masks, board.seen, fill)


def sliding_windows(grid: Grid, side: int, stride: int) -> np.ndarray:
    """Masks bool (K, rows, columns) of windows that cover the grid, the last ones flush with its
    edges. Raises OptionError for a side or stride outside the grid."""
    for name, value in (("window", side), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= max(grid):
            raise OptionError(
                f"{name} is {value!r}; give a whole number of patches from 1 to {max(grid)}"
            )
    if stride > side:
        raise OptionError(f"a stride of {stride} skips patches between windows of {side}")
    tops, lefts = (
        sorted({*range(0, max(size - side, 0) + 1, stride), max(size - side, 0)}) for size in grid
    )
    masks = np.zeros((len(tops) * len(lefts), *grid), dtype=bool)
    for mask, (top, left) in zip(masks, ((t, x) for t in tops for x in lefts), strict=True):
        mask[top : top + side, left : left + side] = True
    return masks


@dataclass(frozen=True, eq=False)
class Blanked:
    """An answer with and without some patches."""

    question: str
    patches: tuple[tuple[int, int], ...]
    before: str
    after: str
    words: tuple[str, ...]  # of the answer before
    log_probs_before: np.ndarray  # (W,) of these words, with the whole picture
    log_probs_after: np.ndarray  # (W,) and without the patches
    picture: Image  # as the tower saw it, blanked patches in the mean colour


def answer_without(
    vlm: BridgeVLM,
    image: Any,
    question: str,
    patches: Sequence[tuple[int, int]],
    *,
    history: Sequence[Turn] = (),
    fill: Fill = "colour",
    max_new_tokens: int = 64,
) -> Blanked:
    """Ask with and without the ``patches``, (row, column) pairs on the tower's grid.

    Raises OptionError for a patch beyond the grid, and what `occlusion` raises.
    """
    turns = checked_turns(question, history)
    picture = one_picture(image)
    board = canvas(vlm, picture, fill)
    mask = mask_of(patches, board.grid)
    before = vlm.answer(picture, question, history=history, max_new_tokens=max_new_tokens)
    whole, less = vlm.picture_tokens(board.views), board.soft(mask[None], fill)
    prompt = vlm.prompt_ids(turns, [len(each) for each in whole])
    ids = vlm._generate(vlm.embed([prompt], less), max_new_tokens)
    after = vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
    told = tell(vlm, question, before, history, [len(each) for each in whole])
    weighed = word_log_probs(vlm, told, [*whole, *less]).numpy()
    return Blanked(
        question=question,
        patches=tuple((int(row), int(column)) for row, column in patches),
        before=before,
        after=after,
        words=told.texts,
        log_probs_before=weighed[0],
        log_probs_after=weighed[1],
        picture=board.blanked(mask),
    )
