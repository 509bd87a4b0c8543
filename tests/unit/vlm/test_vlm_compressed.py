"""Models that are quantised, or have a LoRA of others: answered with, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.llava_folders import save_original
from support.tiny_vlm import tiny_llava
from torch import nn

from bridge.errors import MissingDependencyError, UnsupportedModelError
from bridge.towers.image_processor import load_image_processor
from bridge.vlm import convert, from_llava, load_vlm, save_vlm


class Quantised(nn.Module):
    """A linear layer in 8 bits as bitsandbytes keeps it: whole numbers as weight, a bias of
    numbers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        whole = (layer.weight / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scale", scale)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantise(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and name != "lm_head":
            setattr(module, name, Quantised(child))
        else:
            quantise(child)


def stock(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder), load_image_processor(folder)


def test_a_quantised_model_answers_and_is_not_saved(tmp_path: Path) -> None:
    model, tokenizer, processor = stock(tiny_llava(tmp_path))
    picture, chat = Image.linear_gradient("L").convert("RGB"), [[("what is on the left?", "")]]
    whole = from_llava(model, tokenizer, processor).logits([picture], chat)
    quantise(model)
    vlm = from_llava(model, tokenizer, processor)
    found = vlm.logits([picture], chat)
    pixels = vlm.views([picture])[0]
    assert pixels is not None
    with torch.inference_mode():
        seen = model.get_image_features(pixels.pixel_values, return_dict=True).pooler_output
    assert torch.allclose(vlm.soft_tokens(pixels.pixel_values), torch.stack(list(seen)), atol=1e-5)
    assert 0 < float((found - whole).abs().max() / whole.abs().max()) < 0.2
    with pytest.raises(UnsupportedModelError, match="its tower is quantised"):
        save_vlm(vlm, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_quantised_folder_names_the_package_that_it_needs(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingDependencyError, match="optimum"):
        load_vlm(folder, device="cpu")


def test_a_model_of_peft_is_not_saved(tmp_path: Path) -> None:
    vlm = load_vlm(tiny_llava(tmp_path))
    vlm.llm.peft_config = {"default": None}  # all that tells a PeftModel, which is not installed
    with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
        save_vlm(vlm, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "names", [("adapter_config.json", "adapter_model.bin"), ("non_lora_trainables.bin",)]
)
def test_weights_that_have_to_be_merged_are_named(names: tuple[str, ...], tmp_path: Path) -> None:
    for folder, to in (
        (save_original(tmp_path, "llava-lora"), "hf"),
        (tiny_llava(tmp_path), "llava"),
    ):
        for name in names:
            (folder / name).write_text("{}")
        with pytest.raises(UnsupportedModelError, match=f"{' and '.join(names)}.*merge them"):
            load_vlm(folder)
        with pytest.raises(UnsupportedModelError, match="merge them"):
            convert(folder, tmp_path / "out", to=to)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
