"""OpenAI's and open_clip's own checkpoints (and Long-CLIP's, BioCLIP's): their key layout.

Radford et al. 2021; Cherti et al. 2023, "Reproducible scaling laws for contrastive language-image
learning"; Zhang et al. 2024, "Long-CLIP". Tensors are renamed (`open_clip_keys`) and run by
transformers' CLIP classes, which are the same calculation. FLIP's models in this layout too: their
masking of patches is a matter of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.errors import WeightsError
from bridge.towers import clip_image, clip_text, clip_text_projection
from bridge.towers.batch import TokenRule
from bridge.towers.checkpoint import load_tower
from bridge.towers.clip import encode_image, encode_text
from bridge.towers.family import ImageFamily, Parts, TextFamily
from bridge.towers.open_clip_config import (
    cleaning,
    epsilon,
    image_size,
    is_projected,
    text_heads,
    vision_heads,
)
from bridge.towers.open_clip_files import CONFIG, OpenClipFiles, read_files
from bridge.towers.open_clip_keys import image_state, text_state
from bridge.towers.open_clip_pictures import OpenClipPictures, open_clip_pictures
from bridge.towers.spec import spec_of_config

# transformers pools at the highest id, as OpenAI's code and open_clip do, if EOS is said to be 2.
_HIGHEST = 2


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower of a folder in this layout. Raises WeightsError, UnsupportedModelError."""
    files = read_files(folder, allow_pickle)
    state = text_tensors(files)
    with naming(files):
        config = text_config(files, state)
    kind = clip_text_projection.ARCHITECTURE
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config, state=state),
        spec=spec_of_config(config.to_dict(), kind, str(folder)),
        scoring=files.scoring(),
        clean=cleaning(files.model),
    )


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image tower of a folder in this layout, as `load_text`."""
    files = read_files(folder, allow_pickle)
    state = mapped(image_state, files)
    with naming(files):
        config = vision_config(files, state)
    kind = clip_image.ARCHITECTURE
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config, state=state),
        spec=spec_of_config(config.to_dict(), kind, str(folder)),
        scoring=files.scoring(),
        processor=processor(files, config.image_size),
    )


def text_tensors(files: OpenClipFiles) -> dict[str, Tensor]:
    """The text side's tensors; ``proj_type: none`` is a projection that leaves all as it is.

    Raises WeightsError, UnsupportedModelError.
    """
    state = mapped(text_state, files)
    if not is_projected(files.model) and "text_projection.weight" not in state:
        norm = state["text_model.final_layer_norm.weight"]
        state["text_projection.weight"] = torch.eye(len(norm), dtype=norm.dtype)
    return state


def text_config(files: OpenClipFiles, state: Mapping[str, Tensor]) -> Any:
    """transformers' config of a text tower: widths from its tensors, heads from its config."""
    from transformers import CLIPTextConfig

    positions = state["text_model.embeddings.position_embedding.weight"]
    width = positions.shape[1]
    projection = state.get("text_projection.weight")
    return CLIPTextConfig(
        vocab_size=len(state["text_model.embeddings.token_embedding.weight"]),
        hidden_size=width,
        max_position_embeddings=len(positions),
        num_attention_heads=text_heads(files.model, width),
        projection_dim=width if projection is None else len(projection),
        hidden_act=files.activation("text_cfg"),
        layer_norm_eps=epsilon(files.model, "text_cfg"),
        eos_token_id=_HIGHEST,
        **_depth(state, "text_model."),
    )


def vision_config(files: OpenClipFiles, state: Mapping[str, Tensor]) -> Any:
    """The same of an image tower."""
    from transformers import CLIPVisionConfig

    patches = state["vision_model.embeddings.patch_embedding.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    count = len(state["vision_model.embeddings.position_embedding.weight"]) - 1
    projection = state.get("visual_projection.weight")
    return CLIPVisionConfig(
        hidden_size=width,
        num_attention_heads=vision_heads(files.model, width),
        patch_size=patch,
        image_size=image_size(files.model, round(count**0.5), patch),
        projection_dim=width if projection is None else len(projection),
        hidden_act=files.activation("vision_cfg"),
        layer_norm_eps=epsilon(files.model, "vision_cfg"),
        **_depth(state, "vision_model."),
    )


@contextmanager
def naming(files: OpenClipFiles) -> Iterator[None]:
    """What is wrong with a config, or with tensors beside it, is told with the config's path."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{files.folder / CONFIG}: {error}") from error


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


def processor(files: OpenClipFiles, side: int) -> OpenClipPictures:
    """open_clip's way with pictures, as ``preprocess_cfg`` says it, to squares of ``side``.

    Raises UnsupportedModelError for a way that open_clip does not know.
    """
    return open_clip_pictures(files.preprocess, (side, side), str(files.folder / CONFIG))


TEXT = TextFamily(
    "open_clip",
    load_text,
    encode_text,
    TokenRule(fill=True, pad=0, clean="lower"),
    clip_text.TOKENIZER,
)
IMAGE = ImageFamily("open_clip", load_image, encode_image)
