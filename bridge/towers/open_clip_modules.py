"""open_clip's text transformer, its vision transformer, and CLIP's ResNet, in plain torch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (the
three networks); Yu et al. 2022, "CoCa" (the class token after the text, pictures read by learnt
queries); Touvron et al. 2021, "Going deeper with Image Transformers" (layer scale); Shleifer et al.
2021, "NormFormer", and Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion
Parameters" (the further norms of a block). Parameters have open_clip's names, so its checkpoints
load as they are; what a config can ask for is that of open_clip 3.3 (``transformer.py``,
``modified_resnet.py``).

`made` makes a module without memory; its tensors are to be a checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from bridge.errors import OptionError


@dataclass(frozen=True)
class Shape:
    """What the modules of a side are made by, and what a tower's fingerprint counts as its config.

    Attributes:
        width, layers, heads: of its blocks.
        inner: the width between the two layers of its MLPs.
        activation: transformers' name of it.
        epsilon: what the norms add to the variance.
        layer_scale: whether what a block adds is scaled, channel by channel.
        extras: the further norms and scales of its blocks, by open_clip's names.
    """

    width: int
    layers: int
    heads: int
    inner: int
    activation: str = "gelu"
    epsilon: float = 1e-5
    layer_scale: bool = False
    extras: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `towers.fingerprint` asks for a config."""
        return asdict(self)

    def norm(self, width: int | None = None, *, when: str | None = None) -> nn.Module:
        """A norm, of the states' width if none is said; the identity where ``when`` names an extra
        that there is not."""
        if when is not None and when not in self.extras:
            return nn.Identity()
        return nn.LayerNorm(width or self.width, eps=self.epsilon, dtype=torch.float32)


@dataclass(frozen=True)
class TextShape(Shape):
    """A text transformer's.

    Attributes:
        vocabulary, places: how many embeddings of tokens and of places it has.
        causal: whether a token sees those before it alone.
        pool: where pooled states are read: ``argmax`` (the highest id, CLIP's EOS), ``eos`` (the
            first ``eos`` id), ``first``, ``last``; ``class`` for CoCa's token after the text.
        eos: that id.
        pad: the id that is hidden in a CoCa.
        projection: ``none``, ``matrix`` or ``linear`` (with a bias).
        pooled: the width of pooled states.
    """

    vocabulary: int = 0
    places: int = 0
    causal: bool = True
    pool: str = "argmax"
    eos: int = 2
    pad: int = 0
    projection: str = "matrix"
    pooled: int = 0


@dataclass(frozen=True)
class VisionShape(Shape):
    """A vision transformer's.

    Attributes:
        patch_size, image_size: sides in pixels.
        places: how many embeddings of places it has, the class token's counted.
        norm_first: whether there is a norm before the blocks.
        pool: ``tok`` for the class token, ``avg`` for the mean of the patches.
        norm_last: whether the last norm comes after pooling.
        queries, query_width, query_heads: of the attention that reads the states; 0 for none.
        pooled: the width of pooled states.
    """

    patch_size: int = 0
    image_size: int = 0
    places: int = 0
    norm_first: bool = True
    pool: str = "tok"
    norm_last: bool = False
    queries: int = 0
    query_width: int = 0
    query_heads: int = 0
    pooled: int = 0


def made(kind: Callable[[Any], nn.Module], shape: Any) -> nn.Module:
    """A module of one of these kinds, without memory for its tensors."""
    with torch.device("meta"):
        return kind(shape)


def empty(*sizes: int) -> nn.Parameter:
    """A parameter that is to be filled."""
    return nn.Parameter(torch.empty(*sizes, dtype=torch.float32))


def _linear(width: int, made: int) -> nn.Linear:
    return nn.Linear(width, made, dtype=torch.float32)


@dataclass(frozen=True)
class Look:
    """Who looks at whom in a block.

    Attributes:
        mask: what is added to attention's logits, or, of bools, where they count.
        causal: whether a place sees those before it alone; goes without ``mask``.
        kept: where the weights of attention are put, if they are wanted.
        places: ``(B,)``, the one place of each row that is wanted; None for all.
    """

    mask: Tensor | None = None
    causal: bool = False
    kept: list[Tensor] | None = None
    places: Tensor | None = None


def at(x: Tensor, places: Tensor) -> Tensor:
    """``(B, 1, D)``: one place of each row of ``x (B, T, D)``."""
    return x[torch.arange(len(x), device=x.device, dtype=torch.long), places][:, None]


class Attention(nn.Module):
    """Self-attention with query, key and value in one matrix, and what a config adds to it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.in_proj_weight, self.in_proj_bias = empty(3 * width, width), empty(3 * width)
        self.ln_q, self.ln_k = (shape.norm(width // self.heads, when="qk_norm") for _ in "qk")
        self.head_scale = empty(self.heads, 1, 1) if "scale_heads" in shape.extras else None
        self.ln_inner = shape.norm(when="scale_attn_inner")
        self.out_proj = _linear(width, width)

    def forward(self, x: Tensor, look: Look) -> Tensor:
        """``(B, T, D)``, or ``(B, 1, D)`` of the one place of each row that is looked from."""
        width = x.shape[-1]
        own = x if look.places is None else at(x, look.places)
        q = linear(own, self.in_proj_weight[:width], self.in_proj_bias[:width])
        thirds = linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, *thirds))
        q, k = self.ln_q(q), self.ln_k(k)
        if look.kept is None:
            x = scaled_dot_product_attention(q, k, v, attn_mask=look.mask, is_causal=look.causal)
        else:
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            mask = later(x.shape[1], x) if look.causal else look.mask
            look.kept.append((logits if mask is None else logits + mask).softmax(-1))
            x = look.kept[-1] @ v
        x = x if self.head_scale is None else x * self.head_scale
        found: Tensor = self.out_proj(self.ln_inner(x.transpose(1, 2).flatten(2)))
        return found


class Scale(nn.Module):
    """Each channel times its own factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = empty(width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and an MLP, each with a norm before it."""

    def __init__(self, shape: Shape) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        width, scaled = shape.width, shape.layer_scale
        self.ln_1, self.ln_2 = shape.norm(), shape.norm()
        self.attn, self.ln_attn = Attention(shape), shape.norm(when="scale_attn")
        self.ls_1, self.ls_2 = (Scale(width) if scaled else nn.Identity() for _ in "12")
        self.mlp = nn.Sequential()
        self.mlp.c_fc = _linear(width, shape.inner)
        self.mlp.gelu = ACT2FN[shape.activation]
        self.mlp.ln = shape.norm(shape.inner, when="scale_fc")
        self.mlp.c_proj = _linear(shape.inner, width)

    def forward(self, x: Tensor, look: Look) -> Tensor:
        """As `Attention`."""
        own = x if look.places is None else at(x, look.places)
        own = own + self.ls_1(self.ln_attn(self.attn(self.ln_1(x), look)))
        found: Tensor = own + self.ls_2(self.mlp(self.ln_2(own)))
        return found


class Transformer(nn.Module):
    """The blocks."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))

    def forward(self, x: Tensor, look: Look) -> list[Tensor]:
        """The states before the first block and after each."""
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1], look))
        return states

    def last(self, x: Tensor, look: Look, places: Tensor) -> Tensor:
        """``(B, D)``: the last block's states at one place of each row, and nothing besides."""
        for block in self.resblocks[:-1]:
            x = block(x, look)
        mask, causal = look.mask, look.causal
        if causal:
            seen = torch.arange(x.shape[1], device=x.device, dtype=torch.long)
            mask = (seen <= places[:, None])[:, None, None]
        elif mask is not None:
            mask = mask[:, :, -1:]  # a class token's, which comes last
        found: Tensor = self.resblocks[-1](x, Look(mask, places=places))
        return found[:, 0]


class TextTransformer(nn.Module):
    """Ids to states and a pooled state."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.config = shape
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width, dtype=torch.float32)
        self.cls_emb = empty(shape.width) if shape.pool == "class" else None
        self.positional_embedding = empty(shape.places, shape.width)
        self.transformer = Transformer(shape)
        self.ln_final = shape.norm()
        self.text_projection: Any = None
        if shape.projection == "matrix":
            self.text_projection = empty(shape.width, shape.pooled)
        elif shape.projection == "linear":
            self.text_projection = _linear(shape.width, shape.pooled)

    def get_input_embeddings(self) -> nn.Module:
        """Where ids are looked up, by transformers' name."""
        return self.token_embedding

    def forward(self, ids: Tensor, kept: list[Tensor] | None = None) -> tuple[list[Tensor], Tensor]:
        """States ``(B, T, D)`` before the first block and after each, and pooled ``(B, P)``.

        A CoCa's states end in its class token's.
        """
        x, look = self._begun(ids, kept)
        states = self.transformer(x, look)
        return states, self._mapped(at(states[-1], self._at(ids, x))[:, 0])

    def pool(self, ids: Tensor) -> Tensor:
        """Pooled states alone: what stands behind a causal text's end is left out, and of the last
        block every place but the one that is pooled."""
        if self.config.causal and self.config.pool in ("argmax", "eos"):
            ids = ids[:, : int(self._at(ids, ids).max()) + 1]
        x, look = self._begun(ids)
        return self._mapped(self.transformer.last(x, look, self._at(ids, x)))

    def _begun(self, ids: Tensor, kept: list[Tensor] | None = None) -> tuple[Tensor, Look]:
        x, look = self.token_embedding(ids), Look(causal=self.config.causal, kept=kept)
        if self.cls_emb is not None:
            x = torch.cat([x, self.cls_emb.expand(len(x), 1, -1)], 1)
            look = Look(self._hidden(ids, x), kept=kept)
        return x + self.positional_embedding[: x.shape[1]], look

    def _mapped(self, pooled: Tensor) -> Tensor:
        normed: Tensor = self.ln_final(pooled)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(normed)
        return normed if self.text_projection is None else normed @ self.text_projection

    def _at(self, ids: Tensor, x: Tensor) -> Tensor:
        """The place of each row of ``x`` that is pooled."""
        pool = self.config.pool
        if pool in ("argmax", "eos"):
            found = ids if pool == "argmax" else (ids == self.config.eos).int()
            return found.argmax(-1)
        return ids.new_full((len(ids),), 0 if pool == "first" else x.shape[1] - 1)

    def _hidden(self, ids: Tensor, x: Tensor) -> Tensor:
        """What is added to attention's logits so that padding is not seen: one place late, as CoCa
        was trained: place k is hidden where token k - 1 is padding."""
        padding = nn.functional.pad(ids == self.config.pad, (1, 0))[:, None, None]
        shut = torch.zeros(padding.shape, dtype=x.dtype, device=x.device)
        shut = shut.masked_fill(padding, -torch.inf)
        return shut + later(x.shape[1], x) if self.config.causal else shut


class Queries(nn.Module):
    """Learnt queries that read states by cross-attention."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        width, inner = shape.query_width, shape.width
        self.query = empty(shape.queries, width)
        self.attn = nn.MultiheadAttention(
            width, shape.query_heads, kdim=inner, vdim=inner, batch_first=True, dtype=torch.float32
        )
        # Unlike all other norms, these are not by the config's epsilon.
        self.ln_q, self.ln_k = (nn.LayerNorm(each, dtype=torch.float32) for each in (width, inner))

    def forward(self, x: Tensor) -> Tensor:
        keys = self.ln_k(x)
        queries = self.ln_q(self.query).expand(len(x), -1, -1)
        found: Tensor = self.attn(queries, keys, keys, need_weights=False)[0]
        return found


class VisionTransformer(nn.Module):
    """Pixels to states and a pooled state."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.config = shape
        patch = shape.patch_size
        self.conv1 = nn.Conv2d(3, shape.width, patch, patch, bias=False, dtype=torch.float32)
        self.class_embedding = empty(shape.width)
        self.positional_embedding = empty(shape.places, shape.width)
        self.ln_pre = shape.norm() if shape.norm_first else nn.Identity()
        self.transformer = Transformer(shape)
        self.attn_pool = Queries(shape) if shape.queries else None
        last = shape.query_width or shape.width
        self.ln_post = shape.norm(last)
        self.proj = empty(last, shape.pooled)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """States ``(B, 1 + N, D)`` before the first block and after each, and pooled ``(B, P)``."""
        states = self.transformer(self._begun(pixels), Look())
        if self.config.norm_last and self.attn_pool is None:
            pooled = self.ln_post(self._pooled(states[-1]))
        else:
            pooled = self._pooled(self.read(states[-1]))
        return states, pooled @ self.proj

    def pool(self, pixels: Tensor) -> Tensor:
        """Pooled states alone: where the class token pools, the last block's other places are left
        out."""
        if self.attn_pool is not None or self.config.pool != "tok":
            return self(pixels)[1]
        x = self._begun(pixels)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        found: Tensor = self.ln_post(self.transformer.last(x, Look(), first)) @ self.proj
        return found

    def _begun(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        found: Tensor = self.ln_pre(x + self.positional_embedding)
        return found

    def read(self, last: Tensor) -> Tensor:
        """The last states ``(B, 1 + N, D)`` as they are pooled: what the queries read of them, and
        their norm. A CoCa's caption decoder is shown all but the first."""
        found: Tensor = self.ln_post(last if self.attn_pool is None else self.attn_pool(last))
        return found

    def _pooled(self, states: Tensor) -> Tensor:
        return states[:, 1:].mean(1) if self.config.pool == "avg" else states[:, 0]


def later(length: int, like: Tensor) -> Tensor:
    """``(T, T)``: what is added to attention's logits so that no place sees a later one."""
    shut = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    return shut.triu(1)


# ---------------------------------------------------------------- CLIP's ResNet

STRIDE = 32
"""Pixels a side of one place of a ResNet's last map."""


@dataclass(frozen=True)
class ResNetShape:
    """A ResNet's: blocks of each stage, the stem's width, heads of the pooling attention, the
    picture's side, and the width of pooled states."""

    layers: tuple[int, ...]
    width: int
    heads: int
    image_size: int
    pooled: int
    patch_size: int = STRIDE

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `towers.fingerprint` asks for a config."""
        return asdict(self)


def _convolution(channels: int, made: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, made, side, stride, side // 2, bias=False, dtype=torch.float32)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, dtype=torch.float32)


class Bottleneck(nn.Module):
    """Three convolutions; an average pool, and not a stride, makes the map smaller."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        made = 4 * width
        self.conv1, self.bn1 = (
            _convolution(channels, width, 1),
            _batch_norm(width),
        )
        self.conv2, self.bn2 = (
            _convolution(width, width, 3),
            _batch_norm(width),
        )
        self.conv3, self.bn3 = (
            _convolution(width, made, 1),
            _batch_norm(made),
        )
        self.avgpool = nn.AvgPool2d(stride)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != made:
            self.downsample = nn.Sequential()
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", _convolution(channels, made, 1))
            self.downsample.add_module("1", _batch_norm(made))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(self.avgpool(out)))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class AttentionPool(nn.Module):
    """The mean of a map's places reads all of them."""

    def __init__(self, places: int, width: int, heads: int, pooled: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = empty(places + 1, width)
        self.q_proj, self.k_proj, self.v_proj = (_linear(width, width) for _ in "qkv")
        self.c_proj = _linear(width, pooled)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w)`` to ``(B, P)``."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        parts = (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.view(*y.shape[:2], self.heads, -1).transpose(1, 2) for y in parts)
        found: Tensor = self.c_proj(scaled_dot_product_attention(q, k, v).flatten(1))
        return found


class ResNet(nn.Module):
    """Pixels to the last feature map and a pooled state."""

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        self.config = shape
        width = shape.width
        half = width // 2
        self.conv1, self.bn1 = (
            _convolution(3, half, 3, 2),
            _batch_norm(half),
        )
        self.conv2, self.bn2 = (
            _convolution(half, half, 3),
            _batch_norm(half),
        )
        self.conv3, self.bn3 = (
            _convolution(half, width, 3),
            _batch_norm(width),
        )
        self.avgpool = nn.AvgPool2d(2)
        channels = width
        for stage, count in enumerate(shape.layers):
            planes = width << stage
            strides = [2 if stage else 1, *[1] * (count - 1)]
            blocks = []
            for stride in strides:
                blocks.append(Bottleneck(channels, planes, stride))
                channels = 4 * planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        places = (shape.image_size // STRIDE) ** 2
        self.attnpool = AttentionPool(places, channels, shape.heads, shape.pooled)

    def forward(self, pixels: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The last map ``(B, C, h, w)`` for each of ``layers``, and pooled ``(B, P)``.

        Raises OptionError for an inner stage, whose map is of another width and grid.
        """
        if any(layer != -1 for layer in layers):
            raise OptionError("a ResNet's stages are of other widths and grids; ask for layer -1")
        x = pixels
        for convolution, norm in (
            (self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)
        ):  # fmt: skip
            x = norm(convolution(x)).relu()
        x = self.avgpool(x)
        for stage in range(len(self.config.layers)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return [x] * len(layers), self.attnpool(x)
