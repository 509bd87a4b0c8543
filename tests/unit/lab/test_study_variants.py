"""Variants: what each operation makes of a prompt, and what holds for all of them."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import MissingDependencyError, OptionError, PromptError
from bridge.lab.variants import OPERATIONS, USUAL, Settings, Variant, own, read_variants, vary
from bridge.lab.variants.words import NUMBERS, split_words, value_of
from bridge.prompt import check_text, parse

PROMPT = "a red cat left of two blue dogs"


def texts(operation: str, prompt: str = PROMPT, **wishes: object) -> list[str]:
    return [each.text for each in vary(prompt, [operation], Settings(**wishes))]  # type: ignore[arg-type]


# ---------------------------------------------------------------- each operation


def test_operations_say_what_they_are_named_for() -> None:
    assert "a photo of a red cat" in texts("template", "a red cat")
    assert "a bad photo of the red cat." in texts("template", "A photo of a red cat.")
    assert not any("a two" in text for text in texts("template", "two cats"))
    assert texts("article", "a cat and the owl") == [
        "cat and owl", "the cat and the owl", "a cat and an owl",
    ]  # fmt: skip
    assert texts("article", "owl") == ["an owl", "the owl"]
    assert "a red cat left of two blue dogs." in texts("punctuation")
    assert PROMPT.upper() in texts("case")
    assert "dogs blue two of left cat red a" in texts("word-order")
    assert "a red cat without two dogs" in texts("negation", "a red cat with two dogs")
    assert "a cat but no dog" in texts("negation", "a cat and a dog")
    assert texts("number", "two cats, 3 dogs") == [
        "2 cats, 3 dogs", "one cats, 3 dogs", "three cats, 3 dogs",
        "two cats, three dogs", "two cats, 2 dogs", "two cats, 4 dogs", "2 cats, three dogs",
    ]  # fmt: skip
    assert texts("adjective-swap") == ["a blue cat left of two red dogs"]
    assert texts("adjective-swap", "a big red cat") == []
    assert texts("truncation", "one two three") == ["one", "one two", "two three"]
    assert "a cat, a cat" in texts("repetition", "a cat")


def test_word_orders_and_typos_keep_the_words() -> None:
    words = sorted(split_words(PROMPT).words)
    assert all(sorted(split_words(text).words) == words for text in texts("word-order"))
    for text in texts("typo"):
        pairs = zip(split_words(text).words, split_words(PROMPT).words, strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_emphasis_is_read_as_it_was_meant() -> None:
    found = vary("a red cat", ["emphasis"], Settings(weights=(0.5, 1.5)))
    assert {each.dialect for each in found} == {"a1111", "comfy", "compel"}
    assert len(found) == 2 * 2 * 3
    for each in found:
        word, _, rest = each.detail.partition(" × ")
        weights = {
            span.text.strip(): span.weight
            for span in parse(each.text, each.dialect).spans
            if span.text.strip()
        }
        assert weights[word] == pytest.approx(float(rest.split(",")[0]))
        assert all(weight == 1 for text, weight in weights.items() if text != word)


def test_languages_by_given_names() -> None:
    names = {"de": {"cat": "Katze", "red cat": "rote Katze"}, "fr": {"a dog": "un chien"}}
    assert texts("language", "a red cat", names=names) == ["a rote Katze"]
    assert texts("language", "A dog ", names=names) == ["un chien"]
    assert texts("language", "bobcats", names=names) == []
    with pytest.raises(OptionError, match="'it' has no names"):
        vary("a cat", ["language"], Settings(names={"it": {}}))


def test_languages_by_bridges_own_names() -> None:
    found = vary("Two red cats left of a dog.", ["language"])
    assert len(found) == 26  # of 27: Mexican Spanish says it as Spanish does
    by_language = {each.detail.split(",")[0]: each for each in found}
    assert by_language["de"].text == "zwei rot Katze links von Hund"
    assert by_language["ja"].detail == "ja, whole prompt"
    # What is no caption keeps its words, but for those that are known.
    (french,) = vary("a poster of two cats and a hamburger", ["language"], Settings(names=["fr"]))
    assert french.text == "a poster of deux chat et a hamburger"
    assert french.detail == "fr, 2 names"


@pytest.mark.parametrize(
    ("prompt", "names", "message"),
    [
        ("a cat", ["tlh"], "no names in the language 'tlh'.*zh-hant"),
        ("a cat", "de", "give languages, such as"),
        ("a quiet red morning", (), "'a quiet red morning' has no name that bridge knows"),
    ],
)
def test_languages_and_prompts_without_names_are_refused(
    prompt: str, names: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        vary(prompt, ["language"], Settings(names=names))


@pytest.mark.skipif(importlib.util.find_spec("nltk") is not None, reason="nltk is here")
def test_synonyms_without_nltk_say_what_to_install() -> None:
    with pytest.raises(MissingDependencyError, match="pip install nltk"):
        vary("a cat", ["synonym"])


@pytest.mark.skipif(importlib.util.find_spec("nltk") is None, reason="nltk is not here")
def test_synonyms_are_wordnets() -> None:
    try:
        found = texts("synonym", "a big cat")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert "a large cat" in found and "a big cat" not in found


def test_numbers_count_both_ways() -> None:
    assert NUMBERS[0] == "zero" and NUMBERS[21] == "twenty-one" and NUMBERS[99] == "ninety-nine"
    assert all(value_of(word) == value for value, word in enumerate(NUMBERS))
    assert value_of("²") is None and value_of("100") is None


# ---------------------------------------------------------------- all of them

HOSTILE = st.text(
    alphabet=st.one_of(
        st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"),
        st.sampled_from("()[]{}:|\\+-\"'., aA1²🍎א\u200b\u0301"),
    ),
    max_size=60,
)


@given(prompt=HOSTILE, seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_variants_are_new_distinct_valid_and_of_the_seed(prompt: str, seed: int) -> None:
    wishes = Settings(seed=seed, names={"de": {"a": "ä", prompt or "-": "alles"}})
    operations = [*USUAL, "language"]
    found = vary(prompt, operations, wishes)
    assert found == vary(prompt, operations, wishes)
    assert len({(v.operation, v.text, v.dialect) for v in found}) == len(found)
    for each in found:
        assert (each.text, each.dialect) != (prompt, "plain")
        assert each.text.strip() and each.operation in operations
        assert check_text(each.text) == each.text
        parse(each.text, each.dialect)


@given(text=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_words_and_gaps_are_the_text(text: str) -> None:
    words = split_words(text)
    assert words.text == text and len(words.gaps) == len(words.words) + 1
    assert [text[a:b] for a, b in words.spans()] == list(words.words)
    assert words.with_words(words.words) == text


def test_a_seed_matters() -> None:
    found = [vary(PROMPT, ["word-order", "typo"], Settings(seed=seed)) for seed in (0, 1)]
    assert found[0] != found[1]


@pytest.mark.parametrize("prompt", ["a\0b", "\ud800", 3])
def test_text_that_no_tokenizer_reads_is_refused(prompt: object) -> None:
    with pytest.raises(PromptError):
        vary(prompt)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what a caller may write


def test_what_variants_may_be() -> None:
    wishes = Settings()
    assert read_variants(None, PROMPT, wishes) == vary(PROMPT)
    assert read_variants("case", PROMPT, wishes) == vary(PROMPT, ["case"])
    mine = Variant("mine", "a (cat:1.2)", dialect="a1111")
    assert read_variants(["case", mine, mine], PROMPT, wishes) == [*vary(PROMPT, ["case"]), mine]
    assert read_variants([mine], PROMPT, wishes) == [mine]
    assert read_variants({"b": ["x", "y", "x"]}, PROMPT, wishes) == own(["x", "y"], "b")


@pytest.mark.parametrize("variants", [[], {}, (), {"mine": []}, {"mine": "a cat"}, 3])
def test_nothing_to_vary_is_refused(variants: object) -> None:
    with pytest.raises(OptionError):
        read_variants(variants, PROMPT, Settings())


def test_an_unknown_operation_names_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean 'negation'"):
        vary(PROMPT, ["negaton"])
    assert all(operation.about for operation in OPERATIONS.values())
