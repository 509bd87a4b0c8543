"""Reading a checkpoint's tensors file by file, and writing them shard by shard.

Only one shard is in memory at a time, so a model larger than the memory can be converted.
Pickle is read only where the caller asks for it, and then with torch's ``weights_only``, which
builds tensors and nothing else. Only safetensors are ever written.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from bridge.errors import WeightsError
from bridge.files import read_json
from bridge.model_folder import shards
from bridge.towers.tensors import load_pickle, read_tensors

SHARD_BYTES = 4_000_000_000

NO_PICKLE_OF_HUBS = (
    "pickle (.bin) is never fetched from a hub; if it is kept there, download it yourself with "
    "`hf download OWNER/NAME --local-dir FOLDER` and give that folder with allow_pickle=True"
)


def model_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The weight files of a folder: safetensors, else pickle if allowed; none is no error.

    Raises WeightsError when there is only pickle and it is not allowed, or not there.
    """
    for index, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        found: list[Path] = []
        if (folder / index).is_file():
            found = sorted(set(_indexed(folder / index)))
        elif (folder / single).is_file():
            found = [folder / single]
        if found:
            checked_pickle(found, allow_pickle)
            return found
    return []


def _indexed(index: Path) -> Collection[Path]:
    """The files that an index names, of either kind. Raises WeightsError."""
    if index.name.endswith(".safetensors.index.json"):
        return shards(index).values()
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
        raise WeightsError(f"{index}: weight_map is no JSON object of file names; fetch it again.")
    return [index.parent / name for name in named.values()]


def projector_file(folder: Path, *, allow_pickle: bool = False) -> Path | None:
    """`mm_projector.safetensors` or, if allowed, LLaVA's `mm_projector.bin`. Raises as above."""
    for name in ("mm_projector.safetensors", "mm_projector.bin"):
        if (folder / name).is_file():
            checked_pickle([folder / name], allow_pickle)
            return folder / name
    return None


def checked_pickle(files: list[Path], allow_pickle: bool) -> None:
    pickled = [file for file in files if file.suffix == ".bin"]
    # An index of a hub's pickles is fetched, being JSON.
    missing = [file for file in pickled if not file.is_file()]
    if missing:
        raise WeightsError(f"{missing[0]} is missing: {NO_PICKLE_OF_HUBS}")
    if pickled and not allow_pickle:
        raise WeightsError(
            f"{pickled[0]} is a pickle file, a format that can carry programs; if you trust where "
            "it came from, pass allow_pickle=True (bridge convert --allow-pickle): its tensors "
            "are then read, and nothing in it is run"
        )


def read_file(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of one file of either kind, on the CPU, as stored. Raises WeightsError."""
    if file.suffix != ".bin":
        yield from read_tensors(file)
        return
    # The older form of torch.save is no zip and cannot be mapped.
    found = load_pickle(file, mmap=zipfile.is_zipfile(file))
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise WeightsError(f"{file} holds something other than named tensors")
    yield from found.items()


class ShardWriter:
    """Tensors to `model.safetensors`, or to numbered shards with an index where they are many.

    The folder must be new: files get their final names when `close` knows how many there are.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.limit:
            self._flush()
        # safetensors refuses views of one storage, which pickled checkpoints have.
        self._pending[name] = tensor.clone().contiguous()
        self._pending_bytes += size
        self._total += size

    def close(self) -> None:
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).replace(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._part(number).replace(self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _part(self, number: int) -> Path:
        return self.folder / f"shard-{number}.part"

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if self._pending:
            save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0
