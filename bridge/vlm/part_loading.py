"""A tower or a language model for `pair`, by short name (embedded, packaged), folder or hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from bridge.errors import MissingDependencyError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.model_folder import check_described, files_size
from bridge.runtime import check_dtype, quiet_loading, resolve_device, resolve_dtype
from bridge.towers import reading
from bridge.towers.checkpoint import read_config
from bridge.towers.image_processor import a_picture, load_image_processor
from bridge.towers.registry import find_row
from bridge.towers.tokenizer import load_words
from bridge.vlm.generation import check_generation
from bridge.vlm.pairing import image_tower

# How much of transformers' own words an error repeats.
_SAID = 300
_WANTED = {
    "AutoModel": "loads towers; give a vision tower, such as 'clip-l' or 'siglip-b'",
    "AutoModelForCausalLM": "loads language models; give one, such as 'gemma-270m'",
}
# Whole VLMs, whose parts may be taken out.
_VLMS = ("llava", "llava_next", "bridge_vlm")


def load_vision(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """The image tower of a checkpoint, and its image processor, or None where it has none.

    ``source`` is a name of `bridge.towers.towers` whose weights are in transformers' layout, or a
    folder or hub id of a tower (`CLIPVisionModel`, `SiglipVisionModel`, `Dinov2Model` ...), a model
    with two (`CLIPModel`), or a VLM. Raises UnknownModelError, HubError, WeightsError,
    UnsupportedModelError, OptionError.
    """
    folder, kind = _folder(source, revision)
    if kind in _VLMS:
        from bridge.vlm.load import load_vlm

        vlm = load_vlm(folder, device=device, dtype=dtype)
        return vlm.vision, vlm.image_processor
    place, precision = _where(device, dtype, folder)
    from transformers import AutoModel

    with quiet_loading():
        model = load_part(AutoModel, folder, precision)
    has_processor = any((folder / f"{name}processor_config.json").is_file() for name in ("pre", ""))
    processor = load_image_processor(folder) if has_processor else None
    tower = image_tower(model).to(place).eval()
    if processor is not None:
        with reading(f"{folder}: the tower does not take what its image processor makes"):
            _look(tower, processor)
    return tower, processor


@torch.no_grad()
def _look(tower: Any, processor: Any) -> None:
    """The tower's first look at a picture, for what it may raise."""
    made = processor(images=[a_picture()], return_tensors="pt")
    if set(made) == {"pixel_values"}:  # towers of free shapes take more, each by other names
        tower(made["pixel_values"].to(next(tower.parameters())))


def load_llm(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """The causal language model of a checkpoint, or of a VLM, and its tokenizer.

    ``source`` may be a short name of `bridge.vlm.packaged`, such as "gemma-270m", too. Raises as
    `load_vision`, and MissingDependencyError when such a model's package is not installed.
    """
    folder, kind = _folder(source, revision)
    if kind in _VLMS:
        from bridge.vlm.load import load_vlm

        vlm = load_vlm(folder, device=device, dtype=dtype)
        return vlm.llm, vlm.tokenizer
    place, precision = _where(device, dtype, folder)
    from transformers import AutoModelForCausalLM

    with quiet_loading():
        llm = load_part(AutoModelForCausalLM, folder, precision)
        tokenizer = load_words(folder)
    return llm.to(place).eval(), tokenizer


def load_part(auto_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One model of a folder, every tensor of it from the folder. Raises WeightsError,
    UnsupportedModelError, MissingDependencyError."""
    with reading(f"{folder}: the weights cannot load"):
        try:
            config = read_config(folder)
            check_described(auto_class, config, folder, files_size(folder))
            model, info = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except ImportError as error:  # a quantised checkpoint's package, mostly bitsandbytes
            why = str(error).strip().split("\n", 1)[0][:_SAID]
            raise MissingDependencyError(f"{folder} needs another package: {why}") from error
        except ValueError as error:  # transformers' word for a config of another kind
            # What follows its first line is a list of all classes there are.
            why = str(error).split("\n", 1)[0][:_SAID]
            raise UnsupportedModelError(
                f"{folder} is no model for {auto_class.__name__}, which "
                f"{_WANTED.get(auto_class.__name__, 'it should be')}: {why}"
            ) from error
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise WeightsError(
            f"{folder}: {len(missing)} tensors are missing, such as {missing[0]!r}; "
            "get the complete checkpoint"
        )
    return check_generation(model, folder) if hasattr(model, "generation_config") else model


def _folder(source: str | os.PathLike[str], revision: str | None) -> tuple[Path, str]:
    """Folder and model_type."""
    from bridge.store import resolve
    from bridge.vlm.packaged import PACKAGED, packaged_folder

    if isinstance(source, str) and source in PACKAGED:
        folder = packaged_folder(source)
        return folder, str(read_json(folder / "config.json").get("model_type"))
    row = find_row(source) if isinstance(source, str) else None
    if row is not None and (row.files or row.pickle):
        raise UnsupportedModelError(
            f"the weights of {row.name!r} ({row.source}) are not in transformers' layout, which a "
            "VLM's parts need; give another, such as 'clip-l' or 'siglip-l', a folder or a hub id"
        )
    named = source if row is None else row.source
    folder = resolve(named, revision=revision).absolute()
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{folder} has no config.json; give a folder of transformers")
    return folder, str(read_json(folder / "config.json").get("model_type"))


def _where(
    device: str | torch.device | None, dtype: str | torch.dtype | None, folder: Path
) -> tuple[torch.device, torch.dtype]:
    place = resolve_device(device)
    check_dtype(dtype)
    return place, resolve_dtype(dtype, place, folder)
