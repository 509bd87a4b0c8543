"""What stands for a negative that is empty or not given, as each dialect's tool has it.

SDXL was trained with zeros in the place of an empty text. diffusers puts them where no negative is
given and the pipeline's ``force_zeros_for_empty_prompt`` says so; the webui (``a1111``) also where
it is the empty text (``get_learned_conditioning`` in ``sd_models_xl.py``); ComfyUI encodes ``""``.
"""

from __future__ import annotations

from bridge.conditioning.kit import Kit
from bridge.conditioning.rows import Rows
from bridge.conditioning.wording import Wording
from bridge.prompt import Prompt, parse


def given(
    kit: Kit, wording: Wording, negatives: tuple[Prompt, ...] | None, count: int
) -> tuple[Prompt, ...] | None:
    """The negatives to encode for ``count`` prompts; None where zeros or nothing stand for them."""
    zeros = kit.zeros_for_none and wording.dialect != "comfy"
    if negatives is None and not (zeros or kit.recipe.none_for_none):
        return (parse("", wording.dialect),) * count
    return negatives


def emptied(kit: Kit, wording: Wording, rows: Rows, texts: list[tuple[str, ...]]) -> Rows:
    """The rows of negatives, with zeros for those that the webui has none for.

    Args:
        rows: one a negative.
        texts: what all towers read, for each negative.
    """
    if not kit.zeros_for_none or wording.dialect != "a1111":
        return rows
    states, pooled = rows
    kept = states.new_tensor([float(any(some)) for some in texts])
    zeroed = states * kept[:, None, None]
    return zeroed, None if pooled is None else pooled * kept[:, None].to(pooled)
