"""A Conditioning as one safetensors file: its tensors, and in the header the account of them.

The header's ``bridge`` entry is JSON: format version, recipe, token plans (ids, weights, places
in the source), tower fingerprints, sizes, and the textual inversions and LoRAs with their hashes.
Another program can read the tensors by their diffusers names (``prompt_embeds`` ...) and ignore
the rest.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bridge.checks import keywords
from bridge.encoding.addons import AddOn
from bridge.encoding.conditioning import BIASES, TENSORS, Conditioning
from bridge.encoding.model import open_model
from bridge.encoding.options import Model, Sizes
from bridge.encoding.recipes import RECIPES, Recipe
from bridge.encoding.trace import Trace
from bridge.errors import WeightsError
from bridge.files import parse_json, write_whole
from bridge.prompt import Token, TokenPlan
from bridge.schema import read_as
from bridge.towers.tensors import check_finite, load_tensors

FORMAT = 1
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STATES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "add_time_ids",
)
_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
# A vocabulary is of thousands; ids are int64 in transformers and int32 in other programs.
_MOST_ID = 2**31


@dataclass(frozen=True)
class Header:
    """What the header's ``bridge`` entry says, as JSON. ``shapes`` are those of the tensors; files
    of earlier versions do not have them, nor traces and add-ons."""

    recipe: str
    fingerprints: Mapping[str, str]
    plans: tuple[tuple[TokenPlan, ...], ...]
    negative_plans: tuple[tuple[TokenPlan, ...], ...]
    sizes: Sizes | None
    addons: tuple[AddOn, ...] = ()
    traces: tuple[Trace, ...] = ()
    negative_traces: tuple[Trace, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    format: int = FORMAT

    def faults(self, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        """What in the header is out of range, or not as the tensors are."""
        if self.recipe not in RECIPES:
            yield f"there is no recipe {self.recipe!r}"
        if self.shapes:
            found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for name in sorted({*found, *self.shapes}):
                said, there = self.shapes.get(name), found.get(name)
                if said != there:
                    yield f"{name} is {there} and its header says {said}"
        if self.sizes is not None:
            yield from _of_sizes(self.sizes)
        for sign in ("", "negative_"):
            plans, traces = getattr(self, f"{sign}plans"), getattr(self, f"{sign}traces")
            if traces and len(traces) != len(plans):
                yield f"it has {len(plans)} {sign}plans and {len(traces)} {sign}traces"
            for row, own in enumerate(plans):
                if not own:
                    yield f"{sign}plans[{row}] is empty"
                for at, plan in enumerate(own):
                    for fault in _of_plan(plan):
                        yield f"{sign}plans[{row}][{at}]{fault}"
            for row, trace in enumerate(traces):
                for at, source in enumerate(trace.pooled):
                    if not (0 <= source.window < source.windows and source.place >= 0):
                        yield f"{sign}traces[{row}].pooled[{at}] names no place in a window"


@keywords
def save_conditioning(cond: Conditioning, path: str | os.PathLike[str]) -> Path:
    """Write ``cond`` to ``path``, whole or not at all, and return the path."""
    tensors = {
        name: tensor.contiguous().cpu()
        for name in (*TENSORS, "add_time_ids", *BIASES)
        if (tensor := getattr(cond, name)) is not None
    }
    header = Header(
        recipe=cond.recipe.name,
        fingerprints=dict(cond.fingerprints),
        plans=cond.plans,
        negative_plans=cond.negative_plans,
        sizes=cond.sizes,
        addons=cond.addons,
        traces=cond.traces,
        negative_traces=cond.negative_traces,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    target = Path(path)
    write_whole(target, save(tensors, {"bridge": json.dumps(asdict(header), ensure_ascii=False)}))
    return target


@keywords
def load_conditioning(
    path: str | os.PathLike[str], *, model: Model | None = None, any_towers: bool = False
) -> Conditioning:
    """Read what ``save_conditioning`` wrote; tensors are on the CPU.

    Args:
        path: the file.
        model: the model or live pipeline that it is meant for, as ``condition`` takes it. Its
            towers must be those that the file was made with.
        any_towers: take it even if they are others.

    Raises:
        WeightsError: a file that is missing, damaged, of a later format or made by other towers.
    """
    source = Path(path)
    account, tensors = _read(source)
    if account.get("format") != FORMAT:
        raise WeightsError(
            f"{source} is of format {account.get('format')!r}; this bridge reads {FORMAT}. Make "
            "it again, or use the bridge that wrote it."
        )
    try:
        header = read_as(Header, account)
    except ValueError as error:
        raise WeightsError(f"{source} is damaged: its header{error}.") from error
    _refuse(source, next(header.faults(tensors), None))
    names = (*TENSORS, "add_time_ids", *BIASES)
    cond = Conditioning(
        **{name: tensors.get(name) for name in names},  # type: ignore[arg-type]
        plans=header.plans,
        negative_plans=header.negative_plans,
        recipe=RECIPES[header.recipe],
        fingerprints=header.fingerprints,
        sizes=header.sizes,
        addons=header.addons,
        traces=header.traces,
        negative_traces=header.negative_traces,
    )
    _refuse(source, next(faults_of(cond), None))
    if model is not None and not any_towers:
        labels = {each.label for each in cond.addons}
        made_with = {n: f for n, f in cond.fingerprints.items() if n not in labels}
        _check_towers(source, made_with, model)
    return cond


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors, metadata = load_tensors(source)
    if "bridge" not in metadata or "prompt_embeds" not in tensors:
        raise WeightsError(f"{source} is a safetensors file, but no conditioning saved by bridge.")
    account = parse_json(metadata["bridge"], f"{source}: its header")
    if not isinstance(account, dict):
        raise WeightsError(f"{source} is damaged: its header is no JSON object.")
    # A bias of weight 0 is minus infinity.
    biases = {name: tensors[name].float().exp() for name in BIASES if name in tensors}
    check_finite(source, chain(biases.items(), (t for t in tensors.items() if t[0] not in BIASES)))
    return account, tensors


def _refuse(source: Path, fault: str | None) -> None:
    if fault is not None:
        raise WeightsError(f"{source} is damaged: {fault}.")


def _check_towers(source: Path, made_with: Mapping[str, str], model: Any) -> None:
    there_is = open_model(model)
    names = (use.component for use in there_is.recipe.towers)
    there = dict(zip(names, there_is.load().fingerprints, strict=True))
    if there != dict(made_with):
        differing = sorted(
            name for name in {*there, *made_with} if there.get(name) != made_with.get(name)
        )
        raise WeightsError(
            f"{source} was made with other towers than those of {there_is.source}: "
            f"{', '.join(differing)} differ. Encode the prompt again, or pass any_towers=True; a "
            "tower in another precision counts as another."
        )


# ---------------------------------------------------------------- what must agree


def faults_of(cond: Conditioning) -> Iterator[str]:
    """What does not go together in a conditioning: numbers of rows, lengths, widths, dtypes."""
    embeds, recipe = cond.prompt_embeds, cond.recipe
    if embeds.ndim != 3 or not embeds.numel():
        yield f"prompt_embeds is {tuple(embeds.shape)}, not rows of token states"
        return
    rows, length, _ = embeds.shape
    wanted: dict[str, tuple[int, ...] | None] = {
        "negative_prompt_embeds": tuple(embeds.shape),
        "negative_pooled_prompt_embeds": _shape(cond.pooled_prompt_embeds),
        **dict.fromkeys((*_MASKS, *BIASES), (rows, length)),
    }
    for name, shape in wanted.items():
        there = _shape(getattr(cond, name))
        if there is not None and there != shape:
            yield f"{name} is {there} beside prompt_embeds of {tuple(embeds.shape)}"
    yield from _of_parts(cond, recipe)
    yield from _of_dtypes(cond, recipe)
    for name in ("plans", "negative_plans"):
        yield from _divides(name, getattr(cond, name), rows, may_lack=name != "plans")
    for at, addon in enumerate(cond.addons):
        for name in ("strengths", "unet_strengths"):
            yield from _divides(f"addons[{at}].{name}", getattr(addon, name), rows, may_lack=True)


def _of_parts(cond: Conditioning, recipe: Recipe) -> Iterator[str]:
    """Tensors that the recipe has, and has not."""
    rows = len(cond)
    pooled, ids, sizes = cond.pooled_prompt_embeds, cond.add_time_ids, cond.sizes
    if (pooled is not None) != recipe.pooled or (ids is not None) != recipe.time_ids:
        yield f"its tensors are not those of {recipe.name}"
    if pooled is not None and (pooled.ndim != 2 or len(pooled) != rows):
        yield f"pooled_prompt_embeds is {tuple(pooled.shape)}, for {rows} prompts"
    if (ids is None) != (sizes is None):
        yield "it has add_time_ids without sizes, or sizes without add_time_ids"
    elif ids is not None and sizes is not None:
        row = sizes.time_ids(wants_score=ids.shape[-1:] == (5,))
        said = torch.tensor([row] * rows, dtype=torch.float64)
        # Half precision rounds them.
        if ids.shape != said.shape or not torch.allclose(ids.double(), said, rtol=0.01, atol=0.01):
            yield "add_time_ids are not those of its sizes"


def _of_dtypes(cond: Conditioning, recipe: Recipe) -> Iterator[str]:
    dtypes = {tensor.dtype for name in _STATES if (tensor := getattr(cond, name)) is not None}
    if len(dtypes) > 1 or not dtypes <= {*_FLOATS}:
        yield f"its states are of {', '.join(sorted(map(str, dtypes)))}"
    of_masks = {"int": (torch.int64,), "bool": (torch.bool,), "one_pad": _FLOATS, None: ()}
    allowed = {**dict.fromkeys(_MASKS, of_masks[recipe.mask]), **dict.fromkeys(BIASES, _FLOATS)}
    for name, kinds in allowed.items():
        tensor = getattr(cond, name)
        if tensor is not None and tensor.dtype not in kinds:
            yield f"{name} is of {tensor.dtype}, which {recipe.name} does not have there"


def _divides(name: str, accounts: Sequence[Any], rows: int, *, may_lack: bool) -> Iterator[str]:
    """One for each row, or for several in turn, as repeated prompts share theirs."""
    if not accounts and may_lack:
        return
    if not accounts or rows % len(accounts):
        yield f"it has {len(accounts)} {name} for {rows} rows"


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


# ---------------------------------------------------------------- ranges


def _of_sizes(sizes: Sizes) -> Iterator[str]:
    for name, least in (("original_size", 1), ("crops_coords_top_left", 0), ("target_size", 1)):
        if min(getattr(sizes, name)) < least:
            yield f"sizes.{name} has a number below {least}"


def _of_plan(plan: TokenPlan) -> Iterator[str]:
    end = len(plan.source)
    if not plan.windows:
        yield " has no windows"
    if plan.cut_tokens < 0 or not 0 <= (plan.cut_start or 0) <= end:
        yield " cuts off what its text does not have"
    if not _are_ids((plan.pad_id, plan.mask_id)):
        yield " has a pad_id or mask_id that is no token's"
    for at, window in enumerate((*plan.windows, plan.empty)):
        place = f".windows[{at}]" if at < len(plan.windows) else ".empty"
        if len(window.ids) != plan.limit or len(window.tokens) > plan.limit:
            yield f"{place} is not of the {plan.limit} places of its limit"
        elif not _are_ids(window.ids) or any(
            token.id != own for token, own in zip(window.tokens, window.ids, strict=False)
        ):
            yield f"{place} has ids that are no tokens' or not its tokens'"
        if not all(_in_text(token, end) for token in window.tokens):
            yield f"{place} has a token beyond its text, or of no finite weight"


def _are_ids(ids: Sequence[int]) -> bool:
    return all(0 <= i < _MOST_ID for i in ids)


def _in_text(token: Token, end: int) -> bool:
    ordered = 0 <= token.start <= token.end <= end
    return ordered and min(token.word, token.fragment) >= 0 and math.isfinite(token.weight)
