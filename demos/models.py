"""The models of one running app: named once, loaded at first use, kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any


@dataclass(frozen=True, eq=False)
class Models:
    """Loads each model once, even when two browser tabs ask for it at the same moment.

    ``draws`` and ``answers`` are whatever `bridge.load_pipeline` and `bridge.load_vlm` take.
    """

    draws: str = "emoji-xl"
    answers: str = "emoji-llava"
    device: str | None = None
    _loaded: dict[str, Any] = field(default_factory=dict)
    # Apart, so that typing (tokenizers) does not wait while a pipeline loads.
    _locks: dict[str, Lock] = field(
        default_factory=lambda: {name: Lock() for name in ("tokenizers", "pipeline", "vlm")}
    )

    def tokenizers(self) -> list[tuple[str, Any]]:
        """The (tower name, tokenizer) pairs of the drawing model; loads no weights."""

        def load() -> list[tuple[str, Any]]:
            from bridge.conditioning import tokenizers_of

            return tokenizers_of(self.draws)

        return self._once("tokenizers", load)

    def pipeline(self) -> Any:
        """The diffusers pipeline that draws."""

        def load() -> Any:
            from bridge.diffusion import load_pipeline

            return load_pipeline(self.draws, device=self.device)

        return self._once("pipeline", load)

    def vlm(self) -> Any:
        """The BridgeVLM that answers."""

        def load() -> Any:
            from bridge.vlm import load_vlm

            return load_vlm(self.answers, device=self.device)

        return self._once("vlm", load)

    def warm(self) -> None:
        """Load everything, so that nobody's first picture waits for it."""
        self.tokenizers()
        self.pipeline()
        self.vlm()

    def _once(self, name: str, load: Callable[[], Any]) -> Any:
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = load()
            return self._loaded[name]
