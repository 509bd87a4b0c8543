"""An encoder of transformers and the head that its pooled state goes through."""

from __future__ import annotations

from typing import Any

from torch import nn


class Headed(nn.Module):
    """``encoder`` and ``head`` as one module with the encoder's config; each family calls them."""

    def __init__(self, encoder: Any, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.config = encoder.config
