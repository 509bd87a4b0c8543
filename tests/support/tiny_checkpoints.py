"""Tiny random checkpoints of LLaVA 1.6, of the original LLaVA and of BLIP-2.

The original's folder is written here from plain parts and its published names, with none of
bridge's own code, so that reading it is checked against something else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from support.tiny_vlm import CORPUS, IMAGE_SIZE, PATCH_SIZE

PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
VISION_WIDTH, LLM_WIDTH = 24, 32


def vision_config(**settings: Any) -> Any:
    from transformers import CLIPVisionConfig

    tiny = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": 24,
    }
    return CLIPVisionConfig(**{**tiny, **settings})


def text_config(vocab_size: int, **settings: Any) -> Any:
    from transformers import LlamaConfig

    tiny = {
        "hidden_size": LLM_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    return LlamaConfig(vocab_size=vocab_size, **{**tiny, **settings})


def clip_settings(side: int = IMAGE_SIZE) -> dict[str, Any]:
    """preprocessor_config.json of OpenAI's CLIP, in the form of its hub repository."""
    return {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": side,
    }


def tokenizer_with_image() -> Any:
    from emoji_world.llava_folder import build_tokenizer

    return build_tokenizer(CORPUS, 320, context=512)


def next_model(vision: Any, text: Any, pinpoints: list[list[int]], seed: int = 0) -> Any:
    """A random LlavaNextForConditionalGeneration, fp32."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        image_grid_pinpoints=pinpoints,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaNextForConditionalGeneration(config)
    return model.eval()


def next_processor(tokenizer: Any, side: int, patch: int, pinpoints: list[list[int]]) -> Any:
    """The stock processor of LLaVA 1.6 on its PIL backend."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints,
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def tiny_next(folder: Path) -> Path:
    """Save a tiny LLaVA 1.6 in transformers' layout and give its folder."""
    tokenizer = tokenizer_with_image()
    next_model(vision_config(), text_config(len(tokenizer)), PINPOINTS).save_pretrained(folder)
    next_processor(tokenizer, IMAGE_SIZE, PATCH_SIZE, PINPOINTS).save_pretrained(folder)
    return folder


# -- the original layout ------------------------------------------------------------------


def llava_parts(
    projector: nn.Module, seed: int = 0, vocab_size: int = 320
) -> tuple[Any, Any, nn.Module, torch.Tensor]:
    """Tower, language model, projector and newline, random; the vocabulary has no <image>."""
    from transformers import CLIPVisionModel, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = CLIPVisionModel(vision_config())
        llm = LlamaForCausalLM(text_config(vocab_size))
        for parameter in projector.parameters():
            nn.init.normal_(parameter, std=0.3)
        newline = torch.randn(LLM_WIDTH)
    return tower.eval(), llm.eval(), projector.eval(), newline


def plain_tokenizer() -> Any:
    """320 tokens, as LLaMA's without <image>."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    data = json.loads(tokenizer_with_image().backend_tokenizer.to_str())
    for token in data["added_tokens"]:
        token["content"] = token["content"].replace("<image>", "<unused>")
    vocab = data["model"]["vocab"]
    vocab["<unused>"] = vocab.pop("<image>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tower_state(tower: Any, prefix: str) -> dict[str, torch.Tensor]:
    """The tower's tensors under ``prefix``, `vision_model.` included as in transformers 4."""
    state = {k.removeprefix("vision_model."): v for k, v in tower.state_dict().items()}
    return {f"{prefix}vision_model.{k}": v.clone() for k, v in state.items()}


def llava_state(
    tower: Any, llm: Any, projector: nn.Module, newline: torch.Tensor
) -> dict[str, torch.Tensor]:
    """All tensors by the names of LLaVA's LlavaLlamaForCausalLM."""
    own = {f"model.mm_projector.{k}": v.clone() for k, v in projector.state_dict().items()}
    return {
        **{k: v.clone() for k, v in llm.state_dict().items()},
        **own,
        **tower_state(tower, "model.vision_tower.vision_tower."),
        "model.image_newline": newline.clone(),
    }


def save_clip(folder: Path, tower: Any, *, weights: bool) -> Path:
    """The tower's folder as OpenAI's CLIP has it: settings of both sides in one config."""
    folder.mkdir(parents=True)
    vision = tower.config.to_dict()
    config = {"model_type": "clip", "vision_config": vision, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(clip_settings()))
    if weights:
        text_side = {
            "text_model.final_layer_norm.weight": torch.ones(3),
            "logit_scale": torch.ones(1),
        }
        save_file({**tower_state(tower, ""), **text_side}, folder / "model.safetensors")
    return folder


def llava_config(llm: Any, tower: Path, **settings: Any) -> dict[str, Any]:
    """config.json with the entries of liuhaotian/llava-v1.5-7b."""
    text = llm.config.to_dict()
    return {
        **{k: text[k] for k in ("vocab_size", "hidden_size", "intermediate_size")},
        **{k: text[k] for k in ("num_hidden_layers", "num_attention_heads")},
        **{k: text[k] for k in ("num_key_value_heads", "max_position_embeddings")},
        "_name_or_path": "llava-v1.5-tiny",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "mm_hidden_size": VISION_WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
        "model_type": "llava",
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        **settings,
    }


def save_llava(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    """A whole checkpoint of the original layout."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    plain_tokenizer().save_pretrained(folder)
    return folder


# -- BLIP-2 -------------------------------------------------------------------------------


def tiny_blip2(folder: Path, seed: int = 0) -> Path:
    """Save a tiny BLIP-2 with OPT in transformers' layout and give its folder."""
    from tokenizers import processors
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = plain_tokenizer()
    # OPT begins a text with its end token.
    tokenizer.bos_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    vision = Blip2VisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        encoder_hidden_size=24,
        initializer_range=0.3,
    )
    text = OPTConfig(
        vocab_size=330,
        hidden_size=32,
        num_hidden_layers=2,
        ffn_dim=64,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        init_std=0.3,
        bos_token_id=2,
        eos_token_id=5,
        pad_token_id=3,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=6,
        image_token_index=320,
        initializer_range=0.3,
    )
    processor = Blip2Processor(
        image_processor=BlipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        num_query_tokens=6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(config).eval()
        nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
