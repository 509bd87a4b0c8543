"""The CLIP family in transformers' layout: ``CLIPModel`` folders, and single text towers.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
OpenCLIP's, Long-CLIP's, BioCLIP's and PubMedCLIP's checkpoints in this layout are read alike: the
config tells them apart (activation, positions, widths).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.towers import clip_image, clip_text, clip_text_projection
from bridge.towers.batch import TokenRule
from bridge.towers.checkpoint import load_tower
from bridge.towers.family import ImageFamily, Parts, TextFamily
from bridge.towers.image_processor import load_image_processor
from bridge.towers.scoring import Scoring
from bridge.towers.spec import TowerSpec, spec_of_config
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.tensors import read_named


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text side of a ``CLIPModel`` folder, or a text tower's own folder.

    A ``CLIPTextModel`` has no projection: its pooled state is the EOS state, and no picture is
    scored with it. Raises WeightsError.
    """
    config, stored = _side(folder, "text_config")
    kind = clip_text_projection.ARCHITECTURE
    if config is not None:
        _check_projected(folder, stored.get("architectures") or (), "text_projection.weight")
    if config is None and kind not in (stored.get("architectures") or ()):
        kind = clip_text.ARCHITECTURE
    values = config.to_dict() if config is not None else stored
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config),
        spec=spec_of_config(values, kind, str(folder)),
        scoring=read_scoring(folder),
    )


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image side of a ``CLIPModel`` folder, or a ``CLIPVisionModelWithProjection``'s own."""
    config, stored = _side(folder, "vision_config")
    kind = clip_image.ARCHITECTURE
    told = stored.get("architectures") or ()
    if config is None and kind not in (told or (kind,)):
        raise _unprojected(folder, told)
    if config is not None:
        _check_projected(folder, told, "visual_projection.weight")
    values = config.to_dict() if config is not None else stored
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config),
        spec=spec_of_config(values, kind, str(folder)),
        scoring=read_scoring(folder),
        processor=load_image_processor(folder),
    )


def _check_projected(folder: Path, told: Sequence[str], name: str) -> None:
    """Refuse a CLIP with another head (CLIPForImageClassification); one that lacks a tensor of its
    own is damaged, and is told so where it loads."""
    if told and "CLIPModel" not in told and not read_named(folder, (name,)):
        raise _unprojected(folder, told)


def _unprojected(folder: Path, told: Sequence[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{folder} holds a {', '.join(map(str, told))}, without the projection into the space that "
        "texts and pictures share; give a folder of a CLIPModel, or of one side of it with its "
        "projection"
    )


def _side(folder: Path, side: str) -> tuple[Any, dict[str, Any]]:
    """The config of one side of a model with two, None for a folder of one tower; and the JSON.

    The joint width stands at the top; that in the sides' own configs is wrong in some published
    files (LAION's say 512 where the projection is wider), since CLIPModel does not read it there.
    """
    stored = read_json(folder / "config.json")
    if side not in stored:
        return None, stored
    from transformers import CLIPConfig

    try:
        whole = CLIPConfig.from_dict(stored)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder / 'config.json'} is no CLIP config: {error}") from error
    config = getattr(whole, side)
    config.projection_dim = whole.projection_dim
    return config, stored


def read_scoring(folder: Path) -> Scoring | None:
    """CLIP's learned scale; None for a folder without one."""
    found = read_named(folder, ("logit_scale",))
    return Scoring(float(found["logit_scale"].float().exp())) if found else None


def encode_text(
    module: Any,
    ids: Tensor,
    mask: Tensor | None,
    layers: Sequence[Layer] = (Layer(),),
    attentions: bool = False,
) -> TextStates:
    """One forward pass that sees padding, as OpenAI's code, open_clip and Stable Diffusion do.

    Attention is causal, so no text's own states depend on the padding behind it.
    """
    projected = hasattr(module, "text_projection")
    encode = clip_text_projection.encode if projected else clip_text.encode
    out = encode(module, ids, layers, None, attentions)
    return TextStates(out.hidden, out.pooled, mask, out.attentions)


def encode_image(module: Any, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass, as `clip_image.encode`."""
    return clip_image.encode(module, pixels, layers)


def spec_of(module: Any, source: str) -> TowerSpec:
    """The spec of a live ``CLIPTextModel`` or ``CLIPTextModelWithProjection``."""
    return spec_of_config(module.config.to_dict(), type(module).__name__, source)


TEXT = TextFamily(
    "clip", load_text, encode_text, TokenRule(fill=True), clip_text.TOKENIZER, spec=spec_of
)
IMAGE = ImageFamily("clip", load_image, encode_image)
