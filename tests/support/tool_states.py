"""What the vectors of tests/data and their writers share: towers that are the same with any version
of torch and transformers, and some numbers of a long sequence of states.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch

from support.tiny_models import tiny_sd_pipeline
from support.tiny_t5 import tiny_t5_pipeline

# The first places, and some of the windows after.
PLACES = (0, 1, 2, 3, 4, 6, 9, 40, 76, 77, 79, 82, 90)
CHANNELS = (0, 13)
DIGITS = 4


def settled_pipeline(kind: str) -> Any:
    """A tiny ``sd15`` or ``flux`` whose text towers have weights that their names alone decide."""
    pipe = tiny_sd_pipeline("sd15") if kind == "sd15" else tiny_t5_pipeline("flux")
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            _settle(getattr(pipe, name))
    return pipe


@torch.no_grad()
def _settle(tower: torch.nn.Module) -> None:
    for name, parameter in tower.named_parameters():
        # transformers 4 and 5 call some of them by two names.
        short = name.removeprefix("text_model.")
        short = "shared.weight" if short == "encoder.embed_tokens.weight" else short
        rng = torch.Generator().manual_seed(zlib.crc32(short.encode()))
        values = torch.randn(parameter.shape, generator=rng, dtype=torch.float32)
        norm = 1.0 if "norm" in short and short.endswith("weight") else 0.0
        parameter.copy_(norm + 0.2 * values)


def sampled(states: torch.Tensor) -> list[float]:
    """Numbers of states ``(1, T, D)``, rounded."""
    places = [place for place in PLACES if place < states.shape[1]]
    some = states[0, places][:, list(CHANNELS)]
    return [round(value, DIGITS) for value in some.flatten().tolist()]
