"""Random prompts with a seed: the notation, its limits, and that the same seed means the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import PromptError
from bridge.prompt.wildcards import expand


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animal.txt").write_text("# animals\ncat\n\n  dog \n", encoding="utf-8")
    (tmp_path / "scene.txt").write_text("a {red|blue} __animal__\n", encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.txt").write_text("only\n", encoding="utf-8")
    (tmp_path / "circle.txt").write_text("__circle__\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    return tmp_path


def outcomes(text: str, folder: Path | None = None, n: int = 300) -> Counter[str]:
    return Counter(expand(text, seed, folder) for seed in range(n))


def test_one_of_the_options() -> None:
    assert set(outcomes("a {red|blue|} cat")) == {"a red cat", "a blue cat", "a  cat"}


def test_weights_of_options() -> None:
    counts = outcomes("{3::a|b|0::c}", n=800)
    assert set(counts) == {"a", "b"}
    assert counts["a"] / counts["b"] == pytest.approx(3, rel=0.35)


def test_several_options_without_repeats() -> None:
    assert set(outcomes("{2$$a|b|c}")) == {f"{x}, {y}" for x in "abc" for y in "abc" if x != y}
    seen = outcomes("{1-2$$ and $$a|b}")
    assert set(seen) == {"a", "b", "a and b", "b and a"}
    assert set(outcomes("{5$$a|b}")) == {"a, b", "b, a"}


def test_options_nest() -> None:
    assert set(outcomes("{a {b|c}|d}")) == {"a b", "a c", "d"}


def test_lines_of_files(folder: Path) -> None:
    assert set(outcomes("a __animal__", folder)) == {"a cat", "a dog"}
    assert set(outcomes("__scene__", folder)) == {
        f"a {colour} {animal}" for colour in ("red", "blue") for animal in ("cat", "dog")
    }
    assert expand("__deep/one__", 1, folder) == "only"
    assert set(outcomes("{__animal__|fish}", folder)) == {"cat", "dog", "fish"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a (red:1.3) cat", "a (red:1.3) cat"),
        (r"\{a\|b\}", "{a|b}"),
        ("a|b", "a|b"),
        ("{a", "{a"),
        ("a}", "a}"),
        ("snake_case __ _", "snake_case __ _"),
        ("", ""),
        ("{}", ""),
    ],
)
def test_what_has_no_meaning_is_text(text: str, same: str) -> None:
    assert expand(text, 0) == same


def test_bad_input(folder: Path) -> None:
    with pytest.raises(PromptError, match=r"Did you mean __animal__[\s\S]*\n {2}\^{9}"):
        expand("a __animl__", 0, folder)
    with pytest.raises(PromptError, match="needs a folder"):
        expand("__animal__", 0)
    with pytest.raises(PromptError, match="circle"):
        expand("__circle__", 0, folder)
    with pytest.raises(PromptError, match=r"no empty\.txt with a line"):
        expand("__empty__", 0, folder)
    with pytest.raises(PromptError, match="above 0"):
        expand("{0::a|0::b}", 0)
    with pytest.raises(PromptError, match="NUL"):
        expand("\0", 0)


def test_a_name_cannot_lead_out_of_the_folder(folder: Path) -> None:
    with pytest.raises(PromptError, match=r"no \.\./animal\.txt"):
        expand("__../animal__", 0, folder / "deep")


@given(st.text("{}|\\_$:a1 ", max_size=200), st.integers(0, 5))
@settings(deadline=None)
def test_any_text_expands_to_the_same_again(text: str, seed: int) -> None:
    try:
        once = expand(text, seed)
    except PromptError as error:
        assert "above 0" in str(error) or "needs a folder" in str(error)
    else:
        assert expand(text, seed) == once


def test_files_that_double_again_and_again_are_stopped(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"a{i}.txt").write_text(f"__a{i + 1}__ __a{i + 1}__")
    (tmp_path / "a30.txt").write_text("cat")
    with pytest.raises(PromptError, match="grows beyond"):
        expand("__a0__", 0, tmp_path)


def test_hostile_nesting_is_linear() -> None:
    assert expand("{" * 100_000, 0) == "{" * 100_000
    assert expand("{" * 20_000 + "a" + "}" * 20_000, 0) == "a"


def test_what_draws_without_end_is_stopped(tmp_path: Path) -> None:
    # Each file draws the next twice, but the prompt does not grow: all but one option is dropped.
    for i in range(30):
        (tmp_path / f"a{i}.txt").write_text(f"{{__a{i + 1}__|__a{i + 1}__}}")
    (tmp_path / "a30.txt").write_text("cat")
    with pytest.raises(PromptError, match="over 1,000,000 characters"):
        expand("__a0__", 0, tmp_path)


def test_many_options_are_drawn_as_often_as_their_weights_say() -> None:
    counts = outcomes("{2$$+$$2::a|b|1::c|0::d}", n=3_000)
    # a first, 2 in 4, then b 1 in 2; b first, 1 in 4, then a 2 in 3.
    assert counts["a+b"] / 3_000 == pytest.approx(1 / 4, abs=0.04)
    assert counts["b+a"] / 3_000 == pytest.approx(1 / 6, abs=0.04)
    assert not any("d" in drawn for drawn in counts)
    options = "|".join("a" * 40_000)
    assert expand("{40000$$,$$" + options + "}", 0) == options.replace("|", ",")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(PromptError, match=r"latin\.txt is not text in UTF-8[\s\S]*\n {2}\^{9}"):
        expand("a __latin__", 0, tmp_path)
    with pytest.raises(PromptError, match="cannot be read: File name too long"):
        expand(f"a __{'n' * 300}__", 0, tmp_path)
    with pytest.raises(PromptError, match="cannot be read"):
        expand("a __cat__", 0, tmp_path / "n\0")


def test_numbers_that_no_count_or_weight_has_are_text() -> None:
    nines = "9" * 5_000
    assert expand("{" + nines + "$$a}", 0) == nines + "$$a"
    assert expand("{" + nines + "::a}", 0) == nines + "::a"
    assert expand("{999999999999999$$a|a}", 0) == "a, a"
