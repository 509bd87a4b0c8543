"""timm's image networks as towers of open_clip's models (SigLIP, EVA, ConvNeXt, MobileCLIP, PE).

Wightman 2019, "PyTorch Image Models" (timm, an extra of bridge); the rules by which a network's
pooling and its map into the shared space are chosen are open_clip 3.3's (``timm_model.py``), and so
are the parameters' names: ``trunk`` is timm's network, ``head`` what open_clip puts behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bridge.errors import MissingDependencyError, OptionError, UnsupportedModelError

# open_clip's own poolings, behind a network without any.
_POOLS = ("abs_attn", "rot_attn")
_MAPS = ("linear", "mlp")


@dataclass(frozen=True)
class TimmShape:
    """What a network is made by, and what a tower's fingerprint counts as its config.

    Attributes:
        name: timm's.
        pool, projection: open_clip's names of how states are pooled and mapped; "" leaves both to
            the network.
        bias: whether the map ends in a bias.
        image_size: the side of pictures.
        pooled: the width of pooled states.
        patch_size: pixels a side of one place of the last states; 0 before the network is made.
    """

    name: str
    pool: str
    projection: str
    bias: bool
    image_size: int
    pooled: int
    patch_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `towers.fingerprint` asks for a config."""
        return asdict(self)


class TimmImage(nn.Module):
    """Pixels to states of layers and a pooled state."""

    def __init__(self, shape: TimmShape) -> None:
        super().__init__()
        timm = _timm(shape.name)
        if shape.pool in _POOLS or shape.projection in _MAPS:
            self.trunk = timm.create_model(shape.name, pretrained=False)
            pool = "" if shape.pool in _POOLS else shape.pool
            # A network whose pooling no config names keeps its own.
            named = {"global_pool": pool} if pool or shape.pool in _POOLS else {}
            self.trunk.reset_classifier(0, **named)
            width = self.trunk.num_features
        else:
            # The network's own classifier maps into the shared space, or nothing does.
            classes = 0 if shape.projection == "none" else shape.pooled
            self.trunk = timm.create_model(
                shape.name, pretrained=False, num_classes=classes, global_pool=shape.pool
            )
            width = shape.pooled
        self.head = _head(timm, self.trunk, shape, width)
        self.config = replace(shape, patch_size=int(self.trunk.feature_info[-1]["reduction"]))

    @property
    def layers(self) -> int:
        """How many layers of one width and one grid it has; 1 for a network of stages."""
        return len(getattr(self.trunk, "blocks", "1"))

    def forward(self, pixels: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Maps ``(B, D, h, w)`` of ``layers``, counted from the end, and pooled ``(B, P)``.

        Raises OptionError for an inner layer of a network of stages, and for the embeddings.
        """
        wanted = sorted(set(layers))
        if wanted[0] < -self.layers:
            raise OptionError(
                f"{self.config.name} gives no states before its first layer; ask for layers down "
                f"to {-self.layers}"
            )
        last, maps = self.trunk.forward_intermediates(pixels, indices=wanted)
        found = dict(zip(wanted, maps, strict=True))
        return [found[each] for each in layers], self.head(self.trunk.forward_head(last))

    def pool(self, pixels: Tensor) -> Tensor:
        """Pooled states ``(B, P)`` alone; of a vision transformer also where it sees a part of a
        picture's patches, which make no grid."""
        if not hasattr(self.trunk, "patch_drop"):
            return self(pixels, (-1,))[1]
        found: Tensor = self.head(self.trunk.forward_head(self.trunk.forward_features(pixels)))
        return found


def _timm(name: str) -> Any:
    """The package. Raises MissingDependencyError, UnsupportedModelError for a name it lacks."""
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(
            f"the image tower is timm's network {name!r}; install timm with: "
            "pip install 'bridge[timm]'"
        ) from error
    # Not create_model's own look: a name with a colon makes it ask the hub.
    if not timm.is_model(name):
        raise UnsupportedModelError(
            f"vision_cfg.timm_model_name is {name!r}, and timm {timm.__version__} has no such "
            "network; a later timm may"
        )
    return timm


def _head(timm: Any, trunk: Any, shape: TimmShape, width: int) -> nn.Sequential:
    """open_clip's pooling and map behind a network, where its config asks for them."""
    head = nn.Sequential()
    if shape.pool == "abs_attn":
        side = trunk.default_cfg.get("pool_size")
        head.pool = timm.layers.AttentionPool2d(width, feat_size=side, out_features=shape.pooled)
    elif shape.pool == "rot_attn":
        head.pool = timm.layers.RotAttentionPool2d(width, out_features=shape.pooled)
    width = shape.pooled if shape.pool in _POOLS else width
    if shape.projection == "linear":
        head.proj = nn.Linear(width, shape.pooled, bias=shape.bias, dtype=torch.float32)
    elif shape.projection == "mlp":
        inner, biases = 2 * shape.pooled, (True, shape.bias)
        head.mlp = timm.layers.Mlp(width, inner, shape.pooled, bias=biases)
    return head
