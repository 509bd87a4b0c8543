"""ComfyUI's own tokenizers and text encoders, run as they are over tiny towers; and
ComfyUI_ADV_CLIP_emb over them.

Its modules reach through ``comfy.model_management`` for devices, through ``comfy.ops`` for layers
that are cast as they run, and through ``comfy.ldm.modules.attention`` for the fastest attention.
Plain torch stands in for these three; everything that reads, weighs or encodes a prompt is the
peer's own file, and so are its CLIP and T5 models and vocabularies.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from peers import clone, on_path
from safetensors.torch import save_file
from support.tiny_models import _spread, text_config, tiny_sd_pipeline, tiny_sdxl_pipeline
from support.tiny_t5 import T5_WIDTH, tiny_t5_pipeline
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)


@dataclass(frozen=True, eq=False)
class Comfy:
    """The peer's modules, and where its vocabularies are."""

    sd1_clip: ModuleType
    sdxl_clip: ModuleType
    flux: ModuleType
    sd3_clip: ModuleType
    adv_encode: ModuleType | None
    folder: Path

    def tokenizer(self, kind: str, embeddings: Path | None = None) -> Any:
        """Its tokenizer of a kind of model; ``embeddings`` is its folder of embeddings."""
        made = {
            "sd15": self.sd1_clip.SD1Tokenizer,
            "sdxl": self.sdxl_clip.SDXLTokenizer,
            "flux": self.flux.FluxTokenizer,
            "sd3": self.sd3_clip.SD3Tokenizer,
        }[kind](embedding_directory=None if embeddings is None else str(embeddings))
        return made

    def encoder(self, kind: str, pipe: Any) -> Any:
        """Its text encoder of a kind of model, with the towers of a pipeline."""
        options = {
            f"{name}_model_config": _config(tower) for name, tower in _towers(kind, pipe).items()
        }
        made = {
            "sd15": self.sd1_clip.SD1ClipModel,
            "sdxl": self.sdxl_clip.SDXLClipModel,
            "flux": self.flux.FluxClipModel,
            "sd3": self.sd3_clip.SD3ClipModel,
        }[kind](device="cpu", dtype=torch.float32, model_options=options)
        for name, tower in _towers(kind, pipe).items():
            _load(getattr(made, name), tower)
        if kind == "sd3":
            # The file says 4096, the width of the one T5 that there is.
            narrow = made.t5xxl.encode_token_weights
            made.t5xxl.encode_token_weights = lambda pairs: _widened(narrow(pairs))
        return made

    def pipeline(self, kind: str) -> Any:
        """A tiny pipeline of ours over the real vocabularies."""
        return in_real_words(kind, self.folder)

    def advanced(
        self, tokenizer: Any, encoder: Any, text: str, normalisation: str, interpretation: str
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States and pooled state of ADV_CLIP_emb's node, with the options that it shows."""
        assert self.adv_encode is not None
        clip = SimpleNamespace(
            tokenize=tokenizer.tokenize_with_weights,
            cond_stage_model=encoder,
            layer_idx=None,
            patcher=None,
            encode_from_tokens=lambda tokens: encoder.encode_token_weights(tokens)[0],
        )
        states, pooled = self.adv_encode.advanced_encode(
            clip, text, normalisation, interpretation, apply_to_pooled=False
        )
        return states, pooled


def write_embeddings(folder: Path, kind: str) -> list[Path]:
    """A folder of embeddings of several vectors for the towers of a kind; "cat" is for T5 too."""
    widths = {"clip_l": 32, "clip_g": 48, "t5xxl": T5_WIDTH}
    rng = torch.Generator().manual_seed(3)
    for name, count in {"cat": 1, "x-ray": 3, "two apples": 2}.items():
        towers = ["clip_l", *["clip_g"] * (kind != "sd15"), *["t5xxl"] * (name == "cat")]
        rows = {tower: torch.randn(count, widths[tower], generator=rng) for tower in towers}
        save_file(rows, folder / f"{name}.safetensors")
    return sorted(folder.glob("*.safetensors"))


def _towers(kind: str, pipe: Any) -> dict[str, Any]:
    found = {"clip_l": pipe.text_encoder}
    if kind in ("sdxl", "sd3"):
        found["clip_g"] = pipe.text_encoder_2
    if kind in ("flux", "sd3"):
        found["t5xxl"] = pipe.text_encoder_2 if kind == "flux" else pipe.text_encoder_3
    return found


def _config(tower: Any) -> dict[str, Any]:
    config = tower.config.to_dict()
    # transformers' name of the same function.
    return config | ({"dense_act_fn": "gelu_pytorch_tanh"} if "d_model" in config else {})


def _load(model: Any, tower: Any) -> None:
    """The weights of a transformers tower; without a projection CLIP's stays random, unused."""
    weights = dict(tower.state_dict())
    if isinstance(tower, CLIPTextModel) and not any(n.startswith("text_model.") for n in weights):
        weights = {f"text_model.{name}": value for name, value in weights.items()}
    projection = weights.get("text_projection.weight")
    if projection is not None:
        model.transformer.text_projection = torch.nn.Linear(
            projection.shape[1], projection.shape[0], bias=False
        )
    # The peer's CLIP has as many tokens as the one vocabulary that there is.
    words = "text_model.embeddings.token_embedding.weight"
    if words in weights:
        own = model.transformer.get_input_embeddings().num_embeddings
        more = own - len(weights[words])
        weights[words] = torch.nn.functional.pad(weights[words], (0, 0, 0, more))
    missing, unknown = model.transformer.load_state_dict(weights, strict=False)
    assert set(missing) <= {"text_projection.weight"}, missing
    assert set(unknown) <= {"encoder.embed_tokens.weight", "text_model.embeddings.position_ids"}
    model.eval().requires_grad_(False)


def _widened(found: Any) -> Any:
    states, *others = found
    return torch.nn.functional.pad(states, (0, 4096 - states.shape[-1])), *others


def in_real_words(kind: str, folder: Path) -> Any:
    clip = folder / "comfy" / "sd1_tokenizer"
    pipe = {
        "sd15": partial(tiny_sd_pipeline, "sd15"),
        "sdxl": tiny_sdxl_pipeline,
        "flux": partial(tiny_t5_pipeline, "flux"),
        "sd3": partial(tiny_t5_pipeline, "sd3"),
    }[kind]()
    torch.manual_seed(11)
    tokenizer = CLIPTokenizer.from_pretrained(clip, model_max_length=77)
    old = text_config(tokenizer, eos_token_id=2)
    parts: dict[str, Any] = {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(old)}
    if kind in ("sdxl", "sd3"):
        second = CLIPTokenizer.from_pretrained(clip, model_max_length=77, pad_token="!")
        wide = text_config(second, hidden_size=48, projection_dim=40, hidden_act="gelu")
        parts |= {"tokenizer_2": second, "text_encoder_2": CLIPTextModelWithProjection(wide)}
    if kind == "sd3":
        # Published SD 3 has the identity for CLIP-L's projection; ComfyUI does not project.
        first = CLIPTextModelWithProjection(old)
        torch.nn.init.eye_(first.text_projection.weight)
        parts["text_encoder"] = first
    if kind in ("flux", "sd3"):
        tail = "_2" if kind == "flux" else "_3"
        words = folder / "comfy" / "text_encoders" / "t5_tokenizer"
        parts |= {
            f"tokenizer{tail}": T5TokenizerFast.from_pretrained(words),
            f"text_encoder{tail}": T5EncoderModel(
                T5Config(
                    vocab_size=32128, d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=3,
                    num_heads=2, feed_forward_proj="gated-gelu",
                )
            ),
        }  # fmt: skip
    for name, part in parts.items():
        if name.startswith("text_encoder"):
            _spread(part.eval())
    if kind == "sd3":
        torch.nn.init.eye_(parts["text_encoder"].text_projection.weight)
    pipe.register_modules(**parts)
    return pipe


# ---------------------------------------------------------------- what stands in


class _Linear(torch.nn.Linear):
    """As comfy.ops: weights are cast as they run; here all is float32."""


class _Embedding(torch.nn.Embedding):
    def forward(self, ids: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return super().forward(ids)


class _Operations:
    Linear, LayerNorm, Embedding = _Linear, torch.nn.LayerNorm, _Embedding


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    split = [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def _module(name: str, **values: Any) -> ModuleType:
    made = types.ModuleType(name)
    vars(made).update(values)
    made.__path__ = []  # type: ignore[attr-defined]  # so that it may have modules below it
    sys.modules[name] = made
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, made)
    return made


def _numpy_1() -> SimpleNamespace:
    """NumPy whose ``unique`` counts places through all rows, as before 2.0, for ADV_CLIP_emb."""

    def unique(values: Any, return_inverse: bool = False, **more: Any) -> Any:
        found = np.unique(values, return_inverse=return_inverse, **more)
        return (found[0], found[1].reshape(-1)) if return_inverse else found

    return SimpleNamespace(**{**vars(np), "unique": unique})


def _mine() -> list[str]:
    return [name for name in sys.modules if name == "comfy" or name.startswith("comfy.")]


def load_comfy(*, adv: bool = False) -> Comfy:
    """Import the peer. Skips (or fails) where its clone is missing.

    Args:
        adv: ComfyUI_ADV_CLIP_emb too.
    """
    folder = clone("comfyui")
    extension = clone("adv_clip_emb") if adv else None
    for name in _mine():
        del sys.modules[name]
    with on_path(folder):
        import comfy.text_encoders  # noqa: F401  # the peer's packages

        cpu = torch.device("cpu")
        _module(
            "comfy.model_management",
            intermediate_device=lambda: cpu,
            pick_weight_dtype=lambda dtype, fallback, device=None: dtype or fallback,
            load_model_gpu=lambda patcher: None,
        )
        _module(
            "comfy.ops",
            manual_cast=_Operations,
            cast_to=lambda weight, dtype=None, device=None: weight.to(dtype),
            cast_to_input=lambda weight, like: weight.to(like.dtype),
        )
        for name in ("comfy.ldm", "comfy.ldm.modules", "comfy.utils", "comfy.text_encoders.llama"):
            _module(name)
        _module(
            "comfy.ldm.modules.attention",
            optimized_attention_for_device=lambda device, mask=False, small_input=False: _attention,
        )
        from comfy import sd1_clip, sdxl_clip
        from comfy.text_encoders import flux, sd3_clip

        adv_encode = None
        if extension is not None:
            with on_path(extension):
                sys.modules.pop("adv_encode", None)
                import adv_encode

                adv_encode.np = _numpy_1()
    found = Comfy(sd1_clip, sdxl_clip, flux, sd3_clip, adv_encode, folder)
    for name in _mine():
        del sys.modules[name]
    return found
