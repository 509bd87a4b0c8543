"""Reading a text tower's tokenizer from its files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from bridge.errors import WeightsError
from bridge.files import stamp
from bridge.towers.foreign import reading, tried

_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.txt",
)
# What the slow tokenizers of a family are read from; AutoTokenizer's may be any of them.
_SLOW = (
    {"vocab.json", "merges.txt"},
    {"spiece.model"},
    {"sentencepiece.bpe.model"},
    {"tokenizer.model"},
    {"vocab.txt"},
)


def load_tokenizer(folder: Path, kind: str) -> Any:
    """The tokenizer in ``folder``; it is kept until its files change.

    Args:
        folder: the folder of ``tokenizer.json``, or of a slow tokenizer's files.
        kind: its transformers class, as ``bridge.towers.TOKENIZERS`` says.

    Raises:
        WeightsError: files missing or damaged.
    """
    files = (*_FILES, "tokenizer_config.json")
    return _load(folder, kind, tuple(stamp(folder / name) for name in files))


@lru_cache(maxsize=16)
def _load(folder: Path, kind: str, stamps: tuple[tuple[int, int] | None, ...]) -> Any:
    import transformers

    there = {name for name, found in zip(_FILES, stamps, strict=False) if found}
    own = _SLOW if kind == "AutoTokenizer" else _SLOW[1:2] if kind.startswith("T5") else _SLOW[:1]
    slow = next((files for files in own if files <= there), None)
    # Without these files transformers would make a tokenizer with an empty vocabulary.
    if "tokenizer.json" not in there and slow is None:
        names = " nor ".join(" with ".join(sorted(files, reverse=True)) for files in own)
        raise WeightsError(f"{folder} has neither tokenizer.json nor {names}; fetch it again.")
    with reading(f"The tokenizer in {folder} cannot be read"):
        return tried(
            getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        )


def forget_tokenizers() -> None:
    """Drop the tokenizers kept from earlier calls."""
    _load.cache_clear()
