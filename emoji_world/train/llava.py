"""The answerer: emoji-clip's image tower → mlp2x_gelu → a small LLaMA, as LLaVA-1.5.

The tower stays frozen; its penultimate patch states, class token dropped, are the soft
tokens (Liu et al. 2023). Its last layer, which nobody would read, is left out (`lower_layers`).
The language model is ours and starts from nothing, so projector and language model train
together; LLaVA's first stage only exists to spare a trained LLM.

Two more losses teach what the answers alone did not, "is there a cat?": soft tokens should be words
(`soft_words`), and a noun of the question should look at its thing (`attention_supervision`).
Questions about a scene are packed (`packed_chats`). Some scenes it reads in words, a patch a word,
as a language model that knows language could: then a projector that was only fitted to words,
without seeing this model, can be read as well (`bridge.vlm.projectors.per_state`)."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from bridge.vlm.chat import IMAGE_TOKEN, chat_text
from bridge.vlm.train.batches import IGNORE_LABEL
from emoji_world.art import Sprites
from emoji_world.llava_folder import build_processor, build_tokenizer, training_example
from emoji_world.questions import questions
from emoji_world.scenes import Scene, draw_scene
from emoji_world.train.attention_supervision import LAYER, Nouns, look_loss
from emoji_world.train.data import GRID, PATCH, scene_batch, scene_rng
from emoji_world.train.loop import Recipe, Run, load_averaged
from emoji_world.train.packed_chats import Packed, QuestionBatch, as_typed, ask, packed
from emoji_world.train.prefetch import ON_CPU, Setup, prefetch
from emoji_world.train.soft_words import SoftWords, as_fitted, word_targets
from emoji_world.train.vae import as_drawn
from emoji_world.train.whitening import whitening

BATCH = 24
SOFT = GRID * GRID
VOCAB_SIZE = 1536
DENSE_WEIGHT = 0.1
LOOK_WEIGHT = 0.3
WORDED = 4  # one scene of so many is read in words


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The language model's vocabulary, learnt from chats about scenes; that of ``folder`` if it
    has one, since a model that goes on training must keep its ids."""
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    rng = random.Random(8)

    def chats() -> Iterator[str]:
        for _ in range(12_000):
            scene = draw_scene(rng)
            for held_out in (False, True):
                asked = questions(scene, rng, held_out=held_out)
                turns = [(as_typed(q.text, rng), q.answer) for q in asked]
                yield chat_text(turns, with_answers=True)

    words = build_tokenizer(chats(), VOCAB_SIZE)
    words.save_pretrained(folder)
    return words


def lower_layers(tower: CLIPVisionConfig) -> CLIPVisionConfig:
    """``tower`` without its last layer: all that LLaVA reads of it.

    The penultimate states of the whole are the last of this one, bit for bit, since CLIP norms
    nothing but the pooled class token after its layers. So ``vision_feature_layer`` is -1.
    """
    lower = copy.deepcopy(tower)
    lower.num_hidden_layers -= 1
    return lower


def configuration(clip: CLIPModel, words: PreTrainedTokenizerFast) -> LlavaConfig:
    """The answerer's layout around the lower layers of ``clip``'s image tower."""
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=words.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return LlavaConfig(
        vision_config=lower_layers(clip.config.vision_config),
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=SOFT,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


def build(clip: CLIPModel, words: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """An untrained LLaVA around a copy of ``clip``'s image tower; 3.5 M parameters beside it."""
    model = LlavaForConditionalGeneration(configuration(clip, words))
    share_tower(model, clip)
    return model


def load(
    folder: Path, clip: CLIPModel, words: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """The trained LLaVA of ``folder`` in fp32, around a copy of ``clip``'s image tower."""
    # With today's layout: what a folder holds of a deeper tower is left on the disk.
    model = LlavaForConditionalGeneration.from_pretrained(
        folder,
        config=configuration(clip, words),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    share_tower(model, clip)
    return model


def share_tower(model: LlavaForConditionalGeneration, clip: CLIPModel) -> None:
    """Give ``model`` the lower layers of ``clip``'s image tower, frozen."""
    tower = model.model.vision_tower
    names = {k.removeprefix("vision_model."): v for k, v in clip.vision_model.state_dict().items()}
    tower.load_state_dict({k: names[k.removeprefix("vision_model.")] for k in tower.state_dict()})
    tower.requires_grad_(False)


@torch.no_grad()
def patch_states(model: LlavaForConditionalGeneration, images: torch.Tensor) -> torch.Tensor:
    """(B, 64, D) states that the projector reads, of (B, 3, 128, 128) in [-1, 1]."""
    seen = model.model.vision_tower(images, output_hidden_states=True)
    return seen.hidden_states[model.config.vision_feature_layer][:, 1:]


@torch.no_grad()
def whiten(model: LlavaForConditionalGeneration, images: torch.Tensor) -> None:
    """Set the projector's first layer to whiten the tower's patch states, then mix at random.

    A few directions of the residual stream are many times larger than those that tell things
    apart; a projector that starts blind to that spends its time finding it out. ``images`` are
    (B, 3, 128, 128) in [-1, 1].
    """
    mean, rows, _ = whitening(patch_states(model, images).flatten(0, 1).float())
    first = model.model.multi_modal_projector.linear_1
    mix = torch.randn(first.out_features, len(mean), dtype=torch.float32) / len(mean) ** 0.5
    first.weight.copy_(mix @ rows)
    first.bias.copy_(-first.weight @ mean)


def packed_example(words: PreTrainedTokenizerFast, scene: Scene, rng: random.Random) -> Packed:
    """One scene's questions in this model's chat layout; see `packed_chats.packed`."""
    encode = partial(training_example, words, n_soft_tokens=SOFT)
    return packed(encode, words.convert_tokens_to_ids(IMAGE_TOKEN), scene, rng)


def recipe(
    model: LlavaForConditionalGeneration,
    words: PreTrainedTokenizerFast,
    sprites: Sprites,
    vae: AutoencoderTiny,
    setup: Setup = ON_CPU,
) -> Recipe:
    """Some pictures it sees as ``vae`` gives them back, since it is asked about drawn ones too."""
    device = setup.device
    vae.to(device).requires_grad_(False)
    inner = model.to(device).model
    model.set_attn_implementation("eager")  # no fused one says where it looked
    soft_words, nouns = SoftWords(words, device=device), Nouns(words)

    def embed(ids: torch.Tensor) -> torch.Tensor:
        return inner.language_model.embed_tokens(ids.to(device))

    def make(step: int) -> tuple[QuestionBatch, torch.Tensor, list[Scene]]:
        rng = scene_rng(41, step)
        scenes = scene_batch(rng, BATCH * setup.times)
        asked = ask(scenes, lambda s: packed_example(words, s, rng), words.pad_token_id, sprites)
        rows = zip(asked.chats.ids.tolist(), asked.chats.labels.tolist(), strict=True)
        ends = torch.tensor([nouns.ends(ids, labels) for ids, labels in rows], dtype=torch.long)
        return asked, ends, scenes[1::WORDED]

    batches = prefetch(make, setup.workers)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        asked, ends, worded = batches(step)
        batch = asked.to(device)
        ids, labels, truth = batch.chats.ids, batch.chats.labels, batch.truth
        mask = batch.chats.may_look()
        with torch.autocast(device.type, torch.bfloat16):
            shown = as_drawn(vae, batch.pictures)
            soft = inner.multi_modal_projector(patch_states(model, shown))
            embeds = inner.language_model.embed_tokens(ids)
            spots = (ids == model.config.image_token_index)[..., None]
            read = soft.to(embeds.dtype, copy=True)
            # From the second on: the first of so many is the one seen as drawn.
            read[1::WORDED] = as_fitted(word_targets(words, embed, worded)).to(embeds.dtype)
            embeds = embeds.masked_scatter(spots, read)
            bias = torch.zeros(mask.shape, device=device, dtype=torch.float32).masked_fill(
                ~mask, -1e4
            )
            out = inner.language_model(
                inputs_embeds=embeds,
                attention_mask=bias.bfloat16(),
                position_ids=batch.chats.positions,
                use_cache=False,
                output_attentions=True,
            )
            taught = labels[:, 1:] != IGNORE_LABEL
            logits = model.lm_head(out.last_hidden_state[:, :-1][taught]).float()
        target = labels[:, 1:][taught]
        entropy = F.cross_entropy(logits, target)
        right = (logits.argmax(-1) == target).float().mean().item()
        dense = soft_words.loss(soft, inner.language_model.embed_tokens.weight, truth)
        first = int(spots[0, :, 0].nonzero()[0])
        look, looked = look_loss(out.attentions[LAYER], ends.to(device), truth.concept, first)
        figures = {
            "answer_ce": entropy.item(),
            "token_right": right,
            "soft_word_ce": dense.item(),
            "looked_right": looked,
        }
        return entropy + DENSE_WEIGHT * dense + LOOK_WEIGHT * look, figures

    matrices = frozenset(
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and (".layers." in name or "linear_2" in name) and p.requires_grad
    )
    return Recipe(
        "llava", model, loss, lr=1.5e-3, weight_decay=0.02, warmup=100, ema=0.998, muon=matrices
    )


def export(run: Run, clip: CLIPModel, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the LLaVA folder in half precision: model, processor, tokenizer, chat template."""
    model = build(clip, words)
    load_averaged(run, model)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.half().save_pretrained(folder)
    build_processor(words, PATCH * GRID, PATCH).save_pretrained(folder)
