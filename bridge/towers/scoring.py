"""How well texts and pictures fit, from their pooled states, as a model was trained to say it.

CLIP (Radford et al. 2021): the cosine times a learned scale; a softmax over the texts makes it
probabilities. SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"): the
same plus a learned bias, and a sigmoid for each pair by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from bridge.errors import OptionError


@dataclass(frozen=True)
class Scoring:
    """A model's scale (already exponentiated) and bias, and whether it judges pairs alone."""

    scale: float
    bias: float = 0.0
    sigmoid: bool = False

    def scores(self, text_pooled: Tensor, image_pooled: Tensor) -> Tensor:
        """Scores (logits) ``(T, I)`` of every text with every picture.

        Args:
            text_pooled: ``(T, P)``, normalised or not.
            image_pooled: ``(I, P)``, or ``(I, Q, P)`` of Q query tokens, of which the best counts
                (BLIP-2, Li et al. 2023, section 3.2).

        Raises OptionError when the widths differ: these are not towers of one model.
        """
        if text_pooled.shape[-1] != image_pooled.shape[-1]:
            raise OptionError(
                f"The pooled text is {text_pooled.shape[-1]} wide and the pooled picture "
                f"{image_pooled.shape[-1]}; score a text tower with its own image tower"
            )
        cosines = normalize(image_pooled, dim=-1) @ normalize(text_pooled, dim=-1).T
        if cosines.ndim == 3:
            cosines = cosines.amax(1)
        return self.scale * cosines.T + self.bias

    def probabilities(self, text_pooled: Tensor, image_pooled: Tensor) -> Tensor:
        """``(T, I)``: of each pair alone (SigLIP), or of each text among these, summing to 1."""
        scores = self.scores(text_pooled, image_pooled)
        return scores.sigmoid() if self.sigmoid else scores.softmax(0)
