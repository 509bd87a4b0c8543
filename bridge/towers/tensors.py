"""Reading named tensors from files: safetensors, and pickle without running what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import check_regular
from bridge.model_folder import shards


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """A safetensors file, as ``safe_open`` opens it on the CPU.

    Whatever reading it raises inside the block is a WeightsError that names the file; so is a
    file that is missing, damaged or no plain file.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.lexists(file):
        raise WeightsError(f"{file} is missing; check its path.")
    check_regular(file)
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    # AttributeError and RuntimeError: dtypes that this torch lacks, shapes that do not fit.
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        AttributeError,
        OverflowError,
        MemoryError,
        SafetensorError,
    ) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{file} cannot be read as safetensors: {error}; fetch it again"
        ) from error


def read_tensors(
    file: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, on the CPU, as stored; others stay on the disk.

    Raises WeightsError when it is missing or damaged.
    """
    with open_tensors(file) as opened:
        for name in filter(wanted, opened.keys()):
            yield name, opened.get_tensor(name)


def check_finite(source: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse NaN and infinity in what a file brings. Raises WeightsError that names the tensor."""
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        if not bool(_wide(source, name, tensor).isfinite().all()):
            raise WeightsError(
                f"{source}: its tensor {name!r} holds numbers that are not finite (NaN or "
                "infinity); the file is damaged, or its training ran away. Take another."
            )


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file and the texts of its header. Raises WeightsError."""
    with open_tensors(file) as opened:
        metadata = dict(opened.metadata() or {})
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors, metadata


def check_computable(source: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse what is not finite, or in no precision that torch computes with: small files of
    weights. Raises WeightsError that names the tensor."""
    import torch

    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    for name, tensor in tensors:
        if tensor.dtype not in kinds:
            raise WeightsError(
                f"{source}: its tensor {name!r} is of {tensor.dtype}; weights are float32, "
                "float16, bfloat16 or float64. The file is damaged or quantized."
            )
        check_finite(source, [(name, tensor)])


def _wide(source: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor of one byte a number in float32: torch computes little in these kinds."""
    try:
        return tensor.float() if tensor.itemsize == 1 else tensor
    except NotImplementedError as error:
        raise WeightsError(
            f"{source}: its tensor {name!r} is of {tensor.dtype}, which torch cannot compute with."
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
        files = sorted({file for name, file in shards(index).items() if wanted(name)})
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
    state: Any
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
