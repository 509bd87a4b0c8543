"""From prompts and towers to a ``Conditioning``, the way each model family does it.

``Encoder`` is the object, ``condition`` and its like are the verbs over it, ``RECIPES`` is the
table of models; ``tokenizers_of`` feeds the token report.
"""

from bridge.encoding.addons import AddOn
from bridge.encoding.algebra import blend
from bridge.encoding.composition import Composition
from bridge.encoding.conditioning import Conditioning, ConditioningReport
from bridge.encoding.emphasis import EMPHASES
from bridge.encoding.encoder import Encoder
from bridge.encoding.interchange import load_conditioning, save_conditioning
from bridge.encoding.model import TextModel, forget_towers, open_model, tokenizers_of
from bridge.encoding.options import Sizes
from bridge.encoding.prompt_schedule import PromptSchedule
from bridge.encoding.recipes import RECIPES, Recipe, TowerUse, find_recipe
from bridge.encoding.regions import Region, RegionalConditioning
from bridge.encoding.state_cache import CacheInfo
from bridge.encoding.trace import Drift, PooledSource, Trace
from bridge.encoding.verbs import compose, condition, regional, schedule
from bridge.errors import OffManifoldWarning

__all__ = [
    "EMPHASES",
    "RECIPES",
    "AddOn",
    "CacheInfo",
    "Composition",
    "Conditioning",
    "ConditioningReport",
    "Drift",
    "Encoder",
    "OffManifoldWarning",
    "PooledSource",
    "PromptSchedule",
    "Recipe",
    "Region",
    "RegionalConditioning",
    "Sizes",
    "TextModel",
    "TowerUse",
    "Trace",
    "blend",
    "compose",
    "condition",
    "find_recipe",
    "forget_towers",
    "load_conditioning",
    "open_model",
    "regional",
    "save_conditioning",
    "schedule",
    "tokenizers_of",
]
