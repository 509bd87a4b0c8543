"""Each contrastive loss with a small model of its own, in fp64: gradients of one batch, by form.

The model has dropout, since a form that draws other numbers is another model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bridge.contrastive.distributed import average_gradients, place
from bridge.contrastive.grad_cache import Encoded, cached_backward
from bridge.contrastive.losses import (
    CLIP_START,
    CoCaLoss,
    InfoNCE,
    MemoryBank,
    PooledPairs,
    SigmoidLoss,
    caption_groups,
    log_popularity,
)

ROWS, WIDTH, LENGTH, WORDS = 8, 6, 5, 11
CAPTIONS = ["a cat", "a dog", "a cat", "a hen", "an ox", "a dog", "a bee", "a cat"]


class TinyModel(nn.Module):
    """Two towers, a caption decoder, a temperature and a bias; fp64."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.image, self.text = (
                nn.Sequential(
                    nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, WIDTH)
                )
                for _ in range(2)
            )
            self.words = nn.Linear(5, LENGTH * WORDS)
        self.logit_scale = nn.Parameter(torch.tensor(CLIP_START))
        self.logit_bias = nn.Parameter(torch.tensor(-3.0))
        self.double()


@dataclass(frozen=True)
class Rows:
    """Inputs of some rows: pictures and texts ``(b, 5)``, labels ``(b, LENGTH)``."""

    image: Tensor
    text: Tensor
    labels: Tensor
    groups: Tensor
    log_q: Tensor

    def __getitem__(self, at: slice) -> Rows:
        return Rows(*(column[at] for column in vars(self).values()))


def all_rows() -> Rows:
    draws = torch.Generator().manual_seed(3)
    image, text = (torch.randn(ROWS, 5, generator=draws, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, WORDS, (ROWS, LENGTH), generator=draws)  # 0 pads, unevenly
    return Rows(image, text, labels, caption_groups(CAPTIONS), log_popularity(CAPTIONS).double())


def full_bank() -> MemoryBank:
    """Three of four places filled."""
    bank = MemoryBank(4, WIDTH).double()
    draws = torch.Generator().manual_seed(5)
    image, text = (torch.randn(3, WIDTH, generator=draws, dtype=torch.float64) for _ in range(2))
    bank.image[:3], bank.text[:3] = (nn.functional.normalize(each) for each in (image, text))
    bank.groups[:3] = caption_groups(["a dog", "a hare", "a newt"])
    bank.log_q[:3] = torch.tensor([-1.0, -2.0, -3.0])
    bank.count += 3
    return bank


Loss = Callable[[TinyModel, PooledPairs], Tensor]


def _nce(**options: object) -> Loss:
    loss = InfoNCE(**options)  # type: ignore[arg-type]
    return lambda model, pairs: loss(pairs, model.logit_scale)


def _sigmoid(way: str) -> Loss:
    loss = SigmoidLoss(way)
    return lambda model, pairs: loss(pairs, model.logit_scale, model.logit_bias)


def _with_bank(model: TinyModel, pairs: PooledPairs) -> Tensor:
    return InfoNCE("mask")(pairs, model.logit_scale, full_bank())


COCA = CoCaLoss()
LOSSES: dict[str, Loss] = {
    "infonce": _nce(),
    "infonce-mask": _nce(same_caption="mask"),
    "infonce-positive": _nce(same_caption="positive"),
    "infonce-hard": _nce(hardness=0.5),
    "infonce-hard-positive": _nce(same_caption="positive", hardness=0.5),
    "infonce-bank": _with_bank,
    "sigmoid": _sigmoid("negative"),
    "sigmoid-mask": _sigmoid("mask"),
    "sigmoid-positive": _sigmoid("positive"),
    "coca": lambda model, pairs: COCA.contrast(pairs, model.logit_scale),
}


def gradients(
    name: str, *, form: str, dropout: float = 0.0, part: int = 2, keep: int = 0
) -> dict[str, Tensor]:
    """The loss and every parameter's gradient, of this process' share of the rows.

    ``form`` is "plain" (one graph over the parts), "cached" or "whole" (one part).
    """
    model = TinyModel(dropout).train()
    loss = LOSSES[name]
    rank, processes = place()
    share = ROWS // processes
    rows = all_rows()[slice(rank * share, (rank + 1) * share)]
    tokens = COCA.tokens(rows.labels)
    logged = name in ("infonce", "infonce-hard")

    def encode(some: Rows) -> Encoded:
        own = None
        if name == "coca":
            logits = model.words(some.image).view(-1, LENGTH, WORDS)
            own = COCA.caption(logits, some.labels, tokens)
        log_q = some.log_q if logged else None
        image, text = model.image(some.image), model.text(some.text)
        return Encoded(PooledPairs(image, text, some.groups, log_q), own)

    size = share if form == "whole" else part
    parts = [rows[at : at + size] for at in range(0, share, size)]
    torch.manual_seed(11)
    if form == "cached":
        total, _ = cached_backward(encode, parts, lambda p: loss(model, p), keep=keep)
    else:
        made = [encode(each) for each in parts]
        pairs = PooledPairs(
            torch.cat([each.pairs.image for each in made]),
            torch.cat([each.pairs.text for each in made]),
            rows.groups,
            rows.log_q if logged else None,
        )
        total = loss(model, pairs)
        total = total + sum(each.own_loss for each in made if each.own_loss is not None)
        total.backward()
    average_gradients(model.parameters())
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": total.detach(), "next draw": torch.rand(1), **found}
