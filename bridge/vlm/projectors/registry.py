"""The table of projectors, by LLaVA's own names where it has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from bridge.errors import OptionError
from bridge.runtime import building
from bridge.vlm.projectors.average_pool import AveragePoolProjector
from bridge.vlm.projectors.c_abstractor import CAbstractorProjector
from bridge.vlm.projectors.identity import IdentityProjector
from bridge.vlm.projectors.linear import LinearProjector
from bridge.vlm.projectors.mlp import mlp_gelu
from bridge.vlm.projectors.perceiver import PerceiverProjector
from bridge.vlm.projectors.pixel_shuffle import PixelShuffleProjector
from bridge.vlm.projectors.protocol import Projector
from bridge.vlm.projectors.qformer import qformer

# fmt: off
PROJECTORS: dict[str, Callable[..., Projector]] = {
    # name            builder                   soft tokens of a grid h x w
    "linear":         LinearProjector,        # h * w
    "mlp2x_gelu":     partial(mlp_gelu, 2),   # h * w; likewise mlp1x_gelu, mlp3x_gelu ...
    "identity":       IdentityProjector,      # h * w
    "pixel_shuffle":  PixelShuffleProjector,  # h * w / scale**2
    "average_pool":   AveragePoolProjector,   # ceil(h / stride) * ceil(w / stride)
    "perceiver":      PerceiverProjector,     # latents
    "qformer":        qformer,                # queries
    "c_abstractor":   CAbstractorProjector,   # tokens
}
# fmt: on

_MLP = re.compile(r"mlp([1-9]|1[0-6])x_gelu")


def build_projector(name: str, vision_width: int, llm_width: int, **options: Any) -> Projector:
    """A fresh projector in fp32 on the CPU, for inference and training alike.

    Raises OptionError for a name that is not in the table (or ``mlpNx_gelu`` with N from 1 to
    16) and for options that the projector does not have.
    """
    mlp = _MLP.fullmatch(name) if isinstance(name, str) else None
    builder = partial(mlp_gelu, int(mlp[1])) if mlp else PROJECTORS.get(name)
    if builder is None:
        names = ", ".join([*PROJECTORS, "mlpNx_gelu"])
        raise OptionError(f"projector {name!r} is not one of {names}")
    try:
        with building():
            return builder(vision_width, llm_width, **options)
    except TypeError as error:
        raise OptionError(f"projector {name!r}: {error}") from error
