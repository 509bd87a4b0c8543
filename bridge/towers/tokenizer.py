"""A text tower's tokenizer: read from its files, and its texts as the tower reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.cleaning import clean
from bridge.errors import OptionError, PromptError, WeightsError
from bridge.files import stamp
from bridge.kept import kept
from bridge.runtime import quiet_loading
from bridge.towers.checkpoint import reading

if TYPE_CHECKING:
    from torch import Tensor

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

Span = tuple[int, int]


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


@kept(16)
def _load(folder: Path, kind: str, stamps: tuple[tuple[int, int] | None, ...]) -> Any:
    import transformers

    there = {name for name, found in zip(_FILES, stamps, strict=False) if found}
    own = _SLOW if kind == "AutoTokenizer" else _SLOW[1:2] if kind.startswith("T5") else _SLOW[:1]
    slow = next((files for files in own if files <= there), None)
    # Without these files transformers would make a tokenizer with an empty vocabulary.
    if "tokenizer.json" not in there and slow is None:
        names = " nor ".join(" with ".join(sorted(files, reverse=True)) for files in own)
        raise WeightsError(f"{folder} has neither tokenizer.json nor {names}; fetch it again.")
    with reading(f"The tokenizer in {folder} cannot be read"), quiet_loading():
        return check_tokenizer(
            getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        )


def load_words(folder: Path, **settings: Any) -> Any:
    """The tokenizer of a folder, of any kind that transformers knows; ``settings`` go before its
    own. Raises WeightsError."""
    from transformers import AutoTokenizer

    with reading(f"{folder}: the tokenizer cannot load"):
        return check_tokenizer(
            AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **settings
            )
        )


def check_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, which has read a text: some files load and then cannot be used."""
    for text in ("a cat", ""):
        ids = tokenizer(text)["input_ids"]
        tokenizer.decode(ids)
    return tokenizer


@dataclass(frozen=True)
class TokenRule:
    """How a family was shown its texts in training.

    Attributes:
        fill: pad to the tower's whole context, as CLIP and SigLIP do, and not to the longest of a
            batch.
        lower: lower-case the text first.
        pad: the id to fill with; None for the tokenizer's own.
        clean: how texts are cleaned, a name of ``bridge.cleaning.CLEANINGS``.
        strip_sep: put 0 in the place of the tokenizer's separator (CLIPA's BERT tokenizer).
    """

    fill: bool = False
    lower: bool = False
    pad: int | None = None
    clean: str = "none"
    strip_sep: bool = False


@dataclass(frozen=True, eq=False)
class TextBatch:
    """A batch of texts, tokenized by one tower's rule.

    Attributes:
        texts: the B texts as given.
        ids: ``(B, T)`` int64 on the CPU.
        mask: ``(B, T)`` int64, 1 for the text's tokens and the special ones around them, 0 for
            padding.
        offsets: for each text and token ``(start, end)`` in the text, without white space at its
            borders; None for special tokens (but an unknown word's), padding, and tokenizers that
            cannot say.
        cut: for each text how many tokens did not fit.
    """

    texts: tuple[str, ...]
    ids: Tensor
    mask: Tensor
    offsets: tuple[tuple[Span | None, ...], ...]
    cut: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


def tokenize(tokenizer: Any, texts: Sequence[str], rule: TokenRule, context: int) -> TextBatch:
    """Tokenize by ``rule``, padding on the right.

    Args:
        tokenizer: a transformers tokenizer.
        texts: one text or more; ``""`` is one.
        rule: the family's rule.
        context: the tower's longest input, in tokens.

    Raises:
        PromptError: texts that are not a list of strings, or an empty list.
    """
    import torch

    given = check_texts(texts)
    cleaned = [clean(text, rule.clean) for text in given]
    shown = [each.text.lower() if rule.lower else each.text for each in cleaned]
    exact = bool(getattr(tokenizer, "is_fast", False))
    whole = tokenizer(shown, verbose=False)["input_ids"]
    out = tokenizer(shown, truncation=True, max_length=context, return_offsets_mapping=exact)
    rows: list[list[int]] = [list(row) for row in out["input_ids"]]
    width = context if rule.fill else max(1, *map(len, rows))
    pad = _padding(tokenizer) if rule.pad is None else rule.pad
    special = _special(tokenizer)
    separator = tokenizer.sep_token_id if rule.strip_sep else None
    ids = [[0 if each == separator else each for each in row] for row in rows]
    offsets = out["offset_mapping"] if exact else [[(0, 0)] * len(row) for row in rows]
    return TextBatch(
        texts=given,
        ids=torch.tensor([row + [pad] * (width - len(row)) for row in ids], dtype=torch.long),
        mask=torch.tensor(
            [[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long
        ),
        offsets=tuple(
            tuple(
                None if token in special else _written(each.origins, _trimmed(text, *span))
                for token, span in zip(row, spans, strict=True)
            )
            + (None,) * (width - len(row))
            for each, text, row, spans in zip(cleaned, shown, rows, offsets, strict=True)
        ),
        cut=tuple(len(every) - len(row) for every, row in zip(whole, rows, strict=True)),
    )


def mask_of_ids(ids: Tensor, tokenizer: Any, rule: TokenRule) -> Tensor:
    """The mask of ids that were padded on the right: ``(B, T)``, 1 for a text's own.

    Where padding and the end of a text are one token, the first of them is the text's.

    Raises:
        OptionError: not whole numbers, or not of two dimensions.
    """
    import torch

    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        raise OptionError(
            f"ids are of shape {tuple(ids.shape)} and type {ids.dtype}; give int64 (B, T), as the "
            "tower's tokenizer does"
        )
    pad = _padding(tokenizer) if rule.pad is None else rule.pad
    ends = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    place = torch.arange(ids.shape[1], dtype=torch.long, device=ids.device)
    length = ((ids != pad) * (place + 1)).amax(1) + int(pad == ends)
    return (place < length[:, None]).long()


def check_ids(highest: int, module: Any, source: str) -> None:
    """Refuse an id that a tower has no embedding for: its tokenizer is another model's.

    Args:
        highest: the highest id that the tower is to be given.
        module: the tower's module.
        source: what it was read from, for the message.

    Raises:
        WeightsError: the tower has no embedding for the id.
    """
    inner = module if hasattr(module, "get_input_embeddings") else getattr(module, "encoder", None)
    table = getattr(inner, "get_input_embeddings", lambda: None)()
    known = getattr(table, "num_embeddings", None)
    if isinstance(known, int) and highest >= known:
        raise WeightsError(
            f"{source}: its tokenizer gives the id {highest}, and the {type(inner).__name__} has "
            f"embeddings for 0 to {known - 1}; one of the two is damaged or of another model"
        )


def check_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts as a tuple. Raises PromptError for no list of texts, or an empty one."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"texts must be a list of strings, not {type(texts).__name__}: {texts!r}")
    if not len(texts):
        raise PromptError("texts is empty; give one text at least")
    return tuple(texts)


def _special(tokenizer: Any) -> set[int]:
    """The ids that stand for no text, in a row before it is padded. That of an unknown word (T5,
    BERT, XLM-R) stands for one, and so does padding's ("!" in SD 2's and SDXL's), unless a
    tokenizer uses one id for both."""
    framing = {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    }
    return set(tokenizer.all_special_ids) - (
        {tokenizer.unk_token_id, tokenizer.pad_token_id} - framing
    )


def _padding(tokenizer: Any) -> int:
    """The id to fill with; language models often have none, and their padding is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _written(origins: Sequence[Span], span: Span | None) -> Span | None:
    """A span of the cleaned text as one of the text that was given."""
    # Small letters may be more than the letters they come from.
    if span is None or span[1] > len(origins):
        return span
    return origins[span[0]][0], origins[span[1] - 1][1]


def _trimmed(text: str, start: int, end: int) -> Span | None:
    """The span without white space at its borders (SentencePiece counts the space before)."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end = start + len(piece.strip())
    return (start, end) if start < end else None
