"""BLIP-2's Q-Former as image tower of 32 query tokens, and as text tower.

Li et al. 2023, "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and
Large Language Models". Checkpoints for retrieval (``Blip2ForImageTextRetrieval``, "itm") have a
space shared with texts: each query has a place in it, and a text is scored with the best one.
Those with a language model (OPT, T5) have query tokens and no such space: pooled is None.
`bridge.vlm` is the way from query tokens into a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import UnsupportedModelError
from bridge.towers.checkpoint import config_of, load_tower
from bridge.towers.family import ImageFamily, Parts, Scoring, TextFamily, TowerSpec, spec_of_side
from bridge.towers.image_processor import load_image_processor
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.tensors import read_named
from bridge.towers.tokenizer import TokenRule

_PROJECTION = "vision_projection."
# transformers scores by the cosine itself.
_SCORING = Scoring(1.0)


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text side of a folder for retrieval. Raises WeightsError, UnsupportedModelError."""
    if not _shares_a_space(folder):
        raise UnsupportedModelError(
            f"{folder} is a BLIP-2 with a language model, whose Q-Former reads no texts; take one "
            "for retrieval, such as Salesforce/blip2-itm-vit-g"
        )
    config = config_of("Blip2Config", folder)
    kind = "Blip2TextModelWithProjection"
    spec = _spec(config, kind, folder, config.qformer_config.max_position_embeddings, True)
    module = load_tower(kind, folder, dtype=dtype, device=device, config=config)
    return Parts(module, spec, _SCORING)


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image side of any BLIP-2 folder, without its language model. Raises WeightsError."""
    config = config_of("Blip2Config", folder)
    shares = _shares_a_space(folder)
    kind = "Blip2VisionModelWithProjection"
    module = load_tower(
        kind, folder, dtype=dtype, device=device, config=config, may_lack=_PROJECTION
    )
    if not shares:
        module.vision_projection = None
    spec = _spec(config, kind, folder, config.num_query_tokens, shares)
    return Parts(module, spec, _SCORING if shares else None, load_image_processor(folder))


def _shares_a_space(folder: Path) -> bool:
    return bool(read_named(folder, (f"{_PROJECTION}weight",)))


def _spec(config: Any, kind: str, folder: Path, context: int, shares: bool) -> TowerSpec:
    pooled = config.image_text_hidden_size if shares else 0
    return spec_of_side(
        config.qformer_config, kind, str(folder), context=context, pooled=pooled, pooled_at="first"
    )


def encode_text(
    module: Any, ids: Tensor, layers: Sequence[Layer], mask: Tensor, attentions: bool = False
) -> TextStates:
    """One forward pass of the Q-Former over a text alone; pooled is its first token's state,
    projected. Every layer ends in its norm, so a layer without it is the same."""
    out = module.qformer(
        query_embeds=module.embeddings(input_ids=ids),
        query_length=0,
        attention_mask=mask,
        output_hidden_states=True,
        output_attentions=attentions,
    )
    weight = module.text_projection.weight
    return TextStates(
        hidden=tuple(out.hidden_states[layer.index] for layer in layers),
        pooled=module.text_projection(out.last_hidden_state[:, 0].to(weight.dtype)),
        mask=mask,
        attentions=out.attentions or (),
    )


def encode_image(module: Any, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass; patches are the states of the query tokens, ``(B, 32, D)``."""
    seen = module.vision_model(pixel_values=pixels).last_hidden_state
    out = module.qformer(
        query_embeds=module.query_tokens.expand(len(seen), -1, -1),
        encoder_hidden_states=seen,
        output_hidden_states=True,
    )
    pooled = None
    if module.vision_projection is not None:
        weight = module.vision_projection.weight
        pooled = module.vision_projection(out.last_hidden_state.to(weight.dtype))
    return ImageStates(tuple(out.hidden_states[layer] for layer in layers), pooled, None)


TEXT = TextFamily("blip2", load_text, encode_text, TokenRule())
IMAGE = ImageFamily("blip2", load_image, encode_image)
