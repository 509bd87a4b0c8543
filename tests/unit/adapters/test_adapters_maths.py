"""The closed forms and the alignment of adapters: against numpy, and by properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_clip_tokenizer

from bridge.adapters.reading import (
    Span,
    overlap_weights,
    parted,
    unshared,
    window_text,
)
from bridge.adapters.regression import (
    STRENGTHS,
    LinearMap,
    Moments,
    RandomFeatures,
    chosen_ridge,
    penalties,
    procrustes,
    ridge,
    whitening_rows,
)
from bridge.prompt import LONG_PROMPTS, Token, Window, parse
from bridge.prompt.token_plan import plan


def pairs_of(n: int, f: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=made, dtype=torch.float64) + 3
    return x, x @ torch.randn(f, d, generator=made, dtype=torch.float64) + 1


# ---------------------------------------------------------------- ridge


def test_ridge_is_least_squares_on_the_augmented_system() -> None:
    # Centred rows above, sqrt(penalty) on the diagonal below; the offset is not penalised. Both are
    # float64; normal equations square the condition number (about 10 here), hence 1e-9.
    x, y = pairs_of(40, 7, 3)
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    penalty = torch.tensor([0.5, 0.5, 2.0, 2.0, 9.0, 0.1, 0.0], dtype=torch.float64)
    found = ridge(Moments.of(x[:15], y[:15]) + Moments.of(x[15:], y[15:]), penalty)
    a, b = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    system = np.concatenate([a, np.diag(penalty.sqrt().numpy())])
    wanted, *_ = np.linalg.lstsq(system, np.concatenate([b, np.zeros((7, 3))]), rcond=None)
    np.testing.assert_allclose(found.weight.numpy(), wanted, atol=1e-9)
    offset = y.mean(0).numpy() - x.mean(0).numpy() @ wanted
    np.testing.assert_allclose(found.bias.numpy(), offset, atol=1e-9)


def test_errors_and_shares_follow_from_the_moments() -> None:
    x, y = pairs_of(30, 5, 2)
    some = LinearMap(torch.randn(5, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    moments = Moments.of(x, y)
    error = float((some(x) - y).square().sum())
    assert some.error(moments) == pytest.approx(error, rel=1e-9)
    spread = float((y - y.mean(0)).square().sum())
    assert some.explained(moments) == pytest.approx(1 - error / spread, rel=1e-9)
    left = Moments.of(x, y - some(x))
    beyond = moments.beyond(some)
    torch.testing.assert_close(beyond.yy, left.yy)
    torch.testing.assert_close(beyond.xy, left.xy)
    torch.testing.assert_close(beyond.y, left.y)


def test_the_strength_is_that_which_serves_the_held_out_pairs() -> None:
    # Fewer pairs than channels, and noise: no penalty at all fits the noise.
    made = torch.Generator().manual_seed(3)
    x = torch.randn(60, 30, generator=made, dtype=torch.float64)
    y = x[:, :1] + 0.7 * torch.randn(60, 1, generator=made, dtype=torch.float64)
    fit, held = Moments.of(x[:35], y[:35]), Moments.of(x[35:], y[35:])
    _, explained, strength = chosen_ridge(fit, held, ((30,),))
    loose = ridge(fit, penalties(fit, (30,), 1e-9)).explained(held)
    assert explained > loose + 0.1 and strength >= 1e-2
    exact_x, exact_y = pairs_of(60, 5, 2)
    exact = (Moments.of(exact_x[:40], exact_y[:40]), Moments.of(exact_x[40:], exact_y[40:]))
    found, explained, _ = chosen_ridge(*exact, ((5,),))
    assert explained > 1 - 1e-9
    torch.testing.assert_close(found(exact_x), exact_y, atol=1e-4, rtol=0)


def test_inputs_that_mislead_are_left_out() -> None:
    # Fewer pairs than inputs: the first five say all, the others nothing.
    x, y = pairs_of(60, 5, 2)
    noise = torch.randn(60, 80, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    both = torch.cat([x, noise], 1)
    fit, held = Moments.of(both[:40], y[:40]), Moments.of(both[40:], y[40:])
    found, explained, _ = chosen_ridge(fit, held, ((5,), (80,)))
    assert explained > 1 - 1e-9 and found.weight.shape == (85, 2) and not found.weight[5:].any()
    _, without_order, _ = chosen_ridge(fit, held, ((5, 80),))
    assert without_order < 0.99


def test_the_strength_is_chosen_where_each_direction_counts_alike() -> None:
    # y's loud entry is noise and wants much shrinking; its faint one follows x and wants none. In
    # y's own units the loud one would decide; in whitened ones both count.
    made = torch.Generator().manual_seed(4)
    x = torch.randn(90, 20, generator=made, dtype=torch.float64)
    loud = 100 * torch.randn(90, 1, generator=made, dtype=torch.float64)
    y = torch.cat([loud, 20 * x[:, :1]], 1)
    fit, held = Moments.of(x[:50], y[:50]), Moments.of(x[50:], y[50:])
    _, _, strength = chosen_ridge(fit, held, ((20,),))
    in_units = {s: ridge(fit, penalties(fit, (20,), s)).error(held) for s in STRENGTHS}
    assert strength < min(in_units, key=lambda s: in_units[s])


def test_whitening_rows_give_unit_variance() -> None:
    x, y = pairs_of(500, 6, 3)
    rows = whitening_rows(Moments.of(x, y))
    white = (y - y.mean(0)) @ rows.T
    assert float(white.var(0).min()) > 0.5 and float(white.var(0).max()) < 1.01
    some = LinearMap(torch.zeros(6, 3, dtype=torch.float64), y.mean(0))
    assert some.error(Moments.of(x, y), rows) == pytest.approx(float(white.square().sum()))


def test_random_features_fit_what_no_line_does() -> None:
    made = torch.Generator().manual_seed(2)
    x = 5 + 3 * torch.randn(1500, 3, generator=made, dtype=torch.float64)
    y = (x[:, :1] - 5) * (x[:, 1:2] - 5)
    features = RandomFeatures.drawn(Moments.of(x, y), 200, 0)
    wide = features(x)
    assert wide.shape == (1500, 203) and torch.equal(wide[:, :3], x.float())
    again = RandomFeatures.drawn(Moments.of(x, y), 200, 0)
    assert torch.equal(again.weight, features.weight)
    straight = chosen_ridge(Moments.of(x[:1000], y[:1000]), Moments.of(x[1000:], y[1000:]), ((3,),))
    bent = chosen_ridge(
        Moments.of(wide[:1000], y[:1000]), Moments.of(wide[1000:], y[1000:]), ((3,), (200,))
    )
    assert straight[1] < 0.1 and bent[1] > 0.9


def test_a_map_without_evidence_keeps_to_its_prior() -> None:
    x, y = pairs_of(400, 6, 2)
    prior = ridge(Moments.of(x, y), torch.full((6,), 1e-9))
    few = (Moments.of(x[:2], y[:2]), Moments.of(x[2:4], y[2:4]))
    found, *_ = chosen_ridge(*few, ((6,),), prior)
    torch.testing.assert_close(found(x), y, atol=1e-5, rtol=0)


def test_constant_inputs_are_no_division_by_nothing() -> None:
    x, y = pairs_of(20, 4, 2)
    x = torch.cat([x, torch.ones(20, 2, dtype=x.dtype)], 1)
    moments = Moments.of(x, y)
    found = ridge(moments, penalties(moments, (4, 2), 1e-9))
    torch.testing.assert_close(found(x), y, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- Procrustes


@pytest.mark.parametrize(("f", "d"), [(6, 6), (4, 6)])
def test_procrustes_finds_a_turn_and_a_scale(f: int, d: int) -> None:
    made = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(d, d, generator=made, dtype=torch.float64))[0][:f]
    x = torch.randn(50, f, generator=made, dtype=torch.float64)
    y = 2.5 * x @ turn + 4
    found = procrustes(Moments.of(torch.cat([x, torch.randn(50, 3)], 1), y), f)
    torch.testing.assert_close(found.weight[:f], 2.5 * turn, atol=1e-9, rtol=0)
    assert not found.weight[f:].any()
    gram = found.weight[:f] @ found.weight[:f].T / 2.5**2
    torch.testing.assert_close(gram, torch.eye(f, dtype=torch.float64), atol=1e-9, rtol=0)


def test_procrustes_takes_a_wider_input_to_its_principal_directions() -> None:
    made = torch.Generator().manual_seed(6)
    plane = torch.randn(80, 2, generator=made, dtype=torch.float64)
    out = torch.linalg.qr(torch.randn(5, 5, generator=made, dtype=torch.float64))[0][:2]
    x = plane @ out + 1e-6 * torch.randn(80, 5, generator=made, dtype=torch.float64)
    found = procrustes(Moments.of(x, 3 * plane), 5)
    torch.testing.assert_close(found(x), 3 * plane, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- alignment

# A busy machine's clock is no failure.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
CUTS = st.lists(st.integers(1, 6), min_size=1, max_size=12)


def spans_of(lengths: list[int]) -> list[Span]:
    ends = list(itertools.accumulate(lengths))
    return [(float(end - n), float(end)) for n, end in zip(lengths, ends, strict=True)]


@UNHURRIED
@given(CUTS, CUTS)
def test_weights_are_shares_of_the_overlap(one: list[int], other: list[int]) -> None:
    rows, columns = spans_of(one), spans_of(other)
    weights = overlap_weights(rows, columns)
    assert weights.shape == (len(one), len(other))
    torch.testing.assert_close(weights.sum(1), torch.ones(len(one)))
    covered = min(sum(one), sum(other))
    for (start, end), row in zip(rows, weights, strict=True):
        if end <= covered:
            # The weights times the columns' share of this span add up to the span's length.
            common = [max(0.0, min(end, b) - max(start, a)) for a, b in columns]
            expected = torch.tensor(common) / (end - start)
            torch.testing.assert_close(row, expected.float())


@UNHURRIED
@given(CUTS)
def test_equal_cuts_are_matched_one_to_one(cut: list[int]) -> None:
    spans = spans_of(cut)
    torch.testing.assert_close(overlap_weights(spans, spans), torch.eye(len(cut)))


@UNHURRIED
@given(CUTS, st.integers(1, 4))
def test_tokens_that_share_a_span_are_matched_in_turn(cut: list[int], shared: int) -> None:
    spans = unshared([span for span in spans_of(cut) for _ in range(shared)])
    torch.testing.assert_close(
        overlap_weights(spans, spans), torch.eye(len(spans)), atol=1e-5, rtol=0
    )
    assert [round(b - a, 9) for a, b in parted((0, 1), 4)] == [0.25] * 4


def test_a_token_that_begins_inside_a_character_counts_for_the_rest() -> None:
    # A bat in two tokens, the second of which is its last byte and the comma after it.
    assert unshared([(0, 1), (0, 2), (3, 4)]) == [(0, 1), (1, 2), (3, 4)]
    tokens = (Token(1, "a", 0, 1, word=1), Token(2, "b", 0, 2, word=1), Token(3, "c", 3, 4, word=2))
    found = window_text("🦇, c", Window((1, 2, 3), tokens))
    assert (found.text, found.spans) == ("🦇, c", ((0, 1), (1, 2), (3, 4)))


def test_a_span_without_overlap_takes_the_nearest() -> None:
    columns = [(0.0, 2.0), (8.0, 9.0), (12.0, 13.0)]
    rows = [(3.0, 4.0), (7.0, 7.0), (10.0, 11.0), (20.0, 30.0)]
    wanted = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    torch.testing.assert_close(overlap_weights(rows, columns), wanted)


@pytest.mark.parametrize(
    ("source", "dialect", "text"),
    [
        ("a red cat", "plain", "a red cat"),
        ("a (red:1.3) cat, of  (the) dog", "a1111", "a red cat, of the dog"),
        ("(red:1.2), cat", "a1111", "red, cat"),
        ("cat(dog:1.2)", "a1111", "cat dog"),
        (r"a \(red\) cat", "a1111", "a (red) cat"),
        ("(a red)1.3 cat-", "compel", "a red cat"),
        ("a 🍎cat", "plain", "a 🍎cat"),
        ("  ", "plain", ""),
        ("", "a1111", ""),
    ],
)
def test_a_windows_text_is_the_prompt_without_its_syntax(
    source: str, dialect: str, text: str
) -> None:
    made = plan(parse(source, dialect), tiny_clip_tokenizer())
    found = window_text(made.source, made.windows[0])
    assert found.text == text
    content = [token for token in made.tokens if not token.special]
    assert len(found.spans) == len(content)
    for token, (start, end) in zip(content, found.spans, strict=True):
        whole = made.source[token.start : token.end]
        assert found.text[int(start) : round(end + 0.49)] in whole


def test_windows_have_the_text_that_they_hold() -> None:
    made = plan(
        parse("red BREAK the cat", "a1111"),
        tiny_clip_tokenizer(),
        split=LONG_PROMPTS["a1111"].split,
    )
    assert [window_text(made.source, each).text for each in made.windows] == ["red", "the cat"]
