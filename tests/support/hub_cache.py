"""A hub cache with tiny models under the hub ids that the documents name.

The hub's client keeps a folder a commit, ``models--owner--name/snapshots/COMMIT``, and the commit
of a branch in ``refs/main``. With ``HF_HUB_OFFLINE=1`` it looks nowhere else, so what loads a
checkpoint from the hub runs as it does with the real one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextModel

from support.tiny_coca import write_coca
from support.tiny_models import text_config, tiny_clip_tokenizer, tiny_sdxl_pipeline

_COMMIT = "0123456789" * 4


def fill_hub_cache(home: Path) -> None:
    """Make ``home`` an ``HF_HOME`` in which every model of the documents' blocks lies."""
    tiny_sdxl_pipeline().save_pretrained(_model(home, "stabilityai/stable-diffusion-xl-base-1.0"))
    _long_clip(_model(home, "zer0int/LongCLIP-L-Diffusers"))
    write_coca(_model(home, "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k"))
    tiny_clip_tokenizer().save_pretrained(_model(home, "openai/clip-vit-large-patch14"))


def _model(home: Path, hub_id: str) -> Path:
    """The empty folder of a model's only commit."""
    place = home / "hub" / f"models--{hub_id.replace('/', '--')}"
    folder = place / "snapshots" / _COMMIT
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(_COMMIT)
    return folder


def _long_clip(folder: Path) -> None:
    """As wide as the pipeline's first tower, with 248 positions."""
    tokenizer = tiny_clip_tokenizer()
    torch.manual_seed(1)
    CLIPTextModel(text_config(tokenizer, max_position_embeddings=248)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
