"""The cache's keys: hashes of all that a reading or a picture depends on.

That of a model is of the model as it is now. A fingerprint is stored in files, so its formula
stays; it samples parameters, and sees nothing else. A key also holds what a caller may change
between two studies.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from bridge.towers import fingerprint, lasting_config

# Raise it when what is stored changes its meaning.
_VERSION = 1
# diffusers appends textual inversions to the embedding; this many rows hold several.
_LAST_ROWS = 256
_FREE_U = ("s1", "s2", "b1", "b2")


def key_of(**what: Any) -> str:
    """A name for what depends on all of ``what``: 32 hex digits."""
    text = json.dumps([_VERSION, what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def pipeline_key(pipe: Any) -> str:
    """A name for all that draws: the pipeline's class, towers, UNet or transformer, VAE and the
    scheduler with its settings."""
    parts: dict[str, Any] = {}
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            parts[name] = module_key(part)
        elif hasattr(part, "config") and name == "scheduler":
            parts[name] = [type(part).__name__, lasting_config(part)]
    return key_of(pipe=type(pipe).__name__, parts=parts)


def module_key(module: Any) -> str:
    """A fingerprint, with the strengths of LoRAs, FreeU, and textual inversions that were loaded
    into the module."""
    return key_of(
        fingerprint=fingerprint(module),
        loras=_loras(module),
        free_u=[[getattr(b, k, None) for k in _FREE_U] for b in getattr(module, "up_blocks", ())],
        words=_last_rows(module),
    )


def _loras(module: nn.Module) -> dict[str, Any]:
    """Which of peft's adapters act in each layer, and how strongly: plain attributes of it."""
    return {
        name: [layer.disable_adapters, layer.active_adapters, layer.scaling]
        for name, layer in module.named_modules()
        if isinstance(getattr(layer, "scaling", None), dict) and hasattr(layer, "active_adapters")
    }


def _last_rows(module: nn.Module) -> dict[str, str]:
    """A hash of the last rows of each embedding that is not offloaded."""
    return {
        name: _hash(layer.weight.detach()[-_LAST_ROWS:])
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding) and not layer.weight.is_meta
    }


def _hash(rows: Tensor) -> str:
    return hashlib.sha256(rows.to("cpu", torch.float32).numpy().tobytes()).hexdigest()
