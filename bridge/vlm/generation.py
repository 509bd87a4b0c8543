"""What a folder's generation_config.json may say: checked when a model is loaded.

transformers looks at most of it only while it answers, and some of it can make an answer fail,
never end, or need another repository's code.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bridge.errors import UnsupportedModelError, WeightsError

# fmt: off
_NUMBERS = (
    "temperature", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "length_penalty",
)
_PENALTIES = ("repetition_penalty", "encoder_repetition_penalty")
_COUNTS = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "top_k",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
# Another way of answering than bridge's, which is greedy, or something that needs more than text;
# with each the values that older files have where there is nothing of the kind.
_OTHER_WAYS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys((
        "assistant_early_exit", "bad_words_ids", "cache_config",
        "compile_config", "constraints", "continuous_batching_config", "custom_generate",
        "dola_layers", "exponential_decay_length_penalty", "force_words_ids", "max_time",
        "prefill_chunk_size", "prompt_lookup_num_tokens", "sequence_bias", "stop_strings",
        "watermarking_config",
    ), ()),
    **dict.fromkeys((
        "is_assistant", "low_memory", "output_attentions", "output_hidden_states", "output_logits",
        "output_scores", "return_dict_in_generate", "token_healing", "use_mtp",
    ), (False,)),
    **dict.fromkeys(("diversity_penalty", "penalty_alpha"), (0,)),
    **dict.fromkeys(("guidance_scale", "num_beam_groups", "num_return_sequences"), (1,)),
}
_CACHES = (None, "dynamic", "static", "hybrid", "hybrid_chunked", "sliding_window")
# fmt: on
_MOST = 1 << 31


def check_generation(llm: Any, folder: Path) -> Any:
    """The model itself, if it can be asked as its folder says.

    Raises WeightsError for values of wrong types, UnsupportedModelError for other ways of
    answering than greedily.
    """
    settings = llm.generation_config.to_dict()
    where = f"{folder}: its generation config (generation_config.json, or config.json)"
    for names, fits, wanted in (
        (_NUMBERS, _is_number, "a number from 0 up"),
        (_PENALTIES, _is_penalty, "1, or a number above 0 with a decimal point"),
        (_COUNTS, _is_count, "a whole number from 0 up"),
        (_IDS, _is_id_or_ids, "a token's id, or a list of them"),
        (_FORCED, _is_count, "a token's id"),
        (_SUPPRESSED, _is_ids, "a list of tokens' ids"),
    ):
        for name in names:
            if settings.get(name) is not None and not fits(settings[name]):
                raise WeightsError(f"{where} has {name} {settings[name]!r}; it is {wanted}")
    words = len(llm.get_input_embeddings().weight)
    for name in _FORCED:
        if (settings.get(name) or 0) >= words:
            raise WeightsError(f"{where} has {name} {settings[name]}, of {words} tokens")
    for name, none in _OTHER_WAYS.items():
        if settings.get(name) not in (None, *none):
            raise UnsupportedModelError(
                f"{where} asks for {name} {settings[name]!r}, and bridge answers greedily, with "
                "nothing of that kind; take it out"
            )
    if settings.get("cache_implementation") not in _CACHES:
        raise UnsupportedModelError(
            f"{where} asks for the cache {settings['cache_implementation']!r}; take it out"
        )
    return llm


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= _MOST


def _is_penalty(value: object) -> bool:
    return value == 1 or (isinstance(value, float) and 0 < value <= _MOST)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_id_or_ids(value: object) -> bool:
    return value == -1 or _is_count(value) or _is_ids(value)
