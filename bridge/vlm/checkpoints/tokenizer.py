"""The tokenizer of a LLaVA checkpoint, with the image token that the original does without.

LLaVA cuts the text at ``<image>`` before tokenising, so its vocabulary has no such token. bridge
and transformers do with one: it marks the places, and its embedding is never looked at.

LLaVA reads `tokenizer.model` with SentencePiece (transformers 4.37). transformers 5 makes a
tokenizer of its own of the same file, which differs where the settings do not say ``legacy`` (then
it was true, and is false now) and at spaces that begin a text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.files import read_json
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
