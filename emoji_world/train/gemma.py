"""The answerer with a real language model: emoji-clip's image tower → linear → Gemma 3 270M.

Tower and language model stay as they are. Trained are a projector and a LoRA on the attention's
queries, values and outputs, and they alone are kept: half a megabyte beside a language model of
270 million parameters, which answers plain text as before when the LoRA is off. (An `mlp2x_gelu`
would be twice as large alone.)

It starts well: the projector is fitted in closed form, so that soft tokens begin as the mean of
the words for what stands in their patch (`soft_words.word_targets`). It is trained on whitened
states, as `llava.whiten` explains; a linear map has no first layer that could be set so, hence
`Whitened`. The chats are packed and the dense loss is that of `llava`; of the vocabulary of 262
thousand, soft tokens are told from the words that occur, answers from all of it (`head_loss`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.training.lora import lora_layers
from bridge.vlm import BridgeVLM, load_llm, load_projector, load_vision, pair, save_vlm
from bridge.vlm.lora import add_lora, load_lora
from bridge.vlm.projectors import build_projector
from bridge.vlm.projectors.per_state import LinearProjector, fit_linear_projector
from bridge.vlm.train.batches import IGNORE_LABEL
from bridge.vlm.vision import image_states
from emoji_world.art import Sprites
from emoji_world.llava_folder import chat_encoder
from emoji_world.scenes import Scene
from emoji_world.train.data import GRID, pictures, scene_batch, scene_rng
from emoji_world.train.head_loss import head_loss
from emoji_world.train.loop import Recipe, Run, load_averaged, plain_attention
from emoji_world.train.packed_chats import QuestionBatch, ask, packed
from emoji_world.train.prefetch import prefetch
from emoji_world.train.soft_words import SoftWords, occurring, word_targets
from emoji_world.train.whitening import whitening

LLM = "gemma-270m"
TOWER = "emoji-clip"
BATCH = 4
SOFT = GRID * GRID
RANK, ALPHA = 2, 4.0
LAYERS = ("q_proj", "v_proj", "o_proj")
DENSE_WEIGHT = 0.1
LOOKS = 16  # batches of scenes that the closed form and the whitening rest on

SceneStates = tuple[list[Scene], torch.Tensor]
"""Scenes, and the (B, 64, D) states of their patches."""

# The base model knows no chat; it has read many questions with answers, though.
TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{%- if message['content'] is string -%}"
    "{{- 'Question: ' + message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}"
    "{{- '<image>\\n' -}}"
    "{%- endfor -%}"
    "{{- 'Question: ' -}}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}"
    "{{- part['text'] -}}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '\\nAnswer:' -}}"
    "{%- else -%}"
    "{{- ' ' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
    "{{- eos_token + '\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


class Whitened(nn.Module):
    """A linear projector in coordinates in which the states vary alike in every direction.

    The same maps as `LinearProjector`, and the same map as the one given until it is trained;
    ``mean`` (D,) and ``rows`` (D, D) are `whitening`'s.
    """

    mean: torch.Tensor
    rows: torch.Tensor

    def __init__(self, projector: LinearProjector, mean: torch.Tensor, rows: torch.Tensor) -> None:
        super().__init__()
        weight, bias = projector.weight.detach().double(), projector.bias.detach().double()
        inverse = torch.linalg.inv(rows.double())
        self.register_buffer("mean", mean.float())
        self.register_buffer("rows", rows.float())
        self.weight = nn.Parameter((weight @ inverse).float())
        self.bias = nn.Parameter((bias + weight @ mean.double()).float())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear((states - self.mean) @ self.rows.T, self.weight, self.bias)

    @torch.no_grad()
    def plain(self) -> LinearProjector:
        """The map as a `LinearProjector`, on the CPU."""
        weight = (self.weight.double() @ self.rows.double()).cpu()
        bias = self.bias.double().cpu() - weight @ self.mean.double().cpu()
        made = build_projector("linear", weight.shape[1], weight.shape[0])
        assert isinstance(made, LinearProjector)
        made.weight.copy_(weight)
        made.bias.copy_(bias)
        return made.eval()


class Trained(nn.Module):
    """All that is trained, and so all that a checkpoint holds: projector and LoRA."""

    def __init__(self, projector: Whitened, llm: Any) -> None:
        super().__init__()
        self.projector = projector
        # A dot would split a parameter's name.
        self.lora = nn.ParameterDict(
            {
                f"{name}.{side}".replace(".", "/"): getattr(layer, side)
                for name, layer in lora_layers(llm).items()
                for side in ("lora_A", "lora_B")
            }
        )


def start(
    weights: Path, shipped: Path | None, sprites: Sprites, device: torch.device
) -> tuple[BridgeVLM, Trained]:
    """The parts joined, and what is to be trained of them: that of the folder ``shipped``, or
    afresh. Raises MissingDependencyError without the package of the language model."""
    tower, processor = load_vision(weights / TOWER, device=device, dtype="float32")
    llm, tokenizer = load_llm(LLM, device=device, dtype="bfloat16")
    vlm = join(tower, llm, tokenizer, processor)
    seen = look(vlm, sprites)
    if shipped is None:
        add_lora(llm, RANK, ALPHA, seed=0, only=LAYERS)
        projector: Any = fitted(vlm, seen)
    else:
        load_lora(llm, shipped / "lora")
        projector = load_projector(shipped / "projector")
    return vlm, trained(vlm, projector.float(), seen)


def join(tower: Any, llm: Any, tokenizer: Any, processor: Any) -> BridgeVLM:
    """The parts as one model in our chat layout, its projector still to come."""
    return pair(
        tower,
        llm,
        tokenizer,
        projector="linear",
        image_processor=processor,
        select_layer=-2,
        chat_template=TEMPLATE,
        name="emoji-gemma",
    )


def look(vlm: BridgeVLM, sprites: Sprites) -> list[SceneStates]:
    """Batches of 64 training scenes and what the tower sees of them, for `fitted`, `trained`."""
    scenes = [scene_batch(scene_rng(52, number), 64) for number in range(LOOKS)]
    return [(batch, patch_states(vlm, pictures(batch, sprites)).cpu()) for batch in scenes]


def fitted(vlm: BridgeVLM, seen: Sequence[SceneStates]) -> LinearProjector:
    """The projector that comes nearest to words for what is there, in closed form."""
    table = vlm.llm.get_input_embeddings()

    def embed(ids: torch.Tensor) -> torch.Tensor:
        return table(ids.to(vlm.device)).cpu()

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch, states in seen:
            wanted = word_targets(vlm.tokenizer, embed, batch)
            yield states.flatten(0, 1), wanted.flatten(0, 1)

    return fit_linear_projector(pairs())


def trained(vlm: BridgeVLM, projector: LinearProjector, seen: Sequence[SceneStates]) -> Trained:
    """``projector``, whitened by what was ``seen``, and the LoRA of the language model."""
    mean, rows, _ = whitening(torch.cat([states for _, states in seen]).flatten(0, 1))
    return Trained(Whitened(projector, mean, rows).to(vlm.device), vlm.llm)


@torch.no_grad()
def patch_states(vlm: BridgeVLM, images: torch.Tensor) -> torch.Tensor:
    """(B, 64, D) fp32 states that the projector reads, of (B, 3, 128, 128) in [-1, 1]."""
    assert vlm.vision is not None
    seen = image_states(vlm.vision, images.to(vlm.device), vlm.select_layer, vlm.select_feature)
    return seen.float()


def recipe(
    vlm: BridgeVLM, module: Trained, sprites: Sprites, times: int = 1, workers: int = 0
) -> Recipe:
    """The language model runs in its own dtype (bf16 as `start` loads it), what is trained in
    fp32; the passes are under autocast. Batches as `Setup` says."""
    llm, words, device = vlm.llm, vlm.tokenizer, vlm.device
    llm.requires_grad_(False)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    plain_attention(llm)
    table, head = llm.get_input_embeddings(), llm.get_output_embeddings().weight
    among = occurring(words)
    soft_words = SoftWords(words, among, device)
    names = F.normalize(table.weight[among].float(), dim=-1)
    example = partial(packed, chat_encoder(vlm.writer, SOFT), vlm.image_token_id)

    def make(step: int) -> QuestionBatch:
        rng = scene_rng(51, step)
        scenes = scene_batch(rng, BATCH * times)
        return ask(scenes, lambda scene: example(scene, rng), vlm.pad_id, sprites)

    batches = prefetch(make, workers)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = batches(step).to(device)
        chats = batch.chats
        ids, labels = chats.ids, chats.labels
        soft = module.projector(patch_states(vlm, batch.pictures))
        spots = ids == vlm.image_token_id
        # The image token's number may lie past the table's end.
        embeds = table(ids.masked_fill(spots, 0))
        embeds = embeds.masked_scatter(spots[..., None], soft.to(embeds.dtype))
        mask = chats.may_look()
        bias = torch.zeros(mask.shape, dtype=embeds.dtype, device=device).masked_fill(~mask, -1e4)
        with torch.autocast(device.type, torch.bfloat16, enabled=embeds.dtype != torch.float32):
            out = llm.base_model(
                inputs_embeds=embeds,
                # No two tokens that see each other are further apart than the sliding window.
                attention_mask={"full_attention": bias, "sliding_attention": bias},
                position_ids=chats.positions,
                use_cache=False,
            ).last_hidden_state
        taught = labels[:, 1:] != IGNORE_LABEL
        states = out[:, :-1][taught].to(head.dtype)
        entropy, right = head_loss(states, head, labels[:, 1:][taught])
        dense = soft_words.loss(soft, names, batch.truth)
        figures = {
            "answer_ce": entropy.item(),
            "token_right": right.item(),
            "soft_word_ce": dense.item(),
        }
        return entropy + DENSE_WEIGHT * dense, figures

    return Recipe("gemma", module, loss, lr=1e-3, weight_decay=0.0, warmup=50, ema=0.99)


def export(run: Run, vlm: BridgeVLM, module: Trained, folder: Path) -> None:
    """Write projector and LoRA in half precision, and the names of the parts they join."""
    load_averaged(run, module)  # the LoRA's parameters are those of the language model's layers
    for layer in lora_layers(vlm.llm).values():
        layer.half_()
    joined = replace(vlm, projector=module.projector.plain().half())
    save_vlm(joined, folder, vision=TOWER, llm=LLM)
