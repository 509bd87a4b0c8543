"""The trained adapter: a token resampler whose queries are the native window's places.

After LaVi-Bridge (Zhao et al. 2024, "Bridging Different Language Models and Generative Vision
Models for Text-to-Image Generation") and ELLA (Hu et al. 2024, "Equip Diffusion Models with LLM
for Enhanced Semantic Alignment"), whose resampler's learned queries look at a language model's
states through a few layers of cross-attention. Here there is one query for each of the T places,
made of a learned vector, of the foreign states that are aligned with the place, and of what the
closed form gives for it, and one for the pooled state; the layers' output is added to the closed
form's. So training starts from the closed form (the last layer is zeros), attention need not learn
which word stands where, and weights in the prompt still find the place of their word.

Everything inside is in whitened coordinates of the native tokens up to EOS, where each direction
counts alike: the loss is the mean square error there. A UNet's keys and values are linear in the
states, and faint directions tell words apart as well as strong ones do. BOS and padding have no say
in the coordinates: they are many, much alike, and BOS is often a hundred times as large.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bridge.adapters.reading import PLACE_WIDTH, ForeignStates, place_code

# Of the mean variance: directions fainter than this are noise, and are not blown up to matter.
_FLOOR = 0.01


class Resampler(nn.Module):
    """Layers of cross-attention from a native window's places to the foreign states.

    Args:
        length: T, places of the window.
        width: D, of the native states.
        pooled: P, of the native pooled state; 0 for none.
        memory: F, of the foreign states.
        hidden: width of the layers.
        layers: how many. Two of 192 have about a million weights.
        heads: of each attention.
    """

    mean: Tensor
    white: Tensor
    back: Tensor
    pooled_scale: Tensor
    memory_mean: Tensor
    memory_scale: Tensor

    def __init__(
        self,
        length: int,
        width: int,
        pooled: int,
        memory: int,
        hidden: int = 192,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.shape = {
            "length": length, "width": width, "pooled": pooled, "memory": memory,
            "hidden": hidden, "layers": layers, "heads": heads,
        }  # fmt: skip
        self.queries = nn.Parameter(
            0.02 * torch.randn(length + bool(pooled), hidden, dtype=torch.float32)
        )
        self.read_base = nn.Linear(width, hidden, dtype=torch.float32)
        self.read_own = nn.Linear(memory, hidden, dtype=torch.float32)
        self.read_memory = nn.Linear(memory + PLACE_WIDTH, hidden, dtype=torch.float32)
        layer = nn.TransformerDecoderLayer(
            hidden, heads, 2 * hidden, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True, dtype=torch.float32
        )  # fmt: skip
        self.layers = nn.TransformerDecoder(
            layer, layers, nn.LayerNorm(hidden, dtype=torch.float32)
        )
        self.write = _zeros(nn.Linear(hidden, width, dtype=torch.float32))
        self.write_pooled = (
            _zeros(nn.Linear(hidden, pooled, dtype=torch.float32)) if pooled else None
        )
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float32))
        self.register_buffer("white", torch.eye(width, dtype=torch.float32))
        self.register_buffer("back", torch.eye(width, dtype=torch.float32))
        self.register_buffer("pooled_scale", torch.ones(pooled, dtype=torch.float32))
        self.register_buffer("memory_mean", torch.zeros(memory, dtype=torch.float32))
        self.register_buffer("memory_scale", torch.ones(memory, dtype=torch.float32))

    def forward(
        self, base: Tensor, pooled: Tensor | None, own: Tensor, memory: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The native states, from those of the closed form.

        Args:
            base: ``(B, T, D)`` and pooled ``(B, P)``: what the closed form gives.
            own: ``(B, T, F)``, the foreign states aligned with each place.
            memory: ``(B, M, F)`` foreign states; ``hidden`` ``(B, M)`` is True for no state.
        """
        white, white_pooled = self.whitened(base, pooled, own, memory, hidden)
        states = white @ self.back.T + self.mean
        return states, None if white_pooled is None else white_pooled * self.pooled_scale

    def whitened(
        self, base: Tensor, pooled: Tensor | None, own: Tensor, memory: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As ``forward``, in whitened coordinates."""
        white = self.whiten(base)
        places = place_code(range(memory.shape[1])).to(memory).expand(len(memory), -1, -1)
        seen = torch.cat([self._standard(memory), places], dim=-1)
        asked = self.read_base(white) + self.read_own(self._standard(own))
        asked = asked + self.queries[: white.shape[1]]
        if self.write_pooled is not None:
            one = self.queries[-1].expand(len(white), 1, -1)
            asked = torch.cat([asked, one], dim=1)
        found = self.layers(asked, self.read_memory(seen), memory_key_padding_mask=hidden)
        states = white + self.write(found[:, : white.shape[1]])
        if self.write_pooled is None or pooled is None:
            return states, None
        return states, pooled / self.pooled_scale + self.write_pooled(found[:, -1])

    def _standard(self, foreign: Tensor) -> Tensor:
        return (foreign - self.memory_mean) / self.memory_scale

    def whiten(self, states: Tensor) -> Tensor:
        """States ``(..., D)`` in whitened coordinates."""
        return (states - self.mean) @ self.white.T

    @torch.no_grad()
    def measure(self, states: Tensor, pooled: Tensor | None, memory: Tensor) -> None:
        """Take the coordinates from samples: native ``(N, D)`` and ``(M, P)``, foreign
        ``(K, F)``."""
        exact = states.double()
        self.mean.copy_(exact.mean(0))
        values, directions = torch.linalg.eigh(torch.cov((exact - exact.mean(0)).T))
        scale = (values.clamp(min=0) + _FLOOR * values.mean()).sqrt()
        self.white.copy_(directions.T / scale[:, None])
        self.back.copy_(directions * scale)
        if pooled is not None:
            self.pooled_scale.fill_(pooled.std(0).square().mean().sqrt())
        self.memory_mean.copy_(memory.mean(0))
        spread = memory.std(0)
        self.memory_scale.copy_(spread + _FLOOR * spread.mean() + 1e-6)

    @torch.no_grad()
    def shrink(self, share: float, pooled_share: float) -> None:
        """Multiply what is added to the closed form."""
        for layer, by in ((self.write, share), (self.write_pooled, pooled_share)):
            if layer is not None:
                layer.weight.mul_(by)
                layer.bias.mul_(by)

    def on(self, device: torch.device) -> Resampler:
        """This one, or a copy of it on another device."""
        return self if self.mean.device == device else copy.deepcopy(self).to(device)


def memory_of(readings: Sequence[ForeignStates]) -> tuple[Tensor, Tensor]:
    """Foreign states ``(B, M, F)`` up to each text's last token, and where there are none."""
    memory = nn.utils.rnn.pad_sequence(
        [reading.states[: reading.last + 1] for reading in readings], batch_first=True
    )
    counts = torch.tensor(
        [reading.last + 1 for reading in readings], device=memory.device, dtype=torch.long
    )
    return memory, torch.arange(memory.shape[1], device=memory.device, dtype=torch.long) >= counts[
        :, None
    ]


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
