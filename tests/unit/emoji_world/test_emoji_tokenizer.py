"""The towers' tokenizers: laid out as CLIP's, reloadable, and whole words stay whole.

The vocabulary is trained here from a smaller corpus (the real one takes half a minute); the
shipped tokenizers are looked at as well.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.places import ROOT, TESTS
from support.small_vocabulary import SMALL, small_corpus
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from emoji_world.captions import caption
from emoji_world.scenes import draw_scene
from emoji_world.train import tokenizer as training

SHIPPED = 3072
TEXTS = [
    "two red apples left of a cat, blue background, noto style",
    "Two  RED apples",
    "🍎🍎 above 🐈️, fluent",
    "cat x2, red, gray background",
    "",
    "schön, 你好, مرحبا!",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_corpus", small_corpus)
        patch.setattr(training, "VOCAB_SIZE", SMALL)
        training.export(folder)
    return folder


@pytest.fixture(params=["small", pytest.param("shipped", marks=pytest.mark.models)])
def folder(request: pytest.FixtureRequest) -> Path:
    """An exported folder: one made here, and the one that ships."""
    if request.param == "shipped":
        return Path(request.getfixturevalue("embedded")("emoji-xl"))
    return request.getfixturevalue("exported")


def learnt(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges in a tokenizer's file, packed by ``publish`` or not."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return model["vocab"], [(first, second) for first, second in merges]


FRESH = """
import json
from emoji_world.train import tokenizer as training
from support import small_vocabulary as small
training._corpus = small.small_corpus
training.VOCAB_SIZE = small.SMALL
print(json.dumps(training.train_vocabulary()))
"""


def test_two_processes_learn_the_same_vocabulary() -> None:
    """Hash maps are seeded anew in every process; no id may follow their order."""

    def trained(seed: str) -> str:
        paths = os.pathsep.join((str(ROOT), str(TESTS)))
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, "-c", FRESH], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = trained("1")
    vocab, merges = json.loads(first)
    assert len(vocab) == SMALL and len(merges) == SMALL - 2 - 512
    assert trained("2") == first


def test_both_folders_are_of_one_training(exported: Path) -> None:
    names = ("tokenizer", "tokenizer_2")
    assert learnt(exported / names[0]) == learnt(exported / names[1])
    first, second = (CLIPTokenizer.from_pretrained(exported / name) for name in names)
    # As in SDXL, "!" is the second one's padding, a token of its own wherever it stands.
    alike = [text for text in TEXTS if "!" not in text]
    assert first(alike).input_ids == second(alike).input_ids
    assert (first.pad_token, second.pad_token) == ("<|endoftext|>", "!")


@pytest.mark.parametrize(("name", "pad"), [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")])
def test_the_layout_is_clips(folder: Path, name: str, pad: str) -> None:
    words = CLIPTokenizer.from_pretrained(folder / name)
    vocab, _ = learnt(folder / name)
    size = len(vocab)
    assert len(words) == words.vocab_size == size
    assert sorted(vocab.values()) == list(range(size))
    alphabet = list(bytes_to_unicode().values())
    assert [vocab[s] for s in alphabet] == list(range(256))
    assert [vocab[s + "</w>"] for s in alphabet] == list(range(256, 512))
    assert vocab["!"] == 0
    assert (words.bos_token_id, words.eos_token_id) == (size - 2, size - 1)
    assert words.pad_token == pad and words.pad_token_id == vocab[pad]
    assert words.model_max_length == 77


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_merges_are_ranked_as_their_tokens_are(folder: Path, name: str) -> None:
    vocab, merges = learnt(folder / name)
    assert [vocab["".join(pair)] for pair in merges] == list(range(512, len(vocab) - 2))


@pytest.mark.parametrize(("name", "pad"), [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")])
def test_the_file_alone_gives_the_ids_of_what_was_learnt(folder: Path, name: str, pad: str) -> None:
    assert not {"vocab.json", "merges.txt"} & {file.name for file in (folder / name).iterdir()}
    words = CLIPTokenizer.from_pretrained(folder / name)
    fresh = training.build(*learnt(folder / name), pad)
    rng = random.Random(1)
    texts = TEXTS + [caption(draw_scene(rng), rng) for _ in range(50)]
    assert fresh(texts).input_ids == words(texts).input_ids
    padded = words(texts, padding="max_length", truncation=True).input_ids
    assert fresh(texts, padding="max_length", truncation=True).input_ids == padded


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_texts_begin_end_and_are_padded_as_told(folder: Path, name: str) -> None:
    words = CLIPTokenizer.from_pretrained(folder / name)
    for text in [*TEXTS, "cat " * 500]:
        ids = words(text, padding="max_length", truncation=True).input_ids
        assert len(ids) == 77 and ids[0] == len(words) - 2
        end = ids.index(len(words) - 1)
        assert ids[end + 1 :] == [words.pad_token_id] * (76 - end)
        assert max(ids) == ids[end]
    assert words("").input_ids == [len(words) - 2, len(words) - 1]


def test_both_vocabularies_have_their_sizes(
    exported: Path, embedded: Callable[[str], Path]
) -> None:
    assert training.VOCAB_SIZE == SHIPPED
    for name in ("tokenizer", "tokenizer_2"):
        assert len(CLIPTokenizer.from_pretrained(exported / name)) == SMALL
        assert len(CLIPTokenizer.from_pretrained(embedded("emoji-xl") / name)) == SHIPPED


def test_any_text_comes_back(exported: Path) -> None:
    words = CLIPTokenizer.from_pretrained(exported / "tokenizer")
    for text in TEXTS:
        ids = words(text).input_ids
        assert words.unk_token_id not in ids[1:-1]  # nothing is unknown
        back = words.decode(ids, skip_special_tokens=True)
        assert back.replace(" ", "") == text.lower().replace(" ", "")
