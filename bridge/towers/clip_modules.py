"""CLIP's modules made of others that are loaded already: two towers joined, a context stretched.

A pipeline holds CLIP's text tower and a vision-language model its image tower. Joined, they are
the CLIP they came from. Only its two projections are read from the disk, and the layers above
those that a tower holds: LLaVA reads the penultimate state, so a model may ship without the last.

Long-CLIP's way to a longer context: position embeddings stretched, the first ones kept.
Zhang et al. 2024, "Long-CLIP: Unlocking the Long-Text Capability of CLIP"
("knowledge-preserved stretching"); the rule for the last positions is that of the authors' code
(beichenzbc/Long-CLIP, ``SDXL/encode_prompt.py``, ``kps``). With n positions of which k are kept,
and a whole factor r:

- positions below k stay;
- position ``k + r i + j`` is ``((r - j) p[k + i] + j p[k + i + 1]) / r`` for ``0 <= j < r``;
- the last r go on along the last step: ``p[n - 1] + j (p[n - 1] - p[n - 2]) / r``.

So n positions become ``k + r (n - k)``: 77 with 20 kept and a factor of 4 are 248. Long-CLIP-L is
trained after this; the authors' own SDXL stretches bigG and does not train it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.model_folder import shards
from bridge.towers.tensors import read_tensors

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_KEYS = ("embeddings.position_embedding.weight", "positional_embedding")
_IMAGE = ("vision_model.", "visual.")


def join_clip(folder: str | os.PathLike[str], text: nn.Module, vision: nn.Module) -> Any:
    """A transformers CLIPModel around two live towers, sharing their parameters.

    For inference; training one of the owners trains this too. Both towers stay in their mode,
    training or not.

    Args:
        folder: the folder of the CLIPModel that both come from.
        text: what is or holds CLIP's text tower (a pipeline's ``text_encoder``).
        vision: what is or holds its image tower (a `BridgeVLM.vision`). A tower may hold the lower
            layers alone; the layers above are then the folder's.

    Raises:
        OptionError: a tower is not that of ``folder`` (every tensor is compared, in the tower's
            dtype; a tower of more layers is refused), or the two are of different dtypes or
            devices.
        WeightsError: a folder that is incomplete or not a CLIPModel's.
    """
    from transformers import CLIPConfig, CLIPModel

    place = Path(folder)
    settings = read_json(place / "config.json")
    if settings.get("model_type") != "clip":
        raise WeightsError(f"{place} is not a CLIPModel: its model_type is not 'clip'")
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


# ---------------------------------------------------------------- longer contexts


def stretch(positions: Tensor, to: int = 248, keep: int = 20) -> Tensor:
    """Position embeddings ``(n, D)`` as ``(to, D)``, in their dtype. Raises OptionError."""
    length = len(positions)
    if not 0 <= keep < length - 1:
        raise OptionError(f"keep must be from 0 to {length - 2}, not {keep!r}.")
    factor, rest = divmod(to - keep, length - keep)
    if factor < 1 or rest:
        fitting = ", ".join(str(keep + r * (length - keep)) for r in (2, 3, 4))
        raise OptionError(
            f"{length} positions with {keep} kept do not stretch to {to}; to must be keep plus a "
            f"multiple of {length - keep}, such as {fitting}."
        )
    exact = positions.float()
    # One more point beyond the last, on the line of the last step.
    points = torch.cat([exact[keep:], (2 * exact[-1] - exact[-2])[None]])
    share = (torch.arange(factor, device=exact.device, dtype=torch.float32) / factor)[None, :, None]
    between = points[:-1, None] * (1 - share) + points[1:, None] * share
    return torch.cat([exact[:keep], between.flatten(0, 1)]).to(positions.dtype)


@overload
def stretch_positions(
    tower: Mapping[str, Tensor], to: int = ..., keep: int = ...
) -> dict[str, Tensor]: ...
@overload
def stretch_positions(tower: Any, to: int = ..., keep: int = ...) -> Any: ...


def stretch_positions(tower: Any, to: int = 248, keep: int = 20) -> Any:
    """A text tower of a longer context, made of an ordinary one, which is not changed.

    Args:
        tower: a transformers ``CLIPTextModel`` or ``CLIPTextModelWithProjection``, or a state
            dict with their keys, ``CLIPModel``'s or open_clip's.
        to: positions of the new tower; 248 is Long-CLIP's.
        keep: positions that stay as they are; the authors keep 20.

    Returns:
        A new module whose config says ``max_position_embeddings=to``, or a new state dict (whose
        other tensors are shared). ``save_pretrained`` writes the module as any other.

    Raises:
        OptionError: numbers that do not fit each other.
        UnsupportedModelError: no text positions in it.
    """
    if isinstance(tower, Mapping):
        return _stretched_state(tower, to, keep)
    config: Any = getattr(tower, "config", None)
    if not hasattr(config, "max_position_embeddings"):
        raise UnsupportedModelError(
            f"{type(tower).__name__} is not a CLIP text tower; pass a CLIPTextModel, a "
            "CLIPTextModelWithProjection or a state dict."
        )
    state = _stretched_state(tower.state_dict(), to, keep)
    changed = type(config).from_dict({**config.to_dict(), "max_position_embeddings": to})
    made = type(tower)(changed).to(device=tower.device, dtype=tower.dtype)
    made.load_state_dict(state)
    return made.train(tower.training)


def _stretched_state(state: Mapping[str, Tensor], to: int, keep: int) -> dict[str, Tensor]:
    names = [name for name in state if name.endswith(_KEYS) and not name.startswith(_IMAGE)]
    if not names:
        raise UnsupportedModelError(
            "There are no text positions to stretch; no tensor's name ends in "
            f"{' or '.join(_KEYS)}."
        )
    # position_ids is a count from 0 that transformers makes anew; in old files it has 77 entries.
    found = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    return {**found, **{name: stretch(state[name], to, keep) for name in names}}
