"""Textual-inversion embeddings from files: a word and the vectors that stand for it.

Gal et al. 2022, "An Image is Worth One Word". Layouts, all safetensors:

- diffusers: one tensor, whose key is the word;
- stable-diffusion-webui: one tensor ``emb_params``; the word is the file's name;
- several towers: ``clip_l``, ``clip_g``, ``t5xxl``, one tensor a tower (SDXL has the first two; the
  third is ComfyUI's name of T5); the word is the file's name.

A tensor is ``(D,)``, or ``(n, D)`` for a word of n vectors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import check_given, hash_file
from bridge.towers.tensors import check_finite, load_pickle, read_tensors

_PICKLED = {".pt", ".bin", ".pth", ".ckpt"}
# Files for several towers name them.
_TOWERS = {"clip_l", "clip_g", "t5xxl"}
_FILE_NAMED = {"emb_params", "*"}


@dataclass(frozen=True, eq=False)
class TextualInversion:
    """A word and its vectors.

    Attributes:
        word: what stands for the vectors in a prompt.
        vectors: tower (``clip_l``, ``clip_g``, ``t5xxl``) -> ``(n, D)``; under ``""`` where the
            file does not say for which tower it is.
        source: the file.
        hash: the first 16 hex digits of the file's sha256.
    """

    word: str
    vectors: Mapping[str, Tensor]
    source: str
    hash: str


def read_textual_inversion(
    path: str | os.PathLike[str], word: str | None = None, *, allow_pickle: bool = False
) -> TextualInversion:
    """Read one file.

    Args:
        path: a safetensors file.
        word: the word to use instead of the file's own.
        allow_pickle: also read ``.pt`` and ``.bin`` files, with torch's ``weights_only`` loader,
            which takes tensors and plain values and runs no code.

    Raises:
        WeightsError: a file that is missing, damaged, pickled (unless allowed), or no embedding.
    """
    source = Path(path)
    check_given(source, "textual-inversion file")
    found = _read(source, allow_pickle)
    named = None
    if "string_to_param" in found:
        # The webui's pickled layout.
        named, found = found.get("name"), dict(found["string_to_param"])
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if tensors and tensors.keys() <= _TOWERS:
        vectors = tensors
    elif len(tensors) == 1:
        ((key, tensor),) = tensors.items()
        named = named or (None if key in _FILE_NAMED else key)
        vectors = {"": tensor}
    else:
        raise WeightsError(
            f"{source} is not a textual inversion: it has {len(tensors)} tensors, not one, nor "
            f"clip_l, clip_g and t5xxl ({', '.join(sorted(tensors)[:3])})."
        )
    chosen = word or named or source.stem
    rows = {tower: _rows(tensor, tower or "vectors", source) for tower, tensor in vectors.items()}
    if len({len(each) for each in rows.values()}) > 1:
        raise WeightsError(f"{source} has not as many vectors for each tower; it is damaged.")
    return TextualInversion(str(chosen), rows, str(source), hash_file(source))


def _read(source: Path, allow_pickle: bool) -> dict[str, Any]:
    if source.suffix.lower() in _PICKLED:
        if not allow_pickle:
            raise WeightsError(
                f"{source} is a pickle file, which can run code when it is opened. Take its "
                "safetensors version, or pass read_textual_inversion(path, allow_pickle=True)."
            )
        found = load_pickle(source)
        if not isinstance(found, dict):
            raise WeightsError(f"{source} is not a textual inversion: it holds no named tensors.")
        return found
    return dict(read_tensors(source))


def _rows(tensor: Tensor, name: str, source: Path) -> Tensor:
    rows = tensor.detach()[None] if tensor.ndim == 1 else tensor.detach()
    if rows.ndim != 2 or not len(rows) or not rows.is_floating_point():
        raise WeightsError(
            f"{source} is not a textual inversion: its tensor is {tuple(tensor.shape)} of "
            f"{tensor.dtype}, not (vectors, width) of numbers with a point."
        )
    check_finite(source, [(name, rows)])
    # torch neither stacks nor cuts numbers of one byte.
    return rows.float() if rows.itemsize == 1 else rows
