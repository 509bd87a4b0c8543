"""The table of projectors, by LLaVA's own names where it has them, and a projector as a folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.checks import keywords
from bridge.errors import BridgeError, OptionError, WeightsError
from bridge.files import home_path, read_json, write_whole
from bridge.runtime import building
from bridge.towers.tensors import check_computable, read_tensors
from bridge.vlm.projectors.per_state import IdentityProjector, LinearProjector, mlp_gelu
from bridge.vlm.projectors.pooling import (
    AveragePoolProjector,
    CAbstractorProjector,
    PixelShuffleProjector,
)
from bridge.vlm.projectors.protocol import Projector
from bridge.vlm.projectors.queries import PerceiverProjector, qformer

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
"""Kind -> what builds one of two widths and its options; `build_projector` does."""

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


# -- files ------------------------------------------------------------------------------

CONFIG, WEIGHTS = "projector.json", "projector.safetensors"
# Numbers of a config that say how many layers there are: each layer has tensors of its own.
_LAYERS = ("depth", "num_hidden_layers")
# Beyond it a number of a config must be found in the size of the tensors.
_LARGE = 65_536


@keywords
def save_projector(projector: Projector, folder: str | os.PathLike[str]) -> None:
    """Write kind, widths, options and weights to ``folder``, each file whole or not at all."""
    from safetensors.torch import save

    place = home_path(folder)
    config = {
        "kind": projector.kind,
        "vision_width": projector.vision_width,
        "llm_width": projector.llm_width,
        "options": projector.options(),
    }
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in projector.state_dict().items()  # type: ignore[attr-defined]
    }
    write_whole(place / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_whole(place / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


@keywords
def load_projector(folder: str | os.PathLike[str]) -> Projector:
    """What `save_projector` wrote, on the CPU, in the saved dtype, for inference.

    Raises WeightsError when a file is missing or damaged, has numbers that are not finite, or
    tensors do not fit the config, OptionError when the config names an unknown projector.
    """
    place = home_path(folder)
    config = read_json(place / CONFIG)
    settings, options = _settings(config, place), config.get("options", {})
    tensors = dict(read_tensors(place / WEIGHTS))
    check_computable(place / WEIGHTS, tensors.items())
    _check_sizes(place / CONFIG, config, tensors)
    try:
        # On no device at first: what the config says may be larger than the memory.
        with torch.device("meta"):
            shape: Any = build_projector(*settings, **options)
        shape.load_state_dict(tensors, assign=True)
        projector: Any = build_projector(*settings, **options)
        projector.load_state_dict(tensors, assign=True)
    except OptionError as error:
        raise OptionError(f"{place / CONFIG}: {error}") from error
    except BridgeError:
        raise
    # A projector of transformers' raises by its own rules for what its config cannot be.
    except Exception as error:
        raise WeightsError(
            f"{place / WEIGHTS} does not fit {place / CONFIG} ({config['kind']}): {error}"
        ) from error
    projector.eval()
    return projector


def _settings(config: dict[str, Any], place: Path) -> tuple[str, int, int]:
    kind, vision, llm = (config.get(key) for key in ("kind", "vision_width", "llm_width"))
    if not (isinstance(kind, str) and isinstance(vision, int) and isinstance(llm, int)):
        raise WeightsError(
            f"{place / CONFIG} needs kind (text), vision_width and llm_width (whole numbers)"
        )
    if min(vision, llm) < 1:
        raise WeightsError(f"{place / CONFIG} has a width of {min(vision, llm)}, which is below 1")
    if not isinstance(config.get("options", {}), dict):
        raise WeightsError(f"{place / CONFIG}: options is not a JSON object")
    return kind, vision, llm


def _check_sizes(file: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse numbers that the tensors cannot bear out, before anything of their size is built."""
    total = sum(tensor.numel() for tensor in tensors.values())
    for name, number in _numbers("", config):
        most = len(tensors) if name in _LAYERS else max(_LARGE, total)
        if number > most:
            raise WeightsError(
                f"{file} has {name} {number}, and {WEIGHTS} beside it {len(tensors)} tensors of "
                f"{total:,} numbers in all; one of the two is damaged."
            )


def _numbers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """All whole numbers of a JSON value, by the nearest name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(name, inner)
    elif isinstance(value, int):
        yield name, value
