"""From prompts and towers to a ``Conditioning``, the way each model family does it.

``condition`` is the verb, ``RECIPES`` the table, ``tokenizers_of`` feeds the token report.
"""

from bridge.conditioning.account import AddOn
from bridge.conditioning.algebra import blend
from bridge.conditioning.composition import Composition, compose
from bridge.conditioning.drift import Drift
from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.encode import condition
from bridge.conditioning.interchange import load_conditioning, save_conditioning
from bridge.conditioning.kit import Kit, forget_towers, open_kit, tokenizers_of
from bridge.conditioning.recipes import RECIPES, Recipe, TowerUse, find_recipe
from bridge.conditioning.regions import Region, RegionalConditioning, regional
from bridge.conditioning.result import Conditioning, ConditioningReport
from bridge.conditioning.sizes import Sizes
from bridge.conditioning.timeline import PromptSchedule, schedule
from bridge.conditioning.trace import PooledSource, Trace
from bridge.errors import OffManifoldWarning

__all__ = [
    "EMPHASES",
    "RECIPES",
    "AddOn",
    "Composition",
    "Conditioning",
    "ConditioningReport",
    "Drift",
    "Kit",
    "OffManifoldWarning",
    "PooledSource",
    "PromptSchedule",
    "Recipe",
    "Region",
    "RegionalConditioning",
    "Sizes",
    "TowerUse",
    "Trace",
    "blend",
    "compose",
    "condition",
    "find_recipe",
    "forget_towers",
    "load_conditioning",
    "open_kit",
    "regional",
    "save_conditioning",
    "schedule",
    "tokenizers_of",
]
