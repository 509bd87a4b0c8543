"""Towers: token ids or pixels in, states out. One file a family.

`open_text_tower` and `open_image_tower` open any tower of the table (`towers`, families in
`families.py`) by short name, hub id or folder. ``TEXT_TOWERS`` is the table of a pipeline's text
encoders by transformers class name. Names load on first use, so that the table of towers is read
without torch.
"""

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

if TYPE_CHECKING:
    from bridge.towers import registry
    from bridge.towers.addons import TowerAddOns, adapted
    from bridge.towers.captioner import Captioner, open_captioner
    from bridge.towers.checkpoint import load_tower, reading
    from bridge.towers.clip_modules import count_parameters, join_clip, stretch_positions
    from bridge.towers.families import IMAGE_FAMILIES, TEXT_FAMILIES, TEXT_TOWERS, TOKENIZERS
    from bridge.towers.family import Scoring, TowerSpec, read_spec, spec_of_config
    from bridge.towers.lora import Lora, LowRank, file_of, misfit, name_of, read_lora
    from bridge.towers.registry import TowerRow, find_source, table_lines, towers
    from bridge.towers.states import LAST, ImageStates, Layer, TextStates, rollout
    from bridge.towers.textual_inversion import TextualInversion, read_textual_inversion
    from bridge.towers.tokenizer import TextBatch, check_ids, load_tokenizer
    from bridge.towers.tower import ImageTower, TextTower, open_image_tower, open_text_tower
    from bridge.towers.watch import fingerprint, lasting_config

__getattr__, __dir__, __all__ = lazy_imports(__name__)
