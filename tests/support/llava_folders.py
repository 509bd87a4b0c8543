"""Folders of the original LLaVA with a SentencePiece tokenizer alone, as published ones have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from support.llava_tokenizer import settings
from support.places import DATA
from support.tiny_checkpoints import (
    LLM_WIDTH,
    VISION_WIDTH,
    llava_config,
    llava_parts,
    llava_state,
    save_clip,
)

VOCABULARY = 400


def save_pieces(folder: Path, **told: Any) -> None:
    """The tokenizer's files; ``told`` goes into its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = (DATA / "llava_tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(pieces)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings(told)))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def save_original(
    root: Path, name: str, *, tokenizer: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """A whole tiny checkpoint of the original layout below ``root``; all its numbers are halves."""
    projector = nn.Sequential(
        nn.Linear(VISION_WIDTH, LLM_WIDTH), nn.GELU(), nn.Linear(LLM_WIDTH, LLM_WIDTH)
    )
    parts = llava_parts(projector, vocab_size=VOCABULARY)
    for part in parts[:3]:
        for weight in part.parameters():
            weight.data = weight.data.half().float()
    tower = root / "clip"
    if not tower.exists():
        save_clip(tower, parts[0], weights=True)
    config = {**llava_config(parts[1], tower), "_name_or_path": "", **settings}
    config["pad_token_id"] = 0
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = {key: tensor.half().to(torch.float32) for key, tensor in llava_state(*parts).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    save_pieces(folder, **(tokenizer or {}))
    return folder
