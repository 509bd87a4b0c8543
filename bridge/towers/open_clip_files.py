"""A folder in open_clip's or OpenAI's layout: its tensors, and what its config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.towers.scoring import Scoring
from bridge.towers.tensors import read_state

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# What open_clip's configs say, or leave out, where the calculation is CLIP's: of the blocks of both
# sides, of the text side and of the image side.
_BLOCKS = {
    "ls_init_value": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "timm_model_name": None,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "no_causal_mask": False,
    "proj_bias": False,
    "text_arch": "clip",
    "norm_kwargs": None,
    "act_kwargs": None,
}
_TEXT = {"pool_type": "argmax", "hf_tokenizer_name": None}
_IMAGE = {"pool_type": "tok", "global_average_pool": False}


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

    @property
    def activation(self) -> str:
        """OpenAI's models have quick GELU; open_clip's have GELU unless their config says so.

        Without a config: names that begin with ``text.`` are open_clip's alone.
        """
        own = any(name.startswith("text.") for name in self.state)
        quick = bool(self.model.get("quick_gelu", not self.model and not own))
        return "quick_gelu" if quick else "gelu"

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
    """``open_clip_config.json``, or nothing where there is none. Raises WeightsError."""
    return read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def read_files(folder: Path, allow_pickle: bool) -> OpenClipFiles:
    """Read a folder. Raises WeightsError, and UnsupportedModelError for what is unlike CLIP."""
    config = read_model_config(folder)
    model = config.get("model_cfg", {})
    for side, usual in _usual(model).items():
        for name, value in usual.items():
            told = model.get(side, {}).get(name, value)
            if told != value and (told or value):  # null, false and {} all leave it out
                raise UnsupportedModelError(
                    f"{folder / CONFIG} asks for {side}.{name}={told!r}, which CLIP does not have; "
                    "in this layout bridge reads plain CLIP. Give a copy in transformers' layout."
                )
        if isinstance(model.get(side, {}).get("layers"), list):
            raise UnsupportedModelError(
                f"{folder / CONFIG} is of a ResNet, whose pictures bridge does not read"
            )
    return OpenClipFiles(
        folder, read_state(folder, WEIGHTS, allow_pickle), model, config.get("preprocess_cfg", {})
    )


def _usual(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each side's table. CoCa pools by a class token and by queries; a text tower of transformers
    has its own tokenizer and pooler."""
    coca = "multimodal_cfg" in model
    foreign = model.get("text_cfg", {}).get("hf_model_name")
    return {
        "text_cfg": _BLOCKS if foreign else {**_BLOCKS, **_TEXT, "embed_cls": coca},
        "vision_cfg": {**_BLOCKS, **_IMAGE, "attentional_pool": coca},
    }
