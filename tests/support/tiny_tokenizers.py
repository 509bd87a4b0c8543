"""Tiny working tokenizers of the kinds that towers bring, over a few words and all letters."""

from __future__ import annotations

from typing import Any

WORDS = ("cat", "two", "dog", "red", "apple", "left", "of", "a", "the")
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"


def tiny_bert_tokenizer() -> Any:
    """A WordPiece tokenizer, as BERT's (ALIGN, BLIP-2's Q-Former, LaBSE)."""
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [*LETTERS, *("##" + letter for letter in LETTERS)]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocab, model_max_length=512)


def tiny_xlmr_tokenizer() -> Any:
    """A unigram tokenizer, as XLM-RoBERTa's: padding has id 1."""
    from transformers import XLMRobertaTokenizer

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -6.0) for letter in LETTERS] + [("▁" + word, -2.0) for word in WORDS]
    return XLMRobertaTokenizer(vocab=list(dict(pieces).items()), model_max_length=512)


def tiny_llama_tokenizer() -> Any:
    """A byte-level BPE tokenizer without padding, as many decoders have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", raw.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


def tiny_siglip2_tokenizer() -> Any:
    """A BPE tokenizer as SigLIP 2's (Gemma's): spaces are ``▁``, upper case goes, EOS ends it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import Siglip2Tokenizer

    merges, pieces = [], ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    for word in WORDS:
        left = word[0]
        for right in word[1:]:
            merges.append((left, right))
            left += right
            pieces.append(left)
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    made = Siglip2Tokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), padding_side="right")
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return made
