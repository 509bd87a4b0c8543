"""The towers' own BPE vocabulary, in CLIPTokenizer's format.

Laid out as CLIP's: 256 byte symbols ("!" is id 0), the same ending a word, merges by rank,
then ``<|startoftext|>`` and ``<|endoftext|>`` as the two highest ids, so that every rule
that finds the end of a text, by value or by the largest id, finds the same place.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import BACKGROUNDS, STYLES, TINTS, draw_scene

VOCAB_SIZE = 3072
CONTEXT = 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def _corpus() -> list[str]:
    """Captions in every phrasing, and every word of the vocabulary often enough to be whole."""
    rng = random.Random(7)
    lines = []
    for _ in range(30_000):
        scene = draw_scene(rng)
        lines.append(caption(scene, rng))
        lines.append(caption(scene, rng, held_out=True))
    words = [c.name for c in CONCEPTS] + [c.one for c in CONCEPTS] + [c.many for c in CONCEPTS]
    words += [c.emoji for c in CONCEPTS]
    return lines + 30 * ([*words, *BACKGROUNDS, *TINTS, *STYLES])


def train_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges learnt from the captions."""
    alphabet = list(bytes_to_unicode().values())
    blank = CLIPTokenizer(
        vocab={symbol: i for i, symbol in enumerate([*alphabet, BOS, EOS])}, merges=[]
    ).backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        # Without this the ids of symbols that end a word follow a hash map's order.
        special_tokens=[symbol + "</w>" for symbol in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    # CLIP's order: bytes, bytes that end a word, then one symbol a merge, then the two marks.
    symbols = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
    merges = merges[: VOCAB_SIZE - 2 - len(symbols)]
    symbols += [a + b for a, b in merges]
    symbols = [*list(dict.fromkeys(symbols)), BOS, EOS]
    return {symbol: i for i, symbol in enumerate(symbols)}, merges


def build(vocab: dict[str, int], merges: list[tuple[str, str]], pad: str) -> CLIPTokenizer:
    """The tokenizer; ``pad`` is ``<|endoftext|>`` for tower 1 and ``!`` for tower 2, as SDXL."""
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=pad,
        model_max_length=CONTEXT,
    )


def export(folder: Path) -> None:
    """Write ``tokenizer`` and ``tokenizer_2``, each as transformers 5 saves it: tokenizer.json has
    vocabulary and merges, so there is no vocab.json and no merges.txt."""
    vocab, merges = train_vocabulary()
    for name, pad in (("tokenizer", EOS), ("tokenizer_2", "!")):
        build(vocab, merges, pad).save_pretrained(folder / name)
