"""transformers on folders that anyone may have written: no code in them runs, and whatever goes
wrong with their files is one error that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError, WeightsError
from bridge.files import is_full_disk
from bridge.model_folder import check_part


@contextmanager
def reading(claim: str) -> Iterator[None]:
    """Whatever is raised inside, where the files of a folder are made something of, is a
    WeightsError. It begins with ``claim``, which names the folder and says what cannot load.

    A folder can make transformers raise anything: KeyError and TypeError for a config of wrong
    types, RecursionError for JSON nested thousands deep, plain Exception for a tokenizer's file.
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


def load_words(folder: Path, **settings: Any) -> Any:
    """The tokenizer of a folder, of any kind that transformers knows; ``settings`` go before its
    own. Raises WeightsError."""
    from transformers import AutoTokenizer

    with reading(f"{folder}: the tokenizer cannot load"):
        return tried(
            AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **settings
            )
        )


def tried(tokenizer: Any) -> Any:
    """The tokenizer, which has read a text: some files load and then cannot be used."""
    for text in ("a cat", ""):
        ids = tokenizer(text)["input_ids"]
        tokenizer.decode(ids)
    return tokenizer
