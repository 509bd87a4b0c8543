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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bridge.conditioning.account import AddOn
from bridge.conditioning.drift import Drift
from bridge.conditioning.kit import open_kit
from bridge.conditioning.recipes import RECIPES
from bridge.conditioning.result import BIASES, TENSORS, Conditioning
from bridge.conditioning.sizes import Sizes
from bridge.conditioning.trace import PooledSource, Trace
from bridge.errors import WeightsError
from bridge.files import write_whole
from bridge.prompt import Token, TokenPlan, Window

FORMAT = 1


def save_conditioning(cond: Conditioning, path: str | os.PathLike[str]) -> Path:
    """Write ``cond`` to ``path``, whole or not at all, and return the path."""
    tensors = {
        name: tensor.contiguous().cpu()
        for name in (*TENSORS, "add_time_ids", *BIASES)
        if (tensor := getattr(cond, name)) is not None
    }
    account = {
        "format": FORMAT,
        "recipe": cond.recipe.name,
        "fingerprints": dict(cond.fingerprints),
        "addons": [each.to_dict() for each in cond.addons],
        "sizes": None if cond.sizes is None else asdict(cond.sizes),
        "plans": [[asdict(plan) for plan in row] for row in cond.plans],
        "negative_plans": [[asdict(plan) for plan in row] for row in cond.negative_plans],
        "traces": [asdict(trace) for trace in cond.traces],
        "negative_traces": [asdict(trace) for trace in cond.negative_traces],
    }
    target = Path(path)
    write_whole(target, save(tensors, {"bridge": json.dumps(account, ensure_ascii=False)}))
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
        cond = Conditioning(
            **{name: tensors.get(name) for name in (*TENSORS, "add_time_ids", *BIASES)},  # type: ignore[arg-type]
            plans=_plans(account["plans"]),
            negative_plans=_plans(account["negative_plans"]),
            recipe=RECIPES[account["recipe"]],
            fingerprints=account["fingerprints"],
            sizes=None if account["sizes"] is None else _sizes(account["sizes"]),
            addons=tuple(map(AddOn.from_dict, account.get("addons", ()))),
            traces=_traces(account.get("traces", [])),
            negative_traces=_traces(account.get("negative_traces", [])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{source} is damaged: {type(error).__name__} {error}.") from error
    if model is not None and not any_towers:
        brought = {each.label for each in cond.addons}
        made_with = {n: f for n, f in cond.fingerprints.items() if n not in brought}
        _check_towers(source, made_with, model)
    return cond


def _read(source: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(source, "pt") as opened:
            header = (opened.metadata() or {}).get("bridge")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        account = json.loads(header) if header is not None else None
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{source} cannot be read as a conditioning: {error}") from error
    if not isinstance(account, dict) or "prompt_embeds" not in tensors:
        raise WeightsError(f"{source} is a safetensors file, but no conditioning saved by bridge.")
    return account, tensors


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


def _plans(rows: list[list[dict[str, Any]]]) -> tuple[tuple[TokenPlan, ...], ...]:
    return tuple(tuple(_plan(plan) for plan in row) for row in rows)


def _plan(values: dict[str, Any]) -> TokenPlan:
    windows = tuple(_window(window) for window in values["windows"])
    return TokenPlan(**{**values, "windows": windows, "empty": _window(values["empty"])})


def _traces(rows: list[dict[str, Any]]) -> tuple[Trace, ...]:
    return tuple(
        Trace(
            tuple(PooledSource(**source) for source in row["pooled"]),
            tuple(Drift(**drift) for drift in row["drifts"]),
        )
        for row in rows
    )


def _window(values: dict[str, Any]) -> Window:
    return Window(tuple(values["ids"]), tuple(Token(**token) for token in values["tokens"]))


def _sizes(values: dict[str, Any]) -> Sizes:
    pairs = {name: tuple(v) for name, v in values.items() if name != "given"}
    return Sizes(**pairs, given=values["given"])
