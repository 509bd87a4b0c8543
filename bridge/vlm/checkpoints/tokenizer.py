"""The tokenizer of a LLaVA checkpoint, with the image token that the original does without.

LLaVA cuts the text at ``<image>`` before tokenising, so its vocabulary has no such token. bridge
and transformers do with one: it marks the places, and its embedding is never looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.runtime import quiet_loading
from bridge.towers.foreign import load_words
from bridge.vlm.chat import CHAT_TEMPLATE, IMAGE_TOKEN

# Mistral's instruction layout, LLaVA's "mistral_instruct" (llava/conversation.py).
_MISTRAL = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '[INST] ' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}"
    "{{- ' [/INST]' -}}"
    "{%- else -%}{{- ' ' -}}"
    "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}"
    "{{- ' </s>' -}}{%- endif -%}{%- endfor -%}"
)


def tokenizer_with_image(folder: Path) -> Any:
    """The folder's tokenizer, `<image>` added as its last token where there was none.

    Raises WeightsError when it cannot load.
    """
    with quiet_loading():
        tokenizer = load_words(folder)
    if IMAGE_TOKEN not in tokenizer.all_special_tokens:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
        )
    return tokenizer


def chat_template_of(tokenizer: Any, llm: str) -> str:
    """The tokenizer's own template, else the layout LLaVA trained this language model with."""
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    return _MISTRAL if llm == "mistral" else CHAT_TEMPLATE
