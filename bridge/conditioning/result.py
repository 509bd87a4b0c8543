"""The result of conditioning: tensors for a pipeline, and the account of how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.recipes import Recipe
from bridge.conditioning.sizes import Sizes
from bridge.errors import OptionError
from bridge.prompt import TokenPlan, TokenReport, report_of

TENSORS = (
    "prompt_embeds",
    "pooled_prompt_embeds",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
)

BIASES = ("attention_bias", "negative_attention_bias")
HOW_TO_INJECT = "draw inside `with bridge.inject(pipe, conditioning) as kwargs: pipe(**kwargs)`."


@dataclass(frozen=True, eq=False, repr=False)
class Conditioning:
    """What a UNet is conditioned on, for B prompts and their B negatives.

    Attributes:
        prompt_embeds: ``(B, T, D)``; T is 77, D the towers' widths joined.
        pooled_prompt_embeds: ``(B, P)``, or None where the recipe has no pooled state.
        negative_prompt_embeds: ``(B, T, D)``.
        negative_pooled_prompt_embeds: ``(B, P)`` or None.
        add_time_ids: ``(B, 6)`` sizes (``(B, 5)`` for a refiner), or None.
        plans: for each prompt, the token plan of each tower.
        negative_plans: the same of the negatives; empty where they are zeros.
        recipe: the row of the recipe table.
        fingerprints: tower name -> fingerprint of its config and weights.
        sizes: what ``add_time_ids`` is made of, or None.
        attention_bias: ``(B, T)``, what the emphasis ``unet_attention_bias`` adds to the
            UNet's cross-attention logits of each token; None without it.
        negative_attention_bias: ``(B, T)`` or None, the same of the negatives.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor
    negative_pooled_prompt_embeds: Tensor | None
    add_time_ids: Tensor | None
    plans: tuple[tuple[TokenPlan, ...], ...]
    negative_plans: tuple[tuple[TokenPlan, ...], ...]
    recipe: Recipe
    fingerprints: Mapping[str, str]
    sizes: Sizes | None = None
    attention_bias: Tensor | None = None
    negative_attention_bias: Tensor | None = None

    def __repr__(self) -> str:
        shape, dtype = tuple(self.prompt_embeds.shape), self.prompt_embeds.dtype
        return (
            f"Conditioning({self.recipe.name}, prompt_embeds {shape} {dtype} on "
            f"{self.prompt_embeds.device})"
        )

    def __len__(self) -> int:
        """B, the number of prompts (times repeats)."""
        return self.prompt_embeds.shape[0]

    def kwargs(self, num_images: int = 1) -> dict[str, Any]:
        """The keyword arguments of a stock diffusers pipeline call: ``pipe(**cond.kwargs())``.

        Text-to-image, img2img, inpaint and ControlNet pipelines of the family take them. Sizes
        are among them only if they were given to ``condition``, because img2img and inpaint
        else derive them from their picture, as they do for a plain prompt.

        Args:
            num_images: pictures for each prompt, made by repeating the tensors; the pipeline's
                own ``num_images_per_prompt`` does the same.

        Raises:
            OptionError: weights that act inside the UNet, so that ``bridge.inject`` is needed.
        """
        if self.is_biased:
            raise OptionError(f"unet_attention_bias acts inside the UNet: {HOW_TO_INJECT}")
        ready = self if num_images == 1 else self.repeat(num_images)
        tensors = {name: getattr(ready, name) for name in TENSORS}
        found: dict[str, Any] = {name: t for name, t in tensors.items() if t is not None}
        if self.sizes is not None and self.sizes.given:
            found["original_size"] = self.sizes.original_size
            found["crops_coords_top_left"] = self.sizes.crops_coords_top_left
            found["target_size"] = self.sizes.target_size
        return found

    @property
    def is_biased(self) -> bool:
        """Whether it has weights that act inside the UNet."""
        return self.attention_bias is not None

    def without_bias(self) -> Conditioning:
        """The same without weights that act inside the UNet."""
        return replace(self, attention_bias=None, negative_attention_bias=None)

    def repeat(self, num_images: int) -> Conditioning:
        """Each prompt ``num_images`` times, in diffusers' order: a, a, b, b. Raises OptionError."""
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
            raise OptionError(f"num_images must be a whole number above 0, not {num_images!r}.")
        return self._mapped(lambda tensor: tensor.repeat_interleave(num_images, dim=0))

    def rows(self, start: int, stop: int) -> Conditioning:
        """The prompts from ``start`` up to ``stop``, as a conditioning of their own."""
        return self.take(range(start, stop))

    def take(self, rows: Sequence[int]) -> Conditioning:
        """The prompts at ``rows``, in that order, as a conditioning of their own."""
        chosen = list(rows)
        part = self._mapped(lambda tensor: tensor[chosen])
        negative_plans = [self.negative_plans[i] for i in chosen] if self.negative_plans else ()
        return replace(
            part,
            plans=tuple(self.plans[i] for i in chosen),
            negative_plans=tuple(negative_plans),
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """The same on another device or in another dtype."""
        return self._mapped(lambda tensor: tensor.to(device=device, dtype=dtype))

    def report(self) -> ConditioningReport:
        """What each tower read of each prompt and negative, and what was cut off."""
        return ConditioningReport(
            recipe=self.recipe.name,
            prompts=tuple(report_of(plans) for plans in self.plans),
            negatives=tuple(report_of(plans) for plans in self.negative_plans),
        )

    def _mapped(self, change: Any) -> Conditioning:
        changed: dict[str, Any] = {}
        for name in (*TENSORS, "add_time_ids", *BIASES):
            tensor = getattr(self, name)
            changed[name] = None if tensor is None else change(tensor)
        return replace(self, **changed)


@dataclass(frozen=True)
class ConditioningReport:
    """Token reports of a whole call. ``negatives`` is empty where they are zeros."""

    recipe: str
    prompts: tuple[TokenReport, ...]
    negatives: tuple[TokenReport, ...]

    @property
    def is_cut(self) -> bool:
        """Whether any text was cut off."""
        return any(report.is_cut for report in (*self.prompts, *self.negatives))

    def text(self) -> str:
        """All reports as plain text."""
        return "\n".join(f"{title}\n{report.text()}" for title, report in self._titled())

    def html(self) -> str:
        """All reports as an HTML fragment; all text is escaped."""
        return "".join(f"<h4>{title}</h4>{report.html()}" for title, report in self._titled())

    def to_dict(self) -> dict[str, Any]:
        """All reports as plain values, ready for JSON."""
        return {
            "recipe": self.recipe,
            "prompts": [report.to_dict() for report in self.prompts],
            "negatives": [report.to_dict() for report in self.negatives],
        }

    def __str__(self) -> str:
        return self.text()

    def _titled(self) -> list[tuple[str, TokenReport]]:
        named = [("prompt", self.prompts), ("negative prompt", self.negatives)]
        return [
            (name if len(reports) == 1 else f"{name} {i}", report)
            for name, reports in named
            for i, report in enumerate(reports)
        ]
