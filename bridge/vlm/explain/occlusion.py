"""Occlusion: how much likelier each word of an answer is for what stands in a patch.

Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (2014): a blank window
slides over the picture, and what the answer loses is laid where the window was. It asks of the
model what it does, not how, so it holds for every tower, projector and language model.

Two ways to blank, by what they leave out:

- "colour": the patch's pixels become the picture's mean colour, and the tower looks again. The
  picture itself lacks the patch; nothing of it is left in its neighbours' states.
- "state": the tower's state of the patch becomes the mean of the picture's patch states. The
  tower has seen everything; what its other states hold of the patch stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from bridge.checks import keywords, whole
from bridge.errors import OptionError
from bridge.rgb import to_rgb
from bridge.vlm.chat import Turn, checked_turns
from bridge.vlm.explain.answers import answer_words, word_log_probs
from bridge.vlm.explain.pictures import (
    as_picture,
    check_word,
    one_picture,
    patch_pixels,
    patches_of,
)
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors.protocol import Grid
from bridge.vlm.views import AnyRes, Views

if TYPE_CHECKING:
    from PIL.Image import Image

Fill = Literal["colour", "state"]


@dataclass(frozen=True, eq=False)
class Canvas:
    """One picture, ready to be blanked. ``grid`` is that of the tower's patches; with anyres, of
    the whole picture's view, and cells are blanked in the picture before it is tiled."""

    vlm: BridgeVLM
    picture: Image
    views: Views
    grid: Grid

    @property
    def seen(self) -> Image:
        """The picture as the tower sees it."""
        return as_picture(self.vlm.image_processor, self.views.pixel_values[0])

    @torch.inference_mode()
    def soft(self, masks: np.ndarray, fill: Fill, batch: int = 16) -> list[torch.Tensor]:
        """The soft tokens (M, D_llm) for each of K masks, bool (K, rows, columns), True = blank."""
        make = {"colour": self._without_pixels, "state": self._without_states}[fill]
        parts = [masks[i : i + batch] for i in range(0, len(masks), batch)]
        return [soft for part in parts for soft in make(torch.from_numpy(part))]

    def blanked(self, mask: np.ndarray) -> Image:
        """What the tower sees when the mask's patches have the mean colour."""
        views = self._blanked(torch.from_numpy(mask[None]))
        return as_picture(self.vlm.image_processor, views.pixel_values[0])

    def _without_pixels(self, masks: torch.Tensor) -> list[torch.Tensor]:
        return self.vlm.picture_tokens(self._blanked(masks))

    def _blanked(self, masks: torch.Tensor) -> Views:
        if isinstance(self.vlm.aspect, AnyRes):
            return _required(self.vlm.views([paint_out(self.picture, m.numpy()) for m in masks])[0])
        pixels = self.views.pixel_values
        wide = _over_pixels(masks, patch_pixels(self.vlm), pixels.shape[-2:])
        mean = pixels.mean((-2, -1), keepdim=True)
        shown = torch.where(wide[:, None], mean, pixels)
        return Views(shown, (1,) * len(masks), self.views.sizes * len(masks))

    def _without_states(self, masks: torch.Tensor) -> list[torch.Tensor]:
        pixels = self.views.pixel_values
        counted = self.vlm.count(*pixels.shape[-2:])
        states = self.vlm.image_states(pixels)
        # States beside patches come first and stay; a patch that was dropped has no state.
        first = counted.extra - counted.dropped
        patches = states[:, max(first, 0) :]
        flat = masks.flatten(1)[:, max(-first, 0) :, None].to(states.device)
        without = torch.where(flat, patches.mean(1, keepdim=True), patches)
        kept = states[:, : max(first, 0)].expand(len(masks), -1, -1)
        return list(self.vlm.project(torch.cat([kept, without], dim=1), counted.layout))


def canvas(vlm: BridgeVLM, picture: Image, fill: Fill = "colour") -> Canvas:
    """Preprocess ``picture`` for blanking.

    Raises OptionError for an unknown ``fill``, and for "state" with anyres, where a patch of the
    picture is in several views at once.
    """
    if fill not in ("colour", "state"):
        raise OptionError(f"fill is {fill!r}; it is 'colour' or 'state'")
    if fill == "state" and isinstance(vlm.aspect, AnyRes):
        raise OptionError("fill='state' is for models with one view a picture; take 'colour'")
    views = _required(vlm.views([picture])[0])
    return Canvas(vlm, picture, views, patches_of(vlm, views))


def mask_of(patches: Sequence[tuple[int, int]], grid: Grid) -> np.ndarray:
    """(row, column) pairs as a mask, bool (rows, columns). Raises OptionError beyond the grid."""
    mask = np.zeros(grid, dtype=bool)
    for patch in patches:
        try:
            row, column = patch
            inside = 0 <= row < grid[0] and 0 <= column < grid[1]
        except (TypeError, ValueError):
            inside = False
        if not inside:
            raise OptionError(
                f"the patch {patch!r} is not in the grid; give (row, column) pairs of "
                f"{grid[0]} rows and {grid[1]} columns, counted from 0"
            )
        mask[row, column] = True
    return mask


def paint_out(picture: Image, mask: np.ndarray) -> Image:
    """The picture with the mask's cells, fractions of its size, in its mean colour."""
    from PIL import Image

    pixels = np.asarray(to_rgb(picture)).copy()
    colour = np.rint(pixels.reshape(-1, 3).mean(0)).astype(np.uint8)
    edges = [
        np.rint(np.linspace(0, size, cells + 1)).astype(int)
        for size, cells in zip(pixels.shape, mask.shape, strict=False)
    ]
    for row, column in np.argwhere(mask):
        down = slice(edges[0][row], edges[0][row + 1])
        pixels[down, edges[1][column] : edges[1][column + 1]] = colour
    return Image.fromarray(pixels)


def _over_pixels(masks: torch.Tensor, patch: tuple[int, int], size: Sequence[int]) -> torch.Tensor:
    """(K, rows, columns) of patches to (K, H, W) of pixels; beyond the last patch nothing."""
    wide = masks.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    out = masks.new_zeros(len(masks), *size)
    out[:, : wide.shape[1], : wide.shape[2]] = wide
    return out


def _required(views: Views | None) -> Views:
    assert views is not None  # one picture was given
    return views


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What an answer of W words loses without each of K windows of patches.

    Log-probabilities are natural, summed over a word's tokens, each given what comes before it.

    Attributes:
        question: what was asked.
        answer: the model's own, or the one that was given.
        words: the W words of ``answer``.
        log_probs: float64 ``(W,)`` with the whole picture; ``np.exp(log_probs.sum())`` is how
            likely the model finds the answer's words.
        blanked: float64 ``(K, W)`` with one window blank.
        windows: bool ``(K, rows, columns)`` of the tower's patches, True where blank.
        picture: as the tower saw it, in RGB.
        fill: how patches were blanked, "colour" or "state".
    """

    question: str
    answer: str
    words: tuple[str, ...]
    log_probs: np.ndarray
    blanked: np.ndarray
    windows: np.ndarray
    picture: Image
    fill: Fill

    @property
    def drops(self) -> np.ndarray:
        """(K, W): how much log-probability a word loses; below 0 where it gains."""
        return self.log_probs - self.blanked

    def cells(self, word: int | str | None = None) -> np.ndarray:
        """(rows, columns): the mean drop over the windows that cover a patch, of one word or,
        without ``word``, of the whole answer.

        A word is one of ``words``, or its number. Raises OptionError for another.
        """
        drops = self.drops
        drops = drops.sum(1) if word is None else drops[:, check_word(word, self.words)]
        total = np.tensordot(drops, self.windows.astype(float), axes=1)
        return total / self.windows.sum(0)


@keywords
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

    Args:
        image: one picture, in any form that `load_image` reads.
        question, history: as in `BridgeVLM.answer`.
        answer: by default the model's own.
        fill: how patches are blanked: "colour" or "state" (see `bridge.vlm.explain.occlusion`).
        window: its side in patches of the tower (default: a quarter of the grid's longer side).
        stride: how far it moves, in patches (default: half its side).
        batch: how many windows go through the model at once.

    Raises:
        OptionError: several pictures, or a window larger than the grid.
        UnsupportedModelError: a model of text alone.

    It also raises what `BridgeVLM.answer` raises.
    """
    checked_turns(question, history)
    picture = one_picture(image)
    board = canvas(vlm, picture, fill)
    side = max(1, round(max(board.grid) / 4)) if window is None else window
    masks = sliding_windows(board.grid, side, max(1, side // 2) if stride is None else stride)
    if answer is None:
        answer = vlm.answer(picture, question, history=history)
    soft = vlm.picture_tokens(board.views)
    chat = answer_words(vlm, question, answer, history, [len(each) for each in soft])
    whole = word_log_probs(vlm, chat, soft)[0].numpy()
    less = word_log_probs(vlm, chat, board.soft(masks, fill, batch), batch).numpy()
    return Occlusion(question, answer, chat.texts, whole, less, masks, board.seen, fill)


def sliding_windows(grid: Grid, side: int, stride: int) -> np.ndarray:
    """Masks bool (K, rows, columns) of windows that cover the grid, the last ones flush with its
    edges. Raises OptionError for a side or stride outside the grid."""
    for name, value in (("window", side), ("stride", stride)):
        whole(value, name, 1, max(grid), " of patches")
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
class Ablation:
    """An answer with and without some patches."""

    question: str
    patches: tuple[tuple[int, int], ...]
    before: str
    after: str
    words: tuple[str, ...]  # of the answer before
    log_probs_before: np.ndarray  # (W,) of these words, with the whole picture
    log_probs_after: np.ndarray  # (W,) and without the patches
    picture: Image  # as the tower saw it, blanked patches in the mean colour


@keywords
def answer_without(
    vlm: BridgeVLM,
    image: Any,
    question: str,
    patches: Sequence[tuple[int, int]],
    *,
    history: Sequence[Turn] = (),
    fill: Fill = "colour",
    max_new_tokens: int = 64,
) -> Ablation:
    """Ask with and without the ``patches``, (row, column) pairs on the tower's grid, from 0.

    Other arguments are those of `occlusion` and `BridgeVLM.answer`. Raises OptionError for a patch
    beyond the grid, and what `occlusion` raises.
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
    chat = answer_words(vlm, question, before, history, [len(each) for each in whole])
    weighed = word_log_probs(vlm, chat, [*whole, *less]).numpy()
    return Ablation(
        question=question,
        patches=tuple((int(row), int(column)) for row, column in patches),
        before=before,
        after=after,
        words=chat.texts,
        log_probs_before=weighed[0],
        log_probs_after=weighed[1],
        picture=board.blanked(mask),
    )
