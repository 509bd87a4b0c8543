"""Reading the small files of a model folder: no torch, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises WeightsError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing; the model folder is incomplete.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}); fetch it again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds no JSON object; fetch it again.")
    return value
