"""A tiny random CoCa in open_clip's layout, with the plain torch reference of what it computes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from support.reference_open_clip import CaptionDecoder, OpenClip, QuickGELU, Text, Visual, scatter
from support.tiny_models import tiny_clip_tokenizer

TOKENIZER = tiny_clip_tokenizer()


def write_coca(folder: Path, act: type[nn.Module] = nn.GELU, decoder: bool = True) -> OpenClip:
    torch.manual_seed(0)
    text = Text(len(TOKENIZER), 77, 48, 6, 3, 96, 40, act, cls=True)
    visual = Visual(32, 8, 32, 2, 4, 80, 48, act, queries=9, pool_heads=6)
    captions = CaptionDecoder(2, len(TOKENIZER), 48, 4, 112, act) if decoder else None
    text.text_projection = nn.Parameter(torch.randn(48, 48))
    reference = scatter(OpenClip(text, visual, captions))
    save_file(reference.state(True), folder / "open_clip_model.safetensors")
    TOKENIZER.save_pretrained(folder)
    model = {
        "text_cfg": {"heads": 6, "embed_cls": True, "context_length": 76},
        "vision_cfg": {"head_width": 16, "attentional_pool": True, "attn_pooler_heads": 6},
        "multimodal_cfg": {"context_length": 76, "heads": 4},
        "quick_gelu": act is QuickGELU,
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    return reference
