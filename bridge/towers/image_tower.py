"""An image tower ready to run, whatever its family: pictures in, states out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.errors import ImageError, OptionError
from bridge.runtime import building, resolve_device, resolve_dtype
from bridge.towers.families import IMAGE_FAMILIES, family_of
from bridge.towers.fingerprinting import fingerprint
from bridge.towers.foreign import reading
from bridge.towers.image_processor import a_picture, to_pixels
from bridge.towers.scoring import Scoring
from bridge.towers.source import find_source
from bridge.towers.spec import TowerSpec
from bridge.towers.states import ImageStates


@dataclass(frozen=True, eq=False)
class ImageTower:
    """An image tower with its image processor.

    Attributes:
        name: what it was opened by.
        family: a name of ``IMAGE_FAMILIES``.
        spec: widths, layers and context (patches, with the class token where there is one).
        module: the torch module.
        processor: a transformers image processor, on its PIL backend.
        scoring: how its model scores texts with pictures; None where it does not.
    """

    name: str
    family: str
    spec: TowerSpec
    module: Any
    processor: Any
    scoring: Scoring | None = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.module.parameters()).device

    def fingerprint(self) -> str:
        """16 hex digits that change with its weights and precision (`towers.fingerprint`)."""
        return fingerprint(self.module)

    @torch.no_grad()
    def encode(
        self, images: Any, layers: Sequence[int] = (-1,), alpha: str = "white"
    ) -> ImageStates:
        """One forward pass over all pictures.

        Args:
            images: a PIL picture, several, or what the tower's processor made of them.
            layers: layers wanted of the patches, counted from the end.
            alpha: what becomes of transparency, as in `pixels`.

        Returns:
            ImageStates in the module's dtype: patches ``(B, N, D)`` for each layer, pooled
            ``(B, P)`` in the space shared with texts, not normalised, and the grid ``(h, w)``.

        Raises:
            ImageError: no pictures, or a tensor of another size.
            OptionError: a layer that the tower does not have, another ``alpha``.
        """
        for layer in layers:
            if not -self.spec.layers - 1 <= layer <= -1:
                raise OptionError(
                    f"layer {layer}: {self.name} has {self.spec.layers}; count from the end, -1 "
                    f"to {-self.spec.layers}, or {-self.spec.layers - 1} for the embeddings"
                )
        return IMAGE_FAMILIES[self.family].encode(self.module, self.pixels(images, alpha), layers)

    def pixels(self, images: Any, alpha: str = "white") -> Any:
        """What the module takes of a PIL picture, of several, or of what the processor made of
        them: ``(B, 3, H, W)``, or a mapping of tensors, in its dtype and on its device.

        A transparent picture is laid over white, as everywhere in bridge; with ``alpha="drop"``
        its alpha is taken off, and what was transparent shows the colour that lay hidden there,
        as OpenAI's CLIP and open_clip have it.

        Raises ImageError for no pictures and for a tensor of another size, OptionError for
        another ``alpha``.
        """
        ready = isinstance(images, Tensor | dict)
        some = images if ready or isinstance(images, Sequence) else [images]
        found = some if ready else to_pixels(self.processor, some, alpha)
        self._check_size(found)
        return self._placed(found)

    def scores(self, text_pooled: Tensor, image_pooled: Tensor) -> Tensor:
        """Scores ``(T, I)`` as its model was trained to give them (`Scoring.scores`).

        Raises OptionError for a tower without text side.
        """
        if self.scoring is None:
            raise OptionError(f"{self.name} has no scale to score texts by")
        return self.scoring.scores(text_pooled, image_pooled)

    def _check_size(self, pixels: Any) -> None:
        """Raises ImageError for a tensor that a vision transformer of one size cannot take."""
        config = getattr(self.module.config, "vision_config", self.module.config)
        side, patch = (getattr(config, name, None) for name in ("image_size", "patch_size"))
        if not isinstance(pixels, Tensor) or not side or not patch:
            return  # a mapping, or a network of any size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise ImageError(
                f"the pixels are of shape {tuple(pixels.shape)}, and {self.name} takes "
                f"(B, 3, {side}, {side}); give PIL pictures, which its processor resizes"
            )

    def _placed(self, pixels: Any) -> Any:
        if isinstance(pixels, dict):
            return {name: self._placed(tensor) for name, tensor in pixels.items()}
        dtype = next(self.module.parameters()).dtype
        return pixels.to(self.device, dtype if pixels.is_floating_point() else None)


def open_image_tower(
    source: str | Path,
    *,
    device: Any = None,
    dtype: Any = None,
    family: str | None = None,
    allow_pickle: bool = False,
) -> ImageTower:
    """Open an image tower; arguments and errors as `open_text_tower`."""
    place = resolve_device(device)
    name, folder, known, _ = find_source(source)
    with reading(f"{folder}: the image tower cannot load"):
        family = family or known or family_of(folder)
        if family not in IMAGE_FAMILIES:
            raise OptionError(f"{name} ({family}) has no image side; open it with open_text_tower")
        precision = resolve_dtype(dtype, place, folder)
        with building():
            parts = IMAGE_FAMILIES[family].load(folder, precision, place, allow_pickle)
        tower = ImageTower(name, family, parts.spec, parts.module, parts.processor, parts.scoring)
        tower.encode(a_picture())  # its processor may be another tower's
    return tower
