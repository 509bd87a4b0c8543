"""The settings of the original LLaVA's tokenizer; it imports nothing, for LLaVA's own pins."""

from __future__ import annotations

from typing import Any


def settings(told: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json of liuhaotian's checkpoints."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **{
            key: {
                "__type": "AddedToken",
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
            }
            for key, text in tokens.items()
        },
        **told,
    }
