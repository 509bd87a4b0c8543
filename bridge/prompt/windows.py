"""Long prompts: how content tokens are dealt to windows of the tower's context.

The rules are those of the tools that people use:

=============  =======================================================================
``hard``       every ``room`` tokens (sd_embed; lpw_stable_diffusion)
``comma``      the same, but a cut at most ``backtrack`` tokens after a comma moves back to it
               (stable-diffusion-webui, ``comma_padding_backtrack``)
``segments``   a stretch of one weight of under 8 tokens moves whole to the next window, a
               longer one fills up its window first (ComfyUI)
``words``      the same with words for stretches (ComfyUI until it stopped splitting at spaces)
``sentences``  after the last full stop, else after the last of ``. , ; :``, else after
               the last word, that fits (compel)
=============  =======================================================================

``room`` is the context without BOS and EOS, 75 for CLIP. Vectors of one textual-inversion word
are never parted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar

BACKTRACK = 20
SHORT_WORD = 8


@dataclass(frozen=True)
class Content:
    """What a rule looks at in one token.

    Attributes:
        piece: the token in the vocabulary; ``</w>`` ends a word.
        word: a number that the tokens of one word share.
        group: a number that tokens share which must not be parted; each has its own otherwise.
        segment: a number that the tokens of one stretch of equal weight share.
    """

    piece: str
    word: int
    group: int
    segment: int = 0


Cuts = list[int]
"""Where windows begin, the first at 0: ``[0, 75]`` are two windows."""

Rule: TypeAlias = Callable[[Sequence[Content], int], Cuts]
"""From content tokens and the room of a window to the cuts."""


def hard(tokens: Sequence[Content], room: int) -> Cuts:
    """A window is full when it is full."""
    cuts, start = [0], 0
    for at in range(len(tokens)):
        if at - start == room:
            start = _whole_group(tokens, at, start)
            cuts.append(start)
    return cuts


def comma(tokens: Sequence[Content], room: int, backtrack: int = BACKTRACK) -> Cuts:
    """stable-diffusion-webui's rule (``TextConditionalModel.tokenize_line``)."""
    cuts, start, last = [0], 0, -1
    for at, token in enumerate(tokens):
        if token.piece == ",</w>":
            if at - start == room:
                start = at
                cuts.append(start)
            last = at
            continue
        if at - start == room:
            border = _whole_group(tokens, at, start)
            near = last >= start and at - last <= backtrack
            start = last + 1 if near and border == at else border
            cuts.append(start)
    return cuts


def segments(tokens: Sequence[Content], room: int) -> Cuts:
    """ComfyUI's rule (``SDTokenizer.tokenize_with_weights`` at commits b55c224 and 4bd7a40)."""
    return _short_ones_whole([token.segment for token in tokens], room)


def words(tokens: Sequence[Content], room: int) -> Cuts:
    """ComfyUI's rule as it was when it tokenized word by word (commit 00728eb)."""
    return _short_ones_whole([token.word for token in tokens], room)


def _short_ones_whole(numbers: Sequence[int], room: int) -> Cuts:
    """Neighbours of one number move together where they are few."""
    cuts, start = [0], 0
    for first, last in _runs(numbers):
        if last - start <= room:
            continue
        if last - first < SHORT_WORD and first > start:
            start = first
            cuts.append(start)
        while last - start > room:
            start += room
            cuts.append(start)
    return cuts


def sentences(tokens: Sequence[Content], room: int) -> Cuts:
    """compel's rule (``EmbeddingsProvider._find_next_best_split_point``)."""
    cuts, start = [0], 0
    while len(tokens) - start > room:
        here = range(start + room - 1, start - 1, -1)
        ends = (
            next((at for at in here if tokens[at].piece == ".</w>"), None),
            next((at for at in here if tokens[at].piece in _PHRASE_ENDS), None),
            next((at for at in here if tokens[at].piece.endswith("</w>")), None),
        )
        start = next((end + 1 for end in ends if end is not None), start + room)
        cuts.append(start)
    return cuts


_PHRASE_ENDS = frozenset({".</w>", ",</w>", ";</w>", ":</w>"})

RULES: dict[SplitName, Rule] = {
    "hard": hard,
    "comma": comma,
    "segments": segments,
    "words": words,
    "sentences": sentences,
}
"""The rules by name."""


SplitName = Literal["hard", "comma", "segments", "words", "sentences"]
Join = Literal["concat", "first_eos", "no_bos_between", "average"]
Pooled = Literal["first", "last", "mean"]
Uneven = Literal["fill", "zeros", "cut"]
LongPromptName = Literal["truncate", "a1111", "comfy", "compel", "sd_embed", "lpw", "average"]


@dataclass(frozen=True)
class LongPrompt:
    """What is done with a prompt that is longer than the tower's context.

    Attributes:
        split: a rule of ``RULES``; None cuts the prompt off after the first window.
        join: how windows' token states become one sequence of k windows of T:
            ``concat``: end to end, k * T states;
            ``first_eos``: the same, with the first window's EOS state in place of the others'
            (compel's mode ``COPY_FIRST_CLS_TOKEN``, which its ``CompelFor…`` do not use);
            ``no_bos_between``: BOS and last state dropped between windows, k * (T - 2) + 2;
            ``average``: the mean of the windows, T states.
        pooled: the window whose pooled state is taken: ``first``, ``last``, or their ``mean``.
        uneven: how towers of unequal context come to one length: ``fill``, ``zeros`` or ``cut``,
            as ``bridge/encoding/planning.py`` says.
        backtrack: with ``split="comma"``, how many tokens a cut may move back to a comma, from 0
            up (the webui's ``comma_padding_backtrack``).
    """

    split: SplitName | None
    join: Join = "concat"
    pooled: Pooled = "first"
    uneven: Uneven = "fill"
    backtrack: int = BACKTRACK

    @property
    def rule(self) -> Rule | None:
        """The rule that ``split`` names."""
        return None if self.split is None else rule_of(self)


LONG_PROMPTS: dict[LongPromptName, LongPrompt] = {
    "truncate": LongPrompt(None),
    "a1111": LongPrompt("comma"),
    "comfy": LongPrompt("segments", uneven="cut"),
    "compel": LongPrompt("sentences"),
    "sd_embed": LongPrompt("hard", pooled="last"),
    "lpw": LongPrompt("hard", "no_bos_between"),
    "average": LongPrompt("comma", "average", "mean"),
}
"""Ways with long prompts by the tool that has them: diffusers (``truncate``),
stable-diffusion-webui, ComfyUI, compel's ``CompelForSD`` and ``CompelForSDXL``, sd_embed's windows
and its last pooled state, the community pipeline lpw_stable_diffusion with
``no_boseos_middle=True`` (its default keeps BOS and EOS of each window, as ``LongPrompt("hard")``);
``average`` keeps the sequence at one window's length."""


def rule_of(split: SplitName | LongPrompt | Rule) -> Rule:
    """A rule by its name or by the ``LongPrompt`` that has it."""
    if isinstance(split, LongPrompt):
        comma_back = partial(comma, backtrack=split.backtrack)
        assert split.split is not None
        return comma_back if split.split == "comma" else RULES[split.split]
    return RULES[split] if isinstance(split, str) else split


T = TypeVar("T")


def windows_of(
    tokens: Sequence[T], content: Sequence[Content], room: int, rule: Rule
) -> list[Sequence[T]]:
    """``tokens`` dealt to windows by a rule; no tokens make one empty window."""
    return [tokens[a:b] for a, b in pairwise([*rule(content, room), len(tokens)])]


def _whole_group(tokens: Sequence[Content], at: int, start: int) -> int:
    """``at``, moved back to where its group begins if the group began in this window."""
    first = at
    while first > start and tokens[first - 1].group == tokens[at].group:
        first -= 1
    return first if first > start else at


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Where neighbours share a number, as (first, past the last)."""
    starts = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1]]
    return [*pairwise([*starts, len(numbers)])]
