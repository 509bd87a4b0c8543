"""Groups that decay, averaged weights, batches without a row twice, and numbers that stop a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bridge.errors import NumbersError
from bridge.training.loop import check_step
from bridge.training.optimization import Average, decay_groups, set_rates
from bridge.training.order import Shuffled
from bridge.training.run_state import CHECKPOINT, write_state


def test_gains_and_biases_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    scale = nn.Parameter(torch.tensor(2.0))
    module[2].requires_grad_(False)
    named = {**dict(module.named_parameters()), "logit_scale": scale}
    wide, narrow = decay_groups(named, 1e-3, 0.2)
    assert wide["params"] == [module[0].weight] and wide["weight_decay"] == 0.2
    assert narrow["weight_decay"] == 0 and len(narrow["params"]) == 4
    optimizer = torch.optim.AdamW([wide, narrow])
    set_rates(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4}


def test_the_average_is_its_formula_and_changes_places() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average, want = Average({"w": weight}, 0.9), torch.zeros(3)
    for step in range(30):
        with torch.no_grad():
            weight.fill_(step + 1.0)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * (step + 1.0)
    assert torch.allclose(average.weights["w"], want)
    average.exchange()
    assert torch.allclose(weight, want) and average.weights["w"].tolist() == [30] * 3
    average.exchange()
    assert weight.tolist() == [30] * 3


def test_every_row_once_an_epoch_and_never_twice_in_a_batch() -> None:
    order = Shuffled(10, 3, seed=1)
    epochs = [[order.batch(step) for step in range(e * 3, e * 3 + 3)] for e in range(4)]
    for batches in epochs:
        rows = [row for batch in batches for row in batch]
        assert len(rows) == len(set(rows)) == 9
    assert epochs[0] != epochs[1]
    assert Shuffled(10, 3, seed=2).batch(0) != order.batch(0)
    assert {row for batches in epochs for batch in batches for row in batch} == set(range(10))


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_numbers_that_are_none_stop_a_run(loss: float, norm: float, tmp_path: Path) -> None:
    check_step(7, 1.0, 2.0, tmp_path)
    with pytest.raises(NumbersError, match="no checkpoint was written before"):
        check_step(3, loss, norm, tmp_path)
    write_state(tmp_path / CHECKPOINT, {}, {"step": "5"})
    with pytest.raises(NumbersError, match=r"step 8 .* as it was after step 5"):
        check_step(7, loss, norm, tmp_path)
