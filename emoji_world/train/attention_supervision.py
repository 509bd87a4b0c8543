"""Where a question's nouns should look: supervised attention for the answerer.

"Is there a cat?" needs one thing that no other question does: to find, among the soft tokens, the
one that a word stands for. Left to the answers' loss, a small language model stays at chance there
long after it names all that it sees. The scene's truth is known, so two heads of its second layer
are told: from the last token of a noun look at the patches of that thing, and where there are none
at the beginning token. Attention was supervised so in translation (Liu et al. 2016, "Neural
Machine Translation with Supervised Attention", arXiv:1609.04186).
"""

from __future__ import annotations

from typing import Any

import torch

from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.concepts import CONCEPTS
from emoji_world.train.soft_words import word_ids

LAYER = 1  # the first one cannot join the pieces of a noun before it looks for them
HEADS = 2
_NONE = -1
_LEAST = 1e-4  # of attention: keeps the loss of a head that looks elsewhere finite


class Nouns:
    """The names of all things, as runs of the tokens of ``words``."""

    def __init__(self, words: Any) -> None:
        self._concept = {
            tuple(word_ids(words, name)): number
            for number, concept in enumerate(CONCEPTS)
            for name in (concept.one, concept.many)
        }
        self._longest = max(map(len, self._concept))

    def ends(self, ids: list[int], labels: list[int]) -> list[int]:
        """Per token the concept whose name ends there, -1 elsewhere and in what is taught.

        Of names that begin at one token the longest counts.
        """
        found = [_NONE] * len(ids)
        start = 0
        while start < len(ids):
            for length in range(min(self._longest, len(ids) - start), 0, -1):
                concept = self._concept.get(tuple(ids[start : start + length]), _NONE)
                if concept != _NONE:
                    break
            end = start + length - 1
            if concept != _NONE and labels[end] == IGNORE_LABEL:
                found[end] = concept
            start = end + 1
        return found


def look_loss(
    attention: torch.Tensor, ends: torch.Tensor, concepts: torch.Tensor, first: int
) -> tuple[torch.Tensor, float]:
    """Mean of -log of the attention that lies where it should, and that attention's mean.

    Args:
        attention: (B, heads, T, T) of the layer, after its softmax.
        ends: (B, T) long, `Nouns.ends` of each row.
        concepts: (B, S) long, the concept that stands in each of the S patches.
        first: the place of the first soft token in every row.
    """
    row, place = (ends != _NONE).nonzero(as_tuple=True)
    heads = attention[row, :HEADS, place].float()
    wanted = concepts[row] == ends[row, place][:, None]
    seen = heads[..., first : first + concepts.shape[1]]
    on_thing = (seen * wanted[:, None]).sum(-1)
    mass = torch.where(wanted.any(1)[:, None], on_thing, heads[..., 0])
    return -(mass + _LEAST).log().mean(), mass.mean().item()
