"""stable-diffusion-webui-forge's own text processing engines, run as they are over tiny towers.

They reach through ``backend.memory_management`` for a device and through ``modules.shared`` for
the options of the page; those two are given here. Everything that reads, cuts or weighs a prompt is
the peer's own file.
"""

from __future__ import annotations

import copy
import sys
import types
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peers import clone, on_path


@dataclass(frozen=True, eq=False)
class Forge:
    """The peer's engines, and the options that its settings page holds."""

    classic_engine: ModuleType
    t5_engine: ModuleType
    opts: SimpleNamespace

    def clip(
        self, tokenizer: Any, tower: Any, key: str = "clip_l", *, layer: int = 1, **options: Any
    ) -> Any:
        """Its engine over a transformers tower, with the options that its diffusion engines give.

        Args:
            layer: the least clip skip, and the one to begin with: 2 for SDXL.
        """
        wrapped = SimpleNamespace(transformer=_Clip(tower))
        return self.classic_engine.ClassicTextProcessingEngine(
            wrapped,
            tokenizer,
            embedding_key=key,
            minimal_clip_skip=layer,
            clip_skip=layer,
            **options,
        )

    def t5(self, tokenizer: Any, tower: Any) -> Any:
        """Its engine over a T5; FLUX.1 and SD 3 have the same."""
        return self.t5_engine.T5TextProcessingEngine(
            SimpleNamespace(transformer=_T5(tower)), tokenizer
        )


class _Clip(torch.nn.Module):
    """A tower as transformers 4 had it, with its ``text_model`` inside, and what the engine sets.

    A copy: the engine puts a module of its own in the place of the embeddings.
    """

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower)
        self.text_model = getattr(self.tower, "text_model", self.tower)
        self.text_projection = getattr(self.tower, "text_projection", None)

    def forward(self, ids: torch.Tensor, output_hidden_states: bool) -> Any:
        given = self.text_model(input_ids=ids, output_hidden_states=output_hidden_states)
        return SimpleNamespace(hidden_states=given.hidden_states, pooler_output=given.pooler_output)


class _T5(torch.nn.Module):
    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.shared = tower.shared

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.tower(input_ids=input_ids).last_hidden_state
        return states


def load_forge() -> Forge:
    """Import the peer. Skips (or fails) where its clone is missing."""
    folder = clone("forge")
    opts = SimpleNamespace(emphasis="Original")
    mine = ("backend", "modules")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _below(name, mine)}
    with on_path(folder):
        for name, values in (
            ("modules", {}),
            ("modules.shared", {"opts": opts}),
            ("backend.memory_management", {"text_encoder_device": lambda: torch.device("cpu")}),
        ):
            made = types.ModuleType(name)
            vars(made).update(values)
            sys.modules[name] = made
        import backend

        backend.memory_management = sys.modules["backend.memory_management"]
        from backend.text_processing import classic_engine, t5_engine
    for name in [each for each in sys.modules if _below(each, mine)]:
        del sys.modules[name]
    sys.modules.update(before)
    return Forge(classic_engine, t5_engine, opts)


def _below(name: str, packages: tuple[str, ...]) -> bool:
    return name.partition(".")[0] in packages
