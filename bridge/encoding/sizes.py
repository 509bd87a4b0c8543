"""SDXL's micro-conditioning: sizes as ``add_time_ids``.

Podell et al. 2023, "SDXL", section 2.2. The order is diffusers' (``_get_add_time_ids``):
original height and width, crop top and left, target height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.checks import is_whole
from bridge.errors import OptionError

# diffusers' default for the refiner, whose ids end in a score instead of the target size.
_AESTHETIC_SCORE = 6.0


@dataclass(frozen=True)
class Sizes:
    """Sizes as ``(height, width)``, the crop as ``(top, left)``.

    ``given`` says whether the caller named any of them. Only then do they go into a pipeline
    call: left alone, img2img and inpaint take them from their picture.
    """

    original_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int]
    given: bool

    def time_ids(self, wants_score: bool = False) -> tuple[float, ...]:
        """The row of ``add_time_ids`` for one prompt: six numbers, five with a score."""
        last = (_AESTHETIC_SCORE,) if wants_score else self.target_size
        return (*self.original_size, *self.crops_coords_top_left, *last)


@dataclass(frozen=True)
class SizeRequest:
    """The sizes that a call names; None for what it does not."""

    height: int | None = None
    width: int | None = None
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None

    def filled(self, default: tuple[int, int] | None) -> Sizes:
        """With what was not named, as diffusers has it: sizes default to height and width.

        Args:
            default: ``(height, width)`` that the model draws, if it says.

        Raises:
            OptionError: no size is given and the model states none.
        """
        if default is None and (self.height is None or self.width is None):
            if self.original_size is None or self.target_size is None:
                raise OptionError(
                    "The model does not say what size it draws; give height and width, or "
                    "original_size and target_size."
                )
            default = self.target_size
        fallback = default or (0, 0)
        picture = (self.height or fallback[0], self.width or fallback[1])
        return Sizes(
            self.original_size or picture,
            self.crops_coords_top_left or (0, 0),
            self.target_size or picture,
            given=self != NO_SIZES,
        )


NO_SIZES = SizeRequest()
"""None is named."""


def latent_scale(vae_config: Mapping[str, Any]) -> int | None:
    """How many pixels a latent is wide, from a VAE's config; None if it does not say.

    AutoencoderTiny names its channels by side, and may leave the common name out.
    """
    for key in ("block_out_channels", "decoder_block_out_channels"):
        blocks = vae_config.get(key)
        if isinstance(blocks, (list, tuple)) and blocks:
            return int(2 ** (len(blocks) - 1))
    return None


def check_length(value: object, what: str) -> int | None:
    """A height or width in pixels, or None. Raises OptionError."""
    if value is None:
        return None
    if not is_whole(value, 1):
        raise OptionError(f"{what} must be a whole number of pixels above 0, not {value!r}.")
    return value


def check_pair(value: object, what: str, least: int) -> tuple[int, int] | None:
    """A pair of whole numbers of at least ``least``, or None. Raises OptionError."""
    if value is None:
        return None
    whole = (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) == 2
        and all(is_whole(n, least) for n in value)
    )
    if not whole:
        raise OptionError(f"{what} must be two whole numbers of at least {least}, not {value!r}.")
    pair: Sequence[int] = value  # type: ignore[assignment]
    return int(pair[0]), int(pair[1])
