"""`open_captioner`: a CoCa that says what is in a picture, by its decoder and a beam search.

Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", in open_clip's
layout (``coca_model.py``, and ``MultimodalTransformer`` of ``transformer.py``): blocks of causal
self-attention over the text alternate with blocks of cross-attention to the picture's tokens, which
are what the image side's queries read, all but the first (that one is the pooled state).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.checks import whole
from bridge.errors import UnsupportedModelError, WeightsError
from bridge.runtime import building, resolve_device, resolve_dtype
from bridge.towers.checkpoint import reading
from bridge.towers.families import family_of
from bridge.towers.open_clip import (
    COCA_TEXT,
    encode_text,
    image_parts,
    picture_tokens,
    text_parts,
)
from bridge.towers.open_clip_config import OpenClipFiles, read_files
from bridge.towers.registry import find_source, find_tokenizer
from bridge.towers.states import Layer
from bridge.towers.tokenizer import load_tokenizer
from bridge.towers.tower import ImageTower, TextTower

_START = "text_decoder."
_HEADS = 8  # open_clip's, for a config that does not say

NextTokens = Callable[[Tensor], Tensor]
"""Ids ``(N, T)`` to log-probabilities ``(N, V)`` of what comes next."""


@dataclass(frozen=True, eq=False)
class Captioner:
    """Both sides of a CoCa and its caption decoder.

    Attributes:
        text: the text tower, whose states before its last norm the decoder reads.
        image: the image tower, whose queries give the decoder a picture's tokens.
        decoder: the torch module.
    """

    text: TextTower
    image: ImageTower
    decoder: CoCaDecoder

    def caption(
        self,
        images: Any,
        *,
        num_beams: int = 6,
        min_new_tokens: int = 4,
        max_new_tokens: int = 30,
    ) -> list[str]:
        """What is in each picture.

        Args:
            images: a PIL picture, several, or what the image tower's processor made of them.
            num_beams: beams of the search, 1 for greedy. open_clip's default is as many, in
                groups that repel each other; these are plain ones, scored by mean log-probability.
            min_new_tokens: how many tokens a caption has at least, as open_clip's default.
            max_new_tokens: how many it has at most; a longer one is cut.

        Raises:
            ImageError: no pictures.
            OptionError: a number out of range.
        """
        for name, value, low, high in (
            ("num_beams", num_beams, 1, len(self.text.tokenizer)),
            ("max_new_tokens", max_new_tokens, 1, self.text.spec.context - 1),
            ("min_new_tokens", min_new_tokens, 0, max_new_tokens),
        ):
            whole(value, name, low, high)
        words = self.text.tokenizer
        captions = []
        for picture in self.picture_tokens(images).split(1):
            ids = beam_search(
                partial(self._next, picture),
                words.bos_token_id,
                words.eos_token_id,
                beams=num_beams,
                least=min_new_tokens,
                most=max_new_tokens,
                device=self.text.device,
            )
            captions.append(words.decode(ids, skip_special_tokens=True).strip())
        return captions

    @torch.no_grad()
    def picture_tokens(self, images: Any) -> Tensor:
        """What the decoder is shown of each picture: ``(B, Q - 1, D)`` in the model's dtype."""
        return picture_tokens(self.image.module, self.image.pixels(images))[1]

    @torch.no_grad()
    def logits(self, picture: Tensor, ids: Tensor) -> Tensor:
        """Logits of the next token after each place, ``(B, T, V)``.

        Args:
            picture: rows of `picture_tokens`, ``(B, Q - 1, D)``.
            ids: ``(B, T)`` long, beginning with the tokenizer's ``bos_token_id``.
        """
        states = encode_text(self.text.module, ids, (Layer(-1, norm=False),), None)
        found: Tensor = self.decoder(picture, states.hidden[0])
        return found

    def _next(self, picture: Tensor, ids: Tensor) -> Tensor:
        rows = picture.expand(len(ids), -1, -1)
        return self.logits(rows, ids)[:, -1].float().log_softmax(-1)


def open_captioner(
    source: str | Path = "coca-l",
    *,
    device: Any = None,
    dtype: Any = None,
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
) -> Captioner:
    """Open a CoCa in open_clip's layout; arguments and errors as `open_text_tower`.

    Raises:
        UnsupportedModelError: a model of another family, or without its caption decoder.
    """
    place = resolve_device(device)
    name, folder, known, words = find_source(source)
    with reading(f"{folder}: the captioner cannot load"), building():
        family = known or family_of(folder)
        if family != COCA_TEXT.name:
            raise UnsupportedModelError(
                f"{name} ({family}) writes no captions; give a CoCa, such as 'coca-l', or ask a "
                "VLM: bridge.describe"
            )
        precision = resolve_dtype(dtype, place, folder)
        files = read_files(
            folder, allow_pickle, "text_cfg", "vision_cfg"
        )  # once: it has all three parts
        said = text_parts(files, precision, place)
        seen = image_parts(files, precision, place)
        decoder = load_decoder(files, precision, place)
    words = find_tokenizer(tokenizer) if tokenizer is not None else words
    reader = load_tokenizer(words or folder, COCA_TEXT.tokenizer)
    return Captioner(
        TextTower(name, COCA_TEXT.name, said.spec, said.module, reader, said.scoring, said.reads),
        ImageTower(name, COCA_TEXT.name, seen.spec, seen.module, seen.processor, seen.scoring),
        decoder,
    )


# ---------------------------------------------------------------- search


def beam_search(
    next_tokens: NextTokens, start: int, end: int, *, beams: int, least: int, most: int,
    device: torch.device,
) -> list[int]:  # fmt: skip
    """The ids of the best text found, without ``start`` and ``end``.

    A text's score is its log-probability by its length (``end`` counted). The search goes on with
    the ``beams`` best texts, until as many have ended, and with one beam it is greedy. A text ends
    after ``least`` tokens at the earliest; after ``most`` it is cut.
    """
    ids = torch.full((1, 1), start, dtype=torch.long, device=device)
    scores = torch.zeros(1, device=device, dtype=torch.float32)
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        likely = next_tokens(ids).float()
        if length <= least:  # on a copy: the table may be the model's own
            likely = likely.index_fill(
                1, torch.tensor([end], device=device, dtype=torch.long), -torch.inf
            )
        total = (scores[:, None] + likely).flatten()
        best = total.topk(min(2 * beams, len(total)))
        going: list[tuple[float, int, int]] = []
        for rank, (score, place) in enumerate(zip(*map(Tensor.tolist, best), strict=True)):
            row, token = divmod(place, likely.shape[1])
            if score == -torch.inf or len(going) == beams:
                break
            if token != end:
                going.append((score, row, token))
            elif rank < beams:
                ended.append((score / length, ids[row, 1:].tolist()))
        if len(ended) >= beams or not going:
            break
        rows = torch.tensor([row for _, row, _ in going], device=device, dtype=torch.long)
        tokens = torch.tensor([[token] for _, _, token in going], device=device, dtype=torch.long)
        ids = torch.cat([ids[rows], tokens], 1)
        scores = torch.tensor([score for score, _, _ in going], device=device, dtype=torch.float32)
    else:
        ended += [(s / most, row[1:]) for s, row in zip(scores.tolist(), ids.tolist(), strict=True)]
    return max(ended)[1]


# ---------------------------------------------------------------- decoder


class _Block(nn.Module):
    """Pre-norm attention and MLP: over the text itself, or over a picture's tokens."""

    def __init__(self, width: int, heads: int, inner: int, activation: str, cross: bool) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.ln_1 = nn.LayerNorm(width, dtype=torch.float32)
        if cross:
            self.ln_1_kv = nn.LayerNorm(width, dtype=torch.float32)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float32)
        self.ln_2 = nn.LayerNorm(width, dtype=torch.float32)
        self.mlp = nn.Sequential()
        self.mlp.c_fc = nn.Linear(width, inner, dtype=torch.float32)
        self.mlp.gelu = ACT2FN[activation]
        self.mlp.c_proj = nn.Linear(inner, width, dtype=torch.float32)

    def forward(self, x: Tensor, picture: Tensor | None = None) -> Tensor:
        own, mask = self.ln_1(x), None
        context = own if picture is None else self.ln_1_kv(picture)
        if picture is None:
            mask = nn.Transformer.generate_square_subsequent_mask(
                x.shape[1], device=x.device, dtype=x.dtype
            )
        mixed, _ = self.attn(own, context, context, attn_mask=mask, need_weights=False)
        x = x + mixed
        found: Tensor = x + self.mlp(self.ln_2(x))
        return found


class CoCaDecoder(nn.Module):
    """The decoder; its parameters have open_clip's names."""

    def __init__(
        self, layers: int, width: int, heads: int, inner: int, vocabulary: int, activation: str
    ) -> None:
        super().__init__()

        def blocks(cross: bool) -> nn.ModuleList:
            return nn.ModuleList(
                _Block(width, heads, inner, activation, cross) for _ in range(layers)
            )

        self.resblocks = blocks(cross=False)
        self.cross_attn = blocks(cross=True)
        self.ln_final = nn.LayerNorm(width, dtype=torch.float32)
        self.text_projection = nn.Parameter(torch.zeros(width, vocabulary, dtype=torch.float32))

    def forward(self, picture: Tensor, text: Tensor) -> Tensor:
        """``picture (B, N, D)`` and ``text (B, T, D)`` to logits ``(B, T, V)``."""
        for own, cross in zip(self.resblocks, self.cross_attn, strict=True):
            text = cross(own(text), picture)
        found: Tensor = self.ln_final(text) @ self.text_projection
        return found


def load_decoder(files: OpenClipFiles, dtype: Any, device: Any) -> CoCaDecoder:
    """The decoder among a checkpoint's tensors.

    Raises UnsupportedModelError for a model without one or with blocks unlike these, WeightsError
    for a damaged one.
    """
    folder = files.folder
    own = {k.removeprefix(_START): t for k, t in files.state.items() if k.startswith(_START)}
    if not own:
        raise UnsupportedModelError(
            f"{folder} has no text_decoder, so it writes no captions; give a CoCa in open_clip's "
            "layout, such as 'coca-l'"
        )
    if files.model.get("multimodal_cfg", {}).get("ls_init_value") is not None:
        raise UnsupportedModelError(f"{folder}: its decoder has layer scales; bridge reads none")
    try:
        module = _shaped(own, files)
        module.load_state_dict(own)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"The caption decoder in {folder} does not fit: {error}") from error
    return module.to(device, dtype).eval().requires_grad_(False)


def _shaped(own: Mapping[str, Tensor], files: OpenClipFiles) -> CoCaDecoder:
    """An empty decoder: heads from the config, all else from the tensors."""
    width, vocabulary = own["text_projection"].shape
    layers = len({name.split(".")[1] for name in own if name.startswith("resblocks.")})
    heads = int(files.model.get("multimodal_cfg", {}).get("heads", _HEADS))
    if width % heads:
        raise ValueError(f"{heads} heads do not divide states {width} wide")
    inner = len(own["resblocks.0.mlp.c_fc.weight"])
    return CoCaDecoder(layers, width, heads, inner, vocabulary, files.activation("text_cfg"))
