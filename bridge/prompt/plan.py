"""From text to the token ids of one tower, knowing where in the source each token came from.

The ids are those of diffusers' ``encode_prompt``: ``tokenizer(text, padding="max_length",
max_length=tokenizer.model_max_length, truncation=True)``. The tokenizer is asked once, without
truncation or padding, and both are done here: so what is cut off is known, and the tokenizer,
whose truncation setting is shared state, can serve several threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge.errors import PromptError, UnsupportedModelError
from bridge.prompt.inversion import Origins, spell_out
from bridge.prompt.syntax import Prompt

# transformers writes 1e30 where a tokenizer does not state its context.
_LONGEST_CONTEXT = 1_000_000


class TruncationWarning(UserWarning):
    """Part of a prompt was cut off because the tower's context is full."""


@dataclass(frozen=True)
class Token:
    """One token: its id, its piece in the vocabulary, and its place ``source[start:end]``.

    A character of several bytes may need several tokens, which then share one span. BOS and EOS
    are ``special`` and have an empty span.
    """

    id: int
    piece: str
    start: int
    end: int
    special: bool = False


@dataclass(frozen=True)
class TokenPlan:
    """What one tower is given for one prompt.

    Attributes:
        tower: the tower's name, such as ``text_encoder_2``.
        source: the prompt as it was written.
        ids: exactly ``limit`` ids, padding included.
        tokens: the tokens kept, BOS and EOS included, padding not.
        pad_id: the id that fills up the context.
        limit: the tower's context (77 for CLIP).
        cut: the source text that did not fit ("" if all did).
        cut_start: where it begins in ``source``; None if all fitted.
        cut_tokens: how many tokens it has.
    """

    tower: str
    source: str
    ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    pad_id: int
    limit: int
    cut: str = ""
    cut_start: int | None = None
    cut_tokens: int = 0

    @property
    def used(self) -> int:
        """Tokens kept, BOS and EOS included."""
        return len(self.tokens)

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for each token kept, 0 for padding; ``limit`` long."""
        return (1,) * self.used + (0,) * (self.limit - self.used)


def plan(prompt: Prompt, tokenizer: Any, tower: str = "text_encoder") -> TokenPlan:
    """The token plan of one prompt. See ``plan_many``."""
    return plan_many((prompt,), tokenizer, tower)[0]


def plan_many(
    prompts: Sequence[Prompt], tokenizer: Any, tower: str = "text_encoder"
) -> tuple[TokenPlan, ...]:
    """The token plans of several prompts, with one call of the tokenizer.

    Args:
        prompts: parsed prompts.
        tokenizer: a fast transformers tokenizer (``CLIPTokenizer`` is one in transformers 5).
        tower: the name written into the plans.

    Raises:
        UnsupportedModelError: a tokenizer without offsets or without a context length, or one
            that pads or cuts on the left.
        PromptError: text that the tokenizer itself refuses.
    """
    _check_tokenizer(tokenizer, tower)
    if not prompts:
        return ()
    spelt = [spell_out("".join(s.text for s in prompt.spans), tokenizer) for prompt in prompts]
    # The empty text rides along: it shows which special tokens frame the content.
    texts = ["", *(text for text, _ in spelt)]
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
    frame, *rows = encoded["input_ids"]
    lead = 1 if frame and frame[0] == tokenizer.bos_token_id else 0
    tail = len(frame) - lead
    return tuple(
        _plan(prompt, origins, ids, spans, lead, tail, tokenizer, tower)
        for prompt, (_, origins), ids, spans in zip(
            prompts, spelt, rows, encoded["offset_mapping"][1:], strict=True
        )
    )


def _plan(
    prompt: Prompt,
    origins: Origins | None,
    ids: list[int],
    spans: list[tuple[int, int]],
    lead: int,
    tail: int,
    tokenizer: Any,
    tower: str,
) -> TokenPlan:
    limit, pad_id = int(tokenizer.model_max_length), int(tokenizer.pad_token_id)
    last = len(ids) - tail
    kept = min(last, limit - tail)
    places = [*range(kept), *range(last, len(ids))]
    used_ids = [ids[i] for i in places]
    pieces = tokenizer.convert_ids_to_tokens(used_ids)
    tokens = tuple(
        Token(ids[i], piece, 0, 0, special=True)
        if i < lead or i >= last
        else Token(ids[i], piece, *_source_span(spans[i], origins))
        for i, piece in zip(places, pieces, strict=True)
    )
    padded = (*used_ids, *[pad_id] * (limit - len(used_ids)))
    if kept == last:
        return TokenPlan(tower, prompt.source, padded, tokens, pad_id, limit)
    start = _source_span(spans[kept], origins)[0]
    end = _source_span(spans[last - 1], origins)[1]
    return TokenPlan(
        tower, prompt.source, padded, tokens, pad_id, limit,
        cut=prompt.source[start:end], cut_start=start, cut_tokens=last - kept,
    )  # fmt: skip


def _source_span(span: tuple[int, int], origins: Origins | None) -> tuple[int, int]:
    """A span of the spelt-out text as a span of the source."""
    start, end = span
    if origins is None or start == end:
        return start, end
    return origins[start][0], origins[end - 1][1]


def _check_tokenizer(tokenizer: Any, tower: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"The tokenizer of {tower} ({type(tokenizer).__name__}) gives no offsets; bridge needs "
            "a fast tokenizer, such as CLIPTokenizer of transformers 5."
        )
    if "left" in (tokenizer.padding_side, tokenizer.truncation_side):
        raise UnsupportedModelError(
            f"The tokenizer of {tower} pads or cuts on the left, which no recipe of bridge does."
        )
    if tokenizer.model_max_length > _LONGEST_CONTEXT or tokenizer.pad_token_id is None:
        raise UnsupportedModelError(
            f"The tokenizer of {tower} states no context length or no padding token; set "
            "model_max_length (77 for CLIP) and pad_token."
        )
