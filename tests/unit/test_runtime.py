"""Devices, dtypes and quiet loading: the rules that both roads share."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging

from bridge.diffusion import load_pipeline
from bridge.errors import OptionError
from bridge.runtime import check_dtype, quiet_loading, resolve_device, resolve_dtype
from bridge.vlm.projectors import build_projector

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["float16", "fp16", "half", torch.float16])
def test_a_type_has_several_names(name: str | torch.dtype) -> None:
    assert check_dtype(name) is torch.float16
    assert resolve_dtype(name, CPU) is torch.float16


@pytest.mark.parametrize("name", [None, "auto"])
def test_no_wish_is_fp32_on_a_cpu(name: str | None, tmp_path: Path) -> None:
    assert check_dtype(name) is None
    assert resolve_dtype(name, CPU, tmp_path) is torch.float32


@pytest.mark.parametrize(("native", "found"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_emulates_bf16_has_fp16(
    native: bool, found: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_dtype(None, torch.device("cuda")) is found


@pytest.mark.parametrize("name", ["int8", torch.int8, torch.complex64, 3, ["float32"], ""])
def test_what_is_no_floating_type(name: object) -> None:
    with pytest.raises(OptionError, match="is not one of auto, bfloat16"):
        check_dtype(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpu9", "", 1.5, "cuda:99", "meta"])
def test_what_is_no_device_here(name: object) -> None:
    with pytest.raises(OptionError, match="device"):
        resolve_device(name)  # type: ignore[arg-type]


def test_a_device_is_found() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_quiet_loading_puts_everything_back() -> None:
    switches = [logging, diffusers_logging]
    before = [(s.is_progress_bar_enabled(), s.get_verbosity()) for s in switches]
    with pytest.raises(ZeroDivisionError), quiet_loading():
        assert not any(s.is_progress_bar_enabled() for s in switches)
        _ = 1 / 0
    assert [(s.is_progress_bar_enabled(), s.get_verbosity()) for s in switches] == before


def test_one_model_loads_at_a_time() -> None:
    """Else one thread would put back the switches that another still needs."""
    inside = threading.Event()

    def other() -> None:
        with quiet_loading():
            inside.set()

    thread = threading.Thread(target=other)
    with quiet_loading():
        thread.start()
        assert not inside.wait(0.2)
    assert inside.wait(10)
    thread.join()


def test_a_chosen_verbosity_is_kept() -> None:
    level = logging.get_verbosity()
    try:
        logging.set_verbosity_debug()
        with quiet_loading():
            assert logging.get_verbosity() == logging.DEBUG
    finally:
        logging.set_verbosity(level)


@pytest.mark.models
def test_modules_of_our_own_are_built_while_nothing_loads() -> None:
    """diffusers puts every new parameter of the process on the device "meta" while it loads, and
    leaves out torch's first numbers."""
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            load_pipeline("emoji-xl", device="cpu")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(40):
            torch.manual_seed(0)
            made: Any = build_projector("linear", 8, 8)
            assert made.weight.device.type == "cpu"
            assert 0 < float(made.weight.detach().abs().max()) < 1
            time.sleep(0.005)
    finally:
        over.set()
        thread.join()
