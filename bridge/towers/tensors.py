"""Reading named tensors from files: safetensors, and pickle without running what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import read_json


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


def read_named(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of ``names`` that a folder's ``model.safetensors`` (or its shards) has.

    Raises WeightsError when a file is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map", {})
        files = {folder / shards[name] for name in names if name in shards}
    else:
        files = {folder / "model.safetensors"}
    found = (read_tensors(file, lambda name: name in names) for file in files if file.is_file())
    return dict(pair for each in found for pair in each)
