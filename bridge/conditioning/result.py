"""The result of conditioning: tensors for a pipeline, and the account of how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.recipes import Recipe
from bridge.conditioning.sizes import Sizes
from bridge.conditioning.trace import Trace
from bridge.errors import OptionError
from bridge.prompt import TokenPlan, TokenReport, report_of

TENSORS = (
    "prompt_embeds",
    "pooled_prompt_embeds",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


@dataclass(frozen=True, eq=False, repr=False)
class Conditioning:
    """What a UNet is conditioned on, for B prompts and their B negatives.

    Attributes:
        prompt_embeds: ``(B, T, D)``; T is 77 for one window of CLIP, D the towers' widths joined.
        pooled_prompt_embeds: ``(B, P)``, or None where the recipe has no pooled state.
        negative_prompt_embeds: ``(B, T, D)``.
        negative_pooled_prompt_embeds: ``(B, P)`` or None.
        add_time_ids: ``(B, 6)`` sizes (``(B, 5)`` for a refiner), or None.
        plans: for each prompt, the token plan of each tower.
        negative_plans: the same of the negatives; empty where they are zeros.
        recipe: the row of the recipe table.
        fingerprints: tower name -> fingerprint of its config and weights.
        sizes: what ``add_time_ids`` is made of, or None.
        traces: for each prompt, where its pooled state was read and what emphasis did.
        negative_traces: the same of the negatives; empty where they are zeros.
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
    traces: tuple[Trace, ...] = ()
    negative_traces: tuple[Trace, ...] = ()

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
        """
        ready = self if num_images == 1 else self.repeat(num_images)
        tensors = {name: getattr(ready, name) for name in TENSORS}
        found: dict[str, Any] = {name: t for name, t in tensors.items() if t is not None}
        if self.sizes is not None and self.sizes.given:
            found["original_size"] = self.sizes.original_size
            found["crops_coords_top_left"] = self.sizes.crops_coords_top_left
            found["target_size"] = self.sizes.target_size
        return found

    def repeat(self, num_images: int) -> Conditioning:
        """Each prompt ``num_images`` times, in diffusers' order: a, a, b, b. Raises OptionError."""
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
            raise OptionError(f"num_images must be a whole number above 0, not {num_images!r}.")
        return self._mapped(lambda tensor: tensor.repeat_interleave(num_images, dim=0))

    def rows(self, start: int, stop: int) -> Conditioning:
        """The prompts from ``start`` up to ``stop``, as a conditioning of their own."""
        part = self._mapped(lambda tensor: tensor[start:stop])
        plans, negative_plans = self.plans[start:stop], self.negative_plans[start:stop]
        return replace(
            part,
            plans=plans,
            negative_plans=negative_plans,
            traces=self.traces[start:stop],
            negative_traces=self.negative_traces[start:stop],
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
            traces=self.traces,
            negative_traces=self.negative_traces,
        )

    def interpolate(self, other: Conditioning, t: float, *, method: str = "linear") -> Conditioning:
        """What lies between this (``t=0``) and another (``t=1``). See ``algebra.interpolate``."""
        from bridge.conditioning.algebra import interpolate

        return interpolate(self, other, t, method=method)

    def concatenate(self, *others: Conditioning) -> Conditioning:
        """With the token states of others after its own. See ``algebra.concatenate``."""
        from bridge.conditioning.algebra import concatenate

        return concatenate((self, *others))

    def subtract(
        self, concept: Conditioning, strength: float = 1.0, *, base: Conditioning | None = None
    ) -> Conditioning:
        """Without a concept. See ``algebra.subtract``."""
        from bridge.conditioning.algebra import subtract

        return subtract(self, concept, strength, base=base)

    def zero_negatives(self) -> Conditioning:
        """With zeros for negatives. See ``algebra.zero_negatives``."""
        from bridge.conditioning.algebra import zero_negatives

        return zero_negatives(self)

    def _mapped(self, change: Any) -> Conditioning:
        changed: dict[str, Any] = {}
        for name in (*TENSORS, "add_time_ids"):
            tensor = getattr(self, name)
            changed[name] = None if tensor is None else change(tensor)
        return replace(self, **changed)


@dataclass(frozen=True)
class ConditioningReport:
    """Token reports of a whole call, each with its trace. ``negatives`` is empty where they are
    zeros."""

    recipe: str
    prompts: tuple[TokenReport, ...]
    negatives: tuple[TokenReport, ...]
    traces: tuple[Trace, ...] = ()
    negative_traces: tuple[Trace, ...] = ()

    @property
    def is_cut(self) -> bool:
        """Whether any text was cut off."""
        return any(report.is_cut for report in (*self.prompts, *self.negatives))

    @property
    def is_off_manifold(self) -> bool:
        """Whether any emphasis went beyond its limits."""
        traces = (*self.traces, *self.negative_traces)
        return any(drift.reasons for trace in traces for drift in trace.drifts)

    def text(self) -> str:
        """All reports as plain text."""
        return "\n".join(
            "\n".join([title, report.text(), *trace.lines()])
            for title, report, trace in self._titled()
        )

    def html(self) -> str:
        """All reports as an HTML fragment; all text is escaped."""
        return "".join(
            f"<h4>{title}</h4>{report.html()}{trace.html()}"
            for title, report, trace in self._titled()
        )

    def to_dict(self) -> dict[str, Any]:
        """All reports as plain values, ready for JSON."""
        return {
            "recipe": self.recipe,
            "prompts": _dicts(self.prompts, self.traces),
            "negatives": _dicts(self.negatives, self.negative_traces),
        }

    def __str__(self) -> str:
        return self.text()

    def _titled(self) -> list[tuple[str, TokenReport, Trace]]:
        named = [
            ("prompt", self.prompts, self.traces),
            ("negative prompt", self.negatives, self.negative_traces),
        ]
        return [
            (name if len(reports) == 1 else f"{name} {i}", report, trace)
            for name, reports, traces in named
            for i, (report, trace) in enumerate(_paired(reports, traces))
        ]


def _paired(
    reports: tuple[TokenReport, ...], traces: tuple[Trace, ...]
) -> list[tuple[TokenReport, Trace]]:
    """Reports with their traces; files of an older bridge have none."""
    return list(zip(reports, traces or (Trace(),) * len(reports), strict=True))


def _dicts(reports: tuple[TokenReport, ...], traces: tuple[Trace, ...]) -> list[dict[str, Any]]:
    return [{**report.to_dict(), **trace.to_dict()} for report, trace in _paired(reports, traces)]
