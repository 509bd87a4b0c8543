"""From text to the token ids of one tower, knowing where in the source each token came from.

For plain text that fits, the ids are those of diffusers' ``encode_prompt``: ``tokenizer(text,
padding="max_length", max_length=tokenizer.model_max_length, truncation=True)``. The tokenizer is
asked without truncation or padding, and both are done here: so what is cut off is known, long
prompts can go on in further windows, and the tokenizer, whose truncation setting is shared
state, can serve several threads.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from typing import Any

from bridge.cleaning import Origins, clean
from bridge.errors import PromptError, UnsupportedModelError
from bridge.prompt.dialect import DIALECTS
from bridge.prompt.inversion import Concept, marked, named, runs, spell_out, vectors_of
from bridge.prompt.prompt import Prompt, Tagged, parse
from bridge.prompt.reader import Reader, lowered, stripped
from bridge.prompt.syntax import Span, prompt_error
from bridge.prompt.windows import RULES, Content, Rule, windows_of

# transformers writes 1e30 where a tokenizer does not state its context.
_LONGEST_CONTEXT = 1_000_000
# More would be a mistake (a file, say), and cross-attention grows with each window.
MAX_WINDOWS = 32
# ComfyUI_ADV_CLIP_emb puts token 266 of CLIP's vocabulary in the place of a masked word: "+".
# The other is the same word in T5's vocabulary.
_MASK_PIECES = ("+</w>", "▁+")


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


def plan(
    prompt: Prompt, tokenizer: Any, tower: str = "text_encoder", split: str | Rule | None = None
) -> TokenPlan:
    """The token plan of one prompt. See ``plan_many``."""
    return plan_many((prompt,), tokenizer, tower, split)[0]


def plan_many(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    tower: str = "text_encoder",
    split: str | Rule | None = None,
    raw: bool = False,
) -> tuple[TokenPlan, ...]:
    """The token plans of several prompts, with one call of the tokenizer.

    Args:
        prompts: parsed prompts.
        tokenizer: a fast transformers tokenizer (``CLIPTokenizer`` is one in transformers 5), or
            a ``Reader`` that says how to use it.
        tower: the name written into the plans.
        split: the rule, or its name in ``bridge.prompt.windows.RULES``, by which long prompts and
            ``BREAK`` go on in further windows; None cuts a prompt off after one window and reads
            over ``BREAK``, as does a ``Reader`` of a given length.
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
    reader = reader.in_dialect(prompts[0].dialect)
    tokenizer = reader.tokenizer
    pieces = [_pieces(prompt, reader) for prompt in prompts]
    count = len(pieces)
    if raw:
        pieces += [_pieces(parse(prompt.source, "plain"), reader) for prompt in prompts]
    concepts = [each for each in reader.concepts if each.ids]
    # The empty text rides along: it shows which special tokens frame the content. So do the names
    # of concepts, whose tokens are looked for.
    how = reader.clean or "none"
    texts = [
        "",
        *(clean(each.word, how).text for each in concepts),
        *(p.text for row in pieces for p in row),
    ]
    try:
        encoded = tokenizer(
            texts,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"The tokenizer of {tower} refused the prompt: {error}") from error
    frame = _frame(encoded["input_ids"][0], reader, tower)
    rule = RULES[split] if isinstance(split, str) else split
    rule = None if reader.length is not None else rule
    rows = iter(zip(encoded["input_ids"][1:], encoded["offset_mapping"][1:], strict=True))
    inversions = DIALECTS[prompts[0].dialect].inversions
    names = [(frame.content(next(rows)[0]), each) for each in concepts]
    names = sorted(names, key=lambda pair: -len(pair[0])) if inversions == "runs" else []
    read = [_stretches(row, [next(rows) for _ in row], frame, names) for row in pieces]
    if reader.grows:
        frame = _grown(frame, read)
    for prompt, stretches in zip(prompts, read, strict=False):
        _warn_of_unread(prompt, stretches, [concept for _, concept in names])
    whole = [_cut(stretches, frame)[0][0] for stretches in read[count:]] or repeat(None)
    plans = (
        replace(_plan(prompt, stretches, frame, rule), raw=own)
        for prompt, stretches, own in zip(prompts, read, whole, strict=False)
    )
    return tuple(
        replace(plan, cleaned=tuple(change for piece in row for change in piece.changes))
        for plan, row in zip(plans, pieces, strict=False)
    )


def refilled(plan: TokenPlan, limit: int) -> TokenPlan:
    """A plan of one window, filled up to a longer one."""

    def longer(window: Window) -> Window:
        return replace(window, ids=window.ids + (plan.pad_id,) * (limit - len(window.ids)))

    return replace(
        plan, windows=(*map(longer, plan.windows),), empty=longer(plan.empty), limit=limit
    )


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


def _pieces(prompt: Prompt, reader: Reader) -> list[_Piece]:
    """A prompt's spans as texts for the tokenizer: those that are joined make one."""
    # Gathered first and put together once, so that ten thousand spans take no square of that.
    runs: list[tuple[list[Span], float, int]] = []
    breaks = 0
    for span in prompt.spans:
        if span.breaks:
            breaks += 1
            continue
        if span.joined and runs and not breaks and runs[-1][1] == span.weight:
            runs[-1][0].append(span)
        else:
            runs.append(([span], span.weight, breaks))
        breaks = 0
    if breaks or not runs:
        runs.append(([], 1.0, breaks))
    pieces = [
        _Piece(
            "".join(span.text for span in spans),
            [place for span in spans for place in _origins(span)],
            weight, before,
        )
        for spans, weight, before in runs
    ]  # fmt: skip
    if reader.clean != "none":
        pieces = _cleaned(pieces, reader)
    if reader.lower:
        pieces = _lowered(pieces)
    if DIALECTS[prompt.dialect].inversions == "marked":
        return [part for piece in pieces for part in _marked(piece, prompt, reader)]
    return [_spelt(piece, reader.tokenizer) for piece in pieces]


def _marked(piece: _Piece, prompt: Prompt, reader: Reader) -> list[_Piece]:
    """The piece in those that ComfyUI tokenizes apart, its ``embedding:name`` looked up."""
    concepts = (*reader.concepts, *vectors_of(reader.tokenizer))

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


def _cleaned(pieces: list[_Piece], reader: Reader) -> list[_Piece]:
    """The pieces cleaned, each by itself as the tools do; words of the tokenizer's own stay."""
    taught = sorted((each.word for each in vectors_of(reader.tokenizer)), key=len, reverse=True)
    kept = re.compile("|".join(map(re.escape, taught)) or "(?!)", re.IGNORECASE)
    return [_cleaned_piece(piece, kept, reader.clean or "none") for piece in pieces]


def _cleaned_piece(piece: _Piece, kept: re.Pattern[str], how: str) -> _Piece:
    inner = (at for match in kept.finditer(piece.text) for at in match.span())
    texts: list[str] = []
    origins: Origins = []
    changes: list[tuple[str, str]] = []
    for number, (a, b) in enumerate(pairwise([0, *inner, len(piece.text)])):
        stretch = clean(piece.text[a:b], "none" if number % 2 else how)
        if not stretch.text:
            continue
        if texts:
            origins.append(piece.origins[a])
        texts.append(stretch.text)
        origins += [
            (piece.origins[a + start][0], piece.origins[a + end - 1][1])
            for start, end in stretch.origins
        ]
        changes += stretch.changes
    return replace(piece, text=" ".join(texts), origins=origins, changes=tuple(changes))


def _lowered(pieces: list[_Piece]) -> list[_Piece]:
    """The pieces in small letters, without the white space before the first and after the last."""
    found = []
    for at, piece in enumerate(pieces):
        text, origins = stripped(
            *lowered(piece.text, piece.origins), left=at == 0, right=at == len(pieces) - 1
        )
        found.append(replace(piece, text=text, origins=origins))
    return found


def _origins(span: Span) -> Origins:
    if len(span.text) == span.end - span.start:
        return [(i, i + 1) for i in range(span.start, span.end)]
    return [(span.start, span.end)] * len(span.text)


def _spelt(piece: _Piece, tokenizer: Any) -> _Piece:
    """The piece with textual-inversion words of several vectors spelt out."""
    text, inner = spell_out(piece.text, tokenizer)
    if inner is None:
        return piece
    origins = [(piece.origins[a][0], piece.origins[b - 1][1]) for a, b in inner]
    return replace(piece, text=text, origins=origins)


# ---------------------------------------------------------------- what it gave


@dataclass(frozen=True)
class _Frame:
    """A tokenizer's special tokens and context: what goes around the content of a window."""

    tower: str
    tokenizer: Any
    lead: tuple[Token, ...]
    tail: tuple[Token, ...]
    limit: int
    pad_id: int
    mask_id: int
    added: frozenset[int]

    def content(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of a text without the special tokens around them."""
        return tuple(ids[len(self.lead) : len(ids) - len(self.tail)])

    @property
    def room(self) -> int:
        """Content tokens that fit a window."""
        return self.limit - len(self.lead) - len(self.tail)

    def continues(self, before: Token, token: int, start: int) -> bool:
        """Whether ``token`` is a further vector of the concept that ``before`` belongs to."""
        return token in self.added and before.start == start

    def window(self, content: Sequence[Token]) -> Window:
        tokens = (*self.lead, *content, *self.tail)
        padding = (self.pad_id,) * (self.limit - len(tokens))
        return Window((*(token.id for token in tokens), *padding), tokens)


def _frame(empty: list[int], reader: Reader, tower: str) -> _Frame:
    tokenizer = reader.tokenizer
    specials = tuple(
        Token(i, piece, 0, 0, special=True)
        for i, piece in zip(empty, tokenizer.convert_ids_to_tokens(empty), strict=True)
    )
    lead = 1 if empty and empty[0] == tokenizer.bos_token_id else 0
    pad_id = int(tokenizer.pad_token_id)
    # Not get_vocab(), which takes milliseconds for the 49 thousand of CLIP.
    known = zip(_MASK_PIECES, tokenizer.convert_tokens_to_ids(list(_MASK_PIECES)), strict=True)
    # What is not known has the unknown token's id, or none.
    masks = (i for piece, i in known if i is not None and i != tokenizer.unk_token_id)
    mask_id = next(masks, pad_id)
    own = {*tokenizer.added_tokens_encoder.values()} - set(tokenizer.all_special_ids)
    added = frozenset(own.union(*(each.ids for each in reader.concepts)))
    limit = int(reader.length or tokenizer.model_max_length)
    return _Frame(tower, tokenizer, specials[:lead], specials[lead:], limit, pad_id, mask_id, added)


_Named = Sequence[tuple[tuple[int, ...], Concept]]


def _stretches(
    pieces: list[_Piece],
    encoded: list[tuple[list[int], list[tuple[int, int]]]],
    frame: _Frame,
    concepts: _Named,
) -> list[list[Token]]:
    """The content tokens of a prompt, one list for each stretch between breaks.

    ``concepts``: the tokens of names, each run of which is a concept.
    """
    stretches: list[list[Token]] = [[]]
    word = 0
    for number, (piece, (ids, spans)) in enumerate(zip(pieces, encoded, strict=True), 1):
        stretches += [[] for _ in range(piece.breaks)]
        if piece.concept is not None:
            word += 1
            stretches[-1] += [
                Token(i, name, *piece.origins[0], False, piece.weight, word, number)
                for i, name in piece.concept.vectors()
            ]
            continue
        content = slice(len(frame.lead), len(ids) - len(frame.tail))
        end = -1  # of the token before, in the piece's text
        for i, name, (a, b) in _read(ids[content], spans[content], frame, concepts):
            start, stop = (piece.origins[a][0], piece.origins[b - 1][1]) if a < b else (0, 0)
            before = stretches[-1][-1] if stretches[-1] else None
            vector = before is not None and frame.continues(before, i, start)
            # A word goes on while no white space, and no new fragment, comes between.
            if not vector and (end < 0 or a > end):
                word += 1
            end = b
            stretches[-1].append(
                Token(i, name, start, stop, weight=piece.weight, word=word, fragment=number)
            )
    return stretches


def _read(
    ids: list[int], spans: list[tuple[int, int]], frame: _Frame, concepts: _Named
) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """The tokens of a text, their names and places; runs of a concept's name are its vectors."""
    names = frame.tokenizer.convert_ids_to_tokens(ids)
    for a, b, concept in runs(ids, concepts):
        if concept is None:
            yield ids[a], names[a], spans[a]
        else:
            place = spans[a][0], spans[b - 1][1]
            yield from ((i, name, place) for i, name in concept.vectors())


def _grown(frame: _Frame, read: list[list[list[Token]]]) -> _Frame:
    """The frame, as long as the longest prompt."""
    most = max(len(tokens) for row in read for tokens in row) + len(frame.lead) + len(frame.tail)
    if most > MAX_WINDOWS * frame.limit:
        raise PromptError(
            f"The prompt has {most} tokens in {frame.tower}; at most "
            f"{MAX_WINDOWS * frame.limit} are encoded. Shorten it, or have it cut off with "
            "max_sequence_length=512."
        )
    return replace(frame, limit=max(frame.limit, most))


def _warn_of_unread(
    prompt: Prompt, stretches: list[list[Token]], concepts: Sequence[Concept]
) -> None:
    """Say which textual inversions are written in a prompt and not read as such."""
    read = {token.piece for stretch in stretches for token in stretch}
    for concept in concepts:
        if concept.word.lower() in prompt.source.lower() and concept.word not in read:
            warnings.warn(
                f"The textual inversion {concept.word!r} is part of a longer word of the prompt, "
                "so stable-diffusion-webui reads it as text there; part it by spaces, or take "
                'dialect="plain".',
                stacklevel=5,
            )


def _plan(
    prompt: Prompt, stretches: list[list[Token]], frame: _Frame, rule: Rule | None
) -> TokenPlan:
    windows, lost = _cut(stretches, frame) if rule is None else (_deal(stretches, frame, rule), [])
    return TokenPlan(
        tower=frame.tower,
        source=prompt.source,
        windows=windows,
        empty=frame.window(()),
        pad_id=frame.pad_id,
        mask_id=frame.mask_id,
        limit=frame.limit,
        cut=prompt.source[lost[0].start : lost[-1].end] if lost else "",
        cut_start=lost[0].start if lost else None,
        cut_tokens=len(lost),
    )


def _cut(stretches: list[list[Token]], frame: _Frame) -> tuple[tuple[Window, ...], list[Token]]:
    """One window, and the tokens that do not fit it."""
    tokens = [token for stretch in stretches for token in stretch]
    return (frame.window(tokens[: frame.room]),), tokens[frame.room :]


def _deal(stretches: list[list[Token]], frame: _Frame, rule: Rule) -> tuple[Window, ...]:
    """As many windows as it takes."""
    windows = tuple(
        frame.window(part)
        for stretch in stretches
        for part in windows_of(stretch, _content(stretch, frame), frame.room, rule)
    )
    # Nothing after the last break is no window of its own, as in stable-diffusion-webui.
    if len(windows) > 1 and windows[-1].ids == frame.window(()).ids:
        windows = windows[:-1]
    if len(windows) > MAX_WINDOWS:
        raise PromptError(
            f"The prompt fills {len(windows)} windows of {frame.limit} tokens in {frame.tower}; "
            f"at most {MAX_WINDOWS} are encoded. Shorten it, or have it cut off with "
            'long_prompt="truncate".'
        )
    return windows


def _content(tokens: list[Token], frame: _Frame) -> list[Content]:
    """What the splitting rules look at; the vectors of one concept are one group."""
    groups: list[int] = []
    for at, token in enumerate(tokens):
        vector = at > 0 and frame.continues(tokens[at - 1], token.id, token.start)
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
