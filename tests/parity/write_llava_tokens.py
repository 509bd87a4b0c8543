"""What LLaVA's own environment reads: ids of whole prompts, for tests without it.

Run in an environment with LLaVA's pins (transformers 4.37.2, tokenizers 0.15.1, sentencepiece) and
with PEERS naming the folder of its clone:

    python tests/parity/write_llava_tokens.py

It trains a tiny SentencePiece model (`tests/data/llava_tokenizer.model`) and writes
`tests/data/llava_tokens.json`: for each way that settings may say ``legacy``, and for LLaMA's and
Mistral's class, what `tokenizer_image_token` gives for prompts of LLaVA's `Conversation`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.llava_tokenizer import settings
from support.places import DATA

TEXT = (
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "USER: what is on the left? ASSISTANT: a red apple",
    "USER: how many cats are there? ASSISTANT: two cats",
    "[INST] <<SYS>> You are a helpful language and vision assistant. <</SYS>> a dog [/INST]",
    "system Answer the questions. user is there a dog? assistant yes",
    "Human: which colour? Assistant: blue ###",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "unsaid": {},
    "not legacy": {"legacy": False},
}
# (question, answer) pairs; LLaVA writes the picture before the first question, or where it says.
CHATS = (
    [("what is on the left?", "")],
    [("<image>\nwhat is on the left?", "a red  apple"), ("and on the right?", "")],
    [("is  <image> a dog, or is <image>?", "")],
    [("  é 🐈\n\n", "two"), ("how many?", "three"), ("why?", "")],
)


def trained() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def prompts(conversation: Any) -> list[str]:
    """LLaVA's prompt of each chat."""
    told = []
    for chat in CHATS:
        made = conversation.copy()
        for number, (question, answer) in enumerate(chat):
            marked = any("<image>" in each for each, _ in chat) or number
            made.append_message(made.roles[0], question if marked else f"<image>\n{question}")
            made.append_message(made.roles[1], answer or None)
        told.append(made.get_prompt())
    return told


def main() -> None:
    sys.path.insert(0, str(Path(os.environ["PEERS"]) / "llava"))
    sys.modules["llava"] = package = type(sys)("llava")
    package.__path__ = [str(Path(os.environ["PEERS"]) / "llava" / "llava")]
    import transformers
    from llava.conversation import conv_templates
    from llava.mm_utils import tokenizer_image_token
    from transformers import AutoTokenizer

    if transformers.__version__ != "4.37.2":
        raise SystemExit(f"transformers is {transformers.__version__}; LLaVA pins 4.37.2")
    model = trained()
    (DATA / "llava_tokenizer.model").write_bytes(model)
    rows = []
    for llm, fast in (("llama", False), ("mistral", True)):
        for said, told in SETTINGS.items():
            with tempfile.TemporaryDirectory() as place:
                (Path(place) / "tokenizer.model").write_bytes(model)
                config = json.dumps(settings(told))
                (Path(place) / "tokenizer_config.json").write_text(config)
                tokenizer = AutoTokenizer.from_pretrained(place, use_fast=fast)
                for name in ("llava_v1", "mistral_instruct"):
                    for chat, text in zip(CHATS, prompts(conv_templates[name]), strict=True):
                        ids = tokenizer_image_token(text, tokenizer)
                        row = {"llm": llm, "legacy": said, "conversation": name}
                        rows.append({**row, "chat": chat, "ids": ids})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (DATA / "llava_tokens.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
