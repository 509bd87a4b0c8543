"""Prompt input, token plans and the token report, with a real tokenizer of a tiny vocabulary."""

from __future__ import annotations

import gc
import json
import re
import sys
import weakref
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompts import HARD, TEXTS, plain
from support.tiny_models import tiny_clip_tokenizer

from bridge.errors import OptionError, PromptError, UnsupportedModelError
from bridge.prompt import (
    TokenReport,
    at_step,
    check_paired,
    check_prompts,
    check_text,
    parse,
    plan,
    plan_many,
    plan_report,
)
from bridge.prompt.report import SHOWN_WINDOWS
from bridge.prompt.token_plan import MAX_WINDOWS

EOS_PADDED = tiny_clip_tokenizer()
ZERO_PADDED = tiny_clip_tokenizer("!")
# A busy machine may stall any one example.
UNTIMED = settings(deadline=None)


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\0b", "position 1"),
        ("ab\ud83d", "position 2"),
        ("\udc00", "U\\+DC00"),
        (None, "NoneType"),
        (3, "int"),
        (b"cat", "bytes"),
        ("x" * 1_000_001, "1,000,001"),
    ],
)
def test_text_that_cannot_be_encoded(text: object, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        check_text(text)


def test_the_empty_prompt_is_legal() -> None:
    assert check_prompts("") == ("",)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "empty list"),
        (["a", 3], "prompt 1 must be a string, not int"),
        (["a", "b\0"], "prompt 1 has a NUL character at position 1"),
        ({"a": 1}, "not dict"),
        (None, "not NoneType"),
        (b"cat", "not bytes"),
    ],
)
def test_prompts_that_are_refused(prompts: object, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        check_prompts(prompts)


def test_negatives_pair_with_prompts() -> None:
    assert check_paired(None, 2) is None
    assert check_paired("ugly", 2) == ("ugly", "ugly")
    assert check_paired(["a", ""], 2) == ("a", "")
    with pytest.raises(PromptError, match="1 texts for 2 of prompt"):
        check_paired(["a"], 2)


def test_plain_prompts_print_back() -> None:
    prompt = plain("a (red:1.3) apple")
    assert str(prompt) == "a (red:1.3) apple"
    assert [(s.start, s.end, s.weight) for s in prompt.spans] == [(0, 17, 1.0)]
    with pytest.raises(OptionError, match=r"'a111'.*a1111"):
        parse("a cat", "a111")


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("tokenizer", [EOS_PADDED, ZERO_PADDED], ids=["eos", "zero"])
@pytest.mark.parametrize("text", HARD)
def test_ids_are_those_of_the_tokenizer(text: str, tokenizer: object) -> None:
    assert plan(plain(text), tokenizer).ids == _as_diffusers_does(tokenizer, text)


@given(TEXTS)
@UNTIMED
def test_ids_of_any_text_are_those_of_the_tokenizer(text: str) -> None:
    assert plan(plain(text), EOS_PADDED).ids == _as_diffusers_does(EOS_PADDED, text)


@given(st.lists(TEXTS, min_size=1, max_size=4))
@UNTIMED
def test_a_batch_is_its_prompts_one_by_one(texts: list[str]) -> None:
    prompts = [plain(text) for text in texts]
    assert plan_many(prompts, ZERO_PADDED) == tuple(plan(p, ZERO_PADDED) for p in prompts)


@given(TEXTS)
@settings(UNTIMED, max_examples=300)
def test_spans_are_places_in_the_source_as_written(text: str) -> None:
    found = plan(plain(text), EOS_PADDED)
    content = [t for t in found.tokens if not t.special]
    previous = (0, 0)
    for token in content:
        assert 0 <= token.start < token.end <= len(text)
        # In order, and either apart from the token before or inside the same character.
        assert token.start >= previous[0] and token.end >= previous[1]
        previous = (token.start, token.end)
    covered = {i for t in content for i in range(t.start, t.end)}
    if found.cut_start is not None:
        covered |= set(range(found.cut_start, found.cut_start + len(found.cut)))
    # CLIP's normaliser drops what its regular expression calls a space, and nothing else.
    left_over = "".join(c for i, c in enumerate(text) if i not in covered)
    assert re.fullmatch(r"\s*", left_over), ascii(left_over)


@given(st.lists(st.sampled_from(["cat", "RED", "apples", "zebra", "🎈", "ß"]), max_size=60))
@UNTIMED
def test_a_span_of_ascii_words_reads_as_its_piece(words: list[str]) -> None:
    text = "  ".join(words)
    for token in plan(plain(text), EOS_PADDED).tokens:
        place = text[token.start : token.end]
        if not token.special and place.isascii():
            assert place.lower() == token.piece.removesuffix("</w>")


def test_what_is_cut_off_is_the_tail_of_the_source() -> None:
    text = "cat " * 80 + "The End"
    found = plan(plain(text), EOS_PADDED)
    assert (found.used, found.limit) == (77, 77)
    assert found.cut_start == 75 * 4
    assert found.cut == text[300:]
    assert found.cut_tokens == len(EOS_PADDED(text, verbose=False).input_ids) - 77
    assert found.ids[-1] == EOS_PADDED.eos_token_id


def test_seventy_five_tokens_fit_and_nothing_is_cut() -> None:
    found = plan(plain("cat " * 75), EOS_PADDED)
    assert (found.used, found.cut, found.cut_start, found.cut_tokens) == (77, "", None, 0)


def test_mask_and_padding() -> None:
    found = plan(plain("a cat"), ZERO_PADDED, "text_encoder_2")
    assert found.tower == "text_encoder_2"
    assert sum(found.mask) == found.used == 4
    assert len(found.mask) == len(found.ids) == 77
    assert set(found.ids[4:]) == {0} == {found.pad_id}


def test_threads_may_share_a_tokenizer() -> None:
    # A tokenizer's truncation is shared state that may not change while another thread encodes.
    from concurrent.futures import ThreadPoolExecutor

    texts = ["cat " * 300, "a dog", "🎈" * 90, ""] * 25
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: plan(plain(text), EOS_PADDED).ids, texts))
    assert found == [_as_diffusers_does(EOS_PADDED, text) for text in texts]


def test_no_prompts_no_plans() -> None:
    assert plan_many((), EOS_PADDED) == ()


def test_a_concept_of_several_vectors_is_spelt_out_as_diffusers_does() -> None:
    from diffusers.loaders import TextualInversionLoaderMixin

    tokenizer = tiny_clip_tokenizer()
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<one>"])
    text = "a <toy> left of <one> and <toy>"
    spelt = TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)
    found = plan(plain(text), tokenizer)
    assert found.ids == _as_diffusers_does(tokenizer, spelt)
    places = [text[t.start : t.end] for t in found.tokens if not t.special]
    assert places[:5] == ["a", "<toy>", "<toy>", "<toy>", "left"]
    assert places[-3:] == ["<toy>"] * 3


def test_tokenizers_that_cannot_be_planned_with() -> None:
    endless = tiny_clip_tokenizer()
    endless.model_max_length = int(1e30)
    with pytest.raises(UnsupportedModelError, match="no context length"):
        plan(plain("a"), endless)
    left = tiny_clip_tokenizer()
    left.padding_side = "left"
    with pytest.raises(UnsupportedModelError, match="left"):
        plan(plain("a"), left)
    with pytest.raises(UnsupportedModelError, match="object"):
        plan(plain("a"), object())


# ---------------------------------------------------------------- report


def test_report_shows_weights_and_windows() -> None:
    report = plan_report("a (cat:1.3) [dog] BREAK red", [("one", EOS_PADDED)])
    (tower,) = report.towers
    assert (tower.windows, tower.used, tower.limit) == (2, 8, 77)
    assert [(r.text, r.weight, r.window) for r in tower.rows if not r.special] == [
        ("a", 1, 0),
        ("cat", 1.3, 0),
        ("dog", pytest.approx(1 / 1.1), 0),
        ("red", 1, 1),
    ]
    assert report.text() == (
        "one: 8 tokens in 2 windows of 77: <|startoftext|> a cat:1.3 dog:0.9091 <|endoftext|> "
        "<|startoftext|> red <|endoftext|>"
    )
    html = report.html()
    assert "cat<sup>1.3</sup>" in html and "dog<sup>0.909</sup>" in html
    assert html.count("<br>") == 1 and html.count("rgba(") == 2


def said(prompt: str, **options: Any) -> list[tuple[str, str, str]]:
    """Part, steps and words of each line of a report."""
    lines = []
    for tower in plan_report(prompt, [("one", EOS_PADDED)], **options).towers:
        words = " ".join(row.text for row in tower.rows if not row.special)
        lines.append((tower.part, tower.when, words))
    return lines


def test_a_report_has_both_sides_of_a_schedule_and_says_when_they_act() -> None:
    assert said("a [cat:dog:0.5]") == [
        ("", "steps 1 to 11 of 20", "a cat"),
        ("", "steps 12 to 20 of 20", "a dog"),
    ]
    assert said("a [cat:dog:5]", steps=7) == [
        ("", "steps 1 to 6 of 7", "a cat"),
        ("", "step 7 of 7", "a dog"),
    ]
    assert said("[cat|dog] [apple::2]", steps=5) == [
        ("", "steps 1 to 2 of 5", "cat apple"),
        ("", "step 3 of 5", "dog apple"),
        ("", "step 4 of 5", "cat"),
        ("", "step 5 of 5", "dog"),
    ]
    assert said("[cat|dog]", steps=20)[1][1] == "steps 3, 5, 7, … 19 of 20"
    # A side that comes after the run's end is not read.
    assert said("[cat:dog:30]", steps=20) == [("", "", "cat")]


def test_a_report_has_the_parts_of_and_apart_with_their_weights() -> None:
    assert said("a cat AND two dog:0.7") == [
        ("part 1 of 2, weight 1", "", "a cat"),
        ("part 2 of 2, weight 0.7", "", "two dog"),
    ]
    # Only what changes is told step by step.
    assert said("a cat AND [red:two:0.5] dog:-1", steps=4) == [
        ("part 1 of 2, weight 1", "", "a cat"),
        ("part 2 of 2, weight -1", "steps 1 to 3 of 4", "red dog"),
        ("part 2 of 2, weight -1", "step 4 of 4", "two dog"),
    ]
    assert said('("cat", "dog").blend(0.3, 0.7)', dialect="compel") == [
        ("part 1 of 2, weight 0.3", "", "cat"),
        ("part 2 of 2, weight 0.7", "", "dog"),
    ]


@pytest.mark.parametrize("prompt", ["a [cat:dog:0.3] [red|two]", "[[cat|dog]:[apple::12]:4]"])
def test_a_report_says_of_each_step_what_is_drawn_at_it(prompt: str) -> None:
    parsed, steps = parse(prompt), 20
    reported = {words for _, _, words in said(prompt)}
    drawn = [at_step(parsed, step, steps).parts[0].text.split() for step in range(1, steps + 1)]
    assert {" ".join(words) for words in drawn} == reported


def test_a_report_of_a_prompt_that_changes_has_all_of_it_in_text_html_and_json() -> None:
    report = plan_report("[cat:dog:0.5] AND red:2", [("one", EOS_PADDED), ("two", ZERO_PADDED)])
    assert [(t.name, t.part[:6], t.when[:7]) for t in report.towers] == [
        ("one", "part 1", "steps 1"),
        ("two", "part 1", "steps 1"),
        ("one", "part 1", "steps 1"),
        ("two", "part 1", "steps 1"),
        ("one", "part 2", ""),
        ("two", "part 2", ""),
    ]
    assert "one, part 1 of 2, weight 1, steps 12 to 20 of 20: 3 of 77 tokens" in report.text()
    assert report.html().count("part 2 of 2, weight 2") == 2
    assert report.to_dict()["towers"][2]["when"] == "steps 12 to 20 of 20"
    assert report.prompt == "[cat:dog:0.5] AND red:2"


def test_a_report_of_very_many_windows_shows_the_first_ones() -> None:
    html = plan_report("cat " * 2_000, [("one", EOS_PADDED)]).html()
    assert "2054 tokens in 27 windows of 77" in html
    assert html.count("<br>") == SHOWN_WINDOWS and "19 more windows" in html


def test_a_prompt_of_too_many_windows_is_refused() -> None:
    most = "cat " * 75 * MAX_WINDOWS
    assert len(plan(plain(most), EOS_PADDED, split="hard").windows) == MAX_WINDOWS
    with pytest.raises(PromptError, match=r"33 windows of 77 tokens.*truncate"):
        plan(plain(most + "cat"), EOS_PADDED, split="hard")


def test_report_names_tokens_used_limit_and_cut() -> None:
    report = as_it_is("a cat " * 40, [("one", EOS_PADDED), ("two", ZERO_PADDED)])
    assert [t.name for t in report.towers] == ["one", "two"]
    tower = report.towers[0]
    assert (tower.used, tower.limit, tower.cut_tokens) == (77, 77, 5)
    assert tower.cut == "cat a cat a cat"
    assert report.is_cut
    assert "77 of 77 tokens" in report.text()
    assert "cut off (5 tokens): cat a cat a cat" in report.text()


def test_report_of_a_short_prompt_is_not_cut() -> None:
    report = as_it_is("two red apples", [("one", EOS_PADDED)])
    assert not report.is_cut
    assert report.text().startswith("one: 5 of 77 tokens: <|startoftext|> two red apples")
    assert "Cut off" not in report.html()


def test_bytes_of_one_emoji_are_counted() -> None:
    rows = as_it_is("🎈", [("one", EOS_PADDED)]).towers[0].rows
    assert [(r.text, r.part, r.parts) for r in rows[1:-1]] == [("🎈", i, 4) for i in (1, 2, 3, 4)]


@given(TEXTS)
@UNTIMED
def test_report_is_json_and_agrees_with_the_plan(text: str) -> None:
    as_dict = json.loads(json.dumps(as_it_is(text, [("one", ZERO_PADDED)]).to_dict()))
    tower = as_dict["towers"][0]
    found = plan(plain(text), ZERO_PADDED)
    assert as_dict["prompt"] == text
    assert [t["id"] for t in tower["tokens"]] == list(found.ids[: found.used])
    assert tower["used"] == len(tower["tokens"]) <= tower["limit"]
    for token in tower["tokens"]:
        if not token["special"]:
            assert token["text"] == text[slice(*token["span"])]


@given(st.text(st.sampled_from("<>&\"' abscriptlt;=/🎈"), max_size=90))
@UNTIMED
def test_html_shows_the_text_and_runs_none_of_it(text: str) -> None:
    reader = _Reader()
    reader.feed(as_it_is(text, [("<b>", EOS_PADDED)]).html())
    reader.close()
    assert reader.tags <= {"div", "p", "b", "bdi", "sub", "s"}
    assert reader.attributes <= {"class", "style", "title", "role"}
    assert reader.open == []
    assert "<b>" in reader.text


def test_a_script_in_a_prompt_is_escaped() -> None:
    html = as_it_is("<script>alert(1)</script>" * 20, [("one", EOS_PADDED)]).html()
    assert "<script" not in html
    assert "&lt;script" in html


@pytest.mark.parametrize("dialect", ["plain", "a1111", "comfy"])
def test_a_tokenizer_that_gains_words_is_read_anew(dialect: str) -> None:
    """What is known of a tokenizer is kept between calls, but not longer than it holds."""
    tokenizer = tiny_clip_tokenizer("!")
    before = plan(parse("a <New> cat", dialect), tokenizer)
    tokenizer.add_tokens(["<new>", "<new>_1"])
    ids = tuple(tokenizer.convert_tokens_to_ids(["<new>", "<new>_1"]))
    after = plan(parse("a <New> cat", dialect), tokenizer)
    assert before.ids != after.ids
    assert ids[0] in after.ids and (dialect != "plain" or set(ids) <= set(after.ids))
    tokenizer.pad_token = tokenizer.eos_token
    assert before.pad_id == 0
    assert plan(parse("a cat", dialect), tokenizer).pad_id == tokenizer.eos_token_id


def test_plans_keep_no_tokenizer_alive() -> None:
    tokenizer = tiny_clip_tokenizer("!")
    plan(parse("a <new> cat"), tokenizer)
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_few_texts_and_many_are_tokenized_alike() -> None:
    """Few go to the tokenizer's backend itself, if nothing is set there; many to the tokenizer."""
    prompts = [plain(text) for text in HARD * 5]
    together = plan_many(prompts, EOS_PADDED, split="hard")
    assert together == tuple(plan(each, EOS_PADDED, split="hard") for each in prompts)
    tokenizer = tiny_clip_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert plan_many(prompts[:3], tokenizer, split="hard") == together[:3]


def test_the_work_grows_with_the_words_not_with_their_square() -> None:
    tokenizers = [("one", EOS_PADDED), ("two", ZERO_PADDED)]

    def calls(words: int) -> int:
        """The function calls, Python's and C's, of a report. No clock: they are the same on any
        machine, however busy."""
        count = 0

        def on_event(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(on_event)
        try:
            as_it_is("word " * words, tokenizers).html()
        finally:
            sys.setprofile(before)
        return count

    calls(10)  # what is only done once
    assert calls(10_000) < 11 * calls(1_000)


def test_a_report_of_ten_thousand_words_is_short() -> None:
    report = as_it_is("word " * 10_000, [("one", EOS_PADDED), ("two", ZERO_PADDED)])
    # w, o, r, d are four tokens of this small vocabulary, so 75 tokens end inside a word.
    assert report.towers[0].cut_tokens == 40_000 - 75
    assert len(report.html()) < 60_000


def test_report_refuses_what_cannot_be_encoded() -> None:
    with pytest.raises(PromptError, match="NUL"):
        as_it_is("a\0", [("one", EOS_PADDED)])


# ---------------------------------------------------------------- helpers


def as_it_is(text: str, tokenizers: list[tuple[str, Any]]) -> TokenReport:
    """The report of a plain prompt that is cut off after one window."""
    return plan_report(text, tokenizers, "plain", None)


def _as_diffusers_does(tokenizer: object, text: str) -> tuple[int, ...]:
    """The call in diffusers' ``encode_prompt``."""
    call = tokenizer(  # type: ignore[operator]
        text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True
    )
    return tuple(call.input_ids)


class _Reader(HTMLParser):
    """Collects tags, attributes and text, and which tags stay open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
