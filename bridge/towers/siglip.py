"""SigLIP and SigLIP 2: towers trained with a sigmoid on every pair.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; Tschannen et al. 2025, "SigLIP
2". Texts are lower-cased, filled up to 64 tokens, and the padding is seen: the pooled state is
that of the last place, whatever stands there. SigLIP 2's checkpoints of one size are of SigLIP's
architecture with a multilingual vocabulary; those of free shapes (NaFlex) have their own, which
takes patches, their mask and the shape of their grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import WeightsError
from bridge.files import read_json
from bridge.towers.checkpoint import load_tower
from bridge.towers.clip import needs_all, patch_grid, pick
from bridge.towers.family import (
    ImageFamily,
    Parts,
    Scoring,
    TextFamily,
    TowerSpec,
    spec_of_side,
    told_scoring,
)
from bridge.towers.image_processor import load_image_processor
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.tensors import read_named
from bridge.towers.tokenizer import TokenRule

# model_type -> how transformers' classes begin.
_CLASSES = {"siglip": "Siglip", "siglip2": "Siglip2"}


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text side of a ``SiglipModel`` or ``Siglip2Model`` folder. Raises WeightsError."""
    start, config = _config(folder)
    side = config.text_config
    kind = f"{start}TextModel"
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=side),
        spec=_spec(side, kind, str(folder), side.max_position_embeddings, side.projection_size),
        scoring=_scoring(folder),
    )


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image side of such a folder. Raises WeightsError."""
    start, config = _config(folder)
    side = config.vision_config
    kind = f"{start}VisionModel"
    patches = getattr(side, "num_patches", None) or (side.image_size // side.patch_size) ** 2
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=side),
        spec=_spec(side, kind, str(folder), patches, side.hidden_size),
        scoring=_scoring(folder),
        processor=load_image_processor(folder),
    )


def _config(folder: Path) -> tuple[str, Any]:
    import transformers

    stored = read_json(folder / "config.json")
    start = _CLASSES.get(str(stored.get("model_type")))
    if start is None or "text_config" not in stored:
        raise WeightsError(f"{folder / 'config.json'} is not a config of a model with two sides")
    return start, getattr(transformers, f"{start}Config").from_dict(stored)


def _spec(side: Any, kind: str, source: str, context: int, pooled: int) -> TowerSpec:
    return spec_of_side(
        side, kind, source, context=context, pooled=pooled, masked=False, pooled_at="end"
    )


def _scoring(folder: Path) -> Scoring | None:
    found = read_named(folder, ("logit_scale", "logit_bias"))
    if len(found) < 2:
        return None
    scale, bias = (float(found[f"logit_{name}"].float()) for name in ("scale", "bias"))
    return told_scoring(folder, Scoring(math.exp(scale), bias, sigmoid=True))


def encode_text(
    module: Any, ids: Tensor, layers: Sequence[Layer], mask: Tensor, attentions: bool = False
) -> TextStates:
    """One forward pass that sees padding, as in training."""
    out = module(ids, output_hidden_states=needs_all(layers), output_attentions=attentions)
    return TextStates(pick(module, out, layers), out.pooler_output, mask, out.attentions or ())


def encode_image(
    module: Any, pixels: Tensor | Mapping[str, Tensor], layers: Sequence[int] = (-1,)
) -> ImageStates:
    """One forward pass; no norm on the patches, and no class token to drop.

    For free shapes ``pixels`` is the processor's mapping. Pictures of one shape give their
    patches and grid; of several, patches with padding behind them and no grid.
    """
    if isinstance(pixels, Tensor):
        out = module(pixels, output_hidden_states=True)
        grid: tuple[int, int] | None = patch_grid(module, pixels)
        count = None
    else:
        shapes = pixels["spatial_shapes"]
        out = module(
            pixels["pixel_values"],
            pixels["pixel_attention_mask"],
            shapes,
            output_hidden_states=True,
        )
        one = bool((shapes == shapes[0]).all())
        grid = (int(shapes[0, 0]), int(shapes[0, 1])) if one else None
        count = grid[0] * grid[1] if grid else None
    patches = tuple(out.hidden_states[layer][:, :count] for layer in layers)
    return ImageStates(patches, out.pooler_output, grid)


def spec_of(module: Any, source: str) -> TowerSpec:
    """The spec of a live text model."""
    side = module.config
    positions, pooled = side.max_position_embeddings, side.projection_size
    return _spec(side, type(module).__name__, source, positions, pooled)


TEXT = TextFamily("siglip", load_text, encode_text, TokenRule(fill=True, lower=True), spec=spec_of)
IMAGE = ImageFamily("siglip", load_image, encode_image)
