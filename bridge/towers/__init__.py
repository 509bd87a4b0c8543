"""Towers: token ids or pixels in, states out. One file a family.

`open_text_tower` and `open_image_tower` open any tower of the table (`towers`, families in
`families.py`) by short name, hub id or folder. ``TEXT_TOWERS`` is the table of a pipeline's text
encoders by transformers class name.
"""

from bridge.towers import clip_image, clip_text, clip_text_projection, t5_text
from bridge.towers.batch import TextBatch
from bridge.towers.checkpoint import load_tower
from bridge.towers.families import IMAGE_FAMILIES, TEXT_FAMILIES
from bridge.towers.fingerprint import fingerprint
from bridge.towers.image_tower import ImageTower, open_image_tower
from bridge.towers.long_clip import stretch_positions
from bridge.towers.lora import Lora, read_lora
from bridge.towers.registry import TowerRow, towers
from bridge.towers.scoring import Scoring
from bridge.towers.sharing import count_parameters, join_clip
from bridge.towers.spec import TowerSpec, read_spec, spec_of_config
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.text_tower import TextTower, open_text_tower
from bridge.towers.textual_inversion import TextualInversion, read_textual_inversion

_TEXT_FAMILIES = (clip_text, clip_text_projection, t5_text)
TEXT_TOWERS = {family.ARCHITECTURE: family.encode for family in _TEXT_FAMILIES}
"""Text families: transformers class name -> its ``encode(module, ids, layers, mask)``."""

TOKENIZERS = {family.ARCHITECTURE: family.TOKENIZER for family in _TEXT_FAMILIES}
"""Text families: transformers class name -> that of its tokenizer."""

IMAGE_TOWERS = {clip_image.ARCHITECTURE: clip_image.encode}
"""Image families: transformers class name -> its ``encode(module, pixels, layers)``."""

__all__ = [
    "IMAGE_FAMILIES",
    "IMAGE_TOWERS",
    "TEXT_FAMILIES",
    "TEXT_TOWERS",
    "TOKENIZERS",
    "ImageStates",
    "ImageTower",
    "Layer",
    "Lora",
    "Scoring",
    "TextBatch",
    "TextStates",
    "TextTower",
    "TextualInversion",
    "TowerRow",
    "TowerSpec",
    "count_parameters",
    "fingerprint",
    "join_clip",
    "load_tower",
    "open_image_tower",
    "open_text_tower",
    "read_lora",
    "read_spec",
    "read_textual_inversion",
    "spec_of_config",
    "stretch_positions",
    "towers",
]
