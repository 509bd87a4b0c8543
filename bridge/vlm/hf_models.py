"""LLaVA 1.5, LLaVA 1.6 and BLIP-2 of transformers in the parts of a BridgeVLM, and a LLaVA back.

Li et al., "BLIP-2" (2023): the Q-Former's learnt queries read the tower's last layer, final norm
applied and class token kept, through cross-attention: as many soft tokens as queries, whatever the
picture. They stand before the beginning-of-sequence token. Its encoder-decoder checkpoints (T5) are
refused: their soft tokens feed an encoder, and a BridgeVLM has one causal language model.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bridge.checks import keywords
from bridge.errors import UnsupportedModelError
from bridge.runtime import building
from bridge.vlm.chat import CHAT_TEMPLATE, END_OF_ANSWER, IMAGE_TOKEN
from bridge.vlm.checkpoints.tokenizer import image_mark, keep_rules
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import MlpProjector
from bridge.vlm.projectors.queries import QFormerProjector
from bridge.vlm.validation import checked_image_token
from bridge.vlm.views import SQUARE, AnyRes, ImageAspect, OneView, mean_colour
from bridge.vlm.vision import SelectFeature, n_extra_states, patch_size


@keywords
def from_llava(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    *,
    chat_template: str | None = None,
    aspect: ImageAspect | None = None,
    name: str = "LLaVA",
) -> BridgeVLM:
    """The parts of a stock LlavaForConditionalGeneration or LlavaNext..., sharing its parameters.

    Args:
        model: of LLaVA 1.5's kind or 1.6's.
        tokenizer, image_processor: its own.
        chat_template: Jinja; None for LLaVA-1.5's layout.
        aspect: for LLaVA 1.5's kind, whose config does not say it; LLaVA 1.6's is always "anyres"
            with the config's pinpoints.

    Raises:
        UnsupportedModelError: the tokenizer does not know the model's image token; a Pixtral.
    """
    config = model.config
    check_tower(config.vision_config.model_type, name)
    core = model.model
    image_id = int(config.image_token_id)
    image_token = checked_image_token(tokenizer, image_id, name)
    if config.model_type == "llava_next":
        pinpoints = tuple((int(high), int(wide)) for high, wide in config.image_grid_pinpoints)
        tile = int(config.vision_config.image_size)
        aspect = AnyRes(pinpoints, tile, core.image_newline, int(image_processor.resample))
    layer = config.vision_feature_layer
    stock = core.multi_modal_projector
    whole = config.vision_feature_select_strategy == "full"
    return BridgeVLM(
        vision=core.vision_tower,
        projector=MlpProjector(
            stock.linear_1, stock.act, stock.linear_2, activation=config.projector_hidden_act
        ).eval(),
        llm=_causal_lm(model),
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=image_id,
        image_token=image_token,
        select_layer=layer if isinstance(layer, int) else tuple(layer),
        select_feature="cls_patch" if whole else _default_feature(core.vision_tower),
        chat_template=chat_template,
        name=name,
        aspect=aspect or SQUARE,
    )


def check_tower(kind: object, name: object) -> None:
    """Refuses Pixtral, whose checkpoints say "llava" and are asked otherwise."""
    if kind == "pixtral":
        raise UnsupportedModelError(
            f"{name} is a Pixtral, whose pictures are of any shape and end each row with "
            "[IMG_BREAK]; bridge reads LLaVA's square ones: take a checkpoint with CLIP or SigLIP, "
            "such as llava-hf/llava-1.5-7b-hf, or open this one with transformers"
        )


def _default_feature(tower: nn.Module) -> SelectFeature:
    """transformers' "default" drops one state of every tower, a class token or not."""
    return "patch" if n_extra_states(tower) == 1 else "drop_first"


def _causal_lm(model: Any) -> Any:
    """The language model of a LLaVA as a causal LM of its own, parameters shared."""
    from transformers import AutoModelForCausalLM

    text_config = model.model.language_model.config
    # transformers builds it in the config's dtype, by the process's default.
    with building(), torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(text_config, trust_remote_code=False)
    setattr(llm, llm.base_model_prefix, model.model.language_model)
    llm.set_output_embeddings(model.lm_head)
    llm.config = text_config
    llm.generation_config = model.generation_config
    return llm.eval()


# -- a BridgeVLM as a LLaVA of transformers ----------------------------------------------

# Towers and decoders whose stock LLaVA the tests hold equal to bridge's.
_TOWERS = ("clip_vision_model", "siglip_vision_model")
_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")


def why_not(vlm: BridgeVLM) -> str | None:
    """Why stock LLaVA cannot be this model, or None if it can."""
    projector = vlm.projector
    tower: Any = vlm.vision
    if not isinstance(projector, MlpProjector) or len(projector) != 3:
        return f"its projector is mlp2x_gelu, not {getattr(projector, 'kind', None)}"
    if tower is None or tower.config.model_type not in _TOWERS:
        return f"its tower is CLIP or SigLIP, not {type(tower).__name__}"
    if vlm.llm.config.model_type not in _DECODERS:
        return f"its language model is one of {_DECODERS}, not {vlm.llm.config.model_type}"
    if vlm.select_feature == "patch" and n_extra_states(tower) > 1:
        return "it drops one state of the tower, or none"
    if vlm.cut_at_images and image_mark(vlm.tokenizer) != IMAGE_TOKEN:
        return "its texts are read in one piece, pictures and all"
    pad = vlm.aspect.pad_colour if isinstance(vlm.aspect, OneView) else None
    if pad is not None and pad != mean_colour(vlm.image_processor.image_mean):
        return "it pads with the processor's mean colour"
    return None


def write_hf_llava(vlm: BridgeVLM, folder: Path) -> None:
    """Model, tokenizer and processor, as transformers' AutoProcessor and Llava... load them."""
    from transformers import LlavaProcessor

    model = as_hf_llava(vlm)
    model.save_pretrained(folder)
    tower: Any = vlm.vision
    tokenizer = with_template(vlm)
    processor = LlavaProcessor(
        image_processor=vlm.image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size(tower)[0],
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=n_extra_states(tower),
        chat_template=tokenizer.chat_template,
        image_token=vlm.image_token,
    )
    processor.save_pretrained(folder)
    keep_rules(folder)
    if isinstance(vlm.aspect, OneView) and vlm.aspect.pad_colour is not None:
        path = folder / "processor_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["image_processor"] |= {
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": True,
        }
        path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def as_hf_llava(vlm: BridgeVLM) -> Any:
    """The stock model, sharing every parameter; but an embedding table that lacks the image
    token's row is copied, and gets the mean of the others there (as `bridge convert` does)."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tower: Any = vlm.vision
    projector: Any = vlm.projector
    llm = _with_row(vlm.llm, vlm.image_token_id)
    extra = n_extra_states(tower)
    dropped = {"patch": extra, "cls_patch": 0, "drop_first": 1}[vlm.select_feature]
    layer = vlm.select_layer
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_index=vlm.image_token_id,
        vision_feature_layer=layer if isinstance(layer, int) else list(layer),
        vision_feature_select_strategy="default" if dropped else "full",
        projector_hidden_act=projector.activation,
        multimodal_projector_bias=projector.options()["bias"],
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
        dtype=llm.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    core: Any = model.model
    if hasattr(core.vision_tower, "vision_model") and not hasattr(tower, "vision_model"):
        core.vision_tower.vision_model = tower  # the inner model of a CLIPModel
    else:
        core.vision_tower = tower
    core.multi_modal_projector.linear_1 = projector[0]
    core.multi_modal_projector.linear_2 = projector[2]
    core.language_model = getattr(llm, llm.base_model_prefix)
    model.lm_head = llm.get_output_embeddings()
    model.generation_config = llm.generation_config
    return model.eval()


def with_template(vlm: BridgeVLM) -> Any:
    """The tokenizer with the model's own chat template, on a copy where it has another.

    Where the model has none it writes LLaVA's layout, which the template says as well if the
    tokens are LLaVA's.
    """
    template = vlm.chat_template
    own = (vlm.image_token, vlm.tokenizer.eos_token) == (IMAGE_TOKEN, END_OF_ANSWER)
    if template is None and own:
        template = CHAT_TEMPLATE
    if vlm.tokenizer.chat_template == template:
        return vlm.tokenizer
    tokenizer = copy.deepcopy(vlm.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def _with_row(llm: Any, token_id: int) -> Any:
    """The language model with a row for ``token_id``: itself if it has one, else a copy that
    shares everything but the two tables of words."""
    size = len(llm.get_input_embeddings().weight)
    if token_id < size:
        return llm
    # transformers resizes a table in place, so the copy needs those two of its own.
    words = [llm.get_input_embeddings().weight, llm.get_output_embeddings().weight]
    shared = [t for t in (*llm.parameters(), *llm.buffers()) if all(t is not w for w in words)]
    longer = copy.deepcopy(llm, {id(tensor): tensor for tensor in shared})
    with torch.random.fork_rng(devices=[]):  # the new row is random before it is the mean
        longer.resize_token_embeddings(token_id + 1, mean_resizing=False)
    for table in (longer.get_input_embeddings(), longer.get_output_embeddings()):
        weight = table.weight
        with torch.no_grad():
            weight[size:] = weight[:size].float().mean(0).to(weight.dtype)
    return longer


# -- BLIP-2 -------------------------------------------------------------------------------


class Blip2Tower(nn.Module):
    """`Blip2VisionModel` with its normed output as the one hidden state.

    BLIP-2 takes the final norm's output, which is not an entry of transformers' hidden states.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.config = tower.config

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> SimpleNamespace:
        states = self.tower(pixel_values, return_dict=True).last_hidden_state
        return SimpleNamespace(last_hidden_state=states, hidden_states=(states,))


@keywords
def from_blip2(
    model: Any, tokenizer: Any, image_processor: Any, *, name: str = "BLIP-2"
) -> BridgeVLM:
    """The parts of a stock Blip2ForConditionalGeneration, sharing its parameters.

    Questions are put as BLIP-2 was asked in its paper, ``Question: ... Answer:``. Raises
    UnsupportedModelError for an encoder-decoder language model and for a checkpoint or
    tokenizer without the image token.
    """
    config = model.config
    if not config.use_decoder_only_language_model:
        raise UnsupportedModelError(blip2_refusal(name, config.text_config.model_type))
    if config.image_token_id is None:
        raise UnsupportedModelError(
            f"{name}: the config has no image_token_index, as BLIP-2 checkpoints of before "
            "transformers 4.46 had none; get the present version of the checkpoint"
        )
    image_token = checked_image_token(tokenizer, int(config.image_token_id), name)
    return BridgeVLM(
        vision=Blip2Tower(model.vision_model).eval(),
        projector=QFormerProjector(
            model.query_tokens, model.qformer, model.language_projection
        ).eval(),
        llm=model.language_model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=int(config.image_token_id),
        image_token=image_token,
        select_layer=-1,
        select_feature="cls_patch",
        chat_template=_blip2_template(tokenizer.bos_token or ""),
        name=name,
    )


def blip2_refusal(name: object, kind: str) -> str:
    return (
        f"{name} is a BLIP-2 with the encoder-decoder language model {kind!r}; bridge answers "
        "with causal ones: take the checkpoint with OPT, such as Salesforce/blip2-opt-2.7b"
    )


def _blip2_template(bos: str) -> str:
    """Picture, beginning of sequence, then the turns, as Blip2Processor lays them out."""
    return (
        "<image>" + bos + "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{- '' if loop.first else ' ' -}}{{- 'Question: ' -}}"
        "{%- for part in message['content'] if part['type'] == 'text' -%}"
        "{{- part['text'] -}}{%- endfor -%}{{- ' Answer:' -}}"
        "{%- else -%}"
        "{%- for part in message['content'] -%}{{- ' ' + part['text'] + '.' -}}{%- endfor -%}"
        "{%- endif -%}{%- endfor -%}"
    )
