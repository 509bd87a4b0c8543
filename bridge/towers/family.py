"""What a family of towers says of itself; one file a family has one or both of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.towers.batch import TokenRule
from bridge.towers.scoring import Scoring
from bridge.towers.spec import TowerSpec
from bridge.towers.states import ImageStates, TextStates


@dataclass(frozen=True, eq=False)
class Parts:
    """One side of a model, loaded; an image side with its ``processor``.

    ``clean``: how its config says texts are cleaned, where it is not as the family's rule has it.
    """

    module: Any
    spec: TowerSpec
    scoring: Scoring | None = None
    processor: Any = None
    clean: str | None = None


@dataclass(frozen=True)
class TextFamily:
    """A family of text towers.

    Attributes:
        name: what `open_text_tower` and the table call it.
        load: ``(folder, dtype, device, allow_pickle) -> Parts``. Raises WeightsError.
        encode: ``(module, ids, mask, layers, attentions) -> TextStates``; ids and mask ``(B, T)``
            on the module's device.
        rule: how it is shown its texts.
        tokenizer: transformers' class of its tokenizer.
        spec: ``(module, source) -> TowerSpec`` of a live module; None for a family that is read
            from its own checkpoints only.
        tokens: whether its token states mean anything to a UNet's cross-attention; a family that
            was trained for its pooled state alone says False.
    """

    name: str
    load: Callable[[Path, Any, Any, bool], Parts]
    encode: Callable[..., TextStates]
    rule: TokenRule
    tokenizer: str = "AutoTokenizer"
    spec: Callable[[Any, str], TowerSpec] | None = None
    tokens: bool = True


@dataclass(frozen=True)
class ImageFamily:
    """A family of image towers.

    Attributes:
        name: what `open_image_tower` and the table call it.
        load: ``(folder, dtype, device, allow_pickle) -> Parts``. Raises WeightsError.
        encode: ``(module, pixels, layers) -> ImageStates``; pixels is what the processor makes,
            ``(B, 3, H, W)``, or a mapping of tensors for a family that takes more.
    """

    name: str
    load: Callable[[Path, Any, Any, bool], Parts]
    encode: Callable[..., ImageStates]
