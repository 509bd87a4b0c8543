"""Towers: token ids or pixels in, states out. One file a family.

``TEXT_TOWERS`` is the table of text families by transformers class name.
"""

from bridge.towers import clip_image, clip_text, clip_text_projection
from bridge.towers.checkpoint import load_tower
from bridge.towers.fingerprint import fingerprint
from bridge.towers.long_clip import stretch_positions
from bridge.towers.spec import TowerSpec, read_spec, spec_of_config
from bridge.towers.states import ImageStates, Layer, TextStates

TEXT_TOWERS = {
    clip_text.ARCHITECTURE: clip_text.encode,
    clip_text_projection.ARCHITECTURE: clip_text_projection.encode,
}
"""Text families: transformers class name -> its ``encode(module, ids, layers, mask)``."""

IMAGE_TOWERS = {clip_image.ARCHITECTURE: clip_image.encode}
"""Image families: transformers class name -> its ``encode(module, pixels, layers)``."""

__all__ = [
    "IMAGE_TOWERS",
    "TEXT_TOWERS",
    "ImageStates",
    "Layer",
    "TextStates",
    "TowerSpec",
    "fingerprint",
    "load_tower",
    "read_spec",
    "spec_of_config",
    "stretch_positions",
]
