"""One CLIP for two roads: a CLIPModel out of towers that are loaded already.

A pipeline holds CLIP's text tower and a vision-language model its image tower. Joined, they are
the CLIP they came from. Only its two projections are read from the disk, and the layers above
those that a tower holds: LLaVA reads the penultimate state, so a model may ship without the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bridge.errors import OptionError, WeightsError
from bridge.files import read_json
from bridge.model_folder import shards
from bridge.towers.tensors import read_tensors

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def join_clip(folder: str | os.PathLike[str], text: nn.Module, vision: nn.Module) -> Any:
    """A transformers CLIPModel of ``folder`` around two live towers, sharing their parameters.

    ``text`` is or holds CLIP's text tower (a pipeline's ``text_encoder``), ``vision`` its image
    tower (a `BridgeVLM.vision`); both stay in their mode, training or not. A tower may hold the
    lower layers alone; the layers above are then the folder's. For inference; training one of the
    owners trains this too.

    Raises OptionError when a tower is not that of ``folder`` (every tensor is compared, in the
    tower's dtype; a tower of more layers is refused) or the two are of different dtypes or devices,
    and WeightsError for a folder that is incomplete or no CLIPModel's.
    """
    from transformers import CLIPConfig, CLIPModel

    place = Path(folder)
    settings = read_json(place / "config.json")
    if settings.get("model_type") != "clip":
        raise WeightsError(f"{place} is no CLIPModel: its model_type is not 'clip'")
    with torch.device("meta"):
        # Not later: that would reach into the owners' towers.
        clip: Any = CLIPModel(CLIPConfig.from_dict(settings)).eval()
    clip.text_model = _joined(clip.text_model, text, "text", place)
    clip.vision_model = _joined(clip.vision_model, vision, "vision", place)
    kinds = {(p.dtype, p.device) for tower in (text, vision) for p in tower.parameters()}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise OptionError(f"the towers do not go together: {found}; load both alike")
    ((dtype, device),) = kinds
    live, own = clip.state_dict(), {}
    for name, stored in _stored(place):
        if name not in live or live[name].shape != stored.shape:
            raise OptionError(f"{place}: {name} does not fit the live towers; they are of another")
        if live[name].is_meta:
            own[name] = stored.to(device, dtype)
        elif not torch.equal(stored.to(device, dtype), live[name]):
            raise OptionError(f"{place}: {name} differs in the live tower, which is of another")
    clip.load_state_dict(own, strict=False, assign=True)
    missing = [name for name, p in clip.named_parameters() if p.is_meta]
    if missing:
        raise WeightsError(f"{place} lacks {missing[0]}; get the complete checkpoint")
    return clip


def count_parameters(*models: Any) -> int:
    """How many parameters the models hold in memory, shared ones counted once.

    A model is a module, or a pipeline or data class with modules among its attributes.
    """
    storages: dict[int, int] = {}
    for model in models:
        for module in _modules(model):
            for parameter in module.parameters():
                storage = parameter.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes() // parameter.element_size()
    return sum(storages.values())


def _joined(whole: Any, given: nn.Module, name: str, folder: Path) -> nn.Module:
    """The tower that ``given`` is or holds, or ``whole``, which is on no device yet, around the
    parameters of a tower that has only its lower layers."""
    tower: Any = _tower(given, type(whole), name)
    depth, held = (model.config.num_hidden_layers for model in (whole, tower))
    if held > depth:
        raise OptionError(
            f"{folder}: its {name} tower has {depth} layers, the live one {held}; it is of another"
        )
    if held == depth:
        return tower
    # Not the modules: hooks by which transformers collects states would fire for both towers.
    for path, tensor in chain(tower.named_parameters(), tower.named_buffers()):
        owner, _, own = path.rpartition(".")
        setattr(whole.get_submodule(owner), own, tensor)
    return whole


def _tower(given: nn.Module, kind: type, name: str) -> nn.Module:
    for module in given.modules():
        if type(module) is kind:
            return module
    raise OptionError(f"{name} is a {type(given).__name__}, which holds no {kind.__name__}")


def _stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    index = folder / INDEX
    if not index.is_file():
        yield from read_tensors(folder / WEIGHTS)
        return
    for shard in sorted(set(shards(index).values())):
        yield from read_tensors(shard)


def _modules(model: Any) -> list[nn.Module]:
    if isinstance(model, nn.Module):
        return [model]
    parts = model.components if hasattr(model, "components") else vars(model)
    return [part for part in parts.values() if isinstance(part, nn.Module)]
