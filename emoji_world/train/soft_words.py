"""What soft tokens should say: the words for what stands in each patch, as a loss and as targets.

The dense loss asks each soft token on a thing for the words of that thing and its tint, through
the language model's own embeddings. To match a word of a question with what is seen then takes
one look, which the model had else to find by itself, late if ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import TINTS, Scene
from emoji_world.train.data import PatchTruth, patch_truth


def word_ids(words: Any, text: str) -> list[int]:
    """The tokens of ``text`` as it stands within a sentence, by the tokenizer ``words``."""
    return list(words(f" {text}", add_special_tokens=False)["input_ids"])


def occurring(words: Any) -> list[int]:
    """The tokens that things and tints are written in, in order."""
    nouns = [*(concept.one for concept in CONCEPTS), *TINTS]
    return sorted({token for noun in nouns for token in word_ids(words, noun)})


def shares(words: Any, nouns: Sequence[str], among: Sequence[int]) -> torch.Tensor:
    """(len(nouns), len(among)): one row a noun, equal shares for the tokens it is written in.

    ``among`` are token ids, all that the nouns need with them.
    """
    column = {token: place for place, token in enumerate(among)}
    table = torch.zeros(len(nouns), len(among), dtype=torch.float32)
    for row, noun in enumerate(nouns):
        ids = word_ids(words, noun)
        for token in ids:
            table[row, column[token]] += 1 / len(ids)
    return table


class SoftWords:
    """The dense loss: what words each soft token should stand for.

    ``among`` are the ids of the tokens that a soft token is told from; by default the whole
    vocabulary. Of a large one `occurring` is enough, and takes a hundredth of the time.
    """

    def __init__(
        self,
        words: Any,
        among: Sequence[int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        among = range(len(words)) if among is None else among
        self.things = shares(words, [concept.one for concept in CONCEPTS], among).to(device)
        self.tints = shares(words, list(TINTS), among).to(device)

    def loss(self, soft: torch.Tensor, embeddings: torch.Tensor, truth: PatchTruth) -> torch.Tensor:
        """Cross-entropy of the words that soft tokens (B, 64, D) on things are nearest to.

        ``embeddings`` (K, D) are those of the tokens it chooses among; all on one device.
        """
        on_thing = truth.concept < len(CONCEPTS)
        wanted = self.things[truth.concept[on_thing]]
        tint = truth.tint[on_thing]  # 0 for natural colours, which have no word
        wanted[tint > 0] = (wanted[tint > 0] + self.tints[tint[tint > 0] - 1]) / 2
        # At one length, as the language model's first norm takes them.
        states = F.rms_norm(soft[on_thing].float(), soft.shape[-1:])
        return F.cross_entropy(states @ embeddings.T, wanted)


@torch.no_grad()
def word_targets(
    words: Any, embed: Callable[[torch.Tensor], torch.Tensor], scenes: Sequence[Scene]
) -> torch.Tensor:
    """(B, 64, D): the mean input embedding of the words for what stands in each patch, its style
    with it. ``embed`` is the language model's own table, scale included."""
    truth = patch_truth(list(scenes))
    known: dict[str, torch.Tensor] = {}
    rows = []
    for scene, concepts, tints in zip(scenes, truth.concept, truth.tint, strict=True):
        for concept, tint in zip(concepts.tolist(), tints.tolist(), strict=True):
            if concept == len(CONCEPTS):
                text = f"{scene.background} background {scene.style}"
            else:
                dye = f"{TINTS[tint - 1]} " if tint > 0 else ""
                text = f"{dye}{CONCEPTS[concept].one} {scene.style}"
            if text not in known:
                known[text] = (
                    embed(torch.tensor(word_ids(words, text), dtype=torch.long)).float().mean(0)
                )
            rows.append(known[text])
    return torch.stack(rows).view(len(scenes), truth.concept.shape[1], -1)


def as_fitted(targets: torch.Tensor) -> torch.Tensor:
    """Word targets (B, 64, D) shrunk by up to a half and blurred by up to half of what they vary,
    each picture's by another share: what a linear fit to them gives is both."""
    shrunk, blurred = (
        torch.rand(2, len(targets), 1, 1, device=targets.device, dtype=torch.float32) / 2
    )
    noise = torch.randn_like(targets) * targets.std()
    return (1 - shrunk) * targets + blurred * noise
