"""Reading named tensors from files: safetensors, and pickle without running what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import WeightsError


def read_tensors(
    file: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, on the CPU, as stored; others stay on the disk.

    Raises WeightsError when it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            for name in filter(wanted, opened.keys()):
                yield name, opened.get_tensor(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"{file} cannot be read as safetensors: {error}; fetch it again"
        ) from error


def load_pickle(file: Path, *, mmap: bool = False) -> Any:
    """What a pickle file holds, with torch's ``weights_only``: tensors and plain values, and
    nothing in it is run. Raises WeightsError."""
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    # torch raises UnpicklingError, RuntimeError, EOFError and others, by how a file is damaged.
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise WeightsError(
            f"{file} cannot be read as tensors alone ({type(error).__name__}: {lines[0]}); "
            "bridge takes plain tensors only"
        ) from error
