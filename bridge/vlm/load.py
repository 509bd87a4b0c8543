"""A LLaVA folder, by name, path or hub id, to a BridgeVLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.runtime import check_dtype, quiet_loading, resolve_device, resolve_dtype
from bridge.vlm.model import BridgeVLM, from_llava
from bridge.vlm.preprocess import load_image_processor

if TYPE_CHECKING:
    import torch


def load_vlm(
    model: str | os.PathLike[str] = "emoji-llava",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> BridgeVLM:
    """Load a checkpoint of LlavaForConditionalGeneration's layout (LLaVA 1.5 and its like).

    ``model`` is an embedded name, a folder or a hub id. Without ``device``: CUDA if
    there is one. Without ``dtype``: fp32 for small models and on a CPU, else half precision.
    Raises UnknownModelError, HubError, WeightsError (missing, damaged or incomplete weights),
    UnsupportedModelError (another architecture), OptionError.
    """
    place = resolve_device(device)
    check_dtype(dtype)
    folder = locate(model, revision)
    return load_folder(folder, place, resolve_dtype(dtype, place, folder), os.fspath(model))


def locate(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The absolute folder of a model that bridge answers with. Raises as `load_vlm`.

    The config is fetched and judged first, so that no gigabytes of another kind of model are.
    """
    from bridge.store import resolve

    _check_architecture(resolve(model, revision=revision, allow_patterns=("config.json",)))
    return resolve(model, revision=revision).absolute()


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype, name: str) -> BridgeVLM:
    """`load_vlm` once the model is a folder and the options are settled."""
    image_processor = load_image_processor(folder)
    from transformers import AutoTokenizer

    with quiet_loading():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(f"{folder}: the tokenizer cannot load: {error}") from error
        stock = _load_weights(folder, dtype)
    return from_llava(
        stock.to(device).eval(),
        tokenizer,
        image_processor,
        chat_template=_chat_template(folder, tokenizer),
        name=name,
    )


def _check_architecture(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UnsupportedModelError(
            f"{folder} has no config.json; give a folder of LlavaForConditionalGeneration"
        )
    kind = read_json(config).get("model_type")
    if kind != "llava":
        raise UnsupportedModelError(
            f"{folder} is a {kind!r} checkpoint; answering needs 'llava' (LLaVA 1.5's layout)"
        )


def _load_weights(folder: Path, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError
    from transformers import LlavaForConditionalGeneration

    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: the weights cannot load: {error}") from error
    model, info = loaded
    # transformers fills a missing tensor with random numbers and goes on; answers would be noise.
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsError(
            f"{folder}: {len(missing)} tensors are missing, such as {missing[0]!r}; "
            "get the complete checkpoint"
        )
    return model


def _chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The folder's chat template: the tokenizer's, or an older processor's own file."""
    template = tokenizer.chat_template
    if isinstance(template, str):
        return template
    legacy = folder / "chat_template.json"
    if legacy.is_file():
        found = read_json(legacy).get("chat_template")
        if isinstance(found, str):
            return found
    return None
