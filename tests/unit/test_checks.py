"""Numbers and names as options take them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bridge.checks import (
    choice,
    did_you_mean,
    finite,
    is_finite,
    is_whole,
    keywords,
    nearest,
    whole,
)
from bridge.errors import KeywordError, OptionError

NO_NUMBERS: list[Any] = [True, False, None, "1", b"1", [1], 1j, object()]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0, np.int64(1)])
def test_only_an_int_is_whole_as_it_stands(value: Any) -> None:
    assert not is_whole(value)


def test_limits_are_included() -> None:
    assert [n for n in range(-2, 9) if is_whole(n, 0, 5)] == [0, 1, 2, 3, 4, 5]
    assert is_whole(-(10**400)) and not is_whole(-1, 0) and is_whole(10**400, 0)
    assert is_finite(0, 0, 1) and is_finite(1.0, 0, 1) and not is_finite(1.1, 0, 1)


@pytest.mark.parametrize("value", [*NO_NUMBERS, math.nan, math.inf, -math.inf, 10**400])
def test_what_is_not_a_finite_number(value: Any) -> None:
    assert not is_finite(value)
    with pytest.raises(OptionError, match=r"^a weight must be a finite number, not "):
        finite(value, "a weight")


@pytest.mark.parametrize("value", [2, 2.0, Fraction(2), np.float32(2), np.int64(2)])
def test_a_finite_number_is_given_as_a_float(value: Any) -> None:
    found = finite(value, "a weight")
    assert type(found) is float and found == 2


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, 6, np.int64(6), 2.0])
def test_a_whole_number_outside_its_range(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^steps is .*; give a whole number from 1 to 5$"):
        whole(value, "steps", 1, 5)


def test_a_whole_number_of_numpy_becomes_an_int() -> None:
    assert type(whole(np.int64(3), "steps", 1, 5)) is int


def test_what_has_no_place_without_its_name_is_told() -> None:
    @keywords
    def study(prompt: str, *, towers: str = "", draw: bool = False) -> str:
        return prompt + towers * (not draw)

    @keywords
    class Tower:
        def read(self, text: str, seed: int = 0) -> str:
            return text * seed

        @staticmethod
        def size() -> int:
            return 1

    assert study("a", towers="b") == "ab" and Tower().read("a", 2) == "aa"
    with pytest.raises(KeywordError) as caught:
        study("a", "b")
    assert str(caught.value).endswith(
        ".study() takes 1 argument without a name (prompt), and 2 were given; name the others, or "
        "give several as one list."
    )
    with pytest.raises(KeywordError, match=r"Tower.read\(\) takes 2 .* \(text, seed\), and 3 "):
        Tower().read("a", 2, 3)
    with pytest.raises(KeywordError, match="takes 0 arguments without a name, and 1 was given"):
        Tower.size(1)


def test_the_nearest_name_is_told() -> None:
    choice("comfy", ("a1111", "comfy"), "dialect")
    with pytest.raises(OptionError) as caught:
        choice("confy", ("a1111", "comfy"), "dialect")
    assert str(caught.value) == (
        "No dialect 'confy'; there is: a1111, comfy. Did you mean 'comfy'?"
    )
    with pytest.raises(OptionError, match=r"there is: a1111, comfy\.$"):
        choice(7, ("a1111", "comfy"), "dialect")
    assert did_you_mean("xyz", ("a1111",)) == ""
    assert nearest("cat", ("cats", "cart", "dog")) in ("'cats' or 'cart'", "'cart' or 'cats'")
