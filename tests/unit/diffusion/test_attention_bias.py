"""Emphasis as a bias of attention, against attention written out by hand.

The text tower is walked layer by layer with softmax, masks and biases spelt out; the UNet's
cross-attention likewise. Both are float32 and differ from torch's fused kernels by rounding only:
1e-5 of the largest entry.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from support.comparisons import relative
from support.tiny_models import LATENT_SIZE, tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.diffusion.attention import cross_attentions
from bridge.encoding.encode import check_unet
from bridge.encoding.model import open_model
from bridge.errors import OptionError, PromptError, UnsupportedModelError

TOLERANCE = 1e-5
TEXT = "a (cat:1.5) and [a (dog:0.3)] (red:0)"


@pytest.fixture(scope="module")
def sd() -> Any:
    made = tiny_sd_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def sdxl() -> Any:
    made = tiny_sdxl_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def logs(weights: Any) -> torch.Tensor:
    return torch.tensor([math.log(w) if w else -math.inf for w in weights])


@torch.no_grad()
def by_hand(tower: Any, ids: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The last layer's states ``(T, D)``, before the final norm, of a CLIP text tower."""
    inner = getattr(tower, "text_model", tower)
    length = len(ids)
    x = inner.embeddings(ids[None])[0]
    for layer in inner.encoder.layers:
        y = layer.layer_norm1(x)
        attention = layer.self_attn
        heads, width = attention.num_heads, attention.head_dim
        q, k, v = (
            p(y).view(length, heads, width).transpose(0, 1)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = q @ k.transpose(1, 2) / math.sqrt(width) + bias
        logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(length, -1)
        x = x + attention.out_proj(mixed)
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


# ---------------------------------------------------------------- text tower


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_text_tower_attends_by_weight(sd: Any, implementation: str) -> None:
    sd.text_encoder.set_attn_implementation(implementation)
    try:
        found = bridge.condition(TEXT, "", model=sd, emphasis="text_attention_bias")
    finally:
        sd.text_encoder.set_attn_implementation("sdpa")
    (window,) = found.plans[0][0].windows
    assert {1.5, 0.0} < set(window.weights)
    states = by_hand(sd.text_encoder, torch.tensor(window.ids), logs(window.weights))
    norm = getattr(sd.text_encoder, "text_model", sd.text_encoder).final_layer_norm
    assert relative(found.prompt_embeds[0], norm(states)) <= TOLERANCE
    plain = bridge.condition(TEXT, "", model=sd, emphasis="none")
    assert relative(found.prompt_embeds, plain.prompt_embeds) > 100 * TOLERANCE
    assert relative(found.negative_prompt_embeds, plain.negative_prompt_embeds) <= TOLERANCE


def test_the_pooled_state_follows(sdxl: Any) -> None:
    found = bridge.condition(TEXT, model=sdxl, emphasis="text_attention_bias")
    (window,) = found.plans[0][1].windows
    tower = sdxl.text_encoder_2
    states = by_hand(tower, torch.tensor(window.ids), logs(window.weights))
    end = tower.text_model.final_layer_norm(states)[window.used - 1]
    assert found.pooled_prompt_embeds is not None
    assert relative(found.pooled_prompt_embeds[0], tower.text_projection(end)) <= TOLERANCE


def test_a_token_of_weight_zero_is_not_seen(sd: Any) -> None:
    """What follows is the same whichever word it was; only the word's own place differs."""
    one, two = (
        bridge.condition(f"a ({word}:0) red", model=sd, emphasis="text_attention_bias")
        for word in ("cat", "dog")
    )
    first, second = one.prompt_embeds[0], two.prompt_embeds[0]
    assert torch.equal(first[3:], second[3:]) and torch.equal(first[:2], second[:2])
    assert not torch.equal(first[2], second[2])


# ---------------------------------------------------------------- UNet


def attended(module: Any, x: torch.Tensor, states: torch.Tensor, bias: torch.Tensor) -> Any:
    """Cross-attention of one row, by hand."""

    def heads(t: torch.Tensor) -> torch.Tensor:
        return t.view(len(t), module.heads, -1).transpose(0, 1)

    q, k, v = (
        heads(p(y)) for p, y in ((module.to_q, x), (module.to_k, states), (module.to_v, states))
    )
    logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
    mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
    return module.to_out[0](mixed)


def attentions_of(pipe: Any, plan: Any, **call: Any) -> list[tuple[Any, ...]]:
    """Every cross-attention's module, input and output in one step of a pipeline."""
    seen: list[tuple[Any, ...]] = []
    with bridge.inject(pipe, plan) as kwargs:
        handles = [
            module.register_forward_hook(
                lambda m, args, kw, out: seen.append((m, args[0], kw, out)), with_kwargs=True
            )
            for module in cross_attentions(pipe.unet)
        ]
        try:
            pipe(
                **kwargs, num_inference_steps=1, output_type="latent",
                generator=torch.Generator().manual_seed(0), **call,
            )  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
    return seen


PROCESSORS = {
    "sdpa": lambda pipe: pipe.unet.set_default_attn_processor(),
    "plain": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
    "sliced": lambda pipe: pipe.unet.set_attn_processor(SlicedAttnProcessor(1)),
}


@pytest.mark.parametrize("processor", PROCESSORS)
@torch.no_grad()
def test_the_unet_attends_by_weight(sd: Any, processor: str) -> None:
    plan = bridge.condition(TEXT, "(ugly:2)", model=sd, emphasis="unet_attention_bias")
    plain = bridge.condition(TEXT, "(ugly:2)", model=sd, emphasis="none")
    assert torch.equal(plan.prompt_embeds, plain.prompt_embeds)
    rows = [plan.negative_plans[0][0], plan.plans[0][0]]
    PROCESSORS[processor](sd)
    try:
        seen = attentions_of(sd, plan, guidance_scale=3.0)
    finally:
        sd.unet.set_default_attn_processor()
    assert len(seen) == len(list(cross_attentions(sd.unet))) > 2
    for module, x, kwargs, out in seen:
        for i, row in enumerate(rows):
            states, bias = kwargs["encoder_hidden_states"][i], logs(row.windows[0].weights)
            assert relative(out[i], attended(module, x[i], states, bias)) <= TOLERANCE
    assert not any(m._forward_pre_hooks for m in sd.unet.modules())


def draw(pipe: Any, plan: Any, **call: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, LATENT_SIZE, LATENT_SIZE, generator=generator)
    with bridge.inject(pipe, plan) as kwargs:
        return pipe(
            **kwargs, latents=latents, num_inference_steps=2, output_type="latent", **call
        ).images


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_weight_zero_in_the_unet_hides_a_token(sdxl: Any, guidance: float) -> None:
    """The masked word's own state does not reach the picture."""
    plan = bridge.condition("red (cat:0)", "", model=sdxl, emphasis="unet_attention_bias")
    states = plan.prompt_embeds.clone()
    states[0, 2] += 100
    found, wanted = (
        draw(sdxl, each, guidance_scale=guidance)
        for each in (plan, replace(plan, prompt_embeds=states))
    )
    assert relative(found, wanted) <= TOLERANCE


def test_composed_parts_keep_their_own_bias(sd: Any) -> None:
    options = {"model": sd, "emphasis": "unet_attention_bias"}
    one = draw(sd, bridge.condition("a (cat:1.5)", "", **options), guidance_scale=4.0)
    halves = bridge.compose("a (cat:1.5) :0.5 AND a (cat:1.5) :0.5", "", **options)
    assert relative(draw(sd, halves, guidance_scale=4.0), one) <= 10 * TOLERANCE
    other = bridge.compose("a (cat:1.5) :0.5 AND a (cat:0.1) :0.5", "", **options)
    assert relative(draw(sd, other, guidance_scale=4.0), one) > 100 * TOLERANCE


def test_a_schedule_changes_the_bias(sd: Any) -> None:
    plan = bridge.schedule(
        "a (cat:[1.5:0.2:1])", "", steps=3, model=sd, emphasis="unet_attention_bias"
    )
    module = next(cross_attentions(sd.unet))
    seen: list[torch.Tensor] = []
    with bridge.inject(sd, plan) as kwargs:
        handle = module.register_forward_pre_hook(
            lambda m, args, kw: seen.append(kw["attention_mask"]), with_kwargs=True
        )
        try:
            sd(**kwargs, num_inference_steps=3, output_type="latent", guidance_scale=3.0)
        finally:
            handle.remove()
    assert [mask.shape for mask in seen] == [(2, 1, 77)] * 3
    assert [mask[1, 0, 2].item() for mask in seen] == [
        pytest.approx(math.log(weight), rel=1e-5) for weight in (1.5, 1.5, 0.2)
    ]
    assert not any(mask[0].any() for mask in seen)


def test_long_prompts_and_two_towers(sdxl: Any) -> None:
    text = "(cat:2) " * 80
    found = bridge.condition(text, "b", model=sdxl, emphasis="unet_attention_bias")
    assert found.attention_bias is not None and found.attention_bias.shape == (1, 154)
    weights = torch.tensor([w.weights for w in found.plans[0][0].windows]).flatten()
    torch.testing.assert_close(found.attention_bias[0], weights.log())
    assert found.negative_attention_bias is not None
    assert not found.negative_attention_bias.any()
    two = bridge.condition(
        "a (cat:4)", model=sdxl, prompt_2="a cat", emphasis="unet_attention_bias"
    )
    assert two.attention_bias is not None
    assert two.attention_bias[0, 2].item() == pytest.approx(math.log(2))


def test_nothing_weighted_needs_no_injection(sd: Any) -> None:
    found = bridge.condition("a cat", "dog", model=sd, emphasis="unet_attention_bias")
    assert not found.is_biased and "prompt_embeds" in found.kwargs()


def test_saved_and_loaded(sd: Any, tmp_path: Any) -> None:
    from bridge.encoding import load_conditioning, save_conditioning

    made = bridge.condition("a (cat:0)", model=sd, emphasis="unet_attention_bias")
    found = load_conditioning(save_conditioning(made, tmp_path / "cond.safetensors"))
    assert found.attention_bias is not None and made.attention_bias is not None
    assert torch.equal(found.attention_bias, made.attention_bias)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("emphasis", ["text_attention_bias", "unet_attention_bias"])
def test_negative_weights_are_refused(sd: Any, emphasis: str) -> None:
    with pytest.raises(PromptError, match=r"weight of -1[\s\S]*\n   +\^\^\^"):
        bridge.condition("a (cat:-1)", model=sd, emphasis=emphasis)


def test_a_biased_conditioning_cannot_be_drawn_without_injection(sd: Any) -> None:
    found = bridge.condition("a (cat:2)", model=sd, emphasis="unet_attention_bias")
    with pytest.raises(OptionError, match=r"bridge\.inject"):
        found.kwargs()
    plan = bridge.schedule("a (cat:2)", steps=2, model=sd, emphasis="unet_attention_bias")
    with pytest.raises(OptionError, match=r"bridge\.inject"):
        plan.kwargs()


def test_parts_that_are_joined_have_no_bias(sd: Any) -> None:
    with pytest.raises(PromptError, match="several parts"):
        bridge.condition(
            '("a cat++", "a dog").blend(1, 1)', model=sd, dialect="compel",
            emphasis="unet_attention_bias",
        )  # fmt: skip


def test_models_without_a_unet(sd: Any) -> None:
    kit = open_model(sd)
    with pytest.raises(UnsupportedModelError, match=r"Regions act inside a UNet; .* \(flux\)"):
        check_unet(replace(kit, recipe=replace(kit.recipe, name="flux")), "Regions act")
