"""Original LLaVA folders are asked in the words, and read by the ids, of LLaVA's own code.

The ids in tests/data/llava_tokens.json are what LLaVA's pinned environment gives
(tests/parity/write_llava_tokens.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.llava_folders import save_original
from support.places import DATA
from support.tiny_vlm import tiny_llava

from bridge.cli import main
from bridge.errors import OptionError
from bridge.vlm import CONVERSATIONS, convert, load_vlm, save_vlm

ROWS = json.loads((DATA / "llava_tokens.json").read_text())
LEGACY = {"unsaid": {}, "not legacy": {"legacy": False}}
TYPES = {"llama": "llava_llama", "mistral": "llava_mistral"}
IMAGE = -200  # LLaVA's id of a picture's place


def ids_of(vlm: Any, chat: list[list[str]]) -> list[int]:
    turns = [(question, answer) for question, answer in chat]
    pictures = max(1, sum(question.count("<image>") for question, _ in turns))
    ids = vlm.prompt_ids(turns, [1] * pictures)
    return [IMAGE if token == vlm.image_token_id else token for token in ids]


@pytest.mark.parametrize("llm", TYPES)
@pytest.mark.parametrize("legacy", LEGACY)
def test_ids_are_those_of_llavas_environment(llm: str, legacy: str, tmp_path: Path) -> None:
    """tokenizer.model alone, the usual original layout; there, and converted to transformers'."""
    folder = save_original(tmp_path, "any", tokenizer=LEGACY[legacy], model_type=TYPES[llm])
    rows = [row for row in ROWS if (row["llm"], row["legacy"]) == (llm, legacy)]
    assert len(rows) == 8
    for name in {row["conversation"] for row in rows}:
        original = load_vlm(folder, device="cpu", conversation=name)
        hf = convert(folder, tmp_path / f"hf-{name}", to="hf", conversation=name)
        back = convert(hf, tmp_path / f"back-{name}", to="llava")
        others = [load_vlm(each, device="cpu") for each in (hf, back)]
        for row in (row for row in rows if row["conversation"] == name):
            for vlm in (original, *others):
                assert ids_of(vlm, row["chat"]) == row["ids"], (vlm.name, row["chat"])


# Name of the folder -> the conversation of LLaVA's run_llava.py.
NAMES = {
    "llava-v1.5-7b": "llava_v1",
    "llava-v1.6-mistral-7b": "mistral_instruct",
    "llava-v1.6-34b": "chatml_direct",
    "llava-llama-2-13b-chat-lightning-preview": "llava_llama_2",
    "LLaVA-V1-0719": "llava_v1",
    "llava-mpt": "mpt",
    "llava-13b-delta-v0": "llava_v0",
    "llava": "llava_v0",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_conversation_is_taken_by_name(name: str, tmp_path: Path) -> None:
    vlm = load_vlm(save_original(tmp_path, name), device="cpu")
    chosen = CONVERSATIONS[NAMES[name]]
    assert vlm.prompt_text([("why?", "")]).startswith(f"{chosen.first}<image>\nwhy?{chosen.asked}")


def test_a_renamed_folder_is_known_by_its_config(tmp_path: Path) -> None:
    kept = save_original(tmp_path, "mine", _name_or_path="./checkpoints/llava-v1.5-13b")
    assert "curious human" in load_vlm(kept).prompt_text([("why?", "")])
    mistral = save_original(tmp_path, "other", model_type="llava_mistral")
    assert load_vlm(mistral).prompt_text([("why?", "")]) == "[INST] <image>\nwhy? [/INST]"
    stage = save_original(tmp_path / "llava-v1.5-lora", "checkpoint-200")
    assert "USER" in load_vlm(stage).prompt_text([("why?", "")])


def test_the_caller_chooses_the_conversation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_original(tmp_path, "llava-v1.5-7b")
    asked = load_vlm(folder, conversation="chatml_direct").prompt_text([("why?", "")])
    assert asked == (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nwhy?"
        "<|im_end|><|im_start|>assistant\n"
    )
    stock = tiny_llava(tmp_path)
    assert "curious user" in load_vlm(stock, conversation="v1").prompt_text([("why?", "")])
    for wrong in ("v9", "v0", "default"):
        with pytest.raises(OptionError, match="conversation is"):
            load_vlm(folder, conversation=wrong)
    with pytest.raises(OptionError, match="conversation is for LLaVA's"):
        load_vlm(_own(tmp_path), conversation="v1")
    picture = tmp_path / "a.png"
    _picture().save(picture)
    answers = [
        load_vlm(folder, conversation=name).answer(picture, "why?", max_new_tokens=6)
        for name in (None, "llava_v1", "plain")
    ]
    assert answers[0] == answers[1] != answers[2]
    command = ["ask", str(picture), "why?", "-m", str(folder), "--max-new-tokens", "6"]
    assert main([*command, "--conversation", "plain"]) == 0
    assert capsys.readouterr().out.strip() == answers[2]


def _picture() -> Any:
    from PIL import Image

    return Image.linear_gradient("L").convert("RGB").resize((40, 30))


def _own(root: Path) -> Path:
    folder = root / "own"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bridge_vlm"}))
    return folder


def test_there_and_back_the_text_side_is_the_same(tmp_path: Path) -> None:
    """Files of the tokenizer, and LLaVA's own entries of config.json."""
    entries = {
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "mm_projector_lr": 2e-5,
        "_name_or_path": "vicuna",
    }
    told = {"legacy": False, "padding_side": "right", "add_eos_token": False}
    folder = save_original(tmp_path, "llava-v1.5-7b", tokenizer=told, **entries)
    hf = convert(folder, tmp_path / "hf", to="hf")
    settings = json.loads((hf / "tokenizer_config.json").read_text())
    assert {**settings, **told, "add_bos_token": True} == settings
    back = convert(hf, tmp_path / "back", to="llava")
    for file in folder.glob("*token*"):
        assert (back / file.name).read_bytes() == file.read_bytes(), file.name
    assert not (back / "tokenizer.json").exists()
    config = json.loads((back / "config.json").read_text())
    assert {**config, **entries} == config


def test_a_stock_folder_is_written_as_llavas_environment_reads_it(tmp_path: Path) -> None:
    """tokenizers 0.15 and transformers 4.37 read merges as strings, and no classes of later ones.
    (That they do read these folders was tried in such an environment.)"""
    stock = convert(save_original(tmp_path, "llava-v1.5-7b"), tmp_path / "hf", to="hf")
    shutil.rmtree(stock / "llava_text")  # as one that never was in LLaVA's layout
    made = tiny_llava(tmp_path)
    for source, classes in ((stock, 400), (made, 320)):
        back = convert(source, tmp_path / f"back-{classes}", to="llava")
        tokenizer = json.loads((back / "tokenizer.json").read_text())
        merges = tokenizer["model"]["merges"]
        assert merges and all(isinstance(pair, str) for pair in merges)
        assert "ignore_merges" not in tokenizer["model"]
        settings = json.loads((back / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not {"backend", "is_local", "extra_special_tokens"} & settings.keys()
        ids = [token["id"] for token in tokenizer["added_tokens"]]
        assert max([*tokenizer["model"]["vocab"].values(), *ids]) < classes  # a row for each
        read = [load_vlm(each).prompt_ids([("a  dog", "")], 1) for each in (source, back)]
        assert read[0] == read[1]


@pytest.mark.parametrize("legacy", LEGACY)
def test_a_saved_model_reads_as_the_folder_did(legacy: str, tmp_path: Path) -> None:
    vlm = load_vlm(save_original(tmp_path, "llava-v1.5-7b", tokenizer=LEGACY[legacy]))
    again = load_vlm(save_vlm(vlm, tmp_path / "saved"), device="cpu")
    for chat in ([("  a  dog", "")], [("is <image> it?", "yes"), ("and now?", "")]):
        assert again.prompt_text(chat) == vlm.prompt_text(chat)
        assert again.prompt_ids(chat, 1) == vlm.prompt_ids(chat, 1)
