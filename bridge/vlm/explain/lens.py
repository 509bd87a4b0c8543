"""The projector lens: what words the soft tokens of a picture are nearest to.

- "embeddings": the words whose input embeddings lie nearest by cosine. "centred" takes the mean
  off both sides first, since embeddings share a large common part.
- "logits": what the language model would write at the soft token's place, read off a layer's
  state through its last norm and its head; the logit lens (nostalgebraist, 2020).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from bridge.checks import keywords, whole
from bridge.errors import OptionError, UnsupportedModelError
from bridge.vlm.chat_writer import special_tokens
from bridge.vlm.explain.pictures import View, check_index, one_picture, views_of
from bridge.vlm.model import BridgeVLM

Method = Literal["embeddings", "centred", "logits"]
_METHODS = ("embeddings", "centred", "logits")
# Where transformers keeps a language model's last norm, seen from its base model.
_NORMS = ("norm", "ln_f", "final_layer_norm", "decoder.final_layer_norm", "final_norm")


@dataclass(frozen=True)
class LensWord:
    """A word of the vocabulary; ``score`` is a cosine, or a probability for "logits"."""

    text: str
    score: float


@dataclass(frozen=True, eq=False)
class Lens:
    """The nearest words of each of M soft tokens, best first."""

    words: tuple[tuple[LensWord, ...], ...]
    views: tuple[View, ...]
    method: Method

    def cells(self, view: int = 0) -> np.ndarray:
        """(rows, columns) of texts: each cell's nearest word; "" where a cell has no token."""
        seen = self.views[check_index(view, len(self.views), "view")]
        texts = [self.words[i][0].text if i >= 0 else "" for i in seen.tokens]
        return np.array(texts, dtype=object).reshape(seen.grid)

    def scores(self, view: int = 0) -> np.ndarray:
        """(rows, columns) of the nearest words' scores."""
        seen = self.views[check_index(view, len(self.views), "view")]
        return seen.cells(np.array([each[0].score for each in self.words]))

    def counts(self, view: int = 0) -> list[tuple[str, int]]:
        """The words that are nearest to most cells, and to how many."""
        return Counter(text for text in self.cells(view).ravel() if text).most_common()


@keywords
@torch.inference_mode()
def lens(
    vlm: BridgeVLM, image: Any, *, method: Method = "embeddings", top: int = 5, layer: int = -1
) -> Lens:
    """The ``top`` words nearest to each soft token of the picture.

    Special tokens and pieces that spell nothing are left out.

    Args:
        image: one picture, in any form that `load_image` reads.
        method: "embeddings", "centred" or "logits" (see `bridge.vlm.explain.lens`).
        top: how many words for each soft token.
        layer: for "logits": an index into the language model's hidden states, where 0 is its input
            and -1 the last layer's output.

    Raises:
        OptionError: an unknown method, layer or count, or several pictures.
        UnsupportedModelError: soft tokens that stand for no place; with "logits", a language model
            without a head or a last norm where transformers keeps them.
    """
    if method not in _METHODS:
        raise OptionError(f"method is {method!r}; one of {', '.join(_METHODS)}")
    picture = one_picture(image)
    preprocessed, counts = vlm.views([picture])
    assert preprocessed is not None
    views = views_of(vlm, preprocessed)
    (soft,) = vlm.picture_tokens(preprocessed)
    texts, ids = _spelled(vlm.tokenizer, vlm.llm.get_input_embeddings().weight.shape[0])
    top = whole(top, "top", 1, len(ids))
    if method == "logits":
        scores = _written(vlm, soft, counts, layer)[:, list(ids)]
    else:
        table = vlm.llm.get_input_embeddings().weight
        scores = cosines(soft, table[list(ids)], centred=method == "centred")
    found = scores.topk(top)
    words = tuple(
        tuple(LensWord(texts[place], value) for value, place in zip(*row, strict=True))
        for row in zip(found.values.tolist(), found.indices.tolist(), strict=True)
    )
    return Lens(words, views, method)


def cosines(soft: torch.Tensor, table: torch.Tensor, *, centred: bool = False) -> torch.Tensor:
    """Cosine of each of (M, D) with each of (V, D): float32 (M, V).

    ``centred`` takes each side's own mean off it first.
    """
    sides = [side.float() for side in (soft.to(table.device), table)]
    if centred:
        sides = [side - side.mean(0) for side in sides]
    return (
        torch.nn.functional.normalize(sides[0], dim=-1)
        @ torch.nn.functional.normalize(sides[1], dim=-1).T
    )


def _written(vlm: BridgeVLM, soft: torch.Tensor, counts: list[int], layer: int) -> torch.Tensor:
    """(M, V) probabilities of what would be written at each soft token's place."""
    ids = vlm.prompt_ids([("what is this?", "")], counts)
    places = [place for place, token in enumerate(ids) if token == vlm.image_token_id]
    out = vlm.llm(
        inputs_embeds=vlm.embed([ids], [soft]).inputs_embeds,
        output_hidden_states=True,
        use_cache=False,
    )
    states = out.hidden_states
    if not isinstance(layer, int) or not -len(states) <= layer < len(states):
        raise OptionError(f"layer is {layer!r}; give one from {-len(states)} to {len(states) - 1}")
    if layer in (-1, len(states) - 1):  # transformers' last hidden state is normed already
        return out.logits[0, places].float().softmax(-1)
    head = vlm.llm.get_output_embeddings()
    return head(_last_norm(vlm)(states[layer][0, places])).float().softmax(-1)


def _last_norm(vlm: BridgeVLM) -> torch.nn.Module:
    base = vlm.llm.base_model
    for name in _NORMS:
        try:
            return base.get_submodule(name)
        except AttributeError:
            continue
    raise UnsupportedModelError(
        f"{vlm.name}: the last norm of {type(vlm.llm).__name__} is not where bridge knows to look "
        f"({', '.join(_NORMS)}); take layer=-1, or method='embeddings'"
    )


def _spelled(tokenizer: Any, size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and ids of the vocabulary's pieces that spell something."""
    ids = range(min(size, len(tokenizer)))
    texts = [text.strip() for text in tokenizer.batch_decode([[i] for i in ids])]
    special = special_tokens(tokenizer)
    kept = [
        (text, i)
        for text, i in zip(texts, ids, strict=True)
        if text and "\N{REPLACEMENT CHARACTER}" not in text and text not in special
    ]
    return tuple(text for text, _ in kept), tuple(i for _, i in kept)
