"""The tokenizer of a LLaVA checkpoint: read with an image token, and written in either layout.

LLaVA cuts the text at ``<image>`` before tokenising, so its vocabulary has no such token. bridge
and transformers do with one: it marks the places, and its embedding is never looked at.

LLaVA reads `tokenizer.model` with SentencePiece (transformers 4.37). transformers 5 makes a
tokenizer of its own of the same file, which differs where the settings do not say ``legacy`` (then
it was true, and is false now) and at spaces that begin a text.

Converting to transformers, the original's files go along in a folder of their own, `llava_text/`,
and come back as they were. A checkpoint that never was in LLaVA's layout gets them in the form that
LLaVA's own environment reads (transformers 4.37, tokenizers 0.15), and no other knows less.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bridge.files import read_json, read_text
from bridge.runtime import quiet_loading
from bridge.towers.tokenizer import load_words
from bridge.vlm.chat import IMAGE_TOKEN

SENTENCE_PIECES = "tokenizer.model"


def tokenizer_with_image(folder: Path, llm: str) -> Any:
    """The folder's tokenizer, `<image>` added as its last token where there was none.

    ``llm`` is the language model's kind. Raises WeightsError when it cannot load.
    """
    first = begins_every_text(folder, llm)
    with quiet_loading():
        tokenizer = load_words(folder, **({"legacy": True} if first else {}))
    if first:
        _begin_every_text(tokenizer)
    if IMAGE_TOKEN not in tokenizer.all_special_tokens:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
        )
    return tokenizer


def begins_every_text(folder: Path, llm: str) -> bool:
    """Whether LLaVA reads a space before every text that a special token ends, in this folder.

    Its LLaMAs do unless their settings have ``legacy: false``; its Mistrals, which it reads by
    another class, always.
    """
    if not (folder / SENTENCE_PIECES).is_file():
        return False
    settings = folder / "tokenizer_config.json"
    told = read_json(settings).get("legacy") if settings.is_file() else None
    return llm == "mistral" or told is not False


def _begin_every_text(tokenizer: Any) -> None:
    """Put a space before each text between special tokens, one that is there already or not."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )


def image_mark(tokenizer: Any) -> str:
    """How a chat template writes a picture's mark, so that the text behind it is read as LLaVA
    does. SentencePiece begins it with a space; a tokenizer that puts one only where a whole text
    begins has to be given it."""
    begun, inside = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"{IMAGE_TOKEN}a")
    )
    return IMAGE_TOKEN if inside[1:] == begun else f"{IMAGE_TOKEN} "


# -- the files --------------------------------------------------------------------------

ORIGINALS = "llava_text"
_SETTINGS = "tokenizer_config.json"
_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"

# What belongs to the text side; of these, transformers writes the first three anew.
_FILES = (
    _TOKENIZER,
    _SETTINGS,
    _TEMPLATE,
    SENTENCE_PIECES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
# Settings that say how a text is read, and that transformers 5 does not write.
_READING = (
    "legacy",
    "add_bos_token",
    "add_eos_token",
    "padding_side",
    "model_max_length",
    "sp_model_kwargs",
)
# Settings of transformers 5 that 4 takes for something else.
_NEW = ("backend", "is_local", "local_files_only", "extra_special_tokens", "add_prefix_space")


def write_for_hf(tokenizer: Any, source: Path, part: Path) -> None:
    """``tokenizer`` as transformers writes it, and ``source``'s own files beside it."""
    for name in _FILES:
        if (source / name).is_file() and name not in (_SETTINGS, _TOKENIZER):
            shutil.copyfile(source / name, part / name)
    tokenizer.save_pretrained(part)
    told = _read(source / _SETTINGS)
    keep_rules(part, {key: told[key] for key in _READING if key in told})
    kept = part / ORIGINALS
    kept.mkdir()
    for name in _FILES:
        there = source / name
        if there.is_file() and not _same(there, part / name):
            shutil.copyfile(there, kept / name)


def keep_rules(folder: Path, told: dict[str, Any] | None = None) -> None:
    """Have a saved tokenizer read by the rules of its tokenizer.json; ``told`` are more settings.

    As a LlamaTokenizer, transformers would read its pieces by rules of its own.
    """
    settings = read_json(folder / _SETTINGS) | (told or {})
    if str(settings.get("tokenizer_class", "")).startswith("Llama"):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(folder / _SETTINGS, settings)


def write_for_llava(folder: Path, part: Path, *, image_was_added: bool) -> None:
    """The text side of ``folder``, transformers' layout, as LLaVA's own environment reads it.

    ``image_was_added`` takes the image token out, which has no row in the embeddings then.
    """
    kept = folder / ORIGINALS
    if kept.is_dir():
        for name in _FILES:
            # Those that transformers writes of itself are only the original's where they are kept.
            if (kept / name).is_file():
                shutil.copyfile(kept / name, part / name)
            elif (folder / name).is_file() and name not in _FILES[:3]:
                shutil.copyfile(folder / name, part / name)
        return
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, part / name)
    if (part / _SETTINGS).is_file():
        settings = _older_settings(read_json(_first(_SETTINGS, folder, part)))
        _write(part / _SETTINGS, _without_image(settings) if image_was_added else settings)
    if (part / _TOKENIZER).is_file():
        tokenizer = _older_tokenizer(read_json(_first(_TOKENIZER, folder, part)))
        _write(part / _TOKENIZER, _without_image(tokenizer) if image_was_added else tokenizer)


def _first(name: str, *folders: Path) -> Path:
    """Where a file is: in the source, which an error can name, or else in what is being made."""
    return next(folder / name for folder in folders if (folder / name).is_file())


def _without_image(told: Any) -> Any:
    """Settings of a tokenizer, or the tokenizer, without the image token in any list or table."""
    if isinstance(told, list):
        return [_without_image(each) for each in told if not _is_image(each)]
    if isinstance(told, dict):
        return {key: _without_image(each) for key, each in told.items() if not _is_image(each)}
    return told


def _is_image(told: Any) -> bool:
    return told == IMAGE_TOKEN or (isinstance(told, dict) and told.get("content") == IMAGE_TOKEN)


def chat_template_of(folder: Path) -> str | None:
    """The chat template of a folder of transformers, in whichever file it is."""
    if (folder / _TEMPLATE).is_file():
        return read_text(folder / _TEMPLATE)
    for name in (_SETTINGS, "chat_template.json"):
        found = _read(folder / name).get("chat_template")
        if isinstance(found, str):
            return found
    return None


def _older_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json for transformers 4."""
    told = {key: value for key, value in settings.items() if key not in _NEW}
    if told.get("tokenizer_class") == "TokenizersBackend":
        told["tokenizer_class"] = "PreTrainedTokenizerFast"
    more = settings.get("extra_special_tokens")
    if isinstance(more, list):
        told["additional_special_tokens"] = more
    return told


def _older_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json for tokenizers 0.15: pairs in one string, Metaspace by its older options."""
    model = tokenizer.get("model", {})
    merges = model.get("merges", [])
    # A pair of pieces that hold a space themselves cannot be said so; none of a BPE's does.
    if all(isinstance(pair, list) and " " not in "".join(pair) for pair in merges):
        model = {**model, "merges": [" ".join(pair) for pair in merges]}
    return {
        **tokenizer,
        "model": {key: value for key, value in model.items() if key != "ignore_merges"},
        "pre_tokenizer": _older_step(tokenizer.get("pre_tokenizer")),
        "decoder": _older_step(tokenizer.get("decoder")),
    }


def _older_step(step: Any) -> Any:
    """A step of the tokenizer, and those inside it."""
    if isinstance(step, list):
        return [_older_step(each) for each in step]
    if not isinstance(step, dict):
        return step
    told = {key: _older_step(value) for key, value in step.items()}
    if told.get("type") == "Metaspace":
        told.pop("split", None)
        told["add_prefix_space"] = told.get("prepend_scheme") != "never"
    return told


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
