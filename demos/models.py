"""The models of one running app: named once, loaded at first use, kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from bridge.embedded import EMBEDDED

TOWERS = ("emoji-1", "emoji-2")
"""The text towers of the embedded model that draws, by the names that they are also to be had by
alone."""

_OWN_NAMES = {"emoji-xl": TOWERS}
_PARTS = (
    "tokenizers", "pipeline", "vlm", "text_towers", "image_tower", "watched", "choices", "clips",
)  # fmt: skip


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
    _locks: dict[str, Lock] = field(default_factory=lambda: {name: Lock() for name in _PARTS})
    studying: Lock = field(default_factory=Lock)
    comparing: Lock = field(default_factory=Lock)

    @property
    def draws_emoji(self) -> bool:
        """Whether an embedded model draws, which knows the emoji world and no other."""
        return self.draws in EMBEDDED

    @property
    def answers_emoji(self) -> bool:
        """Whether an embedded model answers."""
        return self.answers in EMBEDDED

    def tokenizers(self) -> list[tuple[str, Any]]:
        """The (tower name, tokenizer) pairs of the drawing model; loads no weights."""

        def load() -> list[tuple[str, Any]]:
            from bridge.encoding import tokenizers_of

            return tokenizers_of(self.draws)

        return self._once("tokenizers", load)

    def pipeline(self) -> Any:
        """The diffusers pipeline that draws."""

        def load() -> Any:
            from bridge.diffusion import load_pipeline

            return load_pipeline(self.draws, device=self.device)

        return self._once("pipeline", load)

    def watched_pipeline(self) -> Any:
        """The pipeline for studies: a UNet of its own, over the very same weights.

        Heat maps hook into the UNet's modules, and what is drawn meanwhile in another browser
        tab must not pass through those hooks.
        """

        def load() -> Any:
            pipe = self.pipeline()
            if getattr(pipe, "unet", None) is None:
                return pipe
            own = copy.copy(pipe)
            weights = [*pipe.unet.parameters(), *pipe.unet.buffers()]
            own.unet = copy.deepcopy(pipe.unet, {id(tensor): tensor for tensor in weights})
            return own

        return self._once("watched", load)

    def tower_names(self) -> tuple[str, ...]:
        """The text towers that the drawing model reads with; loads no weights."""
        return _OWN_NAMES.get(self.draws) or tuple(name for name, _ in self.tokenizers())

    def choices(self) -> tuple[str, ...]:
        """What can draw alone of the drawing model, as `bridge.study` names it; loads no
        weights."""

        def load() -> tuple[str, ...]:
            from bridge.encoding.model import open_model
            from bridge.lab.tower_choices import choices_of

            return choices_of(open_model(self.draws))

        return self._once("choices", load)

    def text_towers(self) -> dict[str, Any]:
        """The `bridge.towers.TextTower`s of ``tower_names``, by name."""

        def load() -> dict[str, Any]:
            from bridge.encoding.model import open_model
            from bridge.lab.run import own_towers
            from bridge.towers import open_text_tower

            if self.draws in _OWN_NAMES:
                names = _OWN_NAMES[self.draws]
                return {name: open_text_tower(name, device=self.device) for name in names}
            found = own_towers(open_model(self.pipeline()))
            # With tokenizers of their own: a tower sets them to cut, and drawings must not see it.
            return {
                each.name: replace(each, tokenizer=copy.deepcopy(each.tokenizer)) for each in found
            }

        return self._once("text_towers", load)

    def image_tower(self) -> Any:
        """What measures how far pictures drift; None where the model is not an embedded one."""

        def load() -> Any:
            from bridge.towers import open_image_tower

            if not self.draws_emoji:
                return None
            return open_image_tower(TOWERS[0], device=self.device)

        return self._once("image_tower", load)

    def vlm(self) -> Any:
        """The BridgeVLM that answers."""

        def load() -> Any:
            from bridge.vlm import load_vlm

            return load_vlm(self.answers, device=self.device)

        return self._once("vlm", load)

    def clip(self, image: str, text: str) -> Any:
        """The `bridge.CLIP` of two towers, by their names; others stay as they are."""
        with self._locks["clips"]:
            opened = self._loaded.setdefault("clips", {})
            if (image, text) not in opened:
                from bridge.contrastive import CLIP

                opened[image, text] = CLIP(image, text=text, device=self.device)
            return opened[image, text]

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
