"""What a family of towers says of itself: its spec, its token rule, how it loads and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from bridge.errors import OptionError, WeightsError
from bridge.files import read_json
from bridge.towers.states import ImageStates, TextStates
from bridge.towers.tokenizer import TokenRule

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
        pooled_at: where its pooled text is read: ``token``, the last of the text (CLIP's EOS);
            ``first``; ``end``, the last place, padding or not; ``mean`` of the text's tokens;
            ``hidden``, in no place of the text's own.
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
    pooled_at: str = "token"


def spec_of_config(config: dict[str, Any], architecture: str, source: str) -> TowerSpec:
    """The spec of a tower.

    Args:
        config: its ``config.json``, as a dictionary.
        architecture: its transformers class.
        source: what the spec and errors say it is from.

    Raises:
        WeightsError: a key is missing or of a wrong type; the message names it.
    """
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
            f"The config of {source} is not of a {architecture}: {type(error).__name__} {error}."
        ) from error


def spec_of_side(
    side: Any, architecture: str, source: str, *, context: int, pooled: int, masked: bool = True,
    pooled_at: str = "token",
) -> TowerSpec:  # fmt: skip
    """The spec by one side's config in transformers' usual names (``hidden_size`` ...)."""
    return TowerSpec(
        architecture=architecture,
        source=source,
        width=side.hidden_size,
        layers=side.num_hidden_layers,
        context=context,
        pooled_width=pooled,
        activation=side.hidden_act,
        attention_mask=masked,
        mlp_width=side.intermediate_size,
        pooled_at=pooled_at,
    )


def read_spec(folder: Path, architecture: str) -> TowerSpec:
    """`spec_of_config` of the tower in ``folder``."""
    return spec_of_config(read_json(folder / "config.json"), architecture, str(folder))


def positions(encoder: Any) -> int:
    """``max_position_embeddings``, less those that no token has: RoBERTa and its kin count from
    the one after padding's, whose row their table keeps empty. XLM-R's 514 are 512."""
    count = int(encoder.config.get_text_config().max_position_embeddings)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    empty = getattr(table, "padding_idx", None)
    return count if empty is None else count - empty - 1


def cosines(text_pooled: Tensor, image_pooled: Tensor) -> Tensor:
    """Cosines ``(T, I)`` of texts and pictures; arguments and errors as `Scoring.scores`."""
    if text_pooled.shape[-1] != image_pooled.shape[-1]:
        raise OptionError(
            f"The pooled text is {text_pooled.shape[-1]} wide and the pooled picture "
            f"{image_pooled.shape[-1]}; score a text tower with its own image tower"
        )
    found = normalize(image_pooled, dim=-1) @ normalize(text_pooled, dim=-1).T
    return (found.amax(1) if found.ndim == 3 else found).T


@dataclass(frozen=True)
class Scoring:
    """How well texts and pictures fit, from their pooled states, as a model was trained to say it.

    CLIP (Radford et al. 2021): the cosine times a learned scale; a softmax over the texts makes it
    probabilities. SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"): the
    same plus a learned bias, and a sigmoid for each pair by itself.

    Attributes:
        scale: the learned scale, already exponentiated.
        bias: what is added to the scaled cosine.
        sigmoid: whether each pair is judged by itself.
    """

    scale: float
    bias: float = 0.0
    sigmoid: bool = False

    def scores(self, text_pooled: Tensor, image_pooled: Tensor) -> Tensor:
        """Scores (logits) ``(T, I)`` of every text with every picture.

        Args:
            text_pooled: ``(T, P)``, normalised or not.
            image_pooled: ``(I, P)``, or ``(I, Q, P)`` of Q query tokens, of which the best counts
                (BLIP-2, Li et al. 2023, section 3.2).

        Raises:
            OptionError: the widths differ: these are not towers of one model.
        """
        return self.scale * cosines(text_pooled, image_pooled) + self.bias

    def probabilities(self, text_pooled: Tensor, image_pooled: Tensor) -> Tensor:
        """``(T, I)``: of each pair alone (SigLIP), or of each text among these, summing to 1."""
        scores = self.scores(text_pooled, image_pooled)
        return scores.sigmoid() if self.sigmoid else scores.softmax(0)


SCORING = "bridge_scoring"
"""In a config: how a model scores that was trained by another loss than its layout has room for."""


def told_scoring(folder: Path, own: Scoring | None) -> Scoring | None:
    """How the model of a folder scores: ``own``, as its layout says, or as `SCORING` does.

    Raises WeightsError.
    """
    if own is None:
        return None
    told = read_json(folder / "config.json").get(SCORING)
    if told is None:
        return own
    try:
        return Scoring(own.scale, float(told["bias"]), sigmoid=bool(told["sigmoid"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / 'config.json'}: its {SCORING} cannot be read") from error


@dataclass(frozen=True, eq=False)
class Parts:
    """One side of a model, loaded; an image side with its ``processor``.

    ``reads``: what its config says of how texts are read, by fields of `TokenRule`, where it is not
    as the family's rule has it.
    """

    module: Any
    spec: TowerSpec
    scoring: Scoring | None = None
    processor: Any = None
    reads: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextFamily:
    """A family of text towers.

    Attributes:
        name: what `open_text_tower` and the table call it.
        load: ``(folder, dtype, device, allow_pickle) -> Parts``. Raises WeightsError.
        encode: ``(module, ids, layers, mask, attentions) -> TextStates``; ids and mask ``(B, T)``
            on the module's device.
        rule: how it is shown its texts.
        tokenizer: transformers' class of its tokenizer.
        spec: ``(module, source) -> TowerSpec`` of a live module; None for a family that is read
            from its own checkpoints only.
        tokens: whether its token states mean anything to a UNet's cross-attention; a family that
            was trained for its pooled state alone says False.
        pool: ``(module, ids, mask) -> (B, P)``, the pooled states of `encode` at a part of its
            work; None where there is no shorter way.
    """

    name: str
    load: Callable[[Path, Any, Any, bool], Parts]
    encode: Callable[..., TextStates]
    rule: TokenRule
    tokenizer: str = "AutoTokenizer"
    spec: Callable[[Any, str], TowerSpec] | None = None
    tokens: bool = True
    pool: Callable[[Any, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class ImageFamily:
    """A family of image towers.

    Attributes:
        name: what `open_image_tower` and the table call it.
        load: ``(folder, dtype, device, allow_pickle) -> Parts``. Raises WeightsError.
        encode: ``(module, pixels, layers) -> ImageStates``; pixels is what the processor makes,
            ``(B, 3, H, W)``, or a mapping of tensors for a family that takes more.
        pool: ``(module, pixels) -> (B, P)``, as `TextFamily.pool`.
        any_size: whether its networks take pixels of sizes other than their config's.
    """

    name: str
    load: Callable[[Path, Any, Any, bool], Parts]
    encode: Callable[..., ImageStates]
    pool: Callable[[Any, Any], Tensor] | None = None
    any_size: bool = False


class Headed(nn.Module):
    """``encoder`` and ``head`` as one module with the encoder's config; each family calls them."""

    def __init__(self, encoder: Any, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.config = encoder.config
