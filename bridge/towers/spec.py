"""A tower's description, read from its config without loading a weight or importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError
from bridge.files import read_json

# Raffel et al. 2020, section 3.1.1.
_T5_CONTEXT = 512


@dataclass(frozen=True)
class TowerSpec:
    """What a tower is and gives.

    Attributes:
        architecture: the transformers class, such as ``CLIPTextModel``.
        source: the folder it is read from, or the class of the pipeline that holds it.
        width: the width D of its states.
        layers: how many transformer layers it has.
        context: its longest input, in tokens (text) or patches and class token (image); for T5,
            whose positions have no end, the length that it was trained on.
        pooled_width: the width P of its pooled state, 0 if it has none.
        activation: ``quick_gelu`` (OpenAI), ``gelu`` (OpenCLIP) or ``gated-gelu`` (T5 v1.1).
        attention_mask: whether its config asks for padding to be masked.
        mlp_width: the width between the two layers of its MLPs; 0 if the config does not say.
    """

    architecture: str
    source: str
    width: int
    layers: int
    context: int
    pooled_width: int
    activation: str
    attention_mask: bool = False
    mlp_width: int = 0


def spec_of_config(config: dict[str, Any], architecture: str, source: str) -> TowerSpec:
    """The spec of a tower from its config. Raises WeightsError naming a missing key."""
    try:
        if architecture == "T5EncoderModel":
            return TowerSpec(
                architecture=architecture,
                source=source,
                width=int(config["d_model"]),
                layers=int(config["num_layers"]),
                context=int(config.get("n_positions", _T5_CONTEXT)),
                pooled_width=0,
                activation=str(config.get("feed_forward_proj", "relu")),
            )
        width = int(config["hidden_size"])
        projected = architecture.endswith("WithProjection")
        if "max_position_embeddings" in config:
            context = int(config["max_position_embeddings"])
        else:
            context = (int(config["image_size"]) // int(config["patch_size"])) ** 2 + 1
        return TowerSpec(
            architecture=architecture,
            source=source,
            width=width,
            layers=int(config["num_hidden_layers"]),
            context=context,
            pooled_width=int(config["projection_dim"]) if projected else width,
            activation=str(config.get("hidden_act", "quick_gelu")),
            attention_mask=bool(config.get("use_attention_mask", False)),
            mlp_width=int(config.get("intermediate_size", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"The config of {source} is no {architecture} config: {type(error).__name__} {error}."
        ) from error


def read_spec(folder: Path, architecture: str) -> TowerSpec:
    """The spec of the tower in ``folder``. Raises WeightsError."""
    return spec_of_config(read_json(folder / "config.json"), architecture, str(folder))
