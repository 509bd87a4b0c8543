"""The closed-form projector: exact where a linear map exists, ridge regression elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import OptionError
from bridge.vlm import PairSums, fit_linear_projector, load_projector, save_projector


def pairs(n: int = 200, d: int = 7, e: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, d, generator=generator) * torch.logspace(-1, 1, d) + 3
    return states, torch.randn(n, e, generator=generator)


def test_a_planted_map_is_found_again() -> None:
    states, _ = pairs()
    weight, bias = torch.randn(5, 7), torch.randn(5)
    made = fit_linear_projector([(states, states @ weight.T + bias)], ridge=1e-12)
    assert torch.allclose(made.weight, weight, atol=1e-4)
    assert torch.allclose(made.bias, bias, atol=1e-3)
    assert (made.kind, made.vision_width, made.llm_width) == ("linear", 7, 5)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(1, 4), st.sampled_from([1e-4, 0.1, 10.0]))
def test_it_is_ridge_regression(n: int, d: int, e: int, ridge: float) -> None:
    states, targets = pairs(n, d, e, n)
    made = fit_linear_projector([(states, targets)], ridge=ridge)
    # The same as least squares on centred data with sqrt(penalty) rows of an identity below.
    x = states.double().numpy() - states.double().numpy().mean(0)
    y = targets.double().numpy() - targets.double().numpy().mean(0)
    penalty = ridge * x.var(0).mean() * n
    augmented = np.vstack([x, np.sqrt(penalty) * np.eye(d)])
    want = np.linalg.lstsq(augmented, np.vstack([y, np.zeros((d, e))]), rcond=None)[0]
    assert np.allclose(made.weight.detach().numpy(), want.T, atol=1e-4, rtol=1e-3)
    middle = made(states.mean(0)[None, None])[0, 0]
    assert torch.allclose(middle, targets.mean(0), atol=1e-4)


def test_batches_are_the_same_as_all_at_once() -> None:
    states, targets = pairs()
    whole = fit_linear_projector([(states, targets)])
    parts = fit_linear_projector(zip(states.split(33), targets.split(33), strict=True))
    sums = PairSums.of(states[:50], targets[:50]) + PairSums.of(states[50:], targets[50:])
    for made in (parts, fit_linear_projector(sums)):
        assert torch.allclose(made.weight, whole.weight, atol=1e-6)
        assert torch.allclose(made.bias, whole.bias, atol=1e-6)


def test_a_larger_ridge_makes_a_smaller_map() -> None:
    sizes = [float(fit_linear_projector([pairs()], ridge=r).weight.norm()) for r in (1e-3, 1, 1e3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.1 * sizes[0]


def test_states_that_never_vary_give_the_mean() -> None:
    made = fit_linear_projector([(torch.ones(9, 3), torch.arange(9.0)[:, None])])
    assert made(torch.ones(1, 1, 3)).item() == pytest.approx(4)


def test_it_is_saved_as_any_projector(tmp_path: Path) -> None:
    made = fit_linear_projector([pairs()])
    save_projector(made, tmp_path)
    states = pairs()[0][None]
    assert torch.equal(load_projector(tmp_path)(states), made(states))


def test_bad_pairs_are_told() -> None:
    states, targets = pairs()
    with pytest.raises(OptionError, match="do not pair up"):
        fit_linear_projector([(states, targets[:9])])
    with pytest.raises(OptionError, match="NaN"):
        fit_linear_projector([(states, targets * float("nan"))])
    with pytest.raises(OptionError, match="no pairs"):
        fit_linear_projector([])
    with pytest.raises(OptionError, match="of widths"):
        fit_linear_projector([(states, targets), (states[:, :3], targets)])
    for ridge in (0.0, -1.0, float("inf")):
        with pytest.raises(OptionError, match="above 0"):
            fit_linear_projector([(states, targets)], ridge=ridge)


def test_sums_of_no_pairs_are_refused() -> None:
    with pytest.raises(OptionError, match="no pairs were given"):
        fit_linear_projector(PairSums.of(torch.zeros(0, 3), torch.zeros(0, 2)))
