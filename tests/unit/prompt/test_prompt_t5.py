"""Token plans of T5: a unigram tokenizer, whose length and letters are a pipeline's choice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompts import HARD, TEXTS, plain
from support.tiny_t5 import tiny_t5_tokenizer

from bridge.cleaning import lowered
from bridge.errors import UnsupportedModelError
from bridge.prompt import Reader, TokenPlan, parse, plan, plan_many

TOKENIZER = tiny_t5_tokenizer()
UNTIMED = settings(deadline=None, max_examples=50)


def as_in_diffusers(text: str, length: int, lower: bool) -> Any:
    """PixArt's ``_text_preprocessing`` and the call that follows it."""
    text = text.lower().strip() if lower else text
    return TOKENIZER(text, padding="max_length", max_length=length, truncation=True)


def check(text: str, length: int, lower: bool) -> TokenPlan:
    found = plan(plain(text), Reader(TOKENIZER, length, lower), "t5", "comma")
    wanted = as_in_diffusers(text, length, lower)
    assert list(found.ids) == wanted.input_ids
    assert list(found.mask) == wanted.attention_mask
    assert len(found.windows) == 1
    assert found.limit == length
    return found


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("text", HARD)
def test_ids_and_mask_are_the_tokenizers(text: str, lower: bool) -> None:
    check(text, 24, lower)


@UNTIMED
@given(TEXTS, st.integers(1, 40), st.booleans())
def test_ids_and_mask_of_any_text(text: str, length: int, lower: bool) -> None:
    found = check(text, length, lower)
    content = [token for token in found.tokens if not token.special]
    assert all(0 <= token.start <= token.end <= len(text) for token in content)
    # Nothing goes unnoticed: what is cut off is told, with its place.
    assert (found.cut_tokens > 0) == (found.cut_start is not None)


@UNTIMED
@given(TEXTS)
def test_small_letters_know_where_they_came_from(text: str) -> None:
    small, origins = lowered(text, [(i, i + 1) for i in range(len(text))])
    assert small == text.lower()
    assert len(origins) == len(small)
    for letter, (start, end) in zip(small, origins, strict=True):
        # But for the final sigma, which looks to its neighbours.
        assert letter in text[start:end].lower() or letter == "ς"


def test_tokens_point_at_the_text_as_it_was_written() -> None:
    text = "  Two (İ CATS:1.5), a dog"
    found = plan(parse(text), Reader(TOKENIZER, 32, lower=True))
    spans = {text[t.start : t.end] for t in found.tokens if not t.special}
    assert {"Two", "İ", "CAT", "S", "dog"} <= spans
    assert {text[t.start : t.end] for t in found.tokens if t.weight == 1.5} == {"İ", "CAT", "S"}


def test_the_last_token_kept_is_the_end_of_the_sequence() -> None:
    found = plan(plain("cat " * 50), Reader(TOKENIZER, 5))
    assert found.ids[-1] == TOKENIZER.eos_token_id
    assert found.used == 5
    assert (found.cut_tokens, found.cut_start) == (46, 16)


def test_breaks_are_read_over() -> None:
    one, two = plan_many(
        [parse("a cat BREAK two dogs"), parse("a cat  two dogs")],
        Reader(TOKENIZER, 20),
        "t5",
        "comma",
    )
    assert one.ids == two.ids


def test_a_word_taken_out_leaves_a_plus() -> None:
    found = plan(plain("a cat"), Reader(TOKENIZER, 20))
    assert found.mask_id == TOKENIZER.convert_tokens_to_ids("▁+")


def test_a_tokenizer_without_a_context_needs_a_length() -> None:
    endless = tiny_t5_tokenizer()
    endless.model_max_length = int(1e30)
    with pytest.raises(UnsupportedModelError, match="states no context length"):
        plan(plain("a cat"), endless)
    assert plan(plain("a cat"), Reader(endless, 12)).limit == 12
