"""What compel's parser reads of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Parts = list[tuple[float, list[tuple[str, float]]]]


def read_by_compel(parser: Any, prompt: str) -> tuple[str, Parts]:
    conjunction = parser.parse_conjunction(prompt)
    parts, weights = conjunction.prompts, conjunction.weights
    kind = "and" if len(parts) > 1 else "one"
    if len(parts) == 1 and type(parts[0]).__name__ == "Blend":
        blend = parts[0]
        kind = "blend" if blend.normalize_weights else "sum"
        parts, weights = blend.prompts, blend.weights
    return kind, [
        (weight, [(c.text, round(c.weight, 9)) for c in fragments(part) if c.text])
        for part, weight in zip(parts, weights, strict=True)
    ]


def fragments(part: Any) -> Iterator[Any]:
    """What compel encodes of a part: of a ``.swap()`` the original."""
    for child in part.children:
        yield from getattr(child, "original", [child])
