"""Write tests/data/open_clip_sides.json.gz: what open_clip 3.3 makes where CLIP has it otherwise.

``PYTHONPATH=.:tests/parity:tests .venv-parity/bin/python tests/parity/write_open_clip_sides.py``

Weights are drawn by their names (`support.open_clip_folders.drawn`), so that the file holds
configs, shapes and results alone.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import conftest  # noqa: F401 - declares what torchvision misses
import open_clip
import torch
from open_clip.model import _build_text_tower, _build_vision_tower
from support.open_clip_folders import drawn, drawn_pixels
from support.places import DATA

TEXT = {
    "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2.0, "context_length": 6, "vocab_size": 20
}  # fmt: skip
VISION = {
    "width": 16, "head_width": 8, "layers": 2, "mlp_ratio": 2.0, "patch_size": 4, "image_size": 12
}  # fmt: skip
IDS = [[17, 3, 5, 18, 0, 0], [17, 9, 4, 7, 2, 18], [17, 2, 18, 0, 0, 0]]
BLOCKS = {
    "layer scale": {"ls_init_value": 0.1},
    "norms of query and key": {"qk_norm": True},
    "further norms and scales": {
        "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True
    },
    "custom blocks by name": {"block_type": "custom"},
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    **BLOCKS,
    "SigLIP": {
        "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
        "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"},
    },
    "MobileCLIP": {"no_causal_mask": True},
    "CLIPA": {"no_causal_mask": True, "pool_type": "last"},
    "MetaCLIP 2": {"pool_type": "eos", "eos_id": 2},
    "the first token": {"pool_type": "first", "no_causal_mask": True, "proj_type": "none"},
    "CoCa": {"embed_cls": True, "output_tokens": True},
    "CoCa, padding of 5": {"embed_cls": True, "pad_id": 5},
    "CoCa that sees all": {"embed_cls": True, "no_causal_mask": True},
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    **BLOCKS,
    "CLIPA": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "the mean": {"pool_type": "avg", "norm_kwargs": {"eps": 1e-3}},
    "sines": {"pos_embed_type": "sin_cos_2d"},
    "CoCa": {
        "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5,
        "output_tokens": True,
    },
    "the mean of queries": {
        "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5,
        "pool_type": "avg", "norm_kwargs": {"eps": 1e-3},
    },
    "ResNet": {"layers": [1, 2, 1, 1], "width": 4, "head_width": 32, "image_size": 64,
               "patch_size": None},
}  # fmt: skip
POOLED = 12


def filled(module: Any) -> Any:
    module.load_state_dict({k: drawn(k, t.shape) for k, t in module.state_dict().items()})
    return module.eval()


def case(module: Any, told: dict[str, Any], *shown: Any) -> dict[str, Any]:
    """A config, the shapes of its tensors, and the results."""
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    numbers = [[float(f"{each:.7g}") for each in found.flatten().tolist()] for found in shown]
    return {"config": told, "shapes": shapes, "states": numbers[0], "pooled": numbers[1]}


def first(found: Any) -> torch.Tensor:
    tensor: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return tensor


@torch.no_grad()
def main() -> None:
    ids, texts, pictures = torch.tensor(IDS), {}, {}
    for name, changes in TEXTS.items():
        told = {**TEXT, **changes}
        pooled = TEXT["width"] if told.get("proj_type") == "none" else POOLED
        module = filled(_build_text_tower(pooled, dict(told)))
        inner = module.forward_intermediates(ids, output_fmt="NLC")["text_intermediates"]
        texts[name] = case(module, told, inner[-1], first(module(ids)))
    for name, changes in PICTURES.items():
        told = {**VISION, **changes}
        module = filled(_build_vision_tower(POOLED, dict(told)))
        pixels = drawn_pixels(told["image_size"])
        inner = module.forward_intermediates(pixels)["image_intermediates"]
        pictures[name] = case(module, told, inner[-1], first(module(pixels)))
    found = {"open_clip": open_clip.__version__, "ids": IDS, "pooled": POOLED}
    text = json.dumps({**found, "texts": texts, "pictures": pictures}, separators=(",", ":"))
    (DATA / "open_clip_sides.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
