"""A Conditioning as one safetensors file: its tensors, and in the header the account of them.

The header's ``bridge`` entry is JSON: format version, recipe, token plans (ids, weights, places
in the source), tower fingerprints, sizes, and the textual inversions and LoRAs with their hashes.
Another program can read the tensors by their diffusers names (``prompt_embeds`` ...) and ignore
the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bridge.conditioning.header import FORMAT, Header, faults_of
from bridge.conditioning.kit import open_kit
from bridge.conditioning.recipes import RECIPES
from bridge.conditioning.result import BIASES, TENSORS, Conditioning
from bridge.errors import WeightsError
from bridge.files import parse_json, write_whole
from bridge.schema import read_as
from bridge.towers.tensors import check_finite, load_tensors


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


def load_conditioning(
    path: str | os.PathLike[str], *, model: Any = None, any_towers: bool = False
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
        brought = {each.label for each in cond.addons}
        made_with = {n: f for n, f in cond.fingerprints.items() if n not in brought}
        _check_towers(source, made_with, model)
    return cond


def _read(source: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
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
    kit = open_kit(model)
    names = (use.component for use in kit.recipe.towers)
    there = dict(zip(names, kit.load().fingerprints, strict=True))
    if there != dict(made_with):
        differing = sorted(
            name for name in {*there, *made_with} if there.get(name) != made_with.get(name)
        )
        raise WeightsError(
            f"{source} was made with other towers than those of {kit.source}: "
            f"{', '.join(differing)} differ. Encode the prompt again, or pass any_towers=True; a "
            "tower in another precision counts as another."
        )
