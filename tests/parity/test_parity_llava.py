"""LLaVA 1.2.2 beside bridge: the words, the ids and the logits that its folders are asked by, and
the greedy answers. Logits are compared at 1e-5 of the largest entry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llava_peer import Llava, Slow, llava
from parity_support import Equal
from PIL import Image
from support.comparisons import relative
from support.llava_folders import save_original
from support.places import DATA
from write_llava_tokens import CHATS

from bridge.vlm import CONVERSATIONS, load_vlm

TOLERANCE = 1e-5
TURNS = (
    [("what is on the left?", "")],
    [("what is on the left?", "a red  apple"), ("and on the right?", "")],
    [("é 🐈\n\n", "two"), ("how many?", "three\n"), ("why?", "")],
)
NAMES = (
    "llava-v1.5-7b", "llava-v1.5-13b-lora", "LLaVA-7B-v1", "llava-v1.6-vicuna-7b",
    "llava-v1.6-mistral-7b", "llava-v1.6-34b", "llava-llama-2-13b-chat-lightning-preview",
    "LLaVA-Lightning-MPT-7B-preview", "LLaVA-13b-delta-v0", "llava-13b", "llava-mistral-llama-2",
    "checkpoint-v1/", "llava-v1.5/checkpoint-200", "llava/checkpoint-1",
)  # fmt: skip
# Folder, LLaVA's choice or the caller's, settings: one case of greedy answers each.
FOLDERS: tuple[tuple[str, str | None, dict[str, Any]], ...] = (
    ("llava-v1.5-7b", None, {}),
    ("llava-llama-2-13b-chat", None, {}),
    ("llava-v1.6-mistral-7b", None, {"model_type": "llava_mistral"}),
    ("llava-v1.6-34b", None, {}),
    ("llava-13b-v0", None, {}),
    ("llava-v1.3-plain", "plain", {}),
    ("llava-v1.4-chat", "mpt", {}),
    ("llava-v1.2", "v1", {"image_aspect_ratio": "square"}),
    (
        "llava-v1.6-vicuna-7b",
        None,
        {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": [[64, 32], [32, 64], [64, 64], [32, 96]],
        },
    ),
)


@pytest.fixture(scope="module")
def peer() -> Iterator[Llava]:
    with llava() as found:
        yield found


def picture(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(size[0]).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)


PICTURES = [picture(size) for size in ((50, 30), (20, 70), (32, 32))]


def test_the_conversation_by_name(peer: Llava, tmp_path: Path, equal: Equal) -> None:
    from bridge.vlm.conversations import conversation_of

    with equal("LLaVA: conversation by the checkpoint's name") as count:
        for name in NAMES:
            wanted, found = peer.chosen(f"/models/{name}"), conversation_of(f"/models/{name}", {})
            count.check(found == wanted, f"{name}: {found} {wanted}")


def test_prompts(peer: Llava, tmp_path: Path, equal: Equal) -> None:
    folder = save_original(tmp_path, "llava-v1.5-7b")
    tokenizer = Slow(folder)
    with equal("LLaVA: prompts") as words, equal("LLaVA: ids of prompts") as read:
        for name in peer.conversation.conv_templates:
            if name not in CONVERSATIONS:
                assert name in ("v0", "default")
                words.differs_by("conversations that begin with an example dialogue")
                continue
            vlm = load_vlm(folder, device="cpu", conversation=name)
            for turns in TURNS:
                if CONVERSATIONS[name] == CONVERSATIONS["plain"] and len(turns) > 1:
                    continue  # LLaVA has no separator there, and raises
                wanted = peer.prompt(name, turns)
                words.check(vlm.prompt_text(turns) == wanted, f"{name} {turns}")
                ids = [
                    -200 if token == vlm.image_token_id else token
                    for token in vlm.prompt_ids(turns, 1)
                ]
                found = peer.mm_utils.tokenizer_image_token(wanted, tokenizer)
                read.check(ids == found, f"{name} {turns}")


def test_the_stand_in_reads_as_llavas_environment_does(peer: Llava, tmp_path: Path) -> None:
    """Ids of the slow tokenizer of transformers 4.37.2, from tests/data."""
    tokenizer = Slow(save_original(tmp_path, "llava"))
    saved = json.loads((DATA / "llava_tokens.json").read_text())
    rows = [row for row in saved if row["llm"] == "llama" and row["legacy"] == "unsaid"]
    assert len(rows) == 8
    for row in rows:
        chat = [tuple(turn) for turn in row["chat"]]
        assert chat in [list(each) for each in CHATS]
        marked = any("<image>" in question for question, _ in chat)
        text = peer.prompt(row["conversation"], chat)
        text = text.replace("<image>\n", "", 1) if marked else text
        assert peer.mm_utils.tokenizer_image_token(text, tokenizer) == row["ids"]


@pytest.mark.filterwarnings("ignore")
def test_logits_and_greedy_answers(peer: Llava, tmp_path: Path, equal: Equal) -> None:
    with (
        equal("LLaVA: logits") as close,
        equal("LLaVA: greedy answers from the original folder") as same,
    ):
        for name, conversation, settings in FOLDERS:
            folder = save_original(tmp_path, name, **settings)
            loaded = peer.load(folder)
            vlm = load_vlm(folder, device="cpu", dtype="float32", conversation=conversation)
            mode = conversation or peer.chosen(str(folder))
            told = []
            for image in PICTURES:
                for turns in TURNS if mode != "plain" else TURNS[:1]:
                    prompt = peer.prompt(mode, turns)
                    wanted = peer.logits(loaded, prompt, image)
                    found = vlm.logits([image], [turns])
                    near = found.shape == wanted.shape and relative(found, wanted) <= TOLERANCE
                    close.check(near, f"{name} {image.size} {len(turns)}")
                    ids = peer.answer(loaded, prompt, image, 12)
                    text = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
                    answer = vlm.answer(image, turns[-1][0], history=turns[:-1], max_new_tokens=12)
                    told.append(answer == text)
            same.check(all(told), f"{name}: {told}")
