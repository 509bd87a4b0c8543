"""The training loop: an interrupted run ends where a straight one does.

The clock is ours: every loss call moves it on by one second, so budgets count steps.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from bridge.pictures import draw_curve
from bridge.training import run_state
from emoji_world.train.loop import Recipe, Run

STEP = 1.0  # seconds of our clock a step takes


class Clock:
    """Stands in for time.monotonic; the recipe winds it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    hands = Clock()
    monkeypatch.setattr(time, "monotonic", hands)
    yield hands


class Net(nn.Module):
    """A few layers, a buffer that training changes, and one frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.body(x))


def tiny_recipe(clock: Clock, **changes: object) -> Recipe:
    torch.manual_seed(0)
    net = Net()

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        clock.now += STEP
        made = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, generator=made)
        error = (net(x) - x[:, :2]).square().mean()
        return error, {"mse": error.item()}

    values: dict[str, object] = {"lr": 1e-2, "warmup": 5, "ema": 0.9, "decay_lr": False}
    return Recipe("tiny", net, loss, **(values | changes))  # type: ignore[arg-type]


def stop_after(recipe: Recipe, steps: int) -> Recipe:
    """The recipe, interrupted from outside after some steps, as by Ctrl-C."""
    inner = recipe.loss
    left = [steps]

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return inner(step)

    recipe.loss = loss
    return recipe


def optimizer_state(run: Run, name: str) -> dict[str, torch.Tensor]:
    """What the optimisers remember of one parameter."""
    kept = [o.state.get(run.params[name], {}) for o in run.optimizers]
    assert sum(map(bool, kept)) <= 1
    return {key: value for state in kept for key, value in state.items()}


def assert_same(one: Run, two: Run) -> None:
    assert one.step == two.step and one.seconds == two.seconds
    first, second = one.recipe.module.state_dict(), two.recipe.module.state_dict()
    assert set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)
    first, second = one.averaged(), two.averaged()
    assert set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)
    for name in one.params:
        mine, other = optimizer_state(one, name), optimizer_state(two, name)
        assert set(mine) == set(other) and bool(mine) == (not name.startswith("frozen.")), name
        assert all(torch.equal(mine[k], other[k]) for k in mine), name


MATRICES = frozenset({"body.0.weight", "body.3.weight"})


def noisy(recipe: Recipe, drawn: dict[int, torch.Tensor]) -> Recipe:
    """The recipe with noise from torch's own generator in its loss; ``drawn`` keeps it."""
    inner = recipe.loss

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        error, figures = inner(step)
        noise = torch.randn(2)
        drawn[step] = noise
        return error * (1 + noise[0].abs()) + noise[1], figures

    recipe.loss = loss
    return recipe


def test_a_resumed_run_draws_the_noise_of_a_straight_one(tmp_path: Path, clock: Clock) -> None:
    first: dict[int, torch.Tensor] = {}
    straight = Run(noisy(tiny_recipe(clock), first), tmp_path / "straight")
    straight.train(0.5)
    second: dict[int, torch.Tensor] = {}
    torch.manual_seed(99)  # what else the process drew does not matter
    broken = Run(stop_after(noisy(tiny_recipe(clock), second), 17), tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        broken.train(0.5, checkpoint_every=4)
    torch.manual_seed(123)
    third: dict[int, torch.Tensor] = {}
    resumed = Run(noisy(tiny_recipe(clock), third), tmp_path / "broken")
    begun = resumed.step
    assert 0 < begun < 17
    torch.randn(5)
    resumed.train(0.5)
    assert set(third) == set(range(begun, 30))
    for step, noise in (second | third).items():
        assert torch.equal(noise, first[step]), step
    assert all(torch.equal(third[step], second[step]) for step in range(begun, 17))
    assert len({tuple(noise.tolist()) for noise in first.values()}) == 30  # and none repeats
    assert_same(resumed, straight)


def test_a_run_cut_off_between_log_and_state_goes_on(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever there is a state there is its log, even if the disk fills in between."""

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_state, "save_file", full)
        with pytest.raises(OSError, match="no space"):
            Run(tiny_recipe(clock), tmp_path).train(0.5)
    folder = tmp_path / "tiny"
    assert (folder / "log.json").exists() and not (folder / "state.safetensors").exists()
    fresh = Run(tiny_recipe(clock), tmp_path)
    assert fresh.step == 0 and fresh.log == []
    fresh.train(0.5)
    assert fresh.step == 30


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": None},
        {"decay_lr": True},
        {"muon": MATRICES},
        {"muon": MATRICES, "decay_lr": True, "ema": None},
    ],
)
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(
    tmp_path: Path, clock: Clock, settings: dict[str, object]
) -> None:
    straight = Run(tiny_recipe(clock, **settings), tmp_path / "straight")
    straight.train(0.5)
    assert straight.step == 30

    recipe = stop_after(tiny_recipe(clock, **settings), 17)
    broken = Run(recipe, tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        broken.train(0.5, checkpoint_every=4)
    resumed = Run(tiny_recipe(clock, **settings), tmp_path / "broken")
    assert 0 < resumed.step < 17  # from the last checkpoint; what came after is done again
    resumed.train(0.5)
    assert_same(resumed, straight)


def test_more_minutes_go_on_from_the_end(tmp_path: Path, clock: Clock) -> None:
    straight = Run(tiny_recipe(clock), tmp_path / "straight")
    straight.train(0.5)
    first = Run(tiny_recipe(clock), tmp_path / "parts")
    first.train(0.2)
    assert first.step == 12
    second = Run(tiny_recipe(clock), tmp_path / "parts")
    assert second.step == 12 and second.seconds == 12
    second.train(0.5)
    assert_same(second, straight)
    # The budget is spent: another start trains no further.
    third = Run(tiny_recipe(clock), tmp_path / "parts")
    third.train(0.5)
    assert_same(third, straight)


def test_the_state_is_safetensors_alone_and_written_whole(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny_recipe(clock), tmp_path)
    run.train(0.5)
    folder = tmp_path / "tiny"
    assert {p.name for p in folder.iterdir()} == {"state.safetensors", "log.json", "loss.png"}
    before = (folder / "state.safetensors").read_bytes()
    with safe_open(folder / "state.safetensors", "pt") as opened:
        assert opened.metadata() == {"step": "30", "seconds": "30.0"}
        kinds = {name.split(".")[0] for name in opened.keys()}  # noqa: SIM118
    assert kinds == {"module", "average", "optimizer"}

    # A disk that fills up in the middle of a later save leaves the earlier state as it was.
    def half(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(run_state, "save_file", half)
    run.step = 99
    with pytest.raises(OSError, match="no space"):
        run.save()
    assert (folder / "state.safetensors").read_bytes() == before
    assert Run(tiny_recipe(clock), tmp_path).step == 30


def test_frozen_parts_stay_and_trained_parts_move(tmp_path: Path, clock: Clock) -> None:
    recipe = tiny_recipe(clock)
    before = {k: v.clone() for k, v in recipe.module.state_dict().items()}
    run = Run(recipe, tmp_path)
    run.train(0.2)
    after = recipe.module.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("frozen."), name
    average = run.averaged()
    assert torch.equal(average["frozen.weight"], before["frozen.weight"])
    assert not torch.equal(average["body.0.weight"], after["body.0.weight"])


def test_muon_trains_the_matrices_it_is_given_and_adamw_the_rest(
    tmp_path: Path, clock: Clock
) -> None:
    run = Run(tiny_recipe(clock, muon=MATRICES), tmp_path)
    before = {name: p.detach().clone() for name, p in run.params.items()}
    run.train(0.1)
    for name, parameter in run.params.items():
        if name.startswith("frozen."):
            continue
        assert not torch.equal(parameter, before[name]), name
        kept = set(optimizer_state(run, name))
        muon = {"momentum_buffer"}
        assert kept == (muon if name in MATRICES else {"step", "exp_avg", "exp_avg_sq"}), name


class ConvNet(nn.Module):
    """A convolution in channels_last, as the recipes have them, and what reads it out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.out = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(x).mean((2, 3)))


def conv_recipe(clock: Clock) -> Recipe:
    torch.manual_seed(0)
    net = ConvNet()

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        clock.now += STEP
        x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        error = (net(x) - x.mean((2, 3))).square().mean()
        return error, {"mse": error.item()}

    kernels = frozenset({"conv.weight"})
    return Recipe("conv", net, loss, lr=1e-2, warmup=0, decay_lr=False, muon=kernels)


def test_muon_trains_a_convolution_as_the_matrix_of_its_kernels(
    tmp_path: Path, clock: Clock
) -> None:
    """One step, against Muon on a plain matrix that is given the same numbers."""
    recipe = conv_recipe(clock)
    weight = recipe.module.get_parameter("conv.weight")
    matrix = nn.Parameter(weight.detach().permute(0, 2, 3, 1).reshape(5, 27).clone())
    muon = torch.optim.Muon([matrix], lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    run = Run(recipe, tmp_path)
    run.train(STEP / 60)
    assert weight.grad is not None
    matrix.grad = weight.grad.permute(0, 2, 3, 1).reshape(5, 27).clone()
    muon.step()
    torch.testing.assert_close(weight.detach().permute(0, 2, 3, 1).reshape(5, 27), matrix.detach())


def test_a_convolutions_momentum_survives_a_restart(tmp_path: Path, clock: Clock) -> None:
    straight = Run(conv_recipe(clock), tmp_path / "straight")
    straight.train(0.5)
    parts = Run(conv_recipe(clock), tmp_path / "parts")
    parts.train(0.2)
    resumed = Run(conv_recipe(clock), tmp_path / "parts")
    resumed.train(0.5)
    for name, parameter in straight.params.items():
        assert torch.equal(resumed.params[name], parameter), name


def test_a_part_that_gets_no_gradient_does_not_shift_the_others(
    tmp_path: Path, clock: Clock
) -> None:
    """The state of each parameter is kept by its name, not by its place."""

    def with_idle_first() -> Recipe:
        recipe = tiny_recipe(clock)
        recipe.module = nn.ModuleDict({"idle": nn.Linear(3, 3), "net": recipe.module})
        return recipe

    straight = Run(with_idle_first(), tmp_path / "straight")
    straight.train(0.5)
    parts = Run(with_idle_first(), tmp_path / "parts")
    parts.train(0.2)
    resumed = Run(with_idle_first(), tmp_path / "parts")
    resumed.train(0.5)
    for name in straight.params:
        mine, other = optimizer_state(resumed, name), optimizer_state(straight, name)
        assert set(mine) == set(other) and all(torch.equal(mine[k], other[k]) for k in mine)


def test_without_averaging_the_plain_weights_are_given(tmp_path: Path, clock: Clock) -> None:
    run = Run(tiny_recipe(clock, ema=None), tmp_path)
    run.train(0.1)
    assert all(torch.equal(v, run.params[k]) for k, v in run.averaged().items())


def test_the_average_follows_its_formula(tmp_path: Path, clock: Clock) -> None:
    recipe = tiny_recipe(clock, ema=0.8)
    seen: list[torch.Tensor] = []
    weight = recipe.module.get_parameter("body.0.weight")
    inner = recipe.loss

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(weight.detach().clone())
        return inner(step)

    recipe.loss = loss
    run = Run(recipe, tmp_path)
    run.train(0.5)
    expected = seen[0]
    for step, value in enumerate([*seen[1:], weight.detach()]):
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(run.averaged()["body.0.weight"], expected)


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path: Path, clock: Clock) -> None:
    recipe = tiny_recipe(clock, lr=1e-2, warmup=10, decay_lr=True, muon=MATRICES)
    rates: list[float] = []
    inner = recipe.loss

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        (rate,) = {group["lr"] for o in run.optimizers for group in o.param_groups}
        rates.append(rate)
        return inner(step)

    recipe.loss = loss
    run = Run(recipe, tmp_path)
    run.train(1.0)
    assert len(rates) == 60
    for step, rate in enumerate(rates):
        wave = 0.05 + 0.95 * (1 + math.cos(math.pi * step / 60)) / 2
        assert rate == pytest.approx(1e-2 * min(1, (step + 1) / 10) * wave)


def test_the_log_averages_what_lies_between_its_rows(tmp_path: Path, clock: Clock) -> None:
    recipe = tiny_recipe(clock)
    values: list[float] = []
    inner = recipe.loss

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        error, figures = inner(step)
        values.append(figures["mse"])
        return error, figures

    recipe.loss = loss
    Run(recipe, tmp_path).train(1.0)
    rows = json.loads((tmp_path / "tiny" / "log.json").read_text())
    assert [row["step"] for row in rows] == [21, 42]
    assert [row["minutes"] for row in rows] == pytest.approx([0.35, 0.7])
    assert rows[0]["mse"] == pytest.approx(sum(values[:21]) / 21)
    assert rows[1]["mse"] == pytest.approx(sum(values[21:42]) / 21)
    assert (tmp_path / "tiny" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_rows_no_curve(tmp_path: Path) -> None:
    draw_curve([], tmp_path / "loss.png", "nothing")
    assert not list(tmp_path.iterdir())
