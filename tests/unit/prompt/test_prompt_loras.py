"""LoRA tags: read as stable-diffusion-webui reads them, and places kept."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import tiny_clip_tokenizer

from bridge.errors import PromptError
from bridge.prompt import parse, plan, plan_report
from bridge.prompt.prompt import refuse_tags, take_tags
from bridge.prompt.token_plan import as_written

TOKENIZER = tiny_clip_tokenizer()


@pytest.mark.parametrize(
    ("text", "strength", "unet"),
    [
        ("<lora:x>", 1, 1),
        ("<lora:x:0.8>", 0.8, 0.8),
        ("<lora:x:0.8:0.3>", 0.8, 0.3),
        ("<lora:x: -1.5 >", -1.5, -1.5),
        ("<lora:x:te=0.5>", 0.5, 0.5),
        ("<lora:x:0.8:unet=0>", 0.8, 0),
        ("<lora:x:te=0.5:unet=1>", 0.5, 1),
        ("<lyco:x:2>", 2, 2),
    ],
)
def test_strengths(text: str, strength: float, unet: float) -> None:
    (tag,) = take_tags(text).tags
    assert (tag.name, tag.strength, tag.unet) == ("x", strength, unet)


@pytest.mark.parametrize(
    "tag",
    ["<lora:>", "<lora::1>", "<lora:x:y>", "<lora:x:nan>", "<lora:x:1e999>", "<lora:x:1:1:8>",
     "<lora:x:dyn=4>", "<lora:x:>"],
)  # fmt: skip
def test_tags_that_cannot_be_read(tag: str) -> None:
    with pytest.raises(PromptError) as caught:
        take_tags(f"a cat, {tag}, a dog")
    _, line, carets = str(caught.value).split("\n")
    assert line[carets.index("^") : carets.rindex("^") + 1] == tag


def test_a_tag_is_out_before_brackets_and_schedules_are_read() -> None:
    tagged = take_tags("(a <lora:x:0.8>cat:1.2) [b<lora:y:1>:c:0.5]")
    assert tagged.text == "(a cat:1.2) [b:c:0.5]"
    assert [tag.name for tag in tagged.tags] == ["x", "y"]


@given(st.lists(st.sampled_from(["cat", " ", "<lora:x:1>", "(dog:1.2)", ",", "🎈", "<lora:y>"])))
def test_places_are_those_of_the_source(pieces: list[str]) -> None:
    source = "".join(pieces)
    tagged = take_tags(source)
    assert tagged.text == re.sub("<.*?>", "", source)
    clean = plan(parse(tagged.text), TOKENIZER)
    moved = as_written(clean, tagged)
    assert moved.source == source and moved.ids == clean.ids
    for before, after in zip(clean.tokens, moved.tokens, strict=True):
        there = re.sub("<.*?>", "", source[after.start : after.end])
        assert there == tagged.text[before.start : before.end]
        assert not source[after.start : after.end].startswith("<")


@given(st.text(alphabet="<lora:x>0.8= \n[](", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tagged = take_tags(text)
    except PromptError:
        return
    assert len(tagged.text) == len(text) - sum(end - start for start, end in tagged.taken)


def test_comments_and_tags_of_other_kinds_are_left_out() -> None:
    text = "a cat # not <lora:one:1> this\n<hypernet:old:0.5> and <lora:two:0.5:lbw=1,0,1> red"
    tagged = take_tags(text)
    assert [(tag.name, tag.strength) for tag in tagged.tags] == [("two", 0.5)]
    found = plan(parse(tagged.text), TOKENIZER)
    assert found.ids == plan(parse("a cat and red"), TOKENIZER).ids
    moved = as_written(found, tagged)
    words = [text[t.start : t.end] for t in moved.tokens if not t.special]
    assert "".join(words) == "acatandred"
    # Edits, brackets and weights in a comment are none; other dialects have no comments.
    read = parse("a # [b:c:3] (d:2)\nred # AND f")
    assert read.spans[0].text.split() == ["a", "red"] and len(read.spans) == 1
    assert "#" in "".join(span.text for span in parse("a # b", "comfy").spans)


def test_hostile_text_takes_linear_time() -> None:
    # A second of quadratic time per 10,000 would not end here.
    assert take_tags("<lora:" * 100_000).tags == ()


def test_the_live_report_leaves_tags_out() -> None:
    text = "a <lora:x:0.8>cat"
    report = plan_report(text, [("one", TOKENIZER)])
    (tower,) = report.towers
    assert [text[r.start : r.end] for r in tower.rows if not r.special] == ["a", "cat"]
    assert "cat" in str(report) and str(report) == report.text()


def test_other_texts_refuse_tags() -> None:
    refuse_tags("a <cat:1> dog")
    with pytest.raises(PromptError, match="belongs into the prompt"):
        refuse_tags("a <lora:x:1> dog")
