"""Chat templates that came with a model: what transformers writes, within bounds, or one error."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from support.hostile_templates import HOSTILE
from support.tiny_pairs import LLAVA_HF_TEMPLATE, SPACED_END_TEMPLATE, TEXT_TEMPLATE
from support.tiny_vlm import tiny_llava

import bridge
from bridge.errors import UnsupportedModelError
from bridge.vlm.chat import CHAT_TEMPLATE, chat_messages
from bridge.vlm.chat_writer import write_chat
from bridge.vlm.conversations import CONVERSATIONS

TURNS = [("what is it?", "a cät \N{CAT FACE}\n'of' \"two\""), ("red?", "")]

OF_LLAVA = [CONVERSATIONS[name].template() for name in ("mistral_instruct", "llava_v0", "mpt")]
OF_LLAVA += [CONVERSATIONS["llava_llama_2"].template("<image> ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("templates"))


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, *OF_LLAVA, TEXT_TEMPLATE, SPACED_END_TEMPLATE, LLAVA_HF_TEMPLATE]
)
@pytest.mark.parametrize("prompt", [False, True])
def test_it_is_what_transformers_writes(folder: Path, template: str, prompt: bool) -> None:
    vlm = bridge.load_vlm(folder, device="cpu")
    messages = chat_messages(TURNS, with_answers=not prompt)
    if "m['content'] +" in template:
        messages = [{**m, "content": "said: \N{CAT FACE}\n"} for m in messages]
    options = {"add_generation_prompt": prompt, "enable_thinking": False}
    wanted = vlm.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, **options
    )
    assert write_chat(template, messages, vlm.tokenizer, "x", **options) == wanted
    assert "{" not in wanted and wanted


def test_the_models_own_tokens_are_known(folder: Path) -> None:
    vlm = bridge.load_vlm(folder, device="cpu")
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ messages | tojson }}"
    messages = chat_messages([("ä", "")])
    wanted = vlm.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert write_chat(template, messages, vlm.tokenizer, "x") == wanted
    assert wanted.startswith("<s>|</s>|<pad>|[")


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_template_is_one_error_that_names_the_folder(
    folder: Path, tmp_path: Path, what: str
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text(HOSTILE[what])
    vlm = bridge.load_vlm(tmp_path, device="cpu")
    began = time.monotonic()
    with pytest.raises(UnsupportedModelError, match="chat template") as caught:
        vlm.answer(Image.new("RGB", (40, 32)), "a cat?", max_new_tokens=1)
    assert str(tmp_path) in str(caught.value)
    assert time.monotonic() - began < 100
    # The next model is served as ever.
    assert "USER" in write_chat(LLAVA_HF_TEMPLATE, chat_messages(TURNS), vlm.tokenizer, "x")


def test_an_interrupted_template_leaves_no_answer_to_the_next(folder: Path) -> None:
    vlm = bridge.load_vlm(folder, device="cpu")
    messages = chat_messages(TURNS)
    before = write_chat(LLAVA_HF_TEMPLATE, messages, vlm.tokenizer, "x")

    def ring(*_: object) -> None:
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_chat(HOSTILE["endless calls"], messages, vlm.tokenizer, "x")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    assert write_chat(LLAVA_HF_TEMPLATE, messages, vlm.tokenizer, "x") == before
