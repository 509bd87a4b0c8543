"""Towers: token ids or pixels in, states out. One file a family.

`open_text_tower` and `open_image_tower` open any tower of the table (`towers`, families in
`families.py`) by short name, hub id or folder. ``TEXT_TOWERS`` is the table of a pipeline's text
encoders by transformers class name. Names load on first use, so that the table of towers is read
without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_names

if TYPE_CHECKING:
    from bridge.towers.architectures import IMAGE_TOWERS, TEXT_TOWERS, TOKENIZERS
    from bridge.towers.batch import TextBatch
    from bridge.towers.captioner import Captioner, open_captioner
    from bridge.towers.checkpoint import load_tower
    from bridge.towers.families import IMAGE_FAMILIES, TEXT_FAMILIES
    from bridge.towers.fingerprinting import fingerprint
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

# Public name -> the module that defines it.
_HOMES = {
    "IMAGE_FAMILIES": "bridge.towers.families",
    "IMAGE_TOWERS": "bridge.towers.architectures",
    "TEXT_FAMILIES": "bridge.towers.families",
    "TEXT_TOWERS": "bridge.towers.architectures",
    "TOKENIZERS": "bridge.towers.architectures",
    "Captioner": "bridge.towers.captioner",
    "ImageStates": "bridge.towers.states",
    "ImageTower": "bridge.towers.image_tower",
    "Layer": "bridge.towers.states",
    "Lora": "bridge.towers.lora",
    "Scoring": "bridge.towers.scoring",
    "TextBatch": "bridge.towers.batch",
    "TextStates": "bridge.towers.states",
    "TextTower": "bridge.towers.text_tower",
    "TextualInversion": "bridge.towers.textual_inversion",
    "TowerRow": "bridge.towers.registry",
    "TowerSpec": "bridge.towers.spec",
    "count_parameters": "bridge.towers.sharing",
    "fingerprint": "bridge.towers.fingerprinting",
    "join_clip": "bridge.towers.sharing",
    "load_tower": "bridge.towers.checkpoint",
    "open_captioner": "bridge.towers.captioner",
    "open_image_tower": "bridge.towers.image_tower",
    "open_text_tower": "bridge.towers.text_tower",
    "read_lora": "bridge.towers.lora",
    "read_spec": "bridge.towers.spec",
    "read_textual_inversion": "bridge.towers.textual_inversion",
    "spec_of_config": "bridge.towers.spec",
    "stretch_positions": "bridge.towers.long_clip",
    "towers": "bridge.towers.registry",
}

# Submodules that are reached as attributes, without an import of their own.
_ROOMS = ("registry", "table")

__all__ = [
    "IMAGE_FAMILIES",
    "IMAGE_TOWERS",
    "TEXT_FAMILIES",
    "TEXT_TOWERS",
    "TOKENIZERS",
    "Captioner",
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
    "open_captioner",
    "open_image_tower",
    "open_text_tower",
    "read_lora",
    "read_spec",
    "read_textual_inversion",
    "spec_of_config",
    "stretch_positions",
    "towers",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _ROOMS)
