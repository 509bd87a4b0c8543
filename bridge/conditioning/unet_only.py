"""What only a UNet can do, refused for models that draw with a transformer."""

from __future__ import annotations

from bridge.conditioning.kit import Kit
from bridge.errors import UnsupportedModelError

_UNETS = ("sd15", "sd21", "sdxl", "sdxl-refiner")


def check_unet(kit: Kit, what: str) -> None:
    """Raises UnsupportedModelError unless the kit's model draws with a UNet."""
    if kit.recipe.name not in _UNETS:
        raise UnsupportedModelError(
            f"{what} inside a UNet; {kit.source} ({kit.recipe.name}) has none. It works with "
            f"{', '.join(_UNETS)}."
        )
