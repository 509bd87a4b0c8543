"""Texts as tools clean them before they tokenize: the peers' words for it in tests/data, spans that
point to what was written, and the defaults of dialects and towers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import DATA
from support.tiny_models import tiny_clip_tokenizer, tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.cleaning import CLEANINGS, UNCHANGED, clean
from bridge.errors import OptionError
from bridge.prompt import parse, plan
from bridge.towers import TEXT_FAMILIES
from bridge.towers.tokenizer import tokenize

SAID = json.loads((DATA / "cleaned.json").read_text(encoding="utf-8"))
BROKEN = "a  cafÃ© &amp; two “red”  apples"


@pytest.mark.parametrize("how", ["ftfy", "whitespace", "lower", "canonicalize"])
def test_the_text_is_what_the_tools_make_of_it(how: str) -> None:
    assert len(SAID["texts"]) > 80
    for text, wanted in zip(SAID["texts"], SAID[how], strict=True):
        assert clean(text, how).text == wanted, text


@given(st.text(st.sampled_from("aÃ©ÎΣﬁＡ“&amp;#3;< \n\x07.İ")), st.sampled_from(CLEANINGS))
def test_every_letter_came_from_somewhere(text: str, how: str) -> None:
    found = clean(text, how)
    assert len(found.origins) == len(found.text)
    assert all(0 <= start < end <= len(text) for start, end in found.origins)
    assert found.origins == sorted(found.origins, key=lambda span: span[0])


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=20), st.sampled_from(CLEANINGS))
def test_what_counts_as_unchanged_is(text: str, how: str) -> None:
    for each in (text, text.lower(), " ".join(text.lower().split())):
        if UNCHANGED[how].fullmatch(each):
            assert clean(each, how).text == each


@pytest.mark.parametrize("how", CLEANINGS)
def test_an_ordinary_prompt_counts_as_unchanged(how: str) -> None:
    text = "a red apple, 4k" if how != "canonicalize" else "a red apple 4k"
    assert UNCHANGED[how].fullmatch(text)
    assert not UNCHANGED[how].fullmatch("a &amp; b")


def test_letters_point_to_what_was_written() -> None:
    found = clean(BROKEN, "lower")
    assert found.text == 'a café & two "red" apples'
    written = {found.text[i]: BROKEN[a:b] for i, (a, b) in enumerate(found.origins)}
    assert (written["é"], written["&"], written["t"], written["r"]) == ("Ã©", "&amp;", "t", "r")
    assert found.changes == (("cafÃ© &amp;", "café &"), ("“red”", '"red"'))


def test_long_and_repetitive_texts_take_no_time() -> None:
    started = time.monotonic()
    for text in ("“a " * 30_000, "a" * 50_000 + "“" * 50_000, "“" + "a " * 50_000 + "“"):
        assert len(clean(text, "lower").origins) > 1
    assert time.monotonic() - started < 60


# ---------------------------------------------------------------- dialects


def test_a1111_cleans_and_the_others_do_not() -> None:
    pipe = tiny_sd_pipeline("sd15")
    mended = bridge.condition('a café & two "red" apples', model=pipe, dialect="plain")
    for dialect in ("comfy", "compel", "plain"):
        found = bridge.condition(BROKEN, model=pipe, dialect=dialect)
        assert not torch.equal(found.prompt_embeds, mended.prompt_embeds), dialect
        chosen = bridge.condition(BROKEN, model=pipe, dialect=dialect, clean="ftfy")
        assert torch.equal(chosen.prompt_embeds, mended.prompt_embeds), dialect
    found = bridge.condition(BROKEN, model=pipe)
    assert torch.equal(found.prompt_embeds, mended.prompt_embeds)
    raw = bridge.condition(BROKEN, model=pipe, clean="none")
    assert not torch.equal(raw.prompt_embeds, mended.prompt_embeds)


def test_every_door_takes_the_option() -> None:
    pipe = tiny_sd_pipeline("sd15")
    with pytest.raises(OptionError, match=r"No clean .*'canonicalize'"):
        bridge.condition("a", model=pipe, clean="canonicalise")
    wanted = bridge.condition("a cat", model=pipe).prompt_embeds
    options: dict[str, Any] = {"model": pipe, "clean": "canonicalize"}
    assert torch.equal(bridge.schedule("a c.at!", steps=2, **options).at(1).prompt_embeds, wanted)
    assert torch.equal(bridge.compose("a c.at!", **options).parts.prompt_embeds, wanted)
    region = bridge.Region("a c.at!", box=(0, 0, 1, 1))
    assert torch.equal(bridge.regional("a", [region], **options).joined.prompt_embeds[:1], wanted)


def test_open_clips_towers_read_html_and_the_report_says_so() -> None:
    text = "a <red> &lt;cat&gt; ΟΔΟΣ"
    (report,) = bridge.condition(text, model=tiny_sdxl_pipeline()).report().prompts
    first, second = report.towers
    assert first.cleaned == ()  # ftfy leaves text with "<" in it alone
    assert second.cleaned == (("&lt;cat&gt;", "<cat>"),)
    assert "cleaned: '&lt;cat&gt;' is read as '<cat>'" in report.text()
    assert "&amp;lt;cat&amp;gt;" in report.html() and "<cat>" not in report.html()
    assert report.to_dict()["towers"][1]["cleaned"] == [["&lt;cat&gt;", "<cat>"]]


def test_tokens_point_to_the_prompt_and_weights_clean_apart() -> None:
    text = "(cafÃ©:1.3) dog  “two” apples"
    found = plan(parse(text), tiny_clip_tokenizer())
    places = [text[t.start : t.end] for t in found.tokens if not t.special]
    assert places[places.index("dog") - 1] == "Ã©" and places[-1] == "apples"
    assert "".join(dict.fromkeys(places)).startswith("caf")
    assert found.cleaned == (("cafÃ©", "café"), ("“two”", '"two"'))


def test_words_of_the_tokenizer_stay_as_they_are() -> None:
    tokenizer = tiny_clip_tokenizer()
    tokenizer.add_tokens(["<Ｃat>"])
    ids = [token.id for token in plan(parse("“a” <Ｃat> apple"), tokenizer).tokens]
    assert tokenizer.convert_tokens_to_ids("<Ｃat>") in ids


# ---------------------------------------------------------------- towers


def test_families_have_their_tools_own_cleaning() -> None:
    named = {name: family.rule.clean for name, family in TEXT_FAMILIES.items()}
    cleaning = {name: how for name, how in named.items() if how != "none"}
    assert cleaning == {
        "open_clip": "lower",
        "coca": "lower",
        "open_clip_hf": "whitespace",
        "open_clip_words": "whitespace",
    }


def test_a_towers_offsets_point_to_the_text() -> None:
    rule = TEXT_FAMILIES["open_clip"].rule
    batch = tokenize(tiny_clip_tokenizer(), [BROKEN], rule, 77)
    plain = tokenize(tiny_clip_tokenizer(), ['a café & two "red" apples'], rule, 77)
    assert torch.equal(batch.ids, plain.ids)
    spans = [BROKEN[slice(*span)] for span in batch.offsets[0] if span]
    assert spans[-1] == "apples" and "&amp;" in spans and batch.texts == (BROKEN,)
