"""OpenAI's and open_clip's own checkpoints (and Long-CLIP's, BioCLIP's): their key layout.

Radford et al. 2021; Cherti et al. 2023, "Reproducible scaling laws for contrastive language-image
learning"; Zhang et al. 2024, "Long-CLIP". Tensors are renamed (`open_clip_keys`) and run by
transformers' CLIP classes, which are the same calculation. FLIP's models in this layout too: their
masking of patches is a matter of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.towers import clip_image, clip_text, clip_text_projection
from bridge.towers.batch import TokenRule
from bridge.towers.checkpoint import load_tower
from bridge.towers.clip import encode_image, encode_text
from bridge.towers.family import ImageFamily, Parts, TextFamily
from bridge.towers.image_processor import pil_processor
from bridge.towers.open_clip_files import CONFIG, OpenClipFiles, read_files
from bridge.towers.open_clip_keys import image_state, text_state
from bridge.towers.spec import spec_of_config

# OpenAI's means and deviations of pixels, open_clip's default too.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_RESAMPLE = {"bilinear": 2, "bicubic": 3}
# The width of a head; of the large vision transformers by the width of their states.
_HEAD_WIDTH = 64
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
# transformers pools at the highest id, as OpenAI's code and open_clip do, if EOS is said to be 2.
_HIGHEST = 2


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower of a folder in this layout. Raises WeightsError, UnsupportedModelError."""
    files = read_files(folder, allow_pickle)
    state = mapped(text_state, files)
    config = text_config(files, state)
    kind = clip_text_projection.ARCHITECTURE
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config, state=state),
        spec=spec_of_config(config.to_dict(), kind, str(folder)),
        scoring=files.scoring(),
    )


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image tower of a folder in this layout, as `load_text`."""
    files = read_files(folder, allow_pickle)
    state = mapped(image_state, files)
    config = vision_config(files, state)
    kind = clip_image.ARCHITECTURE
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config, state=state),
        spec=spec_of_config(config.to_dict(), kind, str(folder)),
        scoring=files.scoring(),
        processor=processor(files, config.image_size),
    )


def text_config(files: OpenClipFiles, state: Mapping[str, Tensor]) -> Any:
    """transformers' config of a text tower: widths from its tensors, heads from its config."""
    from transformers import CLIPTextConfig

    positions = state["text_model.embeddings.position_embedding.weight"]
    width = positions.shape[1]
    heads = files.model.get("text_cfg", {}).get("heads", width // _HEAD_WIDTH)
    projection = state.get("text_projection.weight")
    return CLIPTextConfig(
        vocab_size=len(state["text_model.embeddings.token_embedding.weight"]),
        hidden_size=width,
        max_position_embeddings=len(positions),
        num_attention_heads=heads,
        projection_dim=width if projection is None else len(projection),
        hidden_act=files.activation,
        eos_token_id=_HIGHEST,
        **_depth(state, "text_model."),
    )


def vision_config(files: OpenClipFiles, state: Mapping[str, Tensor]) -> Any:
    """The same of an image tower."""
    from transformers import CLIPVisionConfig

    patches = state["vision_model.embeddings.patch_embedding.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    count = len(state["vision_model.embeddings.position_embedding.weight"]) - 1
    head_width = files.model.get("vision_cfg", {}).get("head_width")
    head_width = head_width or _HEAD_WIDTHS.get(width, _HEAD_WIDTH)
    projection = state.get("visual_projection.weight")
    return CLIPVisionConfig(
        hidden_size=width,
        num_attention_heads=width // head_width,
        patch_size=patch,
        image_size=round(count**0.5) * patch,
        projection_dim=width if projection is None else len(projection),
        hidden_act=files.activation,
        **_depth(state, "vision_model."),
    )


def _depth(state: Mapping[str, Tensor], side: str) -> dict[str, int]:
    ending = ".mlp.fc1.bias"
    found = [name for name in state if name.startswith(side) and name.endswith(ending)]
    if not found:
        raise WeightsError(f"there are no blocks of {side.rstrip('.')} among the tensors")
    return {"num_hidden_layers": len(found), "intermediate_size": len(state[found[0]])}


def mapped(convert: Any, files: OpenClipFiles) -> dict[str, Tensor]:
    """One side's tensors by transformers' names. Raises WeightsError naming a missing one."""
    try:
        return convert(files.state)
    except KeyError as error:
        raise WeightsError(
            f"{files.folder} lacks the tensor {error}; it is damaged or of another layout"
        ) from error


def processor(files: OpenClipFiles, side: int) -> Any:
    """open_clip's way with pictures, as ``preprocess_cfg`` says it.

    ``resize_mode`` "shortest" cuts the middle square out, "squash" squeezes the whole picture.
    Raises UnsupportedModelError for another.
    """
    told = files.preprocess
    mode = told.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise UnsupportedModelError(
            f"{files.folder / CONFIG} asks for preprocess_cfg.resize_mode={mode!r}, and bridge "
            "resizes by 'shortest' or 'squash' alone; its text tower can be opened"
        )
    square = {"height": side, "width": side}
    squash = mode == "squash"
    return pil_processor(
        "clip",
        size=square if squash else {"shortest_edge": side},
        crop_size=square,
        do_center_crop=not squash,
        image_mean=list(told.get("mean", _MEAN)),
        image_std=list(told.get("std", _STD)),
        resample=_RESAMPLE.get(str(told.get("interpolation")), 3),
    )


TEXT = TextFamily(
    "open_clip", load_text, encode_text, TokenRule(fill=True, pad=0), clip_text.TOKENIZER
)
IMAGE = ImageFamily("open_clip", load_image, encode_image)
