"""Tiny random pipelines with a T5 tower, made of diffusers' and transformers' own classes.

``tiny_t5_pipeline(kind)`` gives one of ``T5_KINDS``. Those that draw pictures have a VAE and a
transformer that runs; of the others (videos, pixel models) there is what ``encode_prompt`` needs.
``pipe.save_pretrained(tmp_path)`` gives a folder in diffusers' layout.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from support.tiny_models import EOS, _spread, text_config, tiny_clip_tokenizer, tiny_vae

T5_WIDTH = 96
POOLED, POOLED_2 = 24, 40
T5_KINDS = (
    "sd3",
    "sd3-no-t5",
    "flux",
    "pixart-alpha",
    "pixart-sigma",
    "chroma",
    "cogview3plus",
    "cogvideox",
    "ltx",
    "ltx-condition",
    "allegro",
    "deepfloyd-if",
)
DRAWS = ("sd3", "sd3-no-t5", "flux", "pixart-alpha", "pixart-sigma", "chroma")
"""The kinds whose pipeline runs here."""


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer of about 60 pieces; characters beyond them are ``<unk>``, as in T5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyzABC.,+-()[]:0123456789"]
    pieces += [("▁" + word, -2.0) for word in ("cat", "two", "dog", "red", "appl", "of", "+")]
    pieces += [("s", -2.5), ("es", -2.4)]
    vocab = list(dict(pieces).items())
    return T5TokenizerFast(vocab=vocab, extra_ids=2, model_max_length=512)


def tiny_t5_encoder(seed: int = 3) -> T5EncoderModel:
    """A three-layer T5 v1.1 encoder, ``T5_WIDTH`` wide."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=80, d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=3, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    encoder = T5EncoderModel(config).eval()
    _spread(encoder)
    return encoder


def tiny_t5_pipeline(kind: str, seed: int = 0) -> Any:
    """A random pipeline of one of ``T5_KINDS``."""
    torch.manual_seed(seed)
    pipe = _MAKERS[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler()


def _t5(number: str = "") -> dict[str, Any]:
    return {f"tokenizer{number}": tiny_t5_tokenizer(), f"text_encoder{number}": tiny_t5_encoder()}


def _no_t5(number: str) -> dict[str, Any]:
    return {f"tokenizer{number}": None, f"text_encoder{number}": None}


def _sd3(with_t5: bool = True) -> Any:
    tokenizer, tokenizer_2 = tiny_clip_tokenizer(EOS), tiny_clip_tokenizer("!")
    # The published folder still says eos_token_id 2 for the first tower.
    first = CLIPTextModelWithProjection(
        text_config(tokenizer, projection_dim=POOLED, eos_token_id=2)
    ).eval()
    second = CLIPTextModelWithProjection(
        text_config(tokenizer_2, hidden_size=48, projection_dim=POOLED_2, hidden_act="gelu")
    ).eval()
    _spread(first)
    _spread(second)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32, pooled_projection_dim=POOLED + POOLED_2, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=_flow(), vae=_shifted(tiny_vae()),
        tokenizer=tokenizer, text_encoder=first, tokenizer_2=tokenizer_2, text_encoder_2=second,
        **(_t5("_3") if with_t5 else _no_t5("_3")),
    )  # fmt: skip


def _shifted(vae: Any) -> Any:
    vae.register_to_config(shift_factor=0.1)
    return vae.eval()


def _flux() -> Any:
    tokenizer = tiny_clip_tokenizer(EOS)
    first = CLIPTextModel(text_config(tokenizer, eos_token_id=2)).eval()
    _spread(first)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=first.config.hidden_size, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=_flow(), vae=_shifted(tiny_vae()),
        tokenizer=tokenizer, text_encoder=first, **_t5("_2"),
    )  # fmt: skip


def _pixart(name: str) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=4,
        cross_attention_dim=32, caption_channels=T5_WIDTH, in_channels=4, out_channels=8,
        use_additional_conditions=False,
    ).eval()  # fmt: skip
    return getattr(diffusers, name)(
        transformer=transformer, scheduler=diffusers.DDIMScheduler(), vae=tiny_vae().eval(), **_t5()
    )


def _chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=T5_WIDTH, axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32, approximator_layers=1, approximator_num_channels=16,
    ).eval()  # fmt: skip
    return diffusers.ChromaPipeline(
        transformer=transformer, scheduler=_flow(), vae=_shifted(tiny_vae()), **_t5()
    )


def _cogview() -> Any:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        out_channels=4, text_embed_dim=T5_WIDTH, time_embed_dim=8, condition_dim=2,
        pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    return diffusers.CogView3PlusPipeline(
        transformer=transformer, scheduler=diffusers.CogVideoXDDIMScheduler(), vae=None, **_t5()
    )


def _cogvideo() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=T5_WIDTH, num_layers=1, sample_width=2, sample_height=2,
        sample_frames=9,
    )  # fmt: skip
    return diffusers.CogVideoXPipeline(
        transformer=transformer, scheduler=diffusers.CogVideoXDDIMScheduler(), vae=None, **_t5()
    )


def _ltx(pipeline: Any = diffusers.LTXPipeline) -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=T5_WIDTH,
    )  # fmt: skip
    return pipeline(transformer=transformer, scheduler=_flow(), vae=None, **_t5())


def _allegro() -> Any:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8,
        caption_channels=T5_WIDTH,
    )  # fmt: skip
    return diffusers.AllegroPipeline(
        transformer=transformer, scheduler=diffusers.DDIMScheduler(), vae=None, **_t5()
    )


def _deepfloyd() -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, in_channels=3,
        out_channels=6, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=T5_WIDTH,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    return diffusers.IFPipeline(
        unet=unet, scheduler=diffusers.DDPMScheduler(variance_type="learned_range"),
        safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False, **_t5(),
    )  # fmt: skip


_MAKERS = {
    "sd3": _sd3,
    "sd3-no-t5": lambda: _sd3(with_t5=False),
    "flux": _flux,
    "pixart-alpha": lambda: _pixart("PixArtAlphaPipeline"),
    "pixart-sigma": lambda: _pixart("PixArtSigmaPipeline"),
    "chroma": _chroma,
    "cogview3plus": _cogview,
    "cogvideox": _cogvideo,
    "ltx": _ltx,
    "ltx-condition": lambda: _ltx(diffusers.LTXConditionPipeline),
    "allegro": _allegro,
    "deepfloyd-if": _deepfloyd,
}
