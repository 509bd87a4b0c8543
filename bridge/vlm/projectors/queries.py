"""Projectors whose learned queries read the states: `perceiver`, `qformer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.towers.tensors import read_tensors
from bridge.vlm.projectors.protocol import Grid

EPSILON = 1e-6


class PerceiverProjector(nn.Module):
    """A fixed number of learned latents that look at the states, layer after layer.

    (B, N, vision_width) to (B, latents, llm_width), whatever N is. ``inner_width`` is the hidden
    width of the first MLP (None: four times ``llm_width``).

    Alayrac et al., "Flamingo" (2022), section 3.1, in the form of Idefics2 (Laurençon et al., "What
    matters when building vision-language models?", 2024): a gated MLP to the language model's width
    first, RMS norms, and keys and values from states and latents together. Weights are named as in
    transformers' `Idefics2Connector`, whose tensors load as they are.
    """

    kind = "perceiver"

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        *,
        latents: int = 64,
        depth: int = 3,
        heads: int = 16,
        kv_heads: int = 4,
        head_width: int = 96,
        inner_width: int | None = None,
    ) -> None:
        super().__init__()
        if min(latents, depth, heads, kv_heads, head_width) < 1 or heads % kv_heads:
            raise OptionError(
                f"perceiver: latents {latents}, depth {depth}, heads {heads}, kv_heads {kv_heads}, "
                f"head_width {head_width}; all from 1 up, and kv_heads must divide heads"
            )
        self.vision_width, self.llm_width = vision_width, llm_width
        self._options = {
            "latents": latents,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_width": head_width,
            "inner_width": 4 * llm_width if inner_width is None else inner_width,
        }
        self.modality_projection = GatedMlp(vision_width, self._options["inner_width"], llm_width)
        self.perceiver_resampler = Resampler(llm_width, latents, depth, heads, kv_heads, head_width)

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return self.perceiver_resampler(self.modality_projection(states))

    def n_soft_tokens(self, states: Grid | int) -> int:
        return self._options["latents"]

    def soft_grid(self, grid: Grid) -> None:
        """Latents that look at every state stand for no place."""

    def options(self) -> dict[str, Any]:
        return dict(self._options)


class Resampler(nn.Module):
    """(B, N, D) to (B, latents, D)."""

    def __init__(
        self, width: int, latents: int, depth: int, heads: int, kv_heads: int, head_width: int
    ) -> None:
        super().__init__()
        # Idefics2 starts all latents at one, from where only symmetry breaks them; noise does here.
        self.latents = nn.Parameter(torch.randn(latents, width, dtype=torch.float32) * 0.02)
        self.layers = nn.ModuleList(
            ResamplerLayer(width, heads, kv_heads, head_width) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(context.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.norm(latents)


class ResamplerLayer(nn.Module):
    """Latents take from the states and from each other, then think."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.input_latents_norm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)
        self.input_context_norm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)
        self.self_attn = LatentAttention(width, heads, kv_heads, head_width)
        self.post_attention_layernorm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)
        self.mlp = GatedMlp(width, 4 * width, width)

    def forward(self, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        normed = self.input_latents_norm(latents)
        latents = latents + self.self_attn(normed, self.input_context_norm(context))
        return latents + self.mlp(self.post_attention_layernorm(latents))


class LatentAttention(nn.Module):
    """Queries from the latents, keys and values from states and latents; grouped heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q_proj = nn.Linear(width, heads * head_width, bias=False, dtype=torch.float32)
        self.k_proj = nn.Linear(width, kv_heads * head_width, bias=False, dtype=torch.float32)
        self.v_proj = nn.Linear(width, kv_heads * head_width, bias=False, dtype=torch.float32)
        self.o_proj = nn.Linear(heads * head_width, width, bias=False, dtype=torch.float32)

    def forward(self, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        both = torch.cat([context, latents], dim=1)
        query, key, value = (
            proj(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for proj, x in ((self.q_proj, latents), (self.k_proj, both), (self.v_proj, both))
        )
        taken = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.o_proj(taken.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020) from one width to another."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False, dtype=torch.float32)
        self.up_proj = nn.Linear(width, inner, bias=False, dtype=torch.float32)
        self.down_proj = nn.Linear(inner, out, bias=False, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class QFormerProjector(nn.Module):
    """BLIP-2's Q-Former: learned queries that read the states through cross-attention.

    (B, N, vision_width) to (B, queries, llm_width), whatever N is. Li et al., "BLIP-2" (2023),
    section 3. Weights are named as in transformers' `Blip2ForConditionalGeneration`.

    ``query_tokens`` is (1, queries, D), ``qformer`` a `Blip2QFormerModel` of width D, which may
    stay in float32 where the rest is in half precision, as BLIP-2's does. BLIP-2 shows it the
    tower's last layer with class token and final norm.
    """

    kind = "qformer"

    def __init__(
        self, query_tokens: nn.Parameter, qformer: Any, language_projection: nn.Linear
    ) -> None:
        super().__init__()
        self.query_tokens = query_tokens
        self.qformer = qformer
        self.language_projection = language_projection

    @property
    def vision_width(self) -> int:
        return int(self.qformer.config.encoder_hidden_size)

    @property
    def llm_width(self) -> int:
        return self.language_projection.out_features

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        queries = self.query_tokens.expand(states.shape[0], -1, -1)
        read = self.qformer(
            query_embeds=queries, encoder_hidden_states=states, return_dict=True
        ).last_hidden_state
        return self.language_projection(read.to(self.language_projection.weight.dtype))

    def n_soft_tokens(self, states: Grid | int) -> int:
        return self.query_tokens.shape[1]

    def soft_grid(self, grid: Grid) -> None:
        """Queries that look at every state stand for no place."""

    def options(self) -> dict[str, Any]:
        settings = _settings(self.qformer.config.to_dict())
        del settings["encoder_hidden_size"]
        return {"queries": self.query_tokens.shape[1], **settings}


def qformer(
    vision_width: int, llm_width: int, *, queries: int = 32, **settings: Any
) -> QFormerProjector:
    """A fresh `qformer`; further ``settings`` are those of transformers' `Blip2QFormerConfig`."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    config = Blip2QFormerConfig(encoder_hidden_size=vision_width, **settings)
    # Its constructor names no dtype; so it gets one before it gets numbers.
    with torch.device("meta"):
        model = Blip2QFormerModel(config).float()
    model.to_empty(device="cpu").apply(model._init_weights)
    return QFormerProjector(
        nn.Parameter(torch.randn(1, queries, config.hidden_size, dtype=torch.float32) * 0.02),
        model,
        nn.Linear(config.hidden_size, llm_width, dtype=torch.float32),
    )


def qformer_from_blip2(folder: Path, llm_width: int | None = None) -> QFormerProjector:
    """The Q-Former of a BLIP-2 checkpoint folder, queries included; no other weight is read.

    ``llm_width`` other than the checkpoint's (or None for it) gives a fresh output matrix, as
    the published one speaks to another language model. Raises UnsupportedModelError for another
    kind of checkpoint, WeightsError when tensors are missing.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "blip-2":
        raise UnsupportedModelError(
            f"{folder} is a {config.get('model_type')!r} checkpoint; the Q-Former comes from "
            "'blip-2'"
        )
    tensors = _tensors(folder, ("query_tokens", "qformer.", "language_projection."))
    found = tensors.get("language_projection.weight")
    if found is None or "query_tokens" not in tensors:
        raise WeightsError(f"{folder}: query_tokens and language_projection are not all there")
    settings = _settings(config.get("qformer_config", {}))
    width = settings.pop("encoder_hidden_size")
    projector = qformer(
        width,
        llm_width or found.shape[0],
        queries=tensors["query_tokens"].shape[1],
        **settings,
    )
    if projector.llm_width != found.shape[0]:
        # A checkpoint's projection to another language model says nothing to this one.
        fresh = projector.language_projection.state_dict(prefix="language_projection.")
        tensors.update(fresh)
    wanted = projector.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise WeightsError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]!r}")
    projector.load_state_dict({key: tensors[key] for key in wanted})
    return projector.eval()


def _settings(saved: dict[str, Any]) -> dict[str, Any]:
    """The saved settings that differ from the defaults, and always the tower's width."""
    from transformers import Blip2QFormerConfig

    different = Blip2QFormerConfig(**saved).to_diff_dict()
    for name in ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype"):
        different.pop(name, None)
    width = different.pop("encoder_hidden_size", Blip2QFormerConfig().encoder_hidden_size)
    return {**different, "encoder_hidden_size": width}


def _tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a folder's safetensors files whose names begin so, in fp32 as BLIP-2 runs."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder} has no safetensors files; bridge reads no others")

    def wanted(name: str) -> bool:
        return name.removeprefix("model.").startswith(prefixes)

    return {
        name.removeprefix("model."): tensor.float()
        for file in files
        for name, tensor in read_tensors(file, wanted)
    }
