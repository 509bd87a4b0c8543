"""Where and how precisely models run, and how quietly they load: one rule for both roads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bridge.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_SMALL = 1 << 30

_DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; without a wish, CUDA if there is one, else the CPU.

    Raises OptionError for a name torch does not know and for a CUDA device that is absent.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device {device!r} is no device ('cpu', 'cuda', 'cuda:1' ...)"
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use 'cpu' or leave the device out"
        )
    return found


def check_dtype(dtype: str | torch.dtype | None) -> None:
    """Raise OptionError unless ``dtype`` is None, "auto" or a floating type bridge runs in."""
    import torch

    if dtype is None or dtype == "auto" or (isinstance(dtype, str) and dtype in _DTYPES):
        return
    if dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return
    names = ", ".join(sorted(set(_DTYPES.values())))
    raise OptionError(f"dtype {dtype!r} is not one of auto, {names}")


def resolve_dtype(
    dtype: str | torch.dtype | None, device: torch.device, folder: Path | None = None
) -> torch.dtype:
    """The floating type asked for. For None and "auto": fp32 on a CPU, and for small models.

    Most CPUs have no fast half-precision arithmetic. A model whose ``folder`` has under a GiB
    of weights is fast in fp32 on any card, and then gives there what it gives on a CPU. What is
    larger runs on CUDA in bf16, or fp16 where the card has no bf16. Raises OptionError.
    """
    import torch

    check_dtype(dtype)
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None and dtype != "auto":
        named = getattr(torch, _DTYPES[dtype])
        assert isinstance(named, torch.dtype)
        return named
    if device.type != "cuda" or (folder is not None and _weights_bytes(folder) < _SMALL):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the loading bars of transformers and diffusers, and put them back as they were."""
    from transformers.utils import logging

    bars = [logging]
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as diffusers_logging

        bars.append(diffusers_logging)
    shown = [bar for bar in bars if bar.is_progress_bar_enabled()]
    for bar in shown:
        bar.disable_progress_bar()
    try:
        yield
    finally:
        for bar in shown:
            bar.enable_progress_bar()
