"""Checks on a model: its parts fit together, it generates greedily, its numbers are finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bridge.checks import is_finite, is_whole
from bridge.errors import NumbersError, OptionError, UnsupportedModelError, WeightsError
from bridge.vlm.chat_writer import special_tokens
from bridge.vlm.vision import SelectFeature, SelectLayer, patch_size, states_width

SELECT_FEATURES = ("patch", "cls_patch", "drop_first")


def check_llm(llm: Any, name: str) -> None:
    """Raises UnsupportedModelError unless ``llm`` is a causal language model of transformers."""
    kind = type(llm).__name__
    if not (hasattr(llm, "generate") and hasattr(llm, "get_input_embeddings")):
        raise UnsupportedModelError(
            f"{name}: llm is a {kind}; give a causal language model of transformers "
            "(AutoModelForCausalLM)"
        )
    if getattr(llm.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name}: {kind} is an encoder-decoder; soft tokens go into a decoder-only model"
        )
    if llm.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{name}: {kind} has no output head; give the model with one (…ForCausalLM)"
        )


def check_vision(
    vision: nn.Module | None,
    projector: object,
    select_layer: SelectLayer,
    select_feature: SelectFeature,
    name: str,
) -> None:
    """Raises UnsupportedModelError for a tower of another kind, OptionError for a wrong choice."""
    if (vision is None) != (projector is None):
        given, lacking = ("projector", "vision") if vision is None else ("vision", "projector")
        raise OptionError(f"{name}: {given} is given and {lacking} is not; give both or neither")
    if vision is None:
        return
    patch_size(vision)
    if select_feature not in SELECT_FEATURES:
        raise OptionError(f"{name}: select_feature is {select_feature!r}; one of {SELECT_FEATURES}")
    layers = (select_layer,) if isinstance(select_layer, int) else select_layer
    depth = getattr(vision.config, "num_hidden_layers", None)
    for layer in layers:
        if isinstance(depth, int) and not -depth - 1 <= layer <= depth:
            raise OptionError(
                f"{name}: select_layer is {layer}; {type(vision).__name__} has {depth} layers: "
                f"{-depth - 1} to {depth}, where 0 is the embeddings"
            )


def check_widths(
    vision: nn.Module, projector: object, llm: Any, select_layer: SelectLayer, name: str
) -> None:
    """Raises OptionError when the projector is of another width than its neighbours."""
    kind = getattr(projector, "kind", type(projector).__name__)
    sides = (
        ("vision_width", "takes states", type(vision).__name__, states_width(vision, select_layer)),
        ("llm_width", "gives soft tokens", type(llm).__name__, llm_width(llm)),
    )
    for attribute, does, neighbour, wanted in sides:
        width = getattr(projector, attribute, wanted)
        if width != wanted:
            raise OptionError(
                f"{name}: the projector {kind!r} {does} of width {width}, and {neighbour} has "
                f"{wanted}; build it with {attribute}={wanted}"
            )


def check_image_token(tokenizer: Any, token: str, token_id: int, name: str) -> None:
    """Raises UnsupportedModelError unless the tokenizer reads ``token`` as that one id."""
    found = list(tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"])
    if found.count(token_id) != 1:
        raise UnsupportedModelError(
            f"{name}: the tokenizer does not read the image token {token!r} as the one id "
            f"{token_id}; bridge.vlm.pair adds it to a copy of the tokenizer"
        )


def checked_image_token(tokenizer: Any, image_id: int, name: str) -> str:
    """The text of the image token. Raises UnsupportedModelError unless it is a special token."""
    token = tokenizer.convert_ids_to_tokens(image_id) if image_id < len(tokenizer) else None
    if token is None or token not in special_tokens(tokenizer):
        raise UnsupportedModelError(
            f"{name}: the config's image token {image_id} is not a special token of the tokenizer "
            f"(it is {token!r})"
        )
    return str(token)


def llm_width(llm: Any) -> int:
    """The width of the language model's word embeddings."""
    return int(llm.get_input_embeddings().weight.shape[-1])


def numbers_of(module: Any, otherwise: torch.Tensor) -> torch.Tensor:
    """A tensor of the dtype and on the device that a module calculates in, ``otherwise`` where it
    has none. Of a quantised one most weights are whole numbers, which nothing is calculated in."""
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return next((weight for weight in weights if weight.is_floating_point()), otherwise)


def is_quantised(module: Any) -> bool:
    """Whether weights of a module are kept in whole numbers (4 or 8 bits)."""
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return any(not weight.is_floating_point() for weight in weights)


# -- how a folder wants to be asked -------------------------------------------------------

# transformers looks at most of a generation config only while it answers, and some of it can make
# an answer fail, never end, or need another repository's code.

_MOST = 1 << 31


def _is_number(value: object) -> bool:
    return is_finite(value, 0, _MOST)


def _is_penalty(value: object) -> bool:
    return value == 1 or (isinstance(value, float) and 0 < value <= _MOST)


def _is_count(value: object) -> bool:
    return is_whole(value, 0, _MOST)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_id_or_ids(value: object) -> bool:
    return value == -1 or _is_count(value) or _is_ids(value)


# fmt: off
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
_RULES = (
    (("temperature", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
      "length_penalty"), _is_number, "a number from 0 up"),
    (("repetition_penalty", "encoder_repetition_penalty"), _is_penalty,
     "1, or a number above 0 with a decimal point"),
    (("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "top_k",
      "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _is_count,
     "a whole number from 0 up"),
    (("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), _is_id_or_ids,
     "a token's id, or a list of them"),
    (_FORCED, _is_count, "a token's id"),
    (("suppress_tokens", "begin_suppress_tokens"), _is_ids, "a list of tokens' ids"),
)
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


def check_generation(llm: Any, folder: Path) -> Any:
    """The model itself, if it can be asked as its folder's generation_config.json says.

    Raises WeightsError for values of wrong types, UnsupportedModelError for other ways of
    answering than greedily.
    """
    settings = llm.generation_config.to_dict()
    where = f"{folder}: its generation config (generation_config.json, or config.json)"
    for names, fits, wanted in _RULES:
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


# -- numbers that no answer can be read from ----------------------------------------------


def check_soft(soft: torch.Tensor, name: str) -> None:
    """Refuse soft tokens that are not finite. Raises NumbersError."""
    if not bool(soft.isfinite().all()):
        raise NumbersError(
            f"{name}: the vision tower or the projector gives soft tokens that are not finite (NaN "
            "or infinity). Their weights are damaged, or too large for their dtype: fetch them "
            "again, or load the model in float32."
        )


def check_logits(logits: torch.Tensor, mask: torch.Tensor, name: str) -> None:
    """Refuse logits ``(B, T, V)`` without a likeliest word where ``mask (B, T)`` is not 0.

    Minus infinity is legal beside others: some models rule words out by it. Raises NumbersError.
    """
    best = logits.amax(-1)
    if not bool((best.isfinite() | (mask == 0)).all()):
        raise NumbersError(
            f"{name}: the language model's logits are not finite (NaN or infinity). Its weights or "
            "a LoRA's are damaged, or too large for its dtype: fetch them again, or load the model "
            "in float32 or bfloat16."
        )


def finite_logits(name: str) -> Any:
    """`check_logits` at every token that a model of transformers generates."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class FiniteLogits(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            row = scores[:, None]
            check_logits(row, row.new_ones(row.shape[:2]), name)
            return scores

    return LogitsProcessorList([FiniteLogits()])
