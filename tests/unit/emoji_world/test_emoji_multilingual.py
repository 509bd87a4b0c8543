"""The multilingual tower: its tokenizer, its recipe, its folder, and the towers that open it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_world import synthetic_sprites
from transformers import (
    CLIPModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

import bridge
from bridge import manifest
from bridge.errors import WeightsError
from bridge.lab.variants.vocabulary import LANGUAGES, names_in
from bridge.towers import open_text_tower, towers
from bridge.towers.registry import find_row
from emoji_world.train import __main__ as stages
from emoji_world.train import clip, multilingual
from emoji_world.train.loop import Run

POOLED = 192
TEXTS = ["zwei rote Katze links von Hund", "猫", "a red cat", "แมวสีแดง พื้นหลังสีขาว", ""]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """Learnt from fewer captions than the real one."""
    return multilingual.build_tokenizer(multilingual.corpus(3), 2400)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilingual, "BATCH", 12)


def teacher() -> CLIPModel:
    torch.manual_seed(0)
    return clip.build(tiny_clip_tokenizer("<|endoftext|>"))


def student(words: PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(1)
    return multilingual.build(words, POOLED)


def recipe(words: PreTrainedTokenizerFast) -> Any:
    own = tiny_clip_tokenizer("<|endoftext|>")
    return multilingual.recipe(student(words), words, teacher(), own)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_come_back_from_their_tokens(language: str, words: PreTrainedTokenizerFast) -> None:
    for name in names_in(language):
        ids = words(name).input_ids
        assert words.unk_token_id not in ids
        assert (ids[0], ids[-1]) == (words.bos_token_id, words.eos_token_id)
        back = words.decode(ids, skip_special_tokens=True)
        assert back == unicodedata.normalize("NFKC", name).lower()


def test_the_marks_have_xlm_robertas_ids(words: PreTrainedTokenizerFast) -> None:
    marks = (words.bos_token_id, words.pad_token_id, words.eos_token_id, words.unk_token_id)
    assert marks == (0, 1, 2, 3)
    assert words("A CAT").input_ids == words("a cat").input_ids
    assert words("ꙮ").input_ids[-2] == words.unk_token_id  # of a script that it never saw


def test_a_vocabulary_is_learnt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_word() -> Iterator[str]:
        return iter(["katze hund"])

    monkeypatch.setattr(multilingual, "corpus", one_word)
    monkeypatch.setattr(multilingual, "VOCAB_SIZE", 30)
    first = multilingual.tokenizer(tmp_path)
    kept = (tmp_path / "tokenizer.json").read_bytes()
    monkeypatch.setattr(multilingual, "corpus", lambda: iter(["something else"]))
    assert multilingual.tokenizer(tmp_path)("hund").input_ids == first("hund").input_ids
    assert (tmp_path / "tokenizer.json").read_bytes() == kept


# ---------------------------------------------------------------- the recipe


def test_pairs_are_a_steps_own_and_in_many_languages() -> None:
    foreign, english = multilingual.pairs(4, 64)
    assert (foreign, english) == multilingual.pairs(4, 64)
    assert multilingual.pairs(5, 64) != (foreign, english)
    assert sum(not text.isascii() for text in foreign) > 16
    assert all(text.isascii() for text in english)


@pytest.mark.usefixtures("few")
def test_a_step_reaches_the_student_and_leaves_the_teacher(
    words: PreTrainedTokenizerFast,
) -> None:
    torch.manual_seed(2)
    tower = teacher()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    made = multilingual.recipe(student(words), words, tower, tiny_clip_tokenizer("<|endoftext|>"))
    loss, figures = made.loss(0)
    assert loss.ndim == 0 and torch.isfinite(loss) and set(figures) == {"cosine", "nce", "r1"}
    loss.backward()
    for name, parameter in made.module.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.usefixtures("few")
def test_learning_brings_the_student_nearer_to_the_teacher(
    words: PreTrainedTokenizerFast,
) -> None:
    made = recipe(words)
    optimizer = torch.optim.AdamW(made.module.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        loss, _ = made.loss(0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


class Stop(Exception):
    """Ends a run from outside, at a step."""


def run_until(made: Any, root: Path, last: int) -> Run:
    """Train to a step; the clock decides nothing, since the budget is never used up."""
    inner = made.loss

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == last:
            raise Stop
        return inner(step)

    made.loss, made.decay_lr = loss, False
    run = Run(made, root)
    with pytest.raises(Stop):
        run.train(1e6)
    run.save()
    return run


@pytest.mark.usefixtures("few")
def test_a_resumed_run_is_a_straight_one(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    straight = run_until(recipe(words), tmp_path / "straight", 4)
    run_until(recipe(words), tmp_path / "parts", 2)
    resumed = run_until(recipe(words), tmp_path / "parts", 4)
    assert resumed.step == straight.step == 4
    for name, parameter in straight.params.items():
        assert torch.equal(parameter, resumed.params[name]), name
        assert torch.equal(straight.average[name], resumed.average[name]), name


# ---------------------------------------------------------------- the folder


@pytest.fixture
def exported(words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    multilingual.export(student(words), words, tmp_path / multilingual.NAME)
    return tmp_path / multilingual.NAME


@torch.no_grad()
def test_the_folder_is_transformers_encoder_and_a_map(
    exported: Path, words: PreTrainedTokenizerFast
) -> None:
    """Against XLMRobertaModel of transformers, loaded from the file by its own names."""
    state = {
        name: tensor.float() for name, tensor in load_file(exported / "model.safetensors").items()
    }
    config = XLMRobertaConfig(
        vocab_size=len(words), hidden_size=96, intermediate_size=192, num_hidden_layers=3,
        num_attention_heads=3, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1,
        layer_norm_eps=1e-5,
    )  # fmt: skip
    peer = XLMRobertaModel(config, add_pooling_layer=False).eval()
    inner = {k.removeprefix("transformer."): v for k, v in state.items() if "transformer." in k}
    peer.load_state_dict(inner)
    tower = open_text_tower(exported, device="cpu", dtype=torch.float32)
    assert tower.family == "multilingual_clip" and not tower.feeds_cross_attention
    pooled = tower.encode(TEXTS).pooled
    assert pooled is not None and pooled.shape == (len(TEXTS), POOLED)
    for text, found in zip(TEXTS, pooled, strict=True):
        hidden = peer(**words(text, return_tensors="pt")).last_hidden_state[0]
        weight, bias = (state[f"LinearTransformation.{part}"] for part in ("weight", "bias"))
        wanted = weight @ hidden.mean(0) + bias
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_folder_is_half_precision_and_small(
    exported: Path, words: PreTrainedTokenizerFast
) -> None:
    state = load_file(exported / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    smaller = (multilingual.VOCAB_SIZE - len(words)) * 96 * 2
    assert (exported / "model.safetensors").stat().st_size + smaller <= 1_300_000
    assert json.loads((exported / "config.json").read_text())["numDims"] == POOLED
    assert not list(exported.glob("*.part"))


def test_the_registry_says_what_the_tower_is(exported: Path) -> None:
    row = find_row("emoji-multilingual")
    assert row is not None
    spec = open_text_tower(exported, device="cpu").spec
    told = (row.text_width, row.pooled_width, row.context, row.layers)
    assert told == (spec.width, spec.pooled_width, spec.context, spec.layers)


@torch.no_grad()
def test_it_goes_on_from_its_weights(exported: Path, words: PreTrainedTokenizerFast) -> None:
    again = multilingual.load(exported, words, POOLED)
    assert all(parameter.requires_grad for parameter in again.parameters())
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, student(words).state_dict()[name].half().float()), name
    again.train()  # without dropout: training reads what use reads
    found = [multilingual.pooled_states(again, words, TEXTS) for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.usefixtures("few")
def test_the_stage_writes_the_folder_and_keeps_what_is_learnt(
    words: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tiny_clip_tokenizer("<|endoftext|>")
    weights = tmp_path / "weights"
    clip.export(teacher(), own, weights, second=False)
    own.save_pretrained(weights / "emoji-xl" / "tokenizer")
    monkeypatch.setattr(multilingual, "build_tokenizer", lambda texts: words)

    def stage(runs: str, fresh: bool = False) -> dict[str, torch.Tensor]:
        place = stages.Place(synthetic_sprites, weights, tmp_path / runs, fresh)
        torch.manual_seed(5 if fresh else 3)
        stages.train_multilingual(place, 0.0)
        return load_file(weights / multilingual.NAME / "model.safetensors")

    first = stage("first")
    second = stage("second")  # no time to learn: what went in comes out
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    anew = stage("third", fresh=True)
    assert not torch.equal(
        anew["LinearTransformation.weight"], first["LinearTransformation.weight"]
    )


# ---------------------------------------------------------------- in use


def test_without_its_weights_it_is_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "emoji-clip").mkdir()
    (tmp_path / "emoji-clip" / "config.json").write_text("{}")
    manifest.write_manifest(tmp_path)
    monkeypatch.setenv("BRIDGE_WEIGHTS", str(tmp_path))
    (row,) = (row for row in towers() if row["name"] == "emoji-multilingual")
    assert not row["at_hand"]
    with pytest.raises(WeightsError, match="emoji-multilingual"):
        open_text_tower("emoji-multilingual", device="cpu")


@pytest.mark.models
def test_a_study_reads_it_beside_the_english_tower(exported: Path) -> None:
    found = bridge.study(
        "two red cats left of a dog", towers=["emoji-1", exported], variants="language",
        names=["de", "ja", "th"],
    )  # fmt: skip
    table = found.table[found.table.operation == "language"]
    assert set(table.tower) == {"emoji-1", str(exported)}
    assert len(table) == 2 * 3 and table.pooled_cosine.notna().all()
    assert "zwei rot Katze links von Hund" in set(table.text)
