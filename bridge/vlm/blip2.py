"""BLIP-2 in the parts of a BridgeVLM: tower, Q-Former as projector, decoder language model.

Li et al., "BLIP-2" (2023). The Q-Former's learnt queries read the tower's last layer, final
norm applied and class token kept, through cross-attention: as many soft tokens as queries,
whatever the picture. They stand before the beginning-of-sequence token.

The encoder-decoder checkpoints (T5) are refused: their soft tokens feed an encoder, and a
BridgeVLM has one causal language model.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bridge.errors import UnsupportedModelError
from bridge.vlm.model import BridgeVLM
from bridge.vlm.parts import checked_image_token
from bridge.vlm.projectors.qformer import QFormerProjector


class Blip2Tower(nn.Module):
    """`Blip2VisionModel` with its normed output as the one hidden state.

    BLIP-2 takes the final norm's output, which is no entry of transformers' hidden states.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.config = tower.config

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> SimpleNamespace:
        states = self.tower(pixel_values, return_dict=True).last_hidden_state
        return SimpleNamespace(last_hidden_state=states, hidden_states=(states,))


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
        raise UnsupportedModelError(refusal(name, config.text_config.model_type))
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
        chat_template=_chat_template(tokenizer.bos_token or ""),
        name=name,
    )


def refusal(name: object, kind: str) -> str:
    return (
        f"{name} is a BLIP-2 with the encoder-decoder language model {kind!r}; bridge answers "
        "with causal ones: take the checkpoint with OPT, such as Salesforce/blip2-opt-2.7b"
    )


def _chat_template(bos: str) -> str:
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
