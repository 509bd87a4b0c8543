"""The result of conditioning: tensors for a pipeline, and the account of how they came about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridge.checks import is_whole, keywords
from bridge.encoding.addons import AddOn, taken
from bridge.encoding.options import Sizes
from bridge.encoding.recipes import Recipe
from bridge.encoding.trace import Trace, remarks_of
from bridge.errors import OptionError
from bridge.markup import Markup, fill, joined
from bridge.prompt import TokenPlan, TokenReport, report_of
from bridge.runtime import Dtype, check_dtype

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.encoding.algebra import Between
    from bridge.encoding.options import Model

TENSORS = (
    "prompt_embeds",
    "pooled_prompt_embeds",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_attention_mask",
)

BIASES = ("attention_bias", "negative_attention_bias")
HOW_TO_INJECT = "draw inside `with bridge.inject(pipe, conditioning) as kwargs: pipe(**kwargs)`."


@keywords
@dataclass(frozen=True, eq=False, repr=False)
class Conditioning:
    """What a UNet or transformer is conditioned on, for B prompts and their B negatives.

    Attributes:
        prompt_embeds: ``(B, T, D)``; T is 77 a window of CLIP, D the towers' widths joined.
        pooled_prompt_embeds: ``(B, P)``, or None where the recipe has no pooled state.
        negative_prompt_embeds: ``(B, T, D)``, or None where the recipe needs no negative (FLUX.1)
            and none was given.
        negative_pooled_prompt_embeds: ``(B, P)`` or None.
        add_time_ids: ``(B, 6)`` sizes (``(B, 5)`` for a refiner), or None.
        plans: for each prompt, the token plan of each tower.
        negative_plans: the same of the negatives; empty where they are zeros.
        recipe: the row of the recipe table.
        fingerprints: tower name -> fingerprint of its config and weights; the same of add-ons.
        sizes: what ``add_time_ids`` is made of, or None.
        prompt_attention_mask: ``(B, T)``, or None where the recipe has no mask (see
            ``Recipe.mask`` for its dtype).
        negative_prompt_attention_mask: the same of the negatives.
        addons: the textual inversions and LoRAs that took part, with their files' hashes.
        attention_bias: ``(B, T)``, what the emphasis ``unet_attention_bias`` adds to the
            UNet's cross-attention logits of each token; None without it.
        negative_attention_bias: ``(B, T)`` or None, the same of the negatives.
        traces: for each prompt, where its pooled state was read and what emphasis did.
        negative_traces: the same of the negatives; empty where they are zeros.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None
    add_time_ids: Tensor | None
    plans: tuple[tuple[TokenPlan, ...], ...]
    negative_plans: tuple[tuple[TokenPlan, ...], ...]
    recipe: Recipe
    fingerprints: Mapping[str, str]
    sizes: Sizes | None = None
    prompt_attention_mask: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    addons: tuple[AddOn, ...] = ()
    attention_bias: Tensor | None = None
    negative_attention_bias: Tensor | None = None
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

        Raises:
            OptionError: weights that act inside the UNet, so that ``bridge.inject`` is needed.
        """
        if self.is_biased:
            raise OptionError(
                "unet_attention_bias acts inside the UNet, and so do prompts and negatives of very "
                f"unequal length (with align='empty' they do not): {HOW_TO_INJECT}"
            )
        ready = self if num_images == 1 else self.repeat(num_images)
        tensors = {name: getattr(ready, name) for name in TENSORS}
        found: dict[str, Any] = dict.fromkeys(self.recipe.cleared)
        found |= {name: t for name, t in tensors.items() if t is not None}
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
        if not is_whole(num_images, 1):
            raise OptionError(f"num_images must be a whole number above 0, not {num_images!r}.")
        return self.map_tensors(lambda tensor: tensor.repeat_interleave(num_images, dim=0))

    def rows(self, start: int, stop: int) -> Conditioning:
        """The prompts from ``start`` up to ``stop``, as a conditioning of their own."""
        return self.take(range(start, stop))

    def take(self, rows: Sequence[int]) -> Conditioning:
        """The prompts at ``rows``, in that order, as a conditioning of their own."""
        chosen = [range(len(self))[row] for row in rows]
        part = self.map_tensors(lambda tensor: tensor[chosen])

        def of(accounts: tuple[Any, ...]) -> tuple[Any, ...]:
            return taken(accounts, chosen, len(self))

        return replace(
            part,
            plans=of(self.plans),
            negative_plans=of(self.negative_plans),
            addons=tuple(each.take(chosen, len(self)) for each in self.addons),
            traces=of(self.traces),
            negative_traces=of(self.negative_traces),
        )

    def to(
        self, device: torch.device | str | None = None, dtype: Dtype | None = None
    ) -> Conditioning:
        """The same on another device or in another dtype; masks of whole numbers keep theirs."""
        kind = check_dtype(dtype)

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=kind if tensor.is_floating_point() else None)

        return self.map_tensors(moved)

    def report(self) -> ConditioningReport:
        """What each tower read of each prompt and negative, and what was cut off."""
        return ConditioningReport(
            recipe=self.recipe.name,
            prompts=tuple(report_of(plans) for plans in self.plans),
            negatives=tuple(report_of(plans) for plans in self.negative_plans),
            addons=self.addons,
            traces=self.traces,
            negative_traces=self.negative_traces,
        )

    def warnings(self) -> tuple[str, ...]:
        """A sentence for each text that was cut off and each emphasis beyond its limits, as Python
        warned of when it was made."""
        return (
            *remarks_of(self.plans, self.traces, "prompt"),
            *remarks_of(self.negative_plans, self.negative_traces, "negative prompt"),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it with its account as a safetensors file, whole or not at all. See
        ``bridge.encoding.save_conditioning``."""
        from bridge.encoding.interchange import save_conditioning

        return save_conditioning(self, path)

    @staticmethod
    def load(
        path: str | os.PathLike[str], *, model: Model | None = None, any_towers: bool = False
    ) -> Conditioning:
        """Read what ``save`` wrote. See ``bridge.encoding.load_conditioning``, which documents the
        options and the errors."""
        from bridge.encoding.interchange import load_conditioning

        return load_conditioning(path, model=model, any_towers=any_towers)

    def interpolate(
        self, other: Conditioning, t: float, *, method: Between = "linear"
    ) -> Conditioning:
        """What lies between this (``t=0``) and another (``t=1``). See ``algebra.interpolate``."""
        from bridge.encoding.algebra import interpolate

        return interpolate(self, other, t, method=method)

    def concatenate(self, *others: Conditioning) -> Conditioning:
        """With the token states of others after its own. See ``algebra.concatenate``."""
        from bridge.encoding.algebra import concatenate

        return concatenate((self, *others))

    def subtract(
        self, concept: Conditioning, strength: float = 1.0, *, base: Conditioning | None = None
    ) -> Conditioning:
        """Without a concept. See ``algebra.subtract``."""
        from bridge.encoding.algebra import subtract

        return subtract(self, concept, strength, base=base)

    def zero_negatives(self) -> Conditioning:
        """With zeros for negatives. See ``algebra.zero_negatives``."""
        from bridge.encoding.algebra import zero_negatives

        return zero_negatives(self)

    def map_tensors(self, change: Any) -> Conditioning:
        changed: dict[str, Any] = {}
        for name in (*TENSORS, "add_time_ids", *BIASES):
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
    addons: tuple[AddOn, ...] = ()
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
        of_prompts = (
            "\n".join([title, report.text(), *trace.lines()])
            for title, report, trace in self._titled()
        )
        return "\n".join([*of_prompts, *(each.text() for each in self.addons)])

    def html(self) -> str:
        """All reports as an HTML fragment; all text is escaped."""
        return str(self.__html__())

    def __html__(self) -> Markup:
        of_prompts = (fill("<h4>{}</h4>{}{}", *titled) for titled in self._titled())
        lines = (fill('<p class="bridge-addon">{}</p>', each.text()) for each in self.addons)
        return joined([*of_prompts, *lines])

    def to_dict(self) -> dict[str, Any]:
        """All reports as plain values, ready for JSON."""
        return {
            "recipe": self.recipe,
            "prompts": _dicts(self.prompts, self.traces),
            "negatives": _dicts(self.negatives, self.negative_traces),
            "addons": [each.to_dict() for each in self.addons],
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
