"""Emphasis: each tool's published formula, worked out here in plain Python, and its edge cases.

States are small whole numbers, so that most results are exact; the rest agree to 1e-5, which is
float32's rounding over the few additions that a formula has.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_clip_tokenizer

from bridge.encoding.emphasis import EMPHASES, TowerInput
from bridge.prompt import NORMALISATIONS, TokenPlan, normalised, parse, plan

TOKENIZER = tiny_clip_tokenizer()
T, D = 77, 3


def plan_of(text: str, split: str = "comma") -> TokenPlan:
    return plan(parse(text, "a1111"), TOKENIZER, split=split)


def states_of(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, (rows, T, D), generator=generator).float() + 0.5


def emphasised(name: str, text: str) -> tuple[TokenPlan, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A plan, its states, the extra rows' states, and the result."""
    found = plan_of(text)
    method = EMPHASES[name]
    states = states_of(len(found.windows))
    extra = states_of(len(method.rows(found)), seed=1)
    return found, states, extra, method.apply(found, states, extra)


def weights_of(found: TokenPlan) -> list[list[float]]:
    return [list(window.weights) for window in found.windows]


TEXT = "a (cat:1.5) and [a (dog:0.4)]"
LONG = "(red:1.3) cat, " * 30


@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_a1111_scales_and_keeps_each_windows_mean(text: str) -> None:
    found, states, extra, result = emphasised("a1111", text)
    assert len(extra) == 0
    for window, weights, after in zip(states, weights_of(found), result, strict=True):
        scaled = [[w * x for x in row] for w, row in zip(weights, window.tolist(), strict=True)]
        before_mean = sum(map(sum, window.tolist())) / (T * D)
        scaled_mean = sum(map(sum, scaled)) / (T * D)
        wanted = torch.tensor(scaled) * (before_mean / scaled_mean)
        torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-4)
        assert after.mean().item() == pytest.approx(before_mean, rel=1e-4)


def test_no_norm_only_scales() -> None:
    found, states, _, result = emphasised("no_norm", TEXT)
    wanted = states * torch.tensor(weights_of(found))[..., None]
    assert torch.equal(result, wanted)


@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_comfy_goes_along_the_line_from_the_empty_prompt(text: str) -> None:
    found, states, extra, result = emphasised("comfy", text)
    assert len(extra) == 1
    (row,) = EMPHASES["comfy"].rows(found)
    assert row.ids == found.empty.ids
    for window, weights, after in zip(states, weights_of(found), result, strict=True):
        for j, weight in enumerate(weights):
            wanted = extra[0, j] + weight * (window[j] - extra[0, j])
            torch.testing.assert_close(after[j], wanted, rtol=1e-5, atol=1e-5)


def test_compels_down_weights_mix_in_the_prompt_without_the_fragment() -> None:
    text = "a (cat:1.5) (dog:0.5) (red:0.2)"
    found, states, extra, result = emphasised("compel", text)
    rows = EMPHASES["compel"].rows(found)
    assert len(rows) == 3 and rows[0].ids == found.empty.ids
    content = [t for t in found.tokens if not t.special]
    places = {text_of(text, t): at for at, t in enumerate(found.tokens) if t in content}
    assert rows[1].hidden == {places["dog"]} and rows[2].hidden == {places["red"]}
    weights = torch.tensor(weights_of(found))[..., None]
    empty, without = extra[0], extra[1:]
    tangents = [math.tan(0.5 * math.pi / 2), math.tan(0.8 * math.pi / 2)]
    wanted = empty + weights * (states - empty)
    for t, other in zip(tangents, without, strict=True):
        wanted = wanted + t * (empty + weights * (other[None] - empty))
    wanted = wanted / (1 + sum(tangents))
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-4)


def states_of_row(row: TowerInput) -> torch.Tensor:
    """Each row's own, in whichever order a method asks for them."""
    return states_of(1, seed=hash(row) % 2**31)[0]


def emphasised_by_rows(name: str, text: str) -> tuple[TokenPlan, torch.Tensor, torch.Tensor]:
    """A plan of several windows, their states, and the result."""
    found, method = plan_of(text), EMPHASES[name]
    assert len(found.windows) > 1
    states = torch.stack([states_of_row(TowerInput.of(window)) for window in found.windows])
    extra = torch.stack([states_of_row(row) for row in method.rows(found)])
    return found, states, method.apply(found, states, extra)


def test_compel_leaves_out_each_fragment_in_every_window() -> None:
    text = "(dog:0.5) (red:0.2) (apple:1.5) (two:1.3) " + "cat, " * 50 + "(dog:0.5)"
    found, states, result = emphasised_by_rows("compel", text)
    empty = states_of_row(TowerInput.of(found.empty))
    light = {t.fragment: t.weight for t in found.tokens if not t.special and t.weight < 1}
    assert len(light) == 3
    for window, before, after in zip(found.windows, states, result, strict=True):
        weights = torch.tensor(window.weights)[:, None]
        wanted, shares = empty + weights * (before - empty), 1.0
        for fragment, weight in light.items():
            own = frozenset(at for at, t in enumerate(window.tokens) if t.fragment == fragment)
            share = math.tan((1 - weight) * math.pi / 2)
            other = states_of_row(TowerInput.of(window, own))
            wanted = wanted + share * (empty + weights * (other - empty))
            shares += share
        torch.testing.assert_close(after, wanted / shares, rtol=1e-4, atol=1e-4)


def text_of(text: str, token: object) -> str:
    return text[token.start : token.end]  # type: ignore[attr-defined]


def test_a_weight_of_zero_leaves_the_prompt_without_the_fragment() -> None:
    found, _, extra, result = emphasised("compel", "a (dog:0)")
    weights = torch.tensor(weights_of(found))[..., None]
    wanted = extra[0] + weights * (extra[1][None] - extra[0])
    torch.testing.assert_close(result, wanted, rtol=1e-3, atol=1e-3)


def test_down_weight_divides_by_the_largest_and_takes_words_out_lightest_first() -> None:
    text = "a (cat:2) (dog:0.5)"
    found, states, extra, result = emphasised("down_weight", text)
    rows = EMPHASES["down_weight"].rows(found)
    # Divided by 2: a 0.5, cat 1, dog 0.25; BOS, EOS and padding keep 1.
    ids = {text_of(text, t): t.id for t in found.tokens if not t.special}
    plus = TOKENIZER.convert_tokens_to_ids("+</w>")
    assert [row.ids[1:4] for row in rows] == [
        (ids["a"], ids["cat"], plus),
        (plus, ids["cat"], plus),
    ]
    wanted = 0.25 * states[0] + 0.25 * extra[0] + 0.5 * extra[1]
    torch.testing.assert_close(result[0], wanted)


def test_comfy_plus_plus_adds_what_a_word_contributes() -> None:
    text = "a (cat:2) (dog:0.5)"
    found, states, extra, result = emphasised("comfy++", text)
    rows = EMPHASES["comfy++"].rows(found)
    ids = {text_of(text, t): t.id for t in found.tokens if not t.special}
    plus = TOKENIZER.convert_tokens_to_ids("+</w>")
    assert [row.ids[1:4] for row in rows] == [
        (ids["a"], ids["cat"], plus),
        (ids["a"], plus, ids["dog"]),
    ]
    wanted = 0.5 * states[0] + 0.5 * extra[0]
    wanted[2] += (2 - 1) * (states[0, 2] - extra[1, 2])
    torch.testing.assert_close(result[0], wanted)


def test_comfy_plus_plus_takes_each_stretch_out_of_every_window() -> None:
    text = "(red apple:1.5) (two:1.3) " + "cat, " * 50 + "(dog:1.2)"
    found, states, result = emphasised_by_rows("comfy++", text)
    for window, before, after in zip(found.windows, states, result, strict=True):
        wanted = before.clone()
        for stretch in {token.fragment for token in window.tokens if token.weight > 1}:
            places = [at for at, token in enumerate(window.tokens) if token.fragment == stretch]
            ids = [found.mask_id if at in places else own for at, own in enumerate(window.ids)]
            absent = states_of_row(TowerInput(tuple(ids), window.used))
            for at in places:
                wanted[at] += (window.tokens[at].weight - 1) * (before[at] - absent[at])
        torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(EMPHASES))
def test_weights_of_one_change_nothing(name: str) -> None:
    found, states, _, result = emphasised(name, "a (cat:1.0) and a dog")
    if name != "comfy":  # asked only of weighted plans; its empty row is no matter here
        assert all(not row.hidden for row in EMPHASES[name].rows(found))
    torch.testing.assert_close(result, states)


def test_none_reads_weights_and_does_not_use_them() -> None:
    _, states, extra, result = emphasised("none", TEXT)
    assert result is states and len(extra) == 0


# ---------------------------------------------------------------- normalisation


def weights_by_text(found: TokenPlan, text: str) -> list[tuple[str, float]]:
    return [(text_of(text, t), t.weight) for t in found.tokens if not t.special]


def test_length_spreads_a_weight_over_the_tokens_of_a_stretch() -> None:
    text = "(zebra:1.5) (cat:1.5) (🎈:0.5) (two cat:1.5)"
    found = normalised(plan_of(text), "length")
    zebra = [w for piece, w in weights_by_text(found, text) if piece in "zebra"]
    assert zebra == [pytest.approx(1 + math.sqrt(0.25 / len(zebra)))] * len(zebra)
    assert len(zebra) > 1
    by_text = dict(reversed(weights_by_text(found, text)))
    assert by_text["cat"] == 1.5
    assert by_text["two"] == pytest.approx(1 + math.sqrt(0.25 / 2))
    assert by_text["🎈"] == pytest.approx(1 - math.sqrt(0.25 / 4))


def test_mean_moves_all_weights_so_that_their_mean_is_one() -> None:
    text = "a (cat:2) dog"
    found = normalised(plan_of(text), "mean")
    assert [w for _, w in weights_by_text(found, text)] == [
        pytest.approx(2 / 3),
        pytest.approx(5 / 3),
        pytest.approx(2 / 3),
    ]
    assert all(token.weight == 1 for token in found.tokens if token.special)


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("text", ["", "a cat", LONG])
def test_normalisation_keeps_all_but_the_weights(name: str, text: str) -> None:
    before = plan_of(text)
    after = normalised(before, name)
    assert after.ids == before.ids
    plain = [replace(token, weight=1.0) for token in before.tokens]
    assert [replace(token, weight=1.0) for token in after.tokens] == plain
    if text != LONG:
        assert after == before
