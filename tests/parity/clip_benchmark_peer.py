"""CLIP_benchmark's own metrics, run as they are, with what they fail on here put right.

``accuracy`` makes a float of an array of one number, which numpy 2.4 refuses; the linear probe
asks for CUDA, and its arithmetic does not need it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peers import clone, on_path, package

_METRICS = ("zeroshot_classification", "zeroshot_retrieval", "linear_probe")


class _Number(np.ndarray):
    """An array of one number, of which ``float`` is that number."""

    def __float__(self) -> float:
        return float(self.item())


class _Tensor:
    """``torch.Tensor.numpy`` as it was: what is of one number can be made a float."""

    plain = torch.Tensor.numpy

    @staticmethod
    def numpy(tensor: torch.Tensor, **options: Any) -> np.ndarray:
        return _Tensor.plain(tensor, **options).view(_Number)


class Cpu(str):
    """The device "cpu" to torch, and "cuda" to who compares."""

    def __new__(cls) -> Cpu:
        return super().__new__(cls, "cpu")

    def __eq__(self, other: object) -> bool:
        return other in ("cuda", "cpu")

    __hash__ = str.__hash__


def load_metrics(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """The modules of classification, retrieval and the linear probe. Skips (or fails) where the
    clone or scikit-learn is missing."""
    package("sklearn")
    with on_path(clone("clip_benchmark")):
        found = [importlib.import_module(f"clip_benchmark.metrics.{name}") for name in _METRICS]
    monkeypatch.setattr(torch.Tensor, "numpy", _Tensor.numpy)
    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn, "DataParallel", lambda model, device_ids: model)
    return found[0], found[1], found[2]
