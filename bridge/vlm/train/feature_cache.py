"""What the tower makes of pictures. It is frozen, so each picture goes through it once, and the
states are kept on disk as safetensors, by the picture's hash below the tower's fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from bridge.errors import WeightsError
from bridge.files import write_whole
from bridge.progress import OnProgress, Progress, unwatched
from bridge.towers import fingerprint
from bridge.towers.tensors import check_computable, read_tensors
from bridge.vlm.model import BridgeVLM
from bridge.vlm.train.data import Picture
from bridge.vlm.views import view_pixels

_AT_ONCE = 16  # pictures through the tower in one pass


FeatureSource = Callable[[Sequence[Picture]], list[torch.Tensor]]
"""Pictures to the states of their views, (V, N, D_vision) each, on any device."""


@dataclass(frozen=True, eq=False)
class LiveStates:
    """Runs the tower whenever it is asked."""

    vlm: BridgeVLM

    def __call__(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for at in range(0, len(pictures), _AT_ONCE):
            found += picture_states(self.vlm, pictures[at : at + _AT_ONCE])
        return found


class StoredStates:
    """Reads from ``folder`` what `fill` has written there."""

    def __init__(self, vlm: BridgeVLM, folder: Path) -> None:
        self._vlm = vlm
        self.folder = folder / states_fingerprint(vlm)
        self._keys: dict[Picture, str] = {}

    def fill(self, pictures: Sequence[Picture], on_progress: OnProgress = unwatched) -> int:
        """Run the tower for the pictures that are not on the disk; gives how many those were.

        Safe to run in several processes at once: a file is written whole or not at all.
        """
        new = {self._key(p): p for p in pictures if not self._path(self._key(p)).is_file()}
        todo = list(new.values())
        for at in range(0, len(todo), _AT_ONCE):
            stretch = todo[at : at + _AT_ONCE]
            for picture, states in zip(stretch, picture_states(self._vlm, stretch), strict=True):
                data = save({"states": states.cpu().contiguous()})
                write_whole(self._path(self._key(picture)), data)
            on_progress(Progress("image features", at + len(stretch), len(todo), "pictures"))
        return len(todo)

    def __call__(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        return [self._read(self._path(self._key(picture))) for picture in pictures]

    def _read(self, path: Path) -> torch.Tensor:
        found = dict(read_tensors(path)).get("states")
        if found is None or found.ndim != 3 or not found.numel():
            raise WeightsError(f"{path} holds no picture's states; delete it")
        check_computable(path, [("states", found)])
        return found

    def _key(self, picture: Picture) -> str:
        if picture not in self._keys:
            self._keys[picture] = picture.key()
        return self._keys[picture]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


@torch.no_grad()
def picture_states(vlm: BridgeVLM, pictures: Sequence[Picture]) -> list[torch.Tensor]:
    """One pass of the tower: (V, N, D) in the tower's dtype for each picture."""
    if not pictures:
        return []
    views = view_pixels(vlm.image_processor, vlm.aspect, [picture.load() for picture in pictures])
    return list(vlm.image_states(views.pixel_values).split(views.counts))


def view_size(vlm: BridgeVLM, picture: Picture) -> tuple[int, int]:
    """Height and width of a preprocessed view; a processor makes all of one size."""
    views = view_pixels(vlm.image_processor, vlm.aspect, [picture.load()])
    height, width = views.pixel_values.shape[-2:]
    return int(height), int(width)


def states_fingerprint(vlm: BridgeVLM) -> str:
    """16 hex digits of all that a picture's states depend on but the picture."""
    told = {
        "tower": fingerprint(vlm.vision),
        "layer": vlm.select_layer,
        "feature": vlm.select_feature,
        "processor": vlm.image_processor.to_dict(),
        "aspect": repr(vlm.aspect),
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
