"""The losses that put texts and pictures into one space.

============  ====================================================================================
InfoNCE       softmax both ways over a batch: Radford et al. 2021, "Learning Transferable Visual
              Models From Natural Language Supervision" (CLIP)
SigmoidLoss   each pair by itself: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"
CoCaLoss      InfoNCE and captioning: Yu et al. 2022, "CoCa: Contrastive Captioners ..."
MemoryBank    negatives of earlier batches: He et al. 2020, "Momentum Contrast" (MoCo's queue)
hardness      weight on hard negatives: Radenović et al. 2023, "Filtering, Distillation, and Hard
              Negatives for Vision-Language Pre-Training", eq. 2 (after Robinson et al. 2021,
              "Contrastive Learning with Hard Negative Samples")
log_q         popularity: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling", eq. 3
============  ====================================================================================

**Equal captions.** Two rows of a batch with one caption are each other's false negatives: the loss
pushes a picture away from a text that is right. ``same_caption`` says what becomes of them:
``"negative"`` leaves it so, as OpenAI and open_clip do; ``"mask"`` leaves such a pair out;
``"positive"`` makes all texts equal to a picture's own its targets, in equal shares (UniCL, Yang et
al. 2022; for the sigmoid, a label of 1).

**Several processes.** Each is given its own rows, as many as any other. The mean of what they
return is the loss of all rows, and the mean of their gradients its gradient
(`distributed.average_gradients`). InfoNCE gathers vectors; the sigmoid hands them round a ring.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.checks import choice, is_finite, is_whole, keywords
from bridge.contrastive.distributed import gather_rows, place, ring, sum_over_processes
from bridge.errors import OptionError

LOG_MOST = math.log(100.0)
"""The highest ``logit_scale`` of InfoNCE: the cosine times 100 at most (Radford et al. 2021). The
sigmoid has no limit: SigLIP's SO400M at 384 has 112.3 (open_clip issue 746)."""
CLIP_START = math.log(1 / 0.07)
"""What CLIP's ``logit_scale`` starts at. SigLIP's starts at log 10, its bias at -10."""
SAME_CAPTION = ("negative", "mask", "positive")


@dataclass(frozen=True, eq=False)
class PooledPairs:
    """Pictures and their texts, row by row, of this process.

    Attributes:
        image, text: pooled states ``(B, P)``, normalised or not, of any floating type; the loss is
            computed in fp32, or fp64 where they are.
        groups: ``(B,)`` int64, the same number for the same caption (`caption_groups`); None where
            nobody asks.
        log_q: ``(B,)``, the log of the share that each caption has of the data (`log_popularity`).
    """

    image: Tensor
    text: Tensor
    groups: Tensor | None = None
    log_q: Tensor | None = None


def exp_scale(logit_scale: Tensor) -> Tensor:
    """``1 / τ`` of ``ln(1 / τ)``, 100 at most. At the limit a gradient still flows."""
    return logit_scale.clamp(max=LOG_MOST).exp()


@keywords
@torch.no_grad()
def clamp_scale_(logit_scale: Tensor) -> None:
    """Bring a learnt ``ln(1 / τ)`` back between 0 and ln 100, after each step, as open_clip does.

    Above the limit the loss no longer depends on it, so it would never come back by itself.
    """
    logit_scale.clamp_(0.0, LOG_MOST)


@keywords
def caption_groups(captions: Sequence[str]) -> Tensor:
    """``(B,)`` int64: the same number for the same caption, in every process and run."""
    digests = [hashlib.sha256(words_of(each).encode()).digest() for each in captions]
    numbers = [int.from_bytes(each[:8], "big", signed=True) for each in digests]
    return torch.tensor(numbers, dtype=torch.int64)


@keywords
def log_popularity(captions: Sequence[str]) -> Tensor:
    """``(N,)`` fp32: of each caption of the data, the log of its share of all N."""
    return log_shares(caption_shares([(each,) for each in captions]), captions)


def caption_shares(rows: Sequence[Sequence[str]]) -> dict[str, float]:
    """Of each caption, by its words, how much of the data is seen with it; of several that a row
    has, one is drawn."""
    counts: dict[str, float] = {}
    for captions in rows:
        for each in map(words_of, captions):
            counts[each] = counts.get(each, 0.0) + 1 / len(captions)
    return {text: count / len(rows) for text, count in counts.items()}


def log_shares(shares: Mapping[str, float], captions: Sequence[str]) -> Tensor:
    """``(B,)`` fp32: the logs of the shares of some captions."""
    found = [shares[words_of(each)] for each in captions]
    return torch.tensor(found, dtype=torch.float32).log()


def words_of(caption: str) -> str:
    """What a caption is told from others by: blanks alone make no other one."""
    return " ".join(caption.split())


# ---------------------------------------------------------------- InfoNCE


class MemoryBank(nn.Module):
    """Vectors of the last ``size`` pairs, the oldest forgotten first: negatives at no cost.

    In MoCo they are a momentum encoder's, an average of the trained one; with vectors of the
    trained encoder itself it is a cross-batch memory (Wang et al. 2020). All of it are buffers, so
    a checkpoint of the module holds it.
    """

    image: Tensor
    text: Tensor
    groups: Tensor
    log_q: Tensor
    count: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if not is_whole(size, 1):
            raise OptionError(f"a memory bank has {size!r} places; give a whole number from 1 up")
        for name in ("image", "text"):
            self.register_buffer(name, torch.zeros(size, width, dtype=torch.float32))
        self.register_buffer("groups", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("log_q", torch.zeros(size, dtype=torch.float32))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> int:
        """How many places hold a pair."""
        return min(int(self.count), len(self.image))

    @torch.no_grad()
    def push(self, pairs: PooledPairs) -> None:
        """Keep the pairs of all processes, in the place of the oldest."""
        image, text = (
            gather_rows(F.normalize(each.detach(), dim=-1)) for each in (pairs.image, pairs.text)
        )
        size, new = len(self.image), len(image)
        order = torch.arange(new, device=image.device, dtype=torch.int64)
        places = (self.count + order) % size
        for name, rows in (("groups", pairs.groups), ("log_q", pairs.log_q)):
            if rows is not None:
                getattr(self, name)[places[-size:]] = gather_rows(rows)[-size:]
        self.image[places[-size:]] = image[-size:].to(self.image)
        self.text[places[-size:]] = text[-size:].to(self.text)
        self.count += new


@dataclass(frozen=True)
class InfoNCE:
    """Which text belongs to a picture, and which picture to a text, among those of a batch.

    Args:
        same_caption: what becomes of rows with one caption, as above.
        hardness: β of the hard negatives, 0 for none; published values lie between 0.1 and 1. A
            negative of logit l weighs as ``exp(β l)``, at a mean weight of 1.

    Raises:
        OptionError: a value out of range.
    """

    same_caption: str = "negative"
    hardness: float = 0.0

    def __post_init__(self) -> None:
        choice(self.same_caption, SAME_CAPTION, "way with equal captions")
        if not is_finite(self.hardness, 0):
            raise OptionError(f"hardness is {self.hardness!r}; give a number from 0 up")

    def __call__(
        self, pairs: PooledPairs, logit_scale: Tensor, bank: MemoryBank | None = None
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            pairs: this process' rows.
            logit_scale: ln(1 / τ), a scalar.
            bank: further negatives, the same in all processes; it is read, not changed.

        Raises:
            OptionError: a batch of one, which has nothing to be told apart from; no ``groups``
                where equal captions are asked about.
        """
        own = _normalised(pairs)
        rank, processes = place()
        count = len(own.image)
        if count * processes + (bank.filled if bank is not None else 0) < 2:
            raise OptionError(
                "InfoNCE tells a pair from the others of its batch, and this batch has one; give a "
                "batch_size of 2 or more, or the sigmoid loss"
            )
        # Both sides in one message, so that the backward pass exchanges in one order everywhere.
        image, text = gather_rows(torch.cat([own.image, own.text], 1)).chunk(2, 1)
        groups = self._groups(own)
        all_groups = None if groups is None else gather_rows(groups)
        log_q = None if own.log_q is None else gather_rows(own.log_q)
        if bank is not None:
            kept = slice(0, bank.filled)
            image, text = (
                torch.cat([rows, old[kept].to(rows)])
                for rows, old in ((image, bank.image), (text, bank.text))
            )
            if all_groups is not None:
                all_groups = torch.cat([all_groups, bank.groups[kept]])
            if log_q is not None:
                log_q = torch.cat([log_q, bank.log_q[kept].to(log_q)])
        target = torch.arange(count, device=image.device, dtype=torch.int64) + rank * count
        same = None
        if groups is not None and all_groups is not None:
            same = groups[:, None] == all_groups
        scale = exp_scale(logit_scale)
        to_text = scale * own.image @ text.T
        if log_q is not None:
            to_text = to_text - log_q
        to_image = scale * own.text @ image.T
        return (self._entropy(to_text, target, same) + self._entropy(to_image, target, same)) / 2

    def _groups(self, pairs: PooledPairs) -> Tensor | None:
        if self.same_caption == "negative":
            return None
        return _asked_groups(pairs, self.same_caption)

    def _entropy(self, logits: Tensor, target: Tensor, same: Tensor | None) -> Tensor:
        """Mean cross-entropy of ``(b, N)`` logits; ``same``: which columns have a row's caption."""
        if same is None and not self.hardness:
            return F.cross_entropy(logits, target)
        own = F.one_hot(target, logits.shape[1]).bool()
        same = own if same is None else same
        if self.hardness:
            # A row without a negative has nothing to weigh; zeros keep its gradient finite.
            hard = (self.hardness * logits).masked_fill(same, -torch.inf)
            hard = hard.masked_fill(same.all(1, keepdim=True), 0.0)
            count = (~same).sum(1, keepdim=True).clamp(min=1).to(logits)
            weight = hard - hard.logsumexp(1, keepdim=True) + count.log()
            logits = torch.where(same, logits, logits + weight.masked_fill(same, 0.0))
        if self.same_caption == "mask":
            return F.cross_entropy(logits.masked_fill(same & ~own, -torch.inf), target)
        if self.same_caption == "positive":
            return F.cross_entropy(logits, same.to(logits) / same.sum(1, keepdim=True))
        return F.cross_entropy(logits, target)


# ---------------------------------------------------------------- sigmoid


@dataclass(frozen=True)
class SigmoidLoss:
    """Whether a text and a picture belong together, asked of every pair by itself.

    Args:
        same_caption: what becomes of rows with one caption, as above.

    Raises:
        OptionError: another name.
    """

    same_caption: str = "negative"

    def __post_init__(self) -> None:
        choice(self.same_caption, SAME_CAPTION, "way with equal captions")

    def __call__(self, pairs: PooledPairs, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
        """The loss, a scalar: the sum over all pairs by the number of pictures.

        Args:
            pairs: this process' rows.
            logit_scale: ln(1 / τ), a scalar.
            logit_bias: a learnt scalar, about -10 at first: most pairs do not belong together.

        Raises:
            OptionError: no ``groups`` where equal captions are asked about.
        """
        own = _normalised(pairs)
        scale = logit_scale.exp()
        asked = self.same_caption != "negative"
        groups = _asked_groups(own, self.same_caption) if asked else None
        mine = torch.eye(len(own.image), dtype=torch.bool, device=own.image.device)

        def block(text: Tensor, theirs: Tensor | None, positive: Tensor) -> Tensor:
            logits = scale * own.image @ text.T + logit_bias
            if groups is None or theirs is None:
                return -F.logsigmoid(torch.where(positive, logits, -logits)).sum()
            same = groups[:, None] == theirs
            if self.same_caption == "positive":
                return -F.logsigmoid(torch.where(same, logits, -logits)).sum()
            each = F.logsigmoid(torch.where(positive, logits, -logits))
            return -each.masked_fill(same & ~positive, 0.0).sum()

        total = block(own.text, groups, mine)
        others = (own.text,) if groups is None else (own.text, groups)
        for text, *theirs in ring(*others):
            total = total + block(text, theirs[0] if theirs else None, torch.zeros_like(mine))
        return total / len(own.image)


# ---------------------------------------------------------------- CoCa


@dataclass(frozen=True)
class CoCaLoss:
    """InfoNCE of pooled states, and cross-entropy of captions: `contrast` and `caption`.

    The captioning half is a sum over rows, so a large batch is taken in parts as it is; the
    contrastive half goes through `grad_cache`.

    Args:
        contrastive, captioning: the weights of both; 1 and 2 in the paper.
        pad_id: the token that nothing is learnt of.
        loss: the contrastive half.
    """

    contrastive: float = 1.0
    captioning: float = 2.0
    pad_id: int = 0
    loss: InfoNCE = InfoNCE()

    def contrast(self, pairs: PooledPairs, logit_scale: Tensor) -> Tensor:
        """The weighted contrastive half, as `InfoNCE`."""
        return self.contrastive * self.loss(pairs, logit_scale)

    def tokens(self, labels: Tensor) -> int:
        """How many tokens of ``labels`` are learnt, in all processes together."""
        count = (labels != self.pad_id).sum()
        return int(sum_over_processes(count))

    def caption(self, logits: Tensor, labels: Tensor, tokens: int) -> Tensor:
        """The weighted captioning half of some rows; those of a batch add up.

        Args:
            logits: ``(b, T, V)``, of what follows each place.
            labels: ``(b, T)`` int64, what does follow.
            tokens: `tokens` of the whole batch.
        """
        total = F.cross_entropy(
            logits.flatten(0, 1).to(_exact(logits)),
            labels.flatten(),
            ignore_index=self.pad_id,
            reduction="sum",
        )
        return self.captioning * place()[1] * total / max(1, tokens)


# ---------------------------------------------------------------- what they share


def _asked_groups(pairs: PooledPairs, way: str) -> Tensor:
    if pairs.groups is None:
        raise OptionError(
            f"same_caption is {way!r}, and the pairs do not say which captions are equal; give "
            "groups=caption_groups(captions)"
        )
    return pairs.groups


def _normalised(pairs: PooledPairs) -> PooledPairs:
    if len(pairs.image) != len(pairs.text):
        raise OptionError(
            f"there are {len(pairs.image)} pictures and {len(pairs.text)} texts; row k of both "
            "belongs together, so give as many of one as of the other"
        )
    image, text = (F.normalize(each.to(_exact(each)), dim=-1) for each in (pairs.image, pairs.text))
    return PooledPairs(image, text, pairs.groups, pairs.log_q)


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
