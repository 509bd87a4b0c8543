"""From prompts and towers to a ``Conditioning``, the way each model family does it.

``condition`` is the verb, ``RECIPES`` the table, ``tokenizers_of`` feeds the token report.
"""

from bridge.conditioning.account import AddOn
from bridge.conditioning.adapters.adapter import Adapter
from bridge.conditioning.adapters.fitting import fit_adapter
from bridge.conditioning.adapters.storage import load_adapter
from bridge.conditioning.adapters.swap import Swap, label_swap
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
    "Adapter",
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
    "Swap",
    "TowerUse",
    "Trace",
    "blend",
    "compose",
    "condition",
    "find_recipe",
    "fit_adapter",
    "forget_towers",
    "label_swap",
    "load_adapter",
    "load_conditioning",
    "open_kit",
    "regional",
    "save_conditioning",
    "schedule",
    "tokenizers_of",
]
