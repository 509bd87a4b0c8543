"""The phrasing lab: how what is said, and who reads it, changes what is understood and drawn.

``study`` is the verb (``bridge.study``), ``OPERATIONS`` the table of variants. Names load on first
use, so that variants are made without torch.
"""

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

if TYPE_CHECKING:
    from bridge.lab import measures, variants
    from bridge.lab.heat_overlay import overlay
    from bridge.lab.picture_tables import Judge
    from bridge.lab.result import Study
    from bridge.lab.run import study
    from bridge.lab.variants import OPERATIONS, Settings, Variant, own, vary

__getattr__, __dir__, __all__ = lazy_imports(__name__)
