"""Tiny random diffusers pipelines with working tokenizers, for tests that need the real classes.

Everything is seeded and small enough for one second on one CPU core:

- ``tiny_clip_tokenizer()``: a ``CLIPTokenizer`` over the full byte alphabet and a few merges.
- ``tiny_sd_pipeline()``: a ``StableDiffusionPipeline`` in the shape of SD 1.5 or SD 2.1.
- ``tiny_sdxl_pipeline()``: a ``StableDiffusionXLPipeline`` with two different towers.
- ``tiny_controlnet(pipe)``: a ``ControlNetModel`` that fits either of them.

Latents are 8x8 and the VAE is f8, so a picture is 64x64. ``pipe.save_pretrained(tmp_path)``
gives a folder in diffusers' layout.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

LATENT_SIZE = 8
PICTURE_SIZE = 64
WIDTH = 32
CONTEXT = 77
BOS = "<|startoftext|>"
EOS = "<|endoftext|>"

# Pairs merged into one token; the order is the rank, as in CLIP's merges.txt.
_WORDS = ("cat", "dog", "apple", "apples", "red", "two", "left", "of", "photo", "the", "an", "in")


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes, in CLIP's order: id 0 is ``!``.

    The order is that of GPT-2's ``bytes_to_unicode``: printable Latin-1 first, then the
    other bytes moved up from code point 256.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(len(moved))]


def merges_of(words: Iterable[str]) -> list[tuple[str, str]]:
    """Left-to-right merges that build each word, in order of first need."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left, *others = [*word[:-1], word[-1] + "</w>"]
        for right in others:
            merges[left, right] = None
            left += right
    return list(merges)


def tiny_clip_tokenizer(pad_token: str = EOS, words: Iterable[str] = _WORDS) -> CLIPTokenizer:
    """A CLIP tokenizer of about 560 tokens: bytes, bytes ending a word, merges, BOS, EOS.

    As in CLIP, EOS has the highest id. SD 2.x and SDXL's second tokenizer pad with ``!`` (id 0).
    """
    alphabet = byte_alphabet()
    merges = merges_of(words)
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    vocab[BOS] = len(vocab)
    vocab[EOS] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=CONTEXT)


def text_config(tokenizer: CLIPTokenizer, **changes: object) -> CLIPTextConfig:
    """A three-layer CLIP text config whose special ids agree with ``tokenizer``."""
    values: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "quick_gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**values, **changes})


def _spread(module: torch.nn.Module) -> None:
    """Give norms and biases values of their own, so that a forgotten norm shows in a test."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))


def tiny_vae() -> AutoencoderKL:
    """An f8 ``AutoencoderKL`` with four latent channels."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=PICTURE_SIZE,
    )


def tiny_sd_pipeline(kind: str = "sd15", seed: int = 0) -> StableDiffusionPipeline:
    """A random ``StableDiffusionPipeline``.

    ``kind="sd15"``: quick-GELU tower, EOS padding, the old config whose ``eos_token_id`` is 2.
    ``kind="sd21"``: GELU tower, padding with ``!`` (id 0), v-prediction.
    """
    if kind not in ("sd15", "sd21"):
        raise ValueError(f"no tiny pipeline of kind {kind!r}; take 'sd15' or 'sd21'")
    torch.manual_seed(seed)
    old = kind == "sd15"
    tokenizer = tiny_clip_tokenizer(EOS if old else "!")
    changes: dict[str, object] = {"eos_token_id": 2} if old else {"hidden_act": "gelu"}
    text_encoder = CLIPTextModel(text_config(tokenizer, **changes)).eval()
    _spread(text_encoder)
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon" if old else "v_prediction",
    )
    return StableDiffusionPipeline(
        vae=tiny_vae().eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl_pipeline(seed: int = 0, force_zeros: bool = True) -> StableDiffusionXLPipeline:
    """A random ``StableDiffusionXLPipeline``: towers 32 and 48 wide, joined to 80, pooled 40.

    ``force_zeros`` is the pipeline's ``force_zeros_for_empty_prompt``.
    """
    torch.manual_seed(seed)
    wide, pooled, time_width = 48, 40, 8
    tokenizer, tokenizer_2 = tiny_clip_tokenizer(EOS), tiny_clip_tokenizer("!")
    text_encoder = CLIPTextModel(text_config(tokenizer, eos_token_id=2)).eval()
    text_encoder_2 = CLIPTextModelWithProjection(
        text_config(tokenizer_2, hidden_size=wide, projection_dim=pooled, hidden_act="gelu")
    ).eval()
    _spread(text_encoder)
    _spread(text_encoder_2)
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH + wide,
        attention_head_dim=8,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + pooled,
        use_linear_projection=True,
    ).eval()
    return StableDiffusionXLPipeline(
        vae=tiny_vae().eval(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )


def tiny_controlnet(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, seed: int = 1
) -> ControlNetModel:
    """A ``ControlNetModel`` for ``pipe``; its zero convolutions are filled so that it acts."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(
        pipe.unet,
        conditioning_channels=3,
        load_weights_from_unet=False,
        controlnet_conditioning_channel_order="rgb",
        conditioning_embedding_out_channels=(8, 8, 8, 8),
    )
    with torch.no_grad():
        for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
            for parameter in block.parameters():
                parameter.normal_(std=0.05)
    return net.eval()


def tiny_image_tower(seed: int = 0) -> CLIPVisionModelWithProjection:
    """A ``CLIPVisionModelWithProjection`` for 32x32 pictures with 8x8 patches (a 4x4 grid)."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    tower = CLIPVisionModelWithProjection(config).eval()
    _spread(tower)
    return tower
