"""Where and how precisely models run, and how quietly they load: one rule for both roads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from typing import TYPE_CHECKING, Literal, TypeAlias, Union, cast, get_args

from bridge.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_SMALL = 1 << 30

DtypeName = Literal[
    "auto", "float64", "float32", "fp32", "float16", "fp16", "half", "bfloat16", "bf16"
]
Dtype: TypeAlias = Union[DtypeName, "torch.dtype"]
"""What a caller may write for a floating type."""
_DTYPES: dict[DtypeName, str] = {
    "float64": "float64",
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}

# transformers sets torch's default dtype and device while it loads, and the bars and notes are
# switches of the whole process; so one model loads at a time.
_LOADING = threading.RLock()


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; without a wish, CUDA if there is one, else the CPU.

    Raises OptionError for a name torch does not know and for a device that this machine or this
    build of torch does not have.
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
    try:
        torch.zeros(1, device=found, dtype=torch.float32).item()
    # What a missing backend raises depends on the backend (RuntimeError, AssertionError ...).
    except Exception as error:
        raise OptionError(
            f"device {device!r} cannot be computed on here; use 'cpu' or leave the device out"
        ) from error
    return found


def check_dtype(dtype: Dtype | None) -> torch.dtype | None:
    """The floating type asked for, None for None and "auto". Raises OptionError for any other."""
    import torch

    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if name not in get_args(DtypeName):
        names = ", ".join(sorted(set(_DTYPES.values())))
        raise OptionError(f"dtype {dtype!r} is not one of auto, {names}")
    found = getattr(torch, _DTYPES[cast(DtypeName, name)])
    assert isinstance(found, torch.dtype)
    return found


def resolve_dtype(
    dtype: Dtype | None, device: torch.device, folder: Path | None = None
) -> torch.dtype:
    """The floating type asked for. For None and "auto": fp32 on a CPU, and for small models.

    Most CPUs have no fast half-precision arithmetic. A model whose ``folder`` has under a GiB
    of weights is fast in fp32 on any card, and then gives there what it gives on a CPU. What is
    larger runs on CUDA in bf16, or fp16 where the card has no bf16. Raises OptionError.
    """
    import torch

    named = check_dtype(dtype)
    if named is not None:
        return named
    if device.type != "cuda" or (folder is not None and _weights_bytes(folder) < _SMALL):
        return torch.float32
    return torch.bfloat16 if has_bf16() else torch.float16


def has_bf16() -> bool:
    """Whether the current CUDA card computes in bf16; older ones emulate it, far slower."""
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


@contextmanager
def building() -> Iterator[None]:
    """Build modules of our own while no other thread of bridge loads a model.

    Loading takes torch's initialisers away, and puts every new parameter on the device "meta",
    for the whole process. What tensors are made of needs no such care: each call names its dtype.
    """
    with _LOADING:
        yield


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load without the bars and warnings of transformers and diffusers; one thread at a time.

    Both are put back as they were. What is wrong with a checkpoint bridge says itself, and who
    has set a verbosity other than the default keeps it.
    """
    from transformers.utils import logging

    loggers = [logging]
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as diffusers_logging

        loggers.append(diffusers_logging)
    with _LOADING:
        shown = [each for each in loggers if each.is_progress_bar_enabled()]
        levels = [each.get_verbosity() for each in loggers]
        for each, level in zip(loggers, levels, strict=True):
            each.disable_progress_bar()
            if level == WARNING:
                each.set_verbosity_error()
        try:
            yield
        finally:
            for each in shown:
                each.enable_progress_bar()
            for each, level in zip(loggers, levels, strict=True):
                each.set_verbosity(level)
