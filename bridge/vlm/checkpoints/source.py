"""One checkpoint of the original LLaVA, wherever its parts lie, as one stream of named tensors.

A whole checkpoint has all tensors in one folder (liuhaotian/llava-v1.5-7b, llava-v1.6-...).
Others leave the frozen tower where `mm_vision_tower` says, or hold nothing but
`mm_projector.bin` (the outcome of LLaVA's first stage) and need a ``base`` language model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.model_folder import check_folder
from bridge.vlm.chat import CHAT_TEMPLATE, IMAGE_TOKEN
from bridge.vlm.checkpoints import names
from bridge.vlm.checkpoints.settings import (
    CONVERSATION,
    NOTED_TEMPLATE,
    LlavaSettings,
    is_original,
    read_settings,
)
from bridge.vlm.checkpoints.tensors import (
    NO_PICKLE_OF_HUBS,
    model_files,
    projector_file,
    read_file,
)
from bridge.vlm.conversations import CONVERSATIONS, conversation_of

if TYPE_CHECKING:
    import torch

TOWER_FOLDER = "vision_tower"


@dataclass(frozen=True)
class Original:
    """A checkpoint of LLaVA's layout: its settings, and where its files are."""

    folder: Path
    llm: Path  # the folder of tokenizer and language model: ``folder`` itself, or the base
    settings: LlavaSettings
    vision: dict[str, Any]  # the tower's config
    allow_pickle: bool
    config: dict[str, Any]  # config.json as it is

    def conversation(self, name: str) -> str | None:
        """What the checkpoint is asked in: what `bridge convert` noted, else what LLaVA takes for
        the ``name`` that it was asked for by; None where a template was noted that is neither."""
        noted = self.config.get(CONVERSATION)
        if noted in CONVERSATIONS:
            return str(noted)
        return None if self._noted_template else conversation_of(name, self.config)

    def chat_template(self, conversation: str | None, mark: str = IMAGE_TOKEN) -> str:
        """That of ``conversation``, or for None what `bridge convert` noted."""
        if conversation is None:
            return self._noted_template or CHAT_TEMPLATE
        return CONVERSATIONS[conversation].template(mark)

    @property
    def _noted_template(self) -> str | None:
        found = self.config.get(NOTED_TEMPLATE)
        return found if isinstance(found, str) else None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors by LLaVA's full names, as stored. Raises WeightsError."""
        seen = set()
        for file in model_files(self.llm, allow_pickle=self.allow_pickle):
            for name, tensor in read_file(file):
                if not names.is_computed(name):
                    seen.add(name)
                    yield name, tensor
        if not any(name.startswith(names.PROJECTOR) for name in seen):
            yield from self._projector()
        if not any(name.startswith(names.TOWER) for name in seen):
            yield from self._tower()

    def preprocessor(self) -> dict[str, Any]:
        """The settings of the tower's image processor, CLIP's."""
        from bridge.towers.image_processor import processor_settings

        own = self.folder / TOWER_FOLDER
        if (own / "preprocessor_config.json").is_file():
            return processor_settings(own)
        return processor_settings(tower_folder(self.folder, self.settings.tower))

    def _projector(self) -> Iterator[tuple[str, torch.Tensor]]:
        file = projector_file(self.folder, allow_pickle=self.allow_pickle)
        if file is not None:
            for name, tensor in read_file(file):
                if "mm_projector." in name:
                    yield names.projector_name(name), tensor

    def _tower(self) -> Iterator[tuple[str, torch.Tensor]]:
        place = tower_folder(self.folder, self.settings.tower, weights=True)
        files = model_files(place, allow_pickle=self.allow_pickle)
        if not files:
            raise WeightsError(
                f"{place} has no weights of the vision tower {self.settings.tower!r}, neither "
                f"model.safetensors nor pytorch_model.bin; {NO_PICKLE_OF_HUBS}"
            )
        for file in files:
            for name, tensor in read_file(file):
                full = names.tower_name(name)
                if full is not None and not names.is_computed(full):
                    yield full, tensor


def open_original(
    folder: Path, *, allow_pickle: bool = False, base: str | os.PathLike[str] | None = None
) -> Original:
    """Read the configs and look for the files; no tensor is read.

    ``base`` is the language model (a folder or hub id) of a folder that has only a projector.
    Raises UnsupportedModelError, WeightsError, OptionError, and what `bridge.store.resolve` does.
    """
    from bridge.store import resolve

    config = read_json(folder / "config.json")
    settings = read_settings(config, folder)
    refuse_lora(folder)
    llm = folder
    if base is not None:
        llm = resolve(base).absolute()
        base_config = read_json(llm / "config.json")
        if is_original(base_config) or base_config.get("model_type") != settings.llm:
            raise OptionError(
                f"base {os.fspath(base)!r} is a {base_config.get('model_type')!r} checkpoint; "
                f"{folder} needs a plain {settings.llm!r} language model"
            )
    if not model_files(llm, allow_pickle=allow_pickle):
        hint = config.get("_name_or_path") or "the one it was trained on"
        raise WeightsError(
            f"{llm} has no language model, neither model.safetensors nor pytorch_model.bin"
            + ("" if base else f"; give its folder as base ({hint})")
            + f"; {NO_PICKLE_OF_HUBS}"
        )
    if base is not None and projector_file(folder, allow_pickle=allow_pickle) is None:
        raise WeightsError(
            f"{folder} has no mm_projector.bin or mm_projector.safetensors; {NO_PICKLE_OF_HUBS}"
        )
    return Original(
        folder, llm, settings, _vision_config(folder, settings.tower), allow_pickle, config
    )


# What a run of LoRA leaves beside or in place of whole weights, in any layout.
_LORA = ("adapter_config.json", "adapter_model.*", "non_lora_trainables.*")


def refuse_lora(folder: Path) -> None:
    """Raises UnsupportedModelError for a folder with weights that have to be merged first, which
    would not be read."""
    found = sorted(file.name for name in _LORA for file in folder.glob(name))
    if found:
        raise UnsupportedModelError(
            f"{folder} has {' and '.join(found)}: a LoRA and what was trained beside it, which "
            "bridge does not merge; merge them (LLaVA's scripts/merge_lora_weights.py, or peft's "
            "merge_and_unload) and give the whole model"
        )


def tower_folder(folder: Path, tower: str, *, weights: bool = False) -> Path:
    """The folder that `mm_vision_tower` names: beside the checkpoint, elsewhere, or on the hub."""
    from bridge.store import resolve

    beside = folder / tower
    if beside.is_dir():
        return check_folder(beside)
    return resolve(tower, allow_patterns=None if weights else ("*.json",))


def _vision_config(folder: Path, tower: str) -> dict[str, Any]:
    """The tower's config, from the copy in the checkpoint or from where the tower is."""
    from transformers import CLIPVisionConfig

    own = folder / TOWER_FOLDER / "config.json"
    config = read_json(own if own.is_file() else tower_folder(folder, tower) / "config.json")
    # A CLIP of two sides keeps the settings of this one in an entry of their own.
    found = config.get("vision_config", config)
    return CLIPVisionConfig.from_dict({**found, "model_type": "clip_vision_model"}).to_dict()
