"""Every config of ``open_clip.list_models()`` as a folder, one side at a time, and the peer's own.

Widths, heads, patches, pictures and contexts are a config's own, and so is all that says how its
sides calculate. Cut on both sides alike, so that 144 of them fit into minutes and 3 GiB: blocks to
two (a third would say no more), a stage to as few as it has meaning with, and the vocabulary beside
a tokenizer of transformers to that of its stand-in, since the real ones are on the hub.
`BRIDGE_OPEN_CLIP_WHOLE=1` leaves the depths as they are.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from peers import clone, package
from safetensors.torch import save_file
from support.tiny_t5 import tiny_t5_tokenizer
from support.tiny_tokenizers import (
    tiny_bert_tokenizer,
    tiny_siglip2_tokenizer,
    tiny_xlmr_tokenizer,
)

WHOLE = bool(os.environ.get("BRIDGE_OPEN_CLIP_WHOLE"))
VOCABULARY = "backend/huggingface/stabilityai/stable-diffusion-xl-base-1.0/tokenizer"
_BLOCKS = 2
# Tokenizers and text models of the hub by how their names begin: what stands in for each.
_WORDS = {
    "timm/ViT-B-16-SigLIP": tiny_t5_tokenizer,
    "google/mt5": tiny_t5_tokenizer,
    "bert-base": tiny_bert_tokenizer,
    "roberta-base": tiny_xlmr_tokenizer,
    "xlm-roberta": tiny_xlmr_tokenizer,
    "facebook/": tiny_xlmr_tokenizer,
}
# What the published configs of these say.
_TEXT_MODELS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1,
                     "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "max_position_embeddings": 514,
                         "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta-large": {"model_type": "xlm-roberta", "max_position_embeddings": 514,
                          "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
                          "hidden_size": 1024, "num_attention_heads": 16,
                          "intermediate_size": 4096},
    "mt5-base": {"model_type": "mt5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12,
                 "feed_forward_proj": "gated-gelu", "pad_token_id": 0},
    "mt5-xl": {"model_type": "mt5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32,
               "feed_forward_proj": "gated-gelu", "pad_token_id": 0},
    "nllb-200-distilled-600M": {"model_type": "m2m_100", "d_model": 1024, "pad_token_id": 1,
                                "encoder_attention_heads": 16, "encoder_ffn_dim": 4096,
                                "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
                                "max_position_embeddings": 1024, "scale_embedding": True},
    "nllb-200-distilled-1.3B": {"model_type": "m2m_100", "d_model": 1024, "pad_token_id": 1,
                                "encoder_attention_heads": 16, "encoder_ffn_dim": 8192,
                                "decoder_attention_heads": 16, "decoder_ffn_dim": 8192,
                                "max_position_embeddings": 1024, "scale_embedding": True},
}  # fmt: skip
_DEPTHS = (
    "num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a config, written: its folder and the peer's module."""

    folder: Path
    module: Any
    context: int = 0


def configs() -> dict[str, dict[str, Any]]:
    peer = package("open_clip")
    return {name: deepcopy(peer.get_model_config(name)) for name in peer.list_models()}


def same_side(model: Mapping[str, Any], side: str) -> str:
    """Equal for configs whose side is the same in all that makes it, so that it runs once."""
    names = ("embed_dim", "quick_gelu") + (("custom_text",) if side == "text_cfg" else ())
    return json.dumps([[model.get(each) for each in names], model[side]], sort_keys=True)


@torch.no_grad()
def write_text(root: Path, model: dict[str, Any]) -> Side:
    """The text side of a config as a folder."""
    peer = package("open_clip").model
    told = model["text_cfg"]
    tokenizer = _tokenizer(told.get("hf_tokenizer_name"))
    if told.get("hf_tokenizer_name"):
        told["vocab_size"] = len(tokenizer)
    if told.get("hf_model_name"):
        told["hf_model_name"] = str(_text_model(root / "base", told["hf_model_name"], tokenizer))
        told["hf_model_pretrained"] = False
    elif not WHOLE:
        told["layers"] = _BLOCKS
    module = peer._build_text_tower(model["embed_dim"], told, bool(model.get("quick_gelu")))
    start = "text." if model.get("custom_text") or told.get("hf_model_name") else ""
    folder = _write(root, model, "vision_cfg", scattered(module), start)
    tokenizer.save_pretrained(folder)
    return Side(folder, module.eval(), told.get("context_length", 77))


@torch.no_grad()
def write_image(root: Path, model: dict[str, Any]) -> Side:
    """The image side of a config as a folder."""
    peer = package("open_clip").model
    told = model["vision_cfg"]
    if not WHOLE and not told.get("timm_model_name"):
        deep = isinstance(told["layers"], list)
        told["layers"] = [_BLOCKS] * 4 if deep else _BLOCKS
    module = peer._build_vision_tower(model["embed_dim"], told, bool(model.get("quick_gelu")))
    return Side(_write(root, model, "text_cfg", scattered(module), "visual."), module.eval())


def _write(root: Path, model: dict[str, Any], other: str, module: Any, start: str) -> Path:
    """The folder of a model, whose other side has a field that nobody knows, and is not read."""
    root.mkdir(parents=True, exist_ok=True)
    told = {**model, other: {**model[other], "of_no_version": 1}}
    config = {"model_cfg": told, "preprocess_cfg": {}}
    (root / "open_clip_config.json").write_text(json.dumps(config))
    state = {f"{start}{k}": t.detach().contiguous() for k, t in module.state_dict().items()}
    state["logit_scale"] = torch.tensor(2.5)
    if "init_logit_bias" in model:
        state["logit_bias"] = torch.tensor(-10.0)
    save_file(state, root / "open_clip_model.safetensors")
    return root


@cache
def _tokenizer(name: str | None) -> Any:
    if name is None:
        return transformers.CLIPTokenizer.from_pretrained(clone("forge") / VOCABULARY)
    if "SigLIP2" in name:
        return tiny_siglip2_tokenizer()
    return next(made() for start, made in _WORDS.items() if name.startswith(start))


def _text_model(folder: Path, name: str, tokenizer: Any) -> Path:
    """A folder with the config of a text model of the hub, under its name: that tells its kind."""
    values = dict(_TEXT_MODELS[name.rpartition("/")[2]])
    values["vocab_size"] = len(tokenizer)
    if not WHOLE:
        values |= dict.fromkeys(_DEPTHS, _BLOCKS)
    kind = values.pop("model_type")
    place = folder / name.rpartition("/")[2]
    transformers.AutoConfig.for_model(kind, **values).save_pretrained(place)
    return place


@contextmanager
def few_blocks() -> Iterator[None]:
    """Within, timm makes its networks with few blocks, for whoever asks."""
    registry = package("timm").models._registry._model_entrypoints
    before = dict(registry)
    try:
        if not WHOLE:
            registry.update({name: _cut(name, made) for name, made in before.items()})
        yield
    finally:
        registry.update(before)


def _cut(name: str, made: Any) -> Any:
    family = made.__module__.rpartition(".")[2]
    stages = 5 if name in ("fastvit_mci3", "fastvit_mci4") else 4
    few: dict[str, Any] = {
        "convnext": {"depths": (1,) * 4},
        "swin_transformer": {"depths": (2,) * 4},  # every other block shifts its windows
        "fastvit": {"layers": (1,) * stages},
    }.get(family, {"depth": _BLOCKS})

    def small(pretrained: bool = False, **settings: Any) -> Any:
        return made(pretrained=pretrained, **{**few, **settings})

    return small


def scattered(module: Any) -> Any:
    """Norms, biases and scales of values of their own, so that a forgotten one shows."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.ndim < 2:
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.std() < 0.01:  # timm begins classifiers so small that biases hide them
            parameter.normal_(0, 0.02)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    return module


def opened_tokenizer(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package("open_clip").get_tokenizer(f"local-dir:{folder}")
