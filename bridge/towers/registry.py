"""The table of towers by the names that people know them by. Nothing here imports torch.

Widths, contexts and layers are those of the checkpoints' configs (text: width, pooled width,
context, layers; image: width, patch, side in pixels).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bridge.store import EMBEDDED, embedded_state


@dataclass(frozen=True)
class TowerRow:
    """One row of the table.

    Attributes:
        name: the short name.
        family: a name of ``TEXT_FAMILIES`` or ``IMAGE_FAMILIES``.
        source: hub id, or an embedded model's name.
        text_width, pooled_width, context, layers: of the text side; 0 where there is none.
        image_width, patch, image_size: of the image side; 0 where there is none.
        licence: of the weights, as their page says.
        notes: what to know before using it.
        files: patterns of further files to fetch, beside those of a stock layout.
    """

    name: str
    family: str
    source: str
    text_width: int
    pooled_width: int
    context: int
    layers: int
    image_width: int
    patch: int
    image_size: int
    licence: str
    notes: str = ""
    files: tuple[str, ...] = ()

    def at_hand(self) -> bool:
        """Whether it opens without a network: it is embedded, or in the hub's local cache."""
        if self.source in EMBEDDED:
            return embedded_state(self.source) == "ready"
        from huggingface_hub import try_to_load_from_cache

        names = ("config.json", "open_clip_config.json")
        return any(isinstance(try_to_load_from_cache(self.source, name), str) for name in names)


ROWS: tuple[TowerRow, ...] = (
    TowerRow(
        "emoji-1", "clip", "emoji-clip", 192, 192, 77, 4, 192, 16, 128, "Apache-2.0",
        "embedded: tower 1 of emoji-xl",
    ),
    TowerRow(
        "emoji-2", "clip", "emoji-clip-2", 224, 256, 77, 4, 192, 16, 128, "Apache-2.0",
        "embedded: tower 2 of emoji-xl",
    ),
    TowerRow(
        "clip-l", "clip", "openai/clip-vit-large-patch14", 768, 768, 77, 12, 1024, 14, 224, "MIT",
        "SD 1's text tower, and the first of SDXL, SD 3 and FLUX",
    ),
    TowerRow(
        "openclip-h", "clip", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        1024, 1024, 77, 24, 1280, 14, 224, "MIT", "SD 2's text tower (its penultimate layer)",
    ),
)  # fmt: skip


def find_row(name: str) -> TowerRow | None:
    """The row of a short name, or None."""
    return next((row for row in ROWS if row.name == name), None)


def towers() -> list[dict[str, Any]]:
    """The table, a dictionary a row, with ``at_hand``: whether it opens without a network."""
    return [{**asdict(row), "at_hand": row.at_hand()} for row in ROWS]
