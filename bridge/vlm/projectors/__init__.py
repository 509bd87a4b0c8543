"""From the width of the vision tower to the width of the language model.

A projector takes image states (B, N, D_vision), gives soft tokens (B, M, D_llm), and says
beforehand how many: `n_soft_tokens` of a grid is M. One file each; `PROJECTORS` is the table.
"""

from bridge.vlm.projectors.per_state import MlpProjector, mlp2x_gelu
from bridge.vlm.projectors.protocol import Grid, Projector
from bridge.vlm.projectors.queries import qformer_from_blip2
from bridge.vlm.projectors.registry import (
    PROJECTORS,
    build_projector,
    load_projector,
    save_projector,
)

__all__ = [
    "PROJECTORS",
    "Grid",
    "MlpProjector",
    "Projector",
    "build_projector",
    "load_projector",
    "mlp2x_gelu",
    "qformer_from_blip2",
    "save_projector",
]
