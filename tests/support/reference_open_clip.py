"""open_clip's forward in plain torch, on ``nn.MultiheadAttention``: the reference of its layout.

Written from the structure that open_clip documents (Radford et al. 2021 for CLIP, Yu et al. 2022
for CoCa); shares nothing with bridge. The parameters' names are open_clip's, so a module's
``state_dict()`` is a checkpoint in its layout.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        parts = [
            ("c_fc", nn.Linear(width, mlp)),
            ("gelu", act()),
            ("c_proj", nn.Linear(mlp, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, layers: int, *block: Any) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*block) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1], mask))
        return states


class Text(nn.Module):
    """``positions`` counts CoCa's class token, which ``cls`` asks for."""

    def __init__(
        self, vocab: int, positions: int, width: int, heads: int, layers: int, mlp: int,
        pooled: int, act: type[nn.Module], cls: bool = False, twice: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads = heads
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * 0.1)
        if twice:  # Long-CLIP's second table
            self.positional_embedding_res = nn.Parameter(torch.randn(positions, width) * 0.1)
        self.cls_emb = nn.Parameter(torch.randn(width)) if cls else None
        self.transformer = Transformer(layers, width, heads, mlp, act)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, pooled) * width**-0.5)

    def forward(self, ids: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.token_embedding(ids)
        length = ids.shape[1]
        if self.cls_emb is not None:
            x = torch.cat([x, self.cls_emb.expand(len(x), 1, -1)], 1)
            length += 1
        table = self.positional_embedding
        if hasattr(self, "positional_embedding_res"):
            first = torch.arange(len(table))[:, None] < 20
            table = torch.where(first, table, self.positional_embedding_res)
        mask = torch.full((length, length), -torch.inf).triu(1)
        if self.cls_emb is not None:
            seen = torch.cat([torch.ones(len(ids), 1, dtype=torch.bool), ids != 0], 1)
            # Hidden from every place, one place late, as open_clip 3 has it.
            mask = mask.repeat(len(ids), 1, 1).masked_fill(~seen[:, None], -torch.inf)
            mask = mask.repeat_interleave(self.heads, 0)
        states = self.transformer(x + table[:length], mask)
        if self.cls_emb is not None:
            pooled = self.ln_final(states[-1][:, -1])
            return [state[:, :-1] for state in states], pooled @ self.text_projection
        last = self.ln_final(states[-1])
        pooled = last[torch.arange(len(ids)), ids.argmax(-1)]
        return states, pooled @ self.text_projection


class Pooler(nn.Module):
    def __init__(self, width: int, context: int, heads: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width))
        self.attn = nn.MultiheadAttention(
            width, heads, kdim=context, vdim=context, batch_first=True
        )
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(context)

    def forward(self, x: Tensor) -> Tensor:
        x, q = self.ln_k(x), self.ln_q(self.query).repeat(len(x), 1, 1)
        return self.attn(q, x, x)[0]


class Visual(nn.Module):
    def __init__(
        self, side: int, patch: int, width: int, heads: int, layers: int, mlp: int, pooled: int,
        act: type[nn.Module], queries: int = 0, pool_heads: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.1)
        count = (side // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.randn(count, width) * 0.1)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(layers, width, heads, mlp, act)
        self.attn_pool = Pooler(pooled, width, pool_heads, queries) if queries else None
        last = pooled if queries else width
        self.ln_post = nn.LayerNorm(last)
        self.proj = nn.Parameter(torch.randn(last, pooled) * last**-0.5)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        states = self.states(pixels)
        return states, self.read(states[-1])[:, 0] @ self.proj

    def states(self, pixels: Tensor) -> list[Tensor]:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        return self.transformer(self.ln_pre(x + self.positional_embedding))

    def read(self, last: Tensor) -> Tensor:
        return self.ln_post(last if self.attn_pool is None else self.attn_pool(last))


class CrossBlock(Block):
    """A block that attends to a picture's tokens, with a norm of its own for them."""

    def __init__(self, width: int, *rest: Any) -> None:
        super().__init__(width, *rest)
        self.ln_1_kv = nn.LayerNorm(width)

    def look(self, x: Tensor, picture: Tensor) -> Tensor:
        seen = self.ln_1_kv(picture)
        x = x + self.attn(self.ln_1(x), seen, seen, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class CaptionDecoder(nn.Module):
    """CoCa's second half: text states and a picture's tokens to logits of the next token."""

    def __init__(self, layers: int, vocab: int, width: int, *block: Any) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, *block) for _ in range(layers))
        self.cross_attn = nn.ModuleList(CrossBlock(width, *block) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, vocab) * width**-0.5)

    def forward(self, picture: Tensor, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        for own, cross in zip(self.resblocks, self.cross_attn, strict=True):
            x = cross.look(own(x, mask), picture)
        return self.ln_final(x) @ self.text_projection


class OpenClip(nn.Module):
    """Both towers and the scale; ``state`` gives the layout with or without ``text.``."""

    def __init__(
        self, text: nn.Module, visual: Visual, text_decoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.text = text
        self.visual = visual
        if text_decoder is not None:
            self.text_decoder = text_decoder
        self.logit_scale = nn.Parameter(torch.tensor(2.7))

    def logits_per_text(self, ids: Tensor, pixels: Tensor) -> Tensor:
        text = nn.functional.normalize(self.text(ids)[1], dim=-1)
        image = nn.functional.normalize(self.visual(pixels)[1], dim=-1)
        return self.logit_scale.exp() * text @ image.T

    def next_tokens(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """CoCa's logits ``(B, T, V)``: the picture's tokens are what the queries after the first
        read, the text's states are those before the last norm."""
        picture = self.visual.read(self.visual.states(pixels)[-1])[:, 1:]
        return self.text_decoder(picture, self.text(ids)[0][-1])

    def state(self, custom: bool) -> dict[str, Tensor]:
        state = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        return state if custom else {k.removeprefix("text."): t for k, t in state.items()}


class HfText(nn.Module):
    """open_clip's wrapper of a transformers encoder: mean over the mask, then an MLP."""

    def __init__(self, transformer: nn.Module, width: int, pooled: int) -> None:
        super().__init__()
        self.transformer = transformer
        inner = (width + pooled) // 2
        self.proj = nn.Sequential(
            nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, pooled, bias=False)
        )
        self.pad = transformer.config.pad_token_id

    def forward(self, ids: Tensor) -> tuple[list[Tensor], Tensor]:
        mask = (ids != self.pad).long()
        out = self.transformer(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        total = (out.last_hidden_state * mask[..., None]).sum(1)
        return list(out.hidden_states), self.proj(total / mask.sum(-1, keepdim=True))


def scatter(module: nn.Module, seed: int = 0) -> Any:
    """Random values of their own for norms and biases, so that a forgotten one shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "ln_" in name or "norm" in name.lower() or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()
