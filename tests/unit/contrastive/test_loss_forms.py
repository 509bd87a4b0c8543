"""The memory-bounded and the two-process forms have the plain form's gradients, in fp64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.clip_training import RUNS, train
from support.loss_cases import LOSSES, TinyModel, all_rows, gradients
from support.tiny_folders import KINDS
from support.two_processes import run_script
from torch import Tensor, nn

from bridge.contrastive.grad_cache import Encoded, cached_backward, check_rows_alone
from bridge.contrastive.losses import InfoNCE, PooledPairs
from bridge.errors import OptionError
from bridge.training import run_state

TOLERANCE = 1e-10  # the issue asks for 1e-6
MUCH = 1 << 30


def assert_equal(found: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert found.keys() == want.keys()
    assert any(each.abs().max() > 1e-3 for name, each in want.items() if "weight" in name)
    for name, each in want.items():
        assert (found[name] - each).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("keep", [0, 1200, MUCH], ids=["none", "some", "all"])
def test_cached_is_plain_with_dropout(name: str, keep: int) -> None:
    want = gradients(name, form="plain", dropout=0.4)
    # The next draw too: after the second pass the generator stands where it stood after the first.
    assert_equal(gradients(name, form="cached", dropout=0.4, keep=keep), want)


def test_the_cases_tell_one_dropout_from_another() -> None:
    one, two = (gradients("infonce", form=form, dropout=0.4) for form in ("plain", "whole"))
    assert (one["loss"] - two["loss"]).abs() > 1e-3


@pytest.mark.parametrize(("keep", "passes"), [(0, 8), (1200, 7), (MUCH, 4)])
def test_what_is_kept_is_not_computed_twice(keep: int, passes: int) -> None:
    model, rows, seen = TinyModel(0.0), all_rows(), []

    def encode(at: int) -> Encoded:
        seen.append(at)
        some = rows[slice(at, at + 2)]
        return Encoded(PooledPairs(model.image(some.image), model.text(some.text)))

    cached_backward(encode, [0, 2, 4, 6], lambda p: InfoNCE()(p, model.logit_scale), keep=keep)
    assert len(seen) == passes


def test_a_locked_tower_gets_no_gradient() -> None:
    model, rows = TinyModel(0.2), all_rows()
    model.image.requires_grad_(False)

    def encode(at: int) -> Encoded:
        some = rows[slice(at, at + 4)]
        return Encoded(PooledPairs(model.image(some.image), model.text(some.text)))

    cached_backward(encode, [0, 4], lambda p: InfoNCE()(p, model.logit_scale))
    assert all(p.grad is None for p in model.image.parameters())
    assert all(p.grad is not None for p in model.text.parameters())


def test_what_parts_would_change_is_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(OptionError, match="1 is a batch norm"):
        check_rows_alone(module)
    check_rows_alone(module.eval())
    with pytest.raises(OptionError, match="no parts"):
        cached_backward(lambda part: part, [], lambda pairs: pairs.image.sum())


def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, and whole runs of `train_clip`: one program, so that torch loads once."""
    monkeypatch.setattr(run_state, "draw_curve", lambda *_, **__: None)
    root, tmp_path = tmp_path, tmp_path / "two"
    tmp_path.mkdir()
    KINDS["clip"].make(root / "clip")
    run_script("two_losses.py", tmp_path)
    for name, options in RUNS.items():
        one = train(root / "clip", root / name, **options)
        log = json.loads((tmp_path / name / "log.json").read_text())
        for found, want in zip(log, one.log, strict=True):
            # The gradient's norm too: Adam would hide a factor in it.
            assert found == pytest.approx(want, rel=1e-4), name
    for name in LOSSES:
        want = gradients(name, form="whole")
        want.pop("next draw")
        for form in ("plain", "cached"):
            both = [load_file(tmp_path / f"{name}-{form}-{rank}.safetensors") for rank in (0, 1)]
            loss = torch.stack([each.pop("loss") for each in both]).mean()
            for found in both:
                found.pop("next draw")
                assert_equal({"loss": loss, **found}, want)
