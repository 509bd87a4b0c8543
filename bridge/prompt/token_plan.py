"""From text to the token ids of one tower, knowing where in the source each token came from.

For plain text that fits, the ids are those of diffusers' ``encode_prompt``: ``tokenizer(text,
padding="max_length", max_length=tokenizer.model_max_length, truncation=True)``. The tokenizer is
asked without truncation or padding, and both are done here: so what is cut off is known, long
prompts can go on in further windows, and the tokenizer, whose truncation setting is shared
state, can serve several threads.
"""

from __future__ import annotations

import copy
import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from bridge.checks import keywords
from bridge.cleaning import UNCHANGED, Origins, clean, clean_between, lowered
from bridge.errors import PromptError, UnsupportedModelError, warn
from bridge.prompt.dialect import DIALECTS, DialectName
from bridge.prompt.inversion import (
    MARK,
    Concept,
    marked,
    named,
    runs,
    several_vectors,
    spell_out,
    taught_words,
    words_pattern,
)
from bridge.prompt.prompt import Prompt, Tagged, parse
from bridge.prompt.syntax import Span, prompt_error
from bridge.prompt.windows import Content, LongPrompt, Rule, SplitName, rule_of, windows_of

Normalisation = Literal["none", "length", "mean", "length+mean"]
NORMALISATIONS = get_args(Normalisation)
"""Ways of ``normalised`` with weights."""
# transformers writes 1e30 where a tokenizer does not state its context.
_LONGEST_CONTEXT = 1_000_000
# More would be a mistake (a file, say), and cross-attention grows with each window.
MAX_WINDOWS = 32
# ComfyUI_ADV_CLIP_emb puts token 266 of CLIP's vocabulary in the place of a masked word: "+".
# The other is the same word in T5's vocabulary.
_MASK_PIECES = ("+</w>", "▁+")
# A tokenizer's backend starts threads for several texts, which costs more than a few short ones.
_FEW = 32

Split: TypeAlias = SplitName | LongPrompt | Rule | None
"""By which rule a long prompt goes on in further windows; by None it is cut off."""


class TruncationWarning(UserWarning):
    """Part of a prompt was cut off because the tower's context is full."""


@dataclass(frozen=True)
class Token:
    """One token: its id, its piece in the vocabulary, and its place ``source[start:end]``.

    A character of several bytes may need several tokens, which then share one span. BOS and EOS
    are ``special`` and have an empty span.

    Attributes:
        weight: the emphasis that the prompt puts on it.
        word: a number that the tokens of one whitespace-separated word share, from 1 up; 0 for
            special ones.
        fragment: a number that the tokens of one stretch of equal weight share, from 1 up; 0 for
            special ones.
    """

    id: int
    piece: str
    start: int
    end: int
    special: bool = False
    weight: float = 1.0
    word: int = 0
    fragment: int = 0


@dataclass(frozen=True)
class Window:
    """One filling of a tower's context.

    ``ids`` are exactly ``limit`` ids, padding included; ``tokens`` are the tokens kept, BOS and
    EOS included, padding not.
    """

    ids: tuple[int, ...]
    tokens: tuple[Token, ...]

    @property
    def used(self) -> int:
        """Tokens kept, BOS and EOS included."""
        return len(self.tokens)

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for each token kept, 0 for padding; as long as ``ids``."""
        return (1,) * self.used + (0,) * (len(self.ids) - self.used)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each place; 1 for padding. As long as ``ids``."""
        padding = len(self.ids) - self.used
        return (*(token.weight for token in self.tokens), *(1.0,) * padding)


@dataclass(frozen=True)
class TokenPlan:
    """What one tower is given for one prompt.

    Attributes:
        tower: the tower's name, such as ``text_encoder_2``.
        source: the prompt as it was written.
        windows: the fillings of the context, at least one.
        empty: the window of the empty prompt.
        pad_id: the id that fills up the context.
        mask_id: the id that stands for a word taken out (``+``).
        limit: the tower's context (77 for CLIP; for T5, as many as the pipeline gives it).
        cut: the source text that did not fit ("" if all did).
        cut_start: where it begins in ``source``; None if all fitted.
        cut_tokens: how many tokens it has.
        raw: the window of ``source`` itself, marks included, cut off at its end; made if asked for.
        cleaned: what was written and what is read instead, where cleaning changed more than white
            space and the case of letters.
    """

    tower: str
    source: str
    windows: tuple[Window, ...]
    empty: Window
    pad_id: int
    mask_id: int
    limit: int
    cut: str = ""
    cut_start: int | None = None
    cut_tokens: int = 0
    raw: Window | None = None
    cleaned: tuple[tuple[str, str], ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all windows, end to end."""
        return tuple(i for window in self.windows for i in window.ids)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens kept of all windows, end to end, each window's BOS and EOS included."""
        return tuple(token for window in self.windows for token in window.tokens)

    @property
    def used(self) -> int:
        """Tokens kept, BOS and EOS included."""
        return sum(window.used for window in self.windows)

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for each token kept, 0 for padding, window by window."""
        return tuple(bit for window in self.windows for bit in window.mask)

    @property
    def is_weighted(self) -> bool:
        """Whether any token has a weight other than 1."""
        return any(token.weight != 1 for token in self.tokens)


@dataclass(frozen=True)
class Reader:
    """A tokenizer and how it is used. ``plan`` takes one wherever it takes a tokenizer.

    CLIP's tokenizers state their context and take text as it is, or as the dialect's tool cleans it
    (`bridge.cleaning`). T5 has no context of its own: a pipeline says how many tokens it is given,
    and some (PixArt) write all text in small letters.

    Attributes:
        tokenizer: a fast transformers tokenizer.
        length: how many tokens the tower is given, special ones included. Such a tower has one
            window: what does not fit is cut off, and ``BREAK`` is read over. None: the
            tokenizer's own ``model_max_length``, in as many windows as it takes.
        least: dialect -> the length that its tool gives, which longer prompts exceed (ComfyUI,
            Forge).
        lower: whether text is put in small letters and stripped of white space around it.
        clean: how text is cleaned, a name of ``bridge.cleaning.CLEANINGS``. None: as the
            dialect's tool does it.
        concepts: textual inversions that are found by the dialect's own rule.
    """

    tokenizer: Any
    length: int | None = None
    lower: bool = False
    concepts: tuple[Concept, ...] = ()
    least: tuple[tuple[str, int], ...] = ()
    clean: str | None = None


@keywords
def plan(
    prompt: Prompt, tokenizer: Any, tower: str = "text_encoder", split: Split = None
) -> TokenPlan:
    """The token plan of one prompt. See ``plan_many``."""
    return plan_many((prompt,), tokenizer, tower, split)[0]


@keywords
def plan_many(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    tower: str = "text_encoder",
    split: Split = None,
    raw: bool = False,
) -> tuple[TokenPlan, ...]:
    """The token plans of several prompts of one dialect, tokenized together.

    Args:
        prompts: parsed prompts.
        tokenizer: a fast transformers tokenizer (``CLIPTokenizer`` is one in transformers 5), or
            a ``Reader`` that says how to use it.
        tower: the name written into the plans.
        split: the rule by which long prompts and ``BREAK`` go on in further windows: itself, its
            name in ``bridge.prompt.windows.RULES``, or the ``LongPrompt`` that has it. None cuts a
            prompt off after one window and reads over ``BREAK``, as does a ``Reader`` of a given
            length.
        raw: whether the plans have ``TokenPlan.raw``.

    Raises:
        UnsupportedModelError: a tokenizer without offsets or without a context length, or one
            that pads or cuts on the left.
        PromptError: text that the tokenizer itself refuses, or that fills over 32 windows.
    """
    reader = tokenizer if isinstance(tokenizer, Reader) else Reader(tokenizer)
    check_tokenizer(reader, tower)
    if not prompts:
        return ()
    use = _use_of(reader, prompts[0].dialect, tower)
    pieces = [_pieces(prompt, use) for prompt in prompts]
    count = len(pieces)
    if raw:
        pieces += [_pieces(parse(prompt.source, "plain"), use) for prompt in prompts]
    encoded = iter(_encode(use, [piece.text for row in pieces for piece in row]))
    by_runs = DIALECTS[prompts[0].dialect].inversions == "runs"
    names = _names_of(use) if use.concepts and by_runs else []
    stretches = [_stretches(row, encoded, use, names) for row in pieces]
    if use.grows:
        use = _grown(use, stretches)
    empty = use.empty
    if names:
        for prompt, own in zip(prompts, stretches, strict=False):
            _warn_of_unread(prompt, own, names)
    if isinstance(split, LongPrompt) and split.split is None:
        split = None
    whole = [use.cut(own)[0][0] for own in stretches[count:]] or repeat(None)
    plans = []
    for prompt, row, own, full in zip(prompts, pieces, stretches, whole, strict=False):
        if split is None or use.one_window:
            windows, lost = use.cut(own)
        else:
            windows, lost = _deal(own, split, use), []
        plans.append(
            TokenPlan(
                tower, prompt.source, windows, empty, use.known.pad_id, use.known.mask_id,
                use.limit,
                cut=prompt.source[lost[0].start : lost[-1].end] if lost else "",
                cut_start=lost[0].start if lost else None,
                cut_tokens=len(lost),
                raw=full,
                cleaned=tuple(change for piece in row for change in piece.changes),
            )
        )  # fmt: skip
    return tuple(plans)


def as_written(plan: TokenPlan, tagged: Tagged) -> TokenPlan:
    """The plan of ``tagged.text`` with its places moved to where they are in the source; a plan
    of another text (a second tower's own) as it is."""
    if not tagged.taken or plan.source != tagged.text:
        return plan
    # Where each tag stood in the text that is left, and how far what follows it has moved.
    borders, shifts, gone = [], [0], 0
    for begin, end in tagged.taken:
        borders.append(begin - gone)
        gone += end - begin
        shifts.append(gone)

    def start(at: int) -> int:
        return at + shifts[bisect_right(borders, at)]

    def moved(token: Token) -> Token:
        if token.special:
            return token
        if token.start == token.end:
            return replace(token, start=start(token.start), end=start(token.end))
        # A token ends where its last character does, before a tag that may follow.
        return replace(token, start=start(token.start), end=start(token.end - 1) + 1)

    return replace(
        plan,
        source=tagged.source,
        windows=tuple(
            replace(window, tokens=tuple(map(moved, window.tokens))) for window in plan.windows
        ),
        cut_start=None if plan.cut_start is None else start(plan.cut_start),
    )


@keywords
def normalised(plan: TokenPlan, name: str) -> TokenPlan:
    """The plan with its weights adjusted before any emphasis, as ComfyUI_ADV_CLIP_emb does it.

    BOS, EOS and padding keep their weight of 1.

    Args:
        plan: the plan of one prompt.
        name: one of ``NORMALISATIONS``. ``length``: a stretch of one weight of n tokens gets weight
            ``1 + sign(d) * sqrt(d**2 / n)``, d its weight less 1, so that long ones do not count n
            times. ``mean``: all weights move by one number, so that their mean is 1 and a prompt is
            not louder for having an emphasis. ``length+mean``: the one, then the other.
    """
    if name == "none":
        return plan
    content = [token for token in plan.tokens if not token.special]
    if not content:
        return plan
    sizes = Counter(token.fragment for token in content)

    def spread(token: Token) -> float:
        long = name.startswith("length")
        return _spread(token.weight, sizes[token.fragment]) if long else token.weight

    shift = 1 - sum(map(spread, content)) / len(content) if name.endswith("mean") else 0.0

    def adjusted(token: Token) -> Token:
        return token if token.special else replace(token, weight=spread(token) + shift)

    return replace(
        plan,
        windows=tuple(
            replace(window, tokens=tuple(adjusted(token) for token in window.tokens))
            for window in plan.windows
        ),
    )


def _spread(weight: float, count: int) -> float:
    return 1 + math.copysign(abs(weight - 1) / math.sqrt(count), weight - 1)


# ---------------------------------------------------------------- what a tokenizer is


T = TypeVar("T")


class _Remembered(Generic[T]):
    """What a function finds of a tokenizer, kept as long as the tokenizer lives and stays the same;
    a live pipeline's may gain words between two calls."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        self._find = find
        self._found: WeakKeyDictionary[Any, tuple[object, T]] = WeakKeyDictionary()

    def __call__(self, tokenizer: Any) -> T:
        state = (
            tokenizer.backend_tokenizer, tokenizer.added_tokens_encoder,
            tokenizer.all_special_tokens, tokenizer.bos_token, tokenizer.eos_token,
            tokenizer.unk_token, tokenizer.pad_token,
        )  # fmt: skip
        kept = self._found.get(tokenizer)
        if kept is None or kept[0] != state:
            kept = self._found[tokenizer] = (state, self._find(tokenizer))
        return kept[1]


@dataclass(frozen=True)
class _Known:
    """What a tokenizer knows: its special tokens around a text, and words beyond its vocabulary.

    Attributes:
        lead, tail: the special tokens before and after a text.
        pads_with_word: whether it is padded with a word and not with a special token.
        own: the ids of added tokens that are not special.
        taught: the words that it has been taught, of one vector or several.
        several: those of several vectors, and the tokens that make them up.
        kept: finds taught words in a text; None where there are none.
    """

    lead: tuple[Token, ...]
    tail: tuple[Token, ...]
    pad_id: int
    mask_id: int
    pads_with_word: bool
    own: frozenset[int]
    taught: tuple[Concept, ...]
    several: dict[str, list[str]]
    kept: re.Pattern[str] | None


def _find_known(tokenizer: Any) -> _Known:
    """Found by reading the empty text."""
    empty = tokenizer("", truncation=False, padding=False, verbose=False)["input_ids"]
    specials = tuple(
        Token(i, piece, 0, 0, special=True)
        for i, piece in zip(empty, tokenizer.convert_ids_to_tokens(empty), strict=True)
    )
    lead = 1 if empty and empty[0] == tokenizer.bos_token_id else 0
    pad_id = int(tokenizer.pad_token_id)
    # Not get_vocab(), which takes milliseconds for the 49 thousand of CLIP.
    masks = zip(_MASK_PIECES, tokenizer.convert_tokens_to_ids(list(_MASK_PIECES)), strict=True)
    # What is not known has the unknown token's id, or none.
    known = (i for _, i in masks if i is not None and i != tokenizer.unk_token_id)
    special = {getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "unk")}
    taught = taught_words(tokenizer)
    return _Known(
        specials[:lead],
        specials[lead:],
        pad_id,
        next(known, pad_id),
        tokenizer.pad_token not in special,
        frozenset({*tokenizer.added_tokens_encoder.values()} - {*tokenizer.all_special_ids}),
        taught,
        several_vectors(tokenizer),
        words_pattern([each.word for each in taught]) if taught else None,
    )


_known = _Remembered(_find_known)


@_Remembered
def _with_padding_as_text(tokenizer: Any) -> tuple[Any, _Known]:
    """A copy of a tokenizer in which the word that it pads with is one as any other, and what it
    knows. It takes half a second for CLIP's vocabulary."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["added_tokens"] = [
        each for each in whole["added_tokens"] if each["content"] != tokenizer.pad_token
    ]
    copied = copy.copy(tokenizer)
    copied._tokenizer = Tokenizer.from_str(json.dumps(whole))
    return copied, _find_known(copied)


@dataclass(frozen=True)
class _Use:
    """How one tower reads the texts of a dialect.

    Attributes:
        limit: the tower's context; of a tower that ``grows`` the least.
        one_window: whether what does not fit is cut off whatever the rule.
        added: the ids of vectors that may follow another of their concept.
    """

    tower: str
    tokenizer: Any
    known: _Known
    clean: str
    lower: bool
    concepts: tuple[Concept, ...]
    added: frozenset[int]
    limit: int
    one_window: bool
    grows: bool

    @property
    def room(self) -> int:
        """Content tokens that fit a window."""
        return self.limit - len(self.known.lead) - len(self.known.tail)

    @property
    def empty(self) -> Window:
        """The window of the empty prompt."""
        return self.window(())

    def window(self, content: Sequence[Token]) -> Window:
        """One filling."""
        tokens = (*self.known.lead, *content, *self.known.tail)
        padding = (self.known.pad_id,) * (self.limit - len(tokens))
        return Window((*(token.id for token in tokens), *padding), tokens)

    def cut(self, stretches: list[list[Token]]) -> tuple[tuple[Window, ...], list[Token]]:
        """One window, and the tokens that do not fit it."""
        tokens = [token for stretch in stretches for token in stretch]
        return (self.window(tokens[: self.room]),), tokens[self.room :]

    def content(self, ids: Sequence[int]) -> slice:
        """Where a text's own tokens are, without the special ones around them."""
        return slice(len(self.known.lead), len(ids) - len(self.known.tail))

    def continues(self, before: Token | None, token: int, start: int) -> bool:
        """Whether ``token`` is a further vector of the concept that ``before`` belongs to."""
        return before is not None and before.start == start and token in self.added


def _use_of(reader: Reader, dialect: DialectName, tower: str) -> _Use:
    """The length, cleaning and reading of padding that the dialect's tool has."""
    tokenizer, rules = reader.tokenizer, DIALECTS[dialect]
    known = _known(tokenizer)
    least = dict(reader.least).get(dialect) if reader.least else None
    clean = reader.clean or "none"
    if reader.length is None and least is None:
        if reader.clean is None and rules.cleans:
            # Towers that are padded with a word are open_clip's, whose tokenizer the webui takes.
            clean = "lower" if known.pads_with_word else "ftfy"
        if known.pads_with_word and rules.padding_is_text:
            tokenizer, known = _with_padding_as_text(tokenizer)
    return _Use(
        tower,
        tokenizer,
        known,
        clean,
        reader.lower,
        reader.concepts,
        known.own.union(*(each.ids for each in reader.concepts)),
        int(least or reader.length or tokenizer.model_max_length),
        one_window=bool(least or reader.length),
        grows=least is not None,
    )


def _encode(use: _Use, texts: Sequence[str]) -> list[_Encoded]:
    """The ids of texts and the places of their tokens, neither cut off nor padded."""
    tokenizer = use.tokenizer
    backend = tokenizer.backend_tokenizer
    as_is = (
        backend.truncation is None
        and backend.padding is None
        and backend.encode_special_tokens == tokenizer.split_special_tokens
    )
    try:
        if as_is and len(texts) <= _FEW:
            return [(each.ids, each.offsets) for each in map(backend.encode, texts)]
        found = tokenizer(
            texts,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"The tokenizer of {use.tower} refused the prompt: {error}") from error
    return [*zip(found["input_ids"], found["offset_mapping"], strict=True)]


# ---------------------------------------------------------------- what the tokenizer is given


@dataclass(frozen=True)
class _Piece:
    """Text that is tokenized at once, its weight, and the source span of each character.

    ``breaks``: how many ``BREAK`` come before it. ``concept``: what stands here, without a text.
    ``changes``: what cleaning changed.
    """

    text: str
    origins: Origins
    weight: float
    breaks: int
    concept: Concept | None = None
    changes: tuple[tuple[str, str], ...] = ()


def _pieces(prompt: Prompt, use: _Use) -> list[_Piece]:
    """A prompt's spans as texts for the tokenizer: those that are joined make one."""
    # Gathered first and put together once, so that ten thousand spans take no square of that.
    gathered: list[tuple[list[Span], float, int]] = []
    breaks = 0
    for span in prompt.spans:
        if span.breaks:
            breaks += 1
            continue
        if span.joined and gathered and not breaks and gathered[-1][1] == span.weight:
            gathered[-1][0].append(span)
        else:
            gathered.append(([span], span.weight, breaks))
        breaks = 0
    if breaks or not gathered:
        gathered.append(([], 1.0, breaks))
    pieces = [
        _Piece(
            "".join(span.text for span in spans),
            [place for span in spans for place in _origins(span)],
            weight, before,
        )
        for spans, weight, before in gathered
    ]  # fmt: skip
    if use.clean != "none":
        pieces = [_cleaned(piece, use) for piece in pieces]
    if use.lower:
        pieces = _lowered(pieces)
    if DIALECTS[prompt.dialect].inversions == "marked":
        return [part for piece in pieces for part in _marked(piece, prompt, use)]
    return [_spelt(piece, use.known.several) for piece in pieces] if use.known.several else pieces


def _spelt(piece: _Piece, several: dict[str, list[str]]) -> _Piece:
    """The piece with textual-inversion words of several vectors spelt out."""
    text, origins = spell_out(piece.text, piece.origins, several)
    return replace(piece, text=text, origins=origins)


def _marked(piece: _Piece, prompt: Prompt, use: _Use) -> list[_Piece]:
    """The piece in those that ComfyUI tokenizes apart, its ``embedding:name`` looked up."""
    if MARK not in piece.text:
        return [piece]
    concepts = (*use.concepts, *use.known.taught)

    def find(name: str, place: tuple[int, int]) -> Concept:
        found = named(concepts, name)
        if found is not None:
            return found
        raise prompt_error(
            f"No textual inversion is named {name!r}; give it as textual_inversions={{{name!r}: "
            "file}, or write a space before the colon for the words themselves.",
            prompt.source, *place,
        )  # fmt: skip

    parts = [
        replace(piece, text=text, origins=origins, breaks=0, concept=concept)
        for text, origins, concept in marked(piece.text, piece.origins, find)
    ]
    return [replace(parts[0], breaks=piece.breaks), *parts[1:]] if parts else [piece]


def _cleaned(piece: _Piece, use: _Use) -> _Piece:
    """The piece cleaned, by itself as the tools do; words of the tokenizer's own stay."""
    text, kept = piece.text.strip(" "), use.known.kept
    if UNCHANGED[use.clean].fullmatch(text) and not (kept and kept.search(text)):
        if text == piece.text:
            return piece
        start = piece.text.find(text)
        return replace(piece, text=text, origins=piece.origins[start : start + len(text)])
    found = clean_between(piece.text, piece.origins, use.clean, kept)
    return replace(piece, text=found.text, origins=found.origins, changes=found.changes)


def _lowered(pieces: list[_Piece]) -> list[_Piece]:
    """The pieces in small letters, without the white space before the first and after the last."""
    found = []
    for at, piece in enumerate(pieces):
        text, origins = lowered(piece.text, piece.origins)
        start = len(text) - len(text.lstrip()) if at == 0 else 0
        end = len(text.rstrip()) if at == len(pieces) - 1 else len(text)
        found.append(replace(piece, text=text[start:end], origins=origins[start:end]))
    return found


def _origins(span: Span) -> Origins:
    if len(span.text) == span.end - span.start:
        return [(i, i + 1) for i in range(span.start, span.end)]
    return [(span.start, span.end)] * len(span.text)


# ---------------------------------------------------------------- what it gave

_Encoded = tuple[list[int], list[tuple[int, int]]]
_Names = list[tuple[tuple[int, ...], Concept]]


def _names_of(use: _Use) -> _Names:
    """The tokens of the names of concepts that have vectors, the longest first."""
    concepts = [each for each in use.concepts if each.ids]
    read = _encode(use, [clean(each.word, use.clean).text for each in concepts])
    names = [tuple(ids[use.content(ids)]) for ids, _ in read]
    return sorted(zip(names, concepts, strict=True), key=lambda pair: -len(pair[0]))


def _grown(use: _Use, read: list[list[list[Token]]]) -> _Use:
    """The context as long as the longest prompt."""
    most = max(len(tokens) for row in read for tokens in row) + use.limit - use.room
    if most > MAX_WINDOWS * use.limit:
        raise PromptError(
            f"The prompt has {most} tokens in {use.tower}; at most "
            f"{MAX_WINDOWS * use.limit} are encoded. Shorten it, or have it cut off with "
            "max_sequence_length=512."
        )
    return replace(use, limit=max(use.limit, most))


def _stretches(
    pieces: list[_Piece], encoded: Iterator[_Encoded], use: _Use, concepts: _Names
) -> list[list[Token]]:
    """The content tokens of a prompt, one list for each stretch between breaks.

    ``concepts``: the tokens of names, each run of which is a concept.
    """
    stretches: list[list[Token]] = [[]]
    word = 0
    # In this order: zip takes no text from `encoded` after the last piece.
    for number, (piece, (ids, spans)) in enumerate(zip(pieces, encoded, strict=False), 1):
        stretches += [[] for _ in range(piece.breaks)]
        tokens = stretches[-1]
        if piece.concept is not None:
            word += 1
            tokens += [
                Token(i, name, *piece.origins[0], False, piece.weight, word, number)
                for i, name in piece.concept.vectors()
            ]
            continue
        own = use.content(ids)
        end = -1  # of the token before, in the piece's text
        for i, name, (a, b) in _read(ids[own], spans[own], use, concepts):
            start, stop = (piece.origins[a][0], piece.origins[b - 1][1]) if a < b else (0, 0)
            # A word goes on while no white space, and no new fragment, comes between.
            if (end < 0 or a > end) and not use.continues(tokens[-1] if tokens else None, i, start):
                word += 1
            end = b
            tokens.append(Token(i, name, start, stop, False, piece.weight, word, number))
    return stretches


def _read(
    ids: list[int], spans: list[tuple[int, int]], use: _Use, concepts: _Names
) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """The tokens of a text, their names and places; runs of a concept's name are its vectors."""
    names = use.tokenizer.convert_ids_to_tokens(ids)
    if not concepts:
        yield from zip(ids, names, spans, strict=True)
        return
    for a, b, concept in runs(ids, concepts):
        if concept is None:
            yield ids[a], names[a], spans[a]
        else:
            place = spans[a][0], spans[b - 1][1]
            yield from ((i, name, place) for i, name in concept.vectors())


def _warn_of_unread(prompt: Prompt, stretches: list[list[Token]], concepts: _Names) -> None:
    """Say which textual inversions are written in a prompt and not read as such."""
    read = {token.piece for stretch in stretches for token in stretch}
    for _, concept in concepts:
        if concept.word.lower() in prompt.source.lower() and concept.word not in read:
            warn(
                UserWarning,
                f"The textual inversion {concept.word!r} is part of a longer word of the prompt, "
                "so stable-diffusion-webui reads it as text there; part it by spaces, or take "
                'dialect="plain".',
            )


def _deal(
    stretches: list[list[Token]], split: SplitName | LongPrompt | Rule, use: _Use
) -> tuple[Window, ...]:
    """As many windows as it takes. What fits one is one by every rule of ``RULES``."""
    windows: list[Window] = []
    for tokens in stretches:
        if len(tokens) <= use.room and not callable(split):
            windows.append(use.window(tokens))
            continue
        content = _content(tokens, use)
        windows += map(use.window, windows_of(tokens, content, use.room, rule_of(split)))
    # Nothing after the last break is no window of its own, as in stable-diffusion-webui.
    if len(windows) > 1 and windows[-1].ids == use.empty.ids:
        windows.pop()
    if len(windows) > MAX_WINDOWS:
        raise PromptError(
            f"The prompt fills {len(windows)} windows of {use.limit} tokens in {use.tower}; "
            f"at most {MAX_WINDOWS} are encoded. Shorten it, or have it cut off with "
            'long_prompt="truncate".'
        )
    return tuple(windows)


def _content(tokens: list[Token], use: _Use) -> list[Content]:
    """What the splitting rules look at; the vectors of one concept are one group."""
    groups: list[int] = []
    for at, token in enumerate(tokens):
        vector = use.continues(tokens[at - 1] if at else None, token.id, token.start)
        groups.append(groups[-1] if vector else at)
    return [
        Content(token.piece, token.word, group, token.fragment)
        for token, group in zip(tokens, groups, strict=True)
    ]


def check_tokenizer(reader: Reader, tower: str) -> None:
    """Raise UnsupportedModelError for a tokenizer that no plan can be made with."""
    tokenizer = reader.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"The tokenizer of {tower} ({type(tokenizer).__name__}) gives no offsets; bridge needs "
            "a fast tokenizer, such as CLIPTokenizer of transformers 5."
        )
    if "left" in (tokenizer.padding_side, tokenizer.truncation_side):
        raise UnsupportedModelError(
            f"The tokenizer of {tower} pads or cuts on the left, which no recipe of bridge does."
        )
    endless = reader.length is None and tokenizer.model_max_length > _LONGEST_CONTEXT
    if endless or tokenizer.pad_token_id is None:
        raise UnsupportedModelError(
            f"The tokenizer of {tower} states no context length or no padding token; set "
            "model_max_length (77 for CLIP) and pad_token."
        )
