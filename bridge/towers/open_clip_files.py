"""A folder in open_clip's or OpenAI's layout: its tensors, and what its config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import read_json
from bridge.towers.open_clip_config import activation, check_model
from bridge.towers.scoring import Scoring
from bridge.towers.tensors import read_state

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True, eq=False)
class OpenClipFiles:
    """The tensors by their own names, and ``model_cfg`` of ``open_clip_config.json``.

    ``model`` and ``preprocess`` are empty for OpenAI's and Long-CLIP's files, whose tensors alone
    tell the architecture.
    """

    folder: Path
    state: Mapping[str, Tensor]
    model: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    def activation(self, side: str) -> str:
        """Of "text_cfg" or "vision_cfg", by transformers' name.

        OpenAI's models have quick GELU; open_clip's have GELU unless their config says so. Without
        a config: names that begin with ``text.`` are open_clip's alone.
        """
        own = any(name.startswith("text.") for name in self.state)
        quick = bool(self.model.get("quick_gelu", not self.model and not own))
        return activation(self.model, side, quick)

    def scoring(self) -> Scoring:
        """CLIP's scale, with a bias for those that were trained with a sigmoid."""
        if "logit_scale" not in self.state:
            raise WeightsError(f"{self.folder} has no logit_scale; it is damaged")
        scale = float(self.state["logit_scale"].float().exp())
        if "logit_bias" not in self.state:
            return Scoring(scale)
        return Scoring(scale, float(self.state["logit_bias"].float()), sigmoid=True)


def has_layout(folder: Path) -> bool:
    """Whether the folder is open_clip's or OpenAI's and not (also) transformers'."""
    plain = (folder / "model.safetensors", folder / "model.safetensors.index.json")
    if (folder / "config.json").is_file() and any(file.is_file() for file in plain):
        # timm's config and image tower may lie beside open_clip's files.
        return (folder / CONFIG).is_file() and "model_type" not in read_json(folder / "config.json")
    tensors = (file for end in ("safetensors", "pt", "bin") for file in folder.glob(f"*.{end}"))
    bare = not (folder / "config.json").is_file() and any(True for _ in tensors)
    return (folder / CONFIG).is_file() or bare


def read_model_config(folder: Path) -> dict[str, Any]:
    """``model_cfg`` of ``open_clip_config.json``, {} where there is none. Raises WeightsError."""
    return _table(_config(folder), "model_cfg", folder)


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _table(config: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    told = config.get(name) or {}
    if not isinstance(told, dict):
        raise WeightsError(f"{folder / CONFIG}: {name} is {told!r}, no table")
    return told


def read_files(folder: Path, allow_pickle: bool) -> OpenClipFiles:
    """Read a folder. Raises WeightsError, and UnsupportedModelError for what is unlike CLIP."""
    config = _config(folder)
    model = _table(config, "model_cfg", folder)
    check_model(model, str(folder / CONFIG))
    state = read_state(folder, WEIGHTS, allow_pickle)
    return OpenClipFiles(folder, state, model, _table(config, "preprocess_cfg", folder))
