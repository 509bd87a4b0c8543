"""How many tokens an encoder has positions for."""

from __future__ import annotations

from typing import Any


def positions(encoder: Any) -> int:
    """``max_position_embeddings``, less those that no token has: RoBERTa and its kin count from
    the one after padding's, whose row their table keeps empty. XLM-R's 514 are 512."""
    count = int(encoder.config.get_text_config().max_position_embeddings)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    empty = getattr(table, "padding_idx", None)
    return count if empty is None else count - empty - 1
