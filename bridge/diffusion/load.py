"""A Stable Diffusion folder, by name, path or hub id, to a stock diffusers pipeline."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.checks import keywords
from bridge.embedded import DRAWING
from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.model_folder import check_part
from bridge.runtime import Dtype, check_dtype, quiet_loading, resolve_device, resolve_dtype
from bridge.towers import reading

if TYPE_CHECKING:
    import torch

SUPPORTED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# What they are made of, as model_index.json writes it.
_PARTS = re.compile(
    r"transformers\.CLIP(TextModel(WithProjection)?|VisionModel(WithProjection)?"
    r"|Tokenizer(Fast)?|ImageProcessor(Fast|Pil)?|FeatureExtractor)"
    r"|diffusers\.(UNet2DConditionModel|\w*Autoencoder\w*|ConsistencyDecoderVAE|\w+Scheduler)"
    r"|stable_diffusion\.StableDiffusionSafetyChecker"
)


@keywords
def load_pipeline(
    model: str | os.PathLike[str] = DRAWING,
    *,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
) -> Any:
    """Load a StableDiffusionPipeline or StableDiffusionXLPipeline, as diffusers would.

    Args:
        model: an embedded name, a short name, a folder or a hub id.
        device: by default CUDA if there is one.
        dtype: by default float32 for small models and on a CPU, else half precision.
        revision: branch, tag or commit of a hub's repository.

    Raises:
        UnknownModelError, HubError: as ``bridge.store.resolve``.
        WeightsError: missing or damaged files.
        UnsupportedModelError: another kind of pipeline.
        OptionError: no such device, dtype or revision.
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

    name = pipeline_class_name(folder)
    with quiet_loading(), reading(f"{folder}: the pipeline cannot load"):
        for part in sorted(each for each in folder.iterdir() if each.is_dir()):
            check_part(part)
        pipe = getattr(diffusers, name).from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **_load_text_encoders(folder, dtype),
        )
    _check_complete(folder, pipe)
    return pipe.to(device)


def _load_text_encoders(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The text towers that a folder's index names, complete, on the CPU. Raises WeightsError."""
    from bridge.towers import TEXT_TOWERS, load_tower

    named = read_json(folder / "model_index.json").items()
    kinds = {name: kind[1] for name, kind in named if isinstance(kind, list) and len(kind) == 2}
    return {
        name: load_tower(kind, folder / name, dtype=dtype, device="cpu").requires_grad_(True)
        for name, kind in kinds.items()
        if isinstance(kind, str) and kind in TEXT_TOWERS
    }


def _check_complete(folder: Path, pipe: Any) -> None:
    """Refuse a pipeline with tensors that no file had. Raises WeightsError.

    Where a file lacks a tensor, transformers takes random numbers, and diffusers one of none.
    """
    import torch

    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        lacking = [key for key, parameter in part.named_parameters() if parameter.is_meta]
        if lacking:
            raise WeightsError(
                f"The {name} in {folder / name} lacks {len(lacking)} of its tensors "
                f"({', '.join(lacking[:3])}…); it is damaged or of another architecture."
            )


def pipeline_class_name(folder: Path) -> str:
    """The pipeline class that a folder's model_index.json names, if bridge draws with it."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UnsupportedModelError(
            f"{folder} has no model_index.json; give a folder in diffusers' layout"
        )
    told = read_json(index)
    name = told.get("_class_name")
    if name not in SUPPORTED:
        raise UnsupportedModelError(
            f"{folder} is a {name!r}; bridge draws with {' and '.join(SUPPORTED)}"
        )
    for part, named in told.items():
        if isinstance(named, list):
            _check_part(index, part, named)
    return str(name)


def _check_part(index: Path, part: str, named: list[Any]) -> None:
    """Refuse a class that no pipeline of ``SUPPORTED`` is made of.

    Some, such as processors and models of several parts, would look for code in their folder,
    and diffusers does not tell them that none may run.
    """
    if named == [None, None] or _PARTS.fullmatch(".".join(map(str, named))):
        return
    raise UnsupportedModelError(
        f"{index} makes {part!r} a {'.'.join(map(str, named))}, which is no part of a Stable "
        "Diffusion pipeline; if it is one of yours, load the pipeline with diffusers and pass that"
    )


def size_factor(folder: Path) -> int:
    """How many pixels a latent is wide, from the VAE's config: nothing is loaded."""
    from bridge.encoding.options import latent_scale

    scale = latent_scale(read_json(folder / "vae" / "config.json"))
    if scale is not None:
        return scale
    raise WeightsError(f"{folder / 'vae' / 'config.json'}: no block_out_channels")
