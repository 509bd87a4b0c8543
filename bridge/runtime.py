"""Where and how precisely models run, and how quietly they load: one rule for both roads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bridge.errors import OptionError

if TYPE_CHECKING:
    import torch

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


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The floating type asked for; for None and "auto": fp32 on a CPU, else bf16, else fp16.

    fp32 on a CPU because most CPUs have no fast half-precision arithmetic, and because
    exactness against other libraries is stated in fp32. Raises OptionError for other names.
    """
    import torch

    if dtype is None or dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.float32
    if isinstance(dtype, torch.dtype):
        if dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            return dtype
    elif dtype in _DTYPES:
        found = getattr(torch, _DTYPES[dtype])
        assert isinstance(found, torch.dtype)
        return found
    raise OptionError(
        f"dtype {dtype!r} is not one of auto, {', '.join(sorted(set(_DTYPES.values())))}"
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the loading bars of transformers, and put them back as they were."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
