"""A Stable Diffusion folder, by name, path or hub id, to a stock diffusers pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.diffusion.complete import check_complete, load_text_encoders
from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.runtime import check_dtype, quiet_loading, resolve_device, resolve_dtype

if TYPE_CHECKING:
    import torch

SUPPORTED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def load_pipeline(
    model: str | os.PathLike[str] = "emoji-xl",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Any:
    """Load a StableDiffusionPipeline or StableDiffusionXLPipeline, as diffusers would.

    ``model`` is an embedded name, a recipe name, a folder or a hub id. Without ``device``: CUDA
    if there is one. Without ``dtype``: fp32 for small models and on a CPU, else half precision.
    Raises UnknownModelError, HubError, WeightsError (missing or damaged files),
    UnsupportedModelError (another kind of pipeline), OptionError.
    """
    place = resolve_device(device)
    check_dtype(dtype)
    folder = locate(model, revision)
    return load_folder(folder, place, resolve_dtype(dtype, place, folder))


def locate(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The absolute folder of a model that bridge draws with. Raises as `load_pipeline`.

    The index is fetched and judged first, so that no gigabytes of another kind of model are.
    """
    from bridge.store import resolve

    index = resolve(model, revision=revision, allow_patterns=("model_index.json",))
    pipeline_class_name(index)
    return resolve(model, revision=revision).absolute()


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """`load_pipeline` for a folder that is known to be of a supported kind."""
    import diffusers
    from safetensors import SafetensorError

    name = pipeline_class_name(folder)
    towers = load_text_encoders(folder, dtype)
    with quiet_loading():
        try:
            pipe = getattr(diffusers, name).from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                **towers,
            )
        except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            raise WeightsError(f"{folder}: the pipeline cannot load: {error}") from error
    check_complete(folder, pipe)
    return pipe.to(device)


def pipeline_class_name(folder: Path) -> str:
    """The pipeline class that a folder's model_index.json names, if bridge draws with it."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UnsupportedModelError(
            f"{folder} has no model_index.json; give a folder in diffusers' layout"
        )
    name = read_json(index).get("_class_name")
    if name not in SUPPORTED:
        raise UnsupportedModelError(
            f"{folder} is a {name!r}; bridge draws with {' and '.join(SUPPORTED)}"
        )
    return str(name)


def size_factor(folder: Path) -> int:
    """How many pixels a latent is wide, from the VAE's config: nothing is loaded."""
    from bridge.conditioning.sizes import latent_scale

    scale = latent_scale(read_json(folder / "vae" / "config.json"))
    if scale is not None:
        return scale
    raise WeightsError(f"{folder / 'vae' / 'config.json'}: no block_out_channels")
