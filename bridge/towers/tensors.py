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
    return _read_wanted(folder, lambda name: name in names)


def read_prefixed(folder: Path, start: str) -> dict[str, Tensor]:
    """Those tensors of a folder's ``model.safetensors`` (or its shards) whose names begin with
    ``start``, by the rest of their names. Raises WeightsError when a file is damaged."""
    found = _read_wanted(folder, lambda name: name.startswith(start))
    return {name.removeprefix(start): tensor for name, tensor in found.items()}


def _read_wanted(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map", {})
        files = sorted({folder / shards[name] for name in shards if wanted(name)})
    else:
        files = [folder / "model.safetensors"]
    found = (read_tensors(file, wanted) for file in files if file.is_file())
    return dict(pair for each in found for pair in each)


def read_state(folder: Path, name: str, allow_pickle: bool) -> dict[str, Tensor]:
    """All tensors of a folder that keeps them in one file: ``name``, or another safetensors file,
    or a pickle where those are allowed. What training code wraps around them is taken off.

    Raises WeightsError.
    """
    named = folder / name
    found = [named] if named.is_file() else sorted(folder.glob("*.safetensors"))
    if found:
        state = dict(read_tensors(found[0]))
    else:
        pickles = sorted(file for end in ("pt", "bin", "pth") for file in folder.glob(f"*.{end}"))
        if not pickles or not allow_pickle:
            told = f"; {pickles[0].name} is a pickle: pass allow_pickle=True" if pickles else ""
            raise WeightsError(f"{folder} has no {name}{told}")
        state = load_pickle(pickles[0])
        state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(f"{folder} holds no plain dictionary of tensors")
    return {str(each).removeprefix("module."): tensor for each, tensor in state.items()}
