"""What peft's config says of a LoRA's scale: ``alpha / r`` of each layer.

It lies beside the tensors (``adapter_config.json``) or in their header, as diffusers keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError
from bridge.files import parse_json, read_json
from bridge.towers.layer_pattern import LayerPatternError, compiled, is_plain, matches
from bridge.towers.lora_keys import Key

METADATA = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
MOST_EXPRESSIONS = 4_000
"""Characters of all regular expressions of a config; plain names are not counted."""

AlphaOf = Callable[[Key, int], float | None]
"""From a layer and its rank to its ``alpha / r``; None where nothing is said."""


def alphas_beside(config: Path) -> AlphaOf:
    """From a config file of peft. Raises WeightsError."""
    scaling = _scaling(read_json(config), "", str(config))
    return lambda key, rank: scaling(key.layer, rank)


def alphas_within(source: Path, metadata: Mapping[str, str]) -> AlphaOf:
    """From the header of a file of diffusers, if it has any. Raises WeightsError."""
    if METADATA not in metadata:
        return lambda key, rank: None
    where = f"{source}: its {METADATA}"
    packed = parse_json(metadata[METADATA], where)
    if not isinstance(packed, dict):
        raise WeightsError(f"{where} is no JSON object.")
    towers = ("", "text_encoder", "text_encoder_2")
    scalings = {tower: _scaling(packed, f"{tower}.", where) for tower in towers}
    return lambda key, rank: scalings[key.tower](key.layer, rank)


def _scaling(
    config: Mapping[str, Any], prefix: str, where: str
) -> Callable[[str, int], float | None]:
    """From a layer's path and rank to ``alpha / r``; all that the config says is checked here."""
    named = f"{prefix}lora_alpha"
    common = None if config.get(named) is None else _number(config[named], f"{where}: {named}")
    own = _patterns(config.get(f"{prefix}alpha_pattern"), f"{where}: {prefix}alpha_pattern")
    stabilised = bool(config.get(f"{prefix}use_rslora"))

    def scale(layer: str, rank: int) -> float | None:
        # As peft: a pattern is the end of a layer's path, and the first that fits counts.
        path = f"text_model.{layer}"
        alpha = next((value for pattern, value in own.items() if matches(pattern, path)), common)
        return None if alpha is None else alpha / (math.sqrt(rank) if stabilised else rank)

    return scale


def _patterns(given: Any, where: str) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise WeightsError(f"{where} is {given!r:.60}, not names of layers with numbers.")
    expressions = [pattern for pattern in given if not is_plain(pattern)]
    length = sum(map(len, expressions))
    if length > MOST_EXPRESSIONS:
        raise WeightsError(
            f"{where} has regular expressions of {length:,} characters; at most "
            f"{MOST_EXPRESSIONS:,} are read. Write the layers' plain names."
        )
    for pattern in expressions:
        try:
            compiled(pattern)
        except LayerPatternError as error:
            raise WeightsError(
                f"{where}: the pattern {pattern!r:.80} {error}. Write the layers' plain names."
            ) from error
    return {
        pattern: _number(value, f"{where}, {pattern!r:.80}") for pattern, value in given.items()
    }


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise WeightsError(f"{where} must be a finite number, not {value!r:.60}.")
    return number
