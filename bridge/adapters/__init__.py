"""Foreign text towers: adapters that map their states to those that a model was trained with.

``fit_adapter`` makes an ``Adapter`` of paired prompts, ``load_adapter`` reads one,
``label_swap`` says whether a tower needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

if TYPE_CHECKING:
    from bridge.adapters.adapter import Adapter, load_adapter
    from bridge.adapters.fitting import fit_adapter
    from bridge.adapters.swap import Swap, label_swap

# On first use, since the encoder takes towers from here, and fitting an encoder's rows.
__getattr__, __dir__, __all__ = lazy_imports(__name__)
