"""From a tower's pixels to the states that the projector takes, and how many soft tokens they make.

    picture of H x W -> patches of the tower -> states that are kept -> soft tokens

Layers are counted as LLaVA counts them: an index into the hidden states, where 0 is the
embeddings, -1 the last layer's output and -2 the one before. The tower's final norm is
not applied. Extra states (a class token, registers), where a tower has them, come first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bridge.errors import OptionError, UnsupportedModelError
from bridge.vlm.projectors.protocol import Grid, Projector

SelectFeature = Literal["patch", "cls_patch", "drop_first"]
"""Which states: the patches alone; all of them; or all but the first, whatever that is.

"patch" drops what a tower has beside patches, and nothing of a tower without a class token.
transformers' LLaVA drops the first state of every tower, a patch of SigLIP's too
(transformers#34447): "drop_first" is for checkpoints that were trained so.
"""
SelectLayer = int | tuple[int, ...]

# Parameters that become states of their own, by the names that transformers' towers give them.
_EXTRA = ("class_embedding", "cls_token", "distillation_token", "register_tokens")


def image_states(
    tower: nn.Module,
    pixel_values: torch.Tensor,
    select_layer: SelectLayer,
    select_feature: SelectFeature,
) -> torch.Tensor:
    """(B, 3, H, W) pixels to (B, N, D) states; several layers are joined along D.

    After LLaVA's `CLIPVisionTower`. Raises OptionError for a size that the tower does not take,
    UnsupportedModelError when it gives no states in a row.
    """
    layers = (select_layer,) if isinstance(select_layer, int) else select_layer
    try:
        out = tower(**_inputs(tower, pixel_values), output_hidden_states=True, return_dict=True)
    except ValueError as error:
        height, width = pixel_values.shape[-2:]
        raise OptionError(
            f"{type(tower).__name__} does not take pictures of {height}x{width} pixels, which is "
            f"what the image processor makes: {error}"
        ) from error
    chosen = [out.hidden_states[layer] for layer in layers]
    if chosen[0].ndim != 3:
        raise UnsupportedModelError(
            f"{type(tower).__name__} gives states of shape {tuple(chosen[0].shape)}; bridge needs "
            "a tower of patches in a row (B, N, D)"
        )
    start = n_dropped(tower, select_feature)
    return torch.cat([states[:, start:] for states in chosen], dim=-1)


def image_grid(tower: nn.Module, height: int, width: int) -> Grid:
    """Rows and columns of patches in a picture of this size."""
    rows, columns = patch_size(tower)
    return height // rows, width // columns


def n_extra_states(tower: nn.Module) -> int:
    """States beside patches: CLIP's towers have a class token, DINOv2's may have registers,
    SigLIP's have nothing. The config does not say; the parameters do."""
    return sum(p.shape[-2] if p.ndim > 1 else 1 for p in _extra(tower))


def n_dropped(tower: nn.Module, select_feature: SelectFeature) -> int:
    """How many states are dropped from the front."""
    return {"patch": n_extra_states(tower), "cls_patch": 0, "drop_first": 1}[select_feature]


def states_width(tower: nn.Module, select_layer: SelectLayer) -> int:
    """The width D of what `image_states` gives."""
    layers = 1 if isinstance(select_layer, int) else len(select_layer)
    return _setting(tower, "hidden_size") * layers


def patch_size(tower: nn.Module) -> tuple[int, int]:
    """Height and width of a patch in pixels."""
    size = getattr(tower.config, "patch_size", None)
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    side = _setting(tower, "patch_size")
    return side, side


def _setting(tower: nn.Module, name: str) -> int:
    value = getattr(tower.config, name, None)
    if not isinstance(value, int):
        raise UnsupportedModelError(
            f"{type(tower).__name__} is not an image tower that bridge can pair: its config has no "
            f"{name} (CLIP's, SigLIP's, DINOv2's and other ViTs have)"
        )
    return value


def _extra(tower: nn.Module) -> Iterator[nn.Parameter]:
    return (p for name, p in tower.named_parameters() if name.rpartition(".")[2] in _EXTRA)


def _inputs(tower: nn.Module, pixel_values: torch.Tensor) -> dict[str, Any]:
    """What the tower's forward is called with: pixels, or the patches that SigLIP 2 takes."""
    if getattr(tower.config, "model_type", "") != "siglip2_vision_model":
        return {"pixel_values": pixel_values}
    batch, _, height, width = pixel_values.shape
    rows, columns = image_grid(tower, height, width)
    high, wide = patch_size(tower)
    cut = pixel_values[:, :, : rows * high, : columns * wide]
    patches = cut.unflatten(3, (columns, wide)).unflatten(2, (rows, high))
    # (B, C, rows, high, columns, wide): a patch is a row of pixels, each with its colours.
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": pixel_values.new_ones(batch, rows * columns, dtype=torch.long),
        "spatial_shapes": torch.tensor(
            [[rows, columns]] * batch, device=pixel_values.device, dtype=torch.long
        ),
    }


@dataclass(frozen=True)
class SoftTokens:
    """The count of one picture, and every step of it, so that an error can say where it is from."""

    tower: str
    grid: Grid
    extra: int  # states of the tower beside patches: class token, registers
    dropped: int  # states left out from the front
    projector: str
    count: int

    @property
    def states(self) -> int:
        """How many states the projector is given."""
        return self.grid[0] * self.grid[1] + self.extra - self.dropped

    @property
    def layout(self) -> Grid | None:
        """The grid, if the states that are kept are exactly its patches."""
        return self.grid if self.extra == self.dropped else None

    def __str__(self) -> str:
        rows, columns = self.grid
        beside = f", {self.extra} beside, {self.dropped} dropped" if self.extra else ""
        if not self.extra and self.dropped:
            beside = f", {self.dropped} dropped"
        return (
            f"{self.count} soft tokens ({self.tower}: {rows}x{columns} patches{beside}; "
            f"{self.projector}: {self.states} states to {self.count})"
        )


def soft_tokens_of(
    tower: nn.Module, projector: Projector, select_feature: SelectFeature, height: int, width: int
) -> SoftTokens:
    """Count for a preprocessed picture of ``height`` x ``width`` pixels; nothing is run.

    Raises OptionError when the projector cannot take the grid.
    """
    grid = image_grid(tower, height, width)
    extra, dropped = n_extra_states(tower), n_dropped(tower, select_feature)
    states = grid[0] * grid[1] + extra - dropped
    return SoftTokens(
        tower=type(tower).__name__,
        grid=grid,
        extra=extra,
        dropped=dropped,
        projector=getattr(projector, "kind", type(projector).__name__),
        count=projector.n_soft_tokens(grid if extra == dropped else states),
    )
