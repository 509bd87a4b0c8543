"""What is checked of a model's folder before transformers or diffusers read it.

They open whatever stands under a name that they know, so a pipe would hang them; they build what a
config asks for before they look at a weight; and where an index names a file that is no
safetensors, they unpickle it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError
from bridge.files import check_regular, read_json

# What is read of a folder, by the ends of names.
_READ = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".pt", ".pth", ".gguf")
# A folder of a model has some dozens of files; a shell's mistake may give the home folder.
_MOST_FILES = 5_000

# Numbers that a model may have whatever its files hold.
_SMALL_MODEL = 1 << 26

# Numbers of a config.json, or of an image processor's, that memory and time go by, and the most
# that they may be: the largest published ones are well below.
_MOST = (
    (re.compile(r"(num|n)_.*layers?|.*_layers|n_layer|depth"), 1 << 10),
    (re.compile(r"(num|n)_.*experts?"), 1 << 12),
    (re.compile(r"height|width|(short|long)est_edge"), 1 << 12),
    (re.compile(r"image_size|num_patches|num_query_tokens"), 1 << 14),
    (re.compile(r".*(size|dim|width|positions|embeddings|length|channels|heads|n_embd|n_ctx)"
                r"|d_model|d_ff|d_kv"), 1 << 25),
)  # fmt: skip


def check_folder(folder: Path) -> Path:
    """The folder, if all files in it are plain ones, which no reader waits for.

    Looks at the folder and at those in it, where the parts of a model are.

    Raises:
        WeightsError: a file that is not a plain one.
    """
    for file in _files(folder):
        check_regular(file)
    return folder


def check_part(folder: Path) -> None:
    """Refuse what would overwhelm who loads the model in ``folder``, or be unpickled.

    Raises:
        WeightsError: sizes that no model has; an index that names a pickle.
    """
    if (folder / "config.json").is_file():
        check_sizes(read_json(folder / "config.json"), folder / "config.json")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards(index)


def shards(index: Path) -> dict[str, Path]:
    """Name of each tensor of a safetensors index, and the file it is in. Raises WeightsError.

    The files may be in another folder beside this one, but must be safetensors.
    """
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict):
        raise WeightsError(f"{index}: weight_map is no JSON object; fetch it again.")
    for tensor, file in named.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise WeightsError(
                f"{index}: the tensor {tensor!r} is in {file!r}, which is no safetensors file; "
                "bridge reads safetensors only."
            )
    found = {tensor: index.parent / file for tensor, file in named.items()}
    for path in sorted(set(found.values())):
        if os.path.exists(path):  # of a hub's repository not all is always fetched
            check_regular(path)
    return found


def check_sizes(config: dict[str, Any], source: object) -> None:
    """Refuse a config whose numbers ask for more than any model has. Raises WeightsError."""
    for key, value in _numbers(config):
        most = next((most for pattern, most in _MOST if pattern.fullmatch(key)), None)
        if most is not None and not 0 <= value <= most:
            raise WeightsError(
                f"{source}: {key} is {value:,}, where 0 to {most:,} can be; fetch it again."
            )


def files_size(folder: Path) -> int:
    """How many bytes the safetensors of a folder have, those that its indexes name among them."""
    indexes = folder.glob("*.safetensors.index.json")
    named = {file for index in indexes for file in shards(index).values() if file.is_file()}
    return sum(file.stat().st_size for file in {*folder.glob("*.safetensors"), *named})


def check_described(model_class: Any, config: Any, folder: Path, held: int) -> None:
    """Refuse a config that describes a far larger model than there are weights for.

    transformers makes up what is missing, and has filled the memory before it says so.

    Args:
        model_class: transformers' class of the model, or an Auto class.
        config: its transformers config.
        folder: where it is from.
        held: the bytes of its weights.

    Raises:
        WeightsError: the model would have 64 million numbers more than ``held`` can be.
    """
    import torch  # late: conditioning's command line reads folders without it

    with torch.device("meta"):
        # An Auto class finds the model's own, which a config builds by itself.
        if hasattr(model_class, "from_config"):
            described = model_class.from_config(config, trust_remote_code=False)
        else:
            described = model_class(config)
    numbers = sum(tensor.numel() for tensor in described.parameters())
    # Four bits a number is the least there is; what is small may lack whatever it likes.
    if numbers > 2 * held + _SMALL_MODEL:
        raise WeightsError(
            f"{folder}: its config.json describes {numbers:,} numbers, and its files hold "
            f"{held:,} bytes; get the complete checkpoint"
        )


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of a config, those of its parts and lists too, with the key it stands under."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from _numbers(each)
            elif isinstance(each, int | float) and not isinstance(each, bool):
                yield str(key), each


def _files(folder: Path) -> Iterator[Path]:
    """The files of the folder and of those in it that a reader may open."""
    count = 0
    for place in (folder, *_inside(folder)):
        with os.scandir(place) as entries:
            for entry in entries:
                count += 1
                if count > _MOST_FILES:
                    raise WeightsError(
                        f"{folder} holds more than {_MOST_FILES:,} files; give the model's own "
                        "folder"
                    )
                if entry.name.endswith(_READ) and not _is_folder(entry):
                    yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _inside(folder: Path) -> list[Path]:
    """The folders in a folder, but hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if _is_folder(entry) and not entry.name.startswith(".")
            )
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {error}") from error
