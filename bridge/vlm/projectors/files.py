"""A projector as a folder: `projector.safetensors` and a small `projector.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError
from bridge.files import read_json, write_whole
from bridge.towers.tensors import read_tensors
from bridge.vlm.projectors.protocol import Projector
from bridge.vlm.projectors.registry import build_projector

CONFIG, WEIGHTS = "projector.json", "projector.safetensors"


def save_projector(projector: Projector, folder: str | os.PathLike[str]) -> None:
    """Write kind, widths, options and weights to ``folder``, each file whole or not at all."""
    from safetensors.torch import save

    place = Path(folder).expanduser()
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


def load_projector(folder: str | os.PathLike[str]) -> Projector:
    """What `save_projector` wrote, on the CPU, in the saved dtype, for inference.

    Raises WeightsError when a file is missing or damaged or tensors do not fit the config,
    OptionError when the config names an unknown projector.
    """
    place = Path(folder).expanduser()
    config = read_json(place / CONFIG)
    projector: Any = build_projector(*_settings(config, place), **config.get("options", {}))
    tensors = dict(read_tensors(place / WEIGHTS))
    try:
        projector.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
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
    if not isinstance(config.get("options", {}), dict):
        raise WeightsError(f"{place / CONFIG}: options is no JSON object")
    return kind, vision, llm
