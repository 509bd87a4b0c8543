"""Models and configs of transformers from folders that anyone may have written.

No code in a folder runs, weights are safetensors only, complete or not at all, and whatever goes
wrong with the files is one error that names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError, WeightsError
from bridge.files import is_full_disk, read_json
from bridge.model_folder import check_described, check_part, check_sizes, files_size
from bridge.runtime import quiet_loading


@contextmanager
def reading(claim: str) -> Iterator[None]:
    """Whatever is raised inside, where the files of a folder are made something of, is one error.

    A folder can make transformers raise anything: KeyError and TypeError for a config of wrong
    types, RecursionError for JSON nested thousands deep, plain Exception for a tokenizer's file.

    Args:
        claim: how the error begins: it names the folder and says what cannot load.

    Raises:
        WeightsError: anything but a `BridgeError` or a full disk was raised inside.
    """
    try:
        yield
    except BridgeError:
        raise
    except Exception as error:
        if is_full_disk(error):  # no fault of the files
            raise
        lines = str(error).strip().splitlines() or ["no message"]
        raise WeightsError(
            f"{claim} ({type(error).__name__}: {lines[0][:300]}); fetch its files again."
        ) from error


def read_config(folder: Path) -> Any:
    """The config of a folder, as transformers' AutoConfig reads it, without the folder's code.

    Raises WeightsError for what `bridge.model_folder.check_part` refuses, else what transformers
    does.
    """
    from transformers import AutoConfig

    check_part(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return without_code(config)


def config_of(kind: str, folder: Path) -> Any:
    """The config of a folder by its transformers class, such as ``AlignConfig``."""
    import transformers

    return getattr(transformers, kind).from_dict(read_json(folder / "config.json"))


def without_code(config: Any) -> Any:
    """The config itself, from which every mention of code is taken.

    ``trust_remote_code=False`` alone is not enough: transformers builds the parts of a model (the
    tower and the language model of a LLaVA) without passing it on, and then asks on standard
    input whether a part's code may run.
    """
    from transformers import PretrainedConfig

    if hasattr(config, "auto_map"):
        del config.auto_map
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            without_code(part)
    return config


def load_tower(
    architecture: str | type,
    folder: Path,
    *,
    dtype: Any,
    device: Any,
    config: Any = None,
    state: Mapping[str, Any] | None = None,
    may_lack: str | None = None,
) -> Any:
    """Load a transformers module for inference.

    Args:
        architecture: the transformers class, or its name.
        folder: the folder of its ``config.json`` and ``*.safetensors``.
        dtype: the torch dtype to load in.
        device: the torch device to load to.
        config: the transformers config, where it is not that of ``config.json`` itself (one side
            of a model with two).
        state: the tensors, by transformers' names, where they are not read from ``folder`` as
            they are; ``config`` goes with it.
        may_lack: how the names of those tensors begin that a checkpoint may be without.

    Raises:
        WeightsError: files missing or damaged, tensors missing or of another shape. (transformers
            itself fills missing tensors with random numbers and only logs it.)
    """
    import transformers

    if isinstance(architecture, str):
        model_class: Any = getattr(transformers, architecture)
    else:
        model_class, architecture = architecture, architecture.__name__
    # Auto classes build parts by the config, which must not name code for them.
    settings = without_code(config) if config is not None else None
    with reading(f"The {architecture} in {folder} cannot be loaded"), quiet_loading():
        if state is None:
            check_part(folder)
        if settings is not None:
            check_sizes(settings.to_dict(), folder / "config.json")
        elif architecture.startswith("Auto"):
            settings = read_config(folder)
        else:
            settings = model_class.config_class.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        held = files_size(folder) if state is None else sum(each.nbytes for each in state.values())
        check_described(model_class, settings, folder, held)
        module, info = model_class.from_pretrained(
            None if state is not None else folder,
            config=settings,
            state_dict=None if state is None else dict(state),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    missing = sorted(map(str, info["missing_keys"])) + sorted(
        str(key) for key in info.get("mismatched_keys", ())
    )
    missing = [key for key in missing if may_lack is None or not key.startswith(may_lack)]
    if missing:
        raise WeightsError(
            f"The {architecture} in {folder} lacks {len(missing)} of its tensors "
            f"({', '.join(missing[:3])}…); it is damaged or of another architecture."
        )
    return module.to(device).eval().requires_grad_(False)
