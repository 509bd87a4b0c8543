"""Prompts over the steps of a run, as A1111 draws them: its sampler counts from 0."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import OptionError
from bridge.prompt import at_step, intervals, parse


def over(text: str, steps: int = 10, rule: str = "new") -> list[tuple[int, str]]:
    """The intervals of a prompt of one part, brackets and all weights aside."""
    found = intervals(parse(text, "a1111"), steps, rule)  # type: ignore[arg-type]
    return [(i.last_step, i.flat.parts[0].text) for i in found]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a cat", [(10, "a cat")]),
        ("a [cat:3]", [(4, "a "), (10, "a cat")]),
        ("a [cat: 3 ]", [(4, "a "), (10, "a cat")]),
        ("a [cat::3]", [(4, "a cat"), (10, "a ")]),
        ("[cat:dog:0.5]", [(6, "cat"), (10, "dog")]),
        ("[cat:dog:.25]", [(3, "cat"), (10, "dog")]),
        ("[cat:dog:99]", [(10, "cat")]),
        ("[cat:dog:0]", [(10, "dog")]),
        ("[cat:dog:-2]", [(10, "dog")]),
        ("[cat:cat:3]", [(4, "cat"), (10, "cat")]),
        ("x[a:[b:c:6]:2]y", [(3, "xay"), (7, "xby"), (10, "xcy")]),
        ("[:b:2][c::4]", [(3, "c"), (5, "bc"), (10, "b")]),
        ("[a|b", [(10, "a|b")]),
        ("[a:b:c]", [(10, "a:b:c")]),
        # A bar outside makes the web UI's grammar refuse all of it.
        ("a|b [c:5]", [(10, "a|b c:5")]),
        # The web UI reads these so or as plain text, by Python's hash seed.
        ("[a:b:3]:", [(4, "a:"), (10, "b:")]),
        ("[a:b:3]:: x", [(4, "a:: x"), (10, "b:: x")]),
        ("(unclosed [a:b:4]", [(5, "unclosed a"), (10, "unclosed b")]),
    ],
)
def test_intervals(text: str, wanted: list[tuple[int, str]]) -> None:
    assert over(text) == wanted


def test_alternation_takes_turns() -> None:
    assert over("[a|b]", 3) == [(2, "a"), (3, "b")]
    assert over("[to|]day", 4) == [(2, "today"), (3, "day"), (4, "today")]
    assert [t for _, t in over("[a||c]", 6)] == ["a", "", "c", "a", ""]


def test_the_two_rules_of_when() -> None:
    assert over("[a:b:1.5]", 4) == [(4, "a")]
    assert over("[a:b:1.5]", 4, "old") == [(2, "a"), (4, "b")]
    assert over("[a:b:1.0]", 4) == [(4, "a")]
    assert over("[a:b:1.0]", 4, "old") == [(2, "a"), (4, "b")]
    assert over("[a:b:1]", 4) == over("[a:b:1]", 4, "old") == [(2, "a"), (4, "b")]


def test_a_weight_may_be_scheduled() -> None:
    prompt = parse("(a:[1.2:1.5:4])", "a1111")
    weights = [i.flat.parts[0].spans[0].weight for i in intervals(prompt, 10)]
    assert weights == [1.2, 1.5]
    (span,) = at_step(prompt, 5, 10).parts[0].spans
    assert (span.text, span.start) == ("a", 1)


def test_parts_change_each_at_its_own_step() -> None:
    found = intervals(parse("[a:b:2] AND [c:d:4] :0.5", "a1111"), 6)
    texts = [(i.last_step, [part.text.strip() for part in i.flat.parts]) for i in found]
    assert texts == [(3, ["a", "c"]), (5, ["b", "c"]), (6, ["b", "d"])]
    assert {tuple(p.weight for p in i.flat.parts) for i in found} == {(1.0, 0.5)}


@given(
    st.lists(
        st.sampled_from(["[", "]", "|", ":", "a", "b", "3", "0.5", "(", ")", "[a:b:4]"]),
        max_size=12,
    ).map("".join),
    st.integers(1, 12),
)
@settings(deadline=None, max_examples=50)
def test_intervals_are_what_each_of_their_steps_says(text: str, steps: int) -> None:
    prompt = parse(text, "a1111")
    found = intervals(prompt, steps)
    assert found[-1].last_step == steps
    first = 1
    for interval in found:
        for step in range(first, interval.last_step + 1):
            assert at_step(prompt, step, steps) == interval.flat
        first = interval.last_step + 1


def test_other_dialects_have_one_interval() -> None:
    for dialect in ("plain", "comfy", "compel"):
        assert len(intervals(parse("[a:b:3] [c|d]", dialect), 10)) == 1


def test_steps_outside_the_run() -> None:
    prompt = parse("a")
    for step, steps in ((0, 4), (5, 4), (1, 0)):
        with pytest.raises(OptionError, match="step"):
            at_step(prompt, step, steps)
    with pytest.raises(OptionError, match="new, old"):
        intervals(prompt, 4, "newest")  # type: ignore[arg-type]
    huge = parse("[a:b:9.e307]", "a1111")
    assert len(intervals(huge, 1_000)) == 1
