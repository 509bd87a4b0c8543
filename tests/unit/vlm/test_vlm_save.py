"""A pairing saved and loaded says the same; LLaVA's kind loads in stock transformers as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_pairs import TEXT_TEMPLATE, plain_tokenizer, tiny_llm
from support.tiny_training import tiny_vlm

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.towers.image_processor import pil_processor
from bridge.vlm import BridgeVLM, load_llm, load_vision, load_vlm, pair, save_vlm
from bridge.vlm.hf_models import why_not
from bridge.vlm.lora import add_lora, load_lora, save_lora
from bridge.vlm.projectors import load_projector, save_projector
from bridge.vlm.views import OneView

CHATS = [[("what is on the left?", "")], [("what is it?", "a cat"), ("is there a dog?", "")]]


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def logits(vlm: BridgeVLM) -> torch.Tensor:
    """Of the words that every tiny model has; a saved table may have one more row."""
    return vlm.logits([picture(1), picture(2)], CHATS)[..., :300]


STOCK: dict[str, dict[str, Any]] = {
    "clip + llama": {},
    "clip + gemma, tied": {"llm": "Gemma"},
    "clip + qwen, its own template": {
        "llm": "Qwen2",
        "tokenizer": plain_tokenizer(TEXT_TEMPLATE),
        "select_feature": "cls_patch",
    },
    "siglip + llama": {"tower": "siglip", "select_layer": -1},
}
OWN: dict[str, dict[str, Any]] = {
    "dinov2 + gpt2, two layers": {
        "tower": "dinov2_registers",
        "llm": "GPT2",
        "select_layer": (-2, -1),
    },
    "pixel shuffle, last layer": {
        "tower": "siglip",
        "projector": "pixel_shuffle",
        "select_layer": -1,
    },
    "bloom": {"llm": "Bloom", "projector": "linear", "select_feature": "cls_patch"},
}


@pytest.mark.parametrize("name", [*STOCK, *OWN])
def test_loaded_is_saved(name: str, tmp_path: Path) -> None:
    vlm = tiny_vlm(**(STOCK | OWN)[name])
    before = [p.clone() for p in vlm.llm.parameters()]
    assert (why_not(vlm) is None) == (name in STOCK)
    assert vlm.save(tmp_path / "saved") == tmp_path / "saved"
    loaded = load_vlm(tmp_path / "saved", device="cpu")
    assert loaded.select_layer == vlm.select_layer
    assert torch.equal(logits(loaded), logits(vlm))
    assert loaded.answer(picture(3), "what?") == vlm.answer(picture(3), "what?")
    assert not list((tmp_path / "saved").glob(".*"))
    after = list(vlm.llm.parameters())
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", STOCK)
def test_stock_transformers_loads_it(name: str, tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    vlm = tiny_vlm(**STOCK[name])
    save_vlm(vlm, tmp_path)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    n_soft = vlm.count(32, 32).count
    ids = vlm.prompt_ids(CHATS[1], n_soft)
    views, _ = vlm.views([picture(2)])
    assert views is not None
    with torch.inference_mode():
        found = stock(input_ids=torch.tensor([ids]), pixel_values=views.pixel_values).logits
    want = vlm.logits([picture(2)], [CHATS[1]])
    assert torch.allclose(found[..., : want.shape[-1]], want, rtol=1e-5, atol=1e-5)
    if found.shape[-1] > want.shape[-1]:  # the image token's row is never the likeliest
        assert (found[..., want.shape[-1] :].amax(-1) < want.amax(-1)).all()


def test_padding_to_a_square_is_kept(tmp_path: Path) -> None:
    plain = tiny_vlm()
    mean = plain.image_processor.image_mean
    for name, colour in (("mean", tuple(int(v * 255) for v in mean)), ("other", (1, 2, 3))):
        vlm = replace(plain, aspect=OneView(colour))  # type: ignore[arg-type]
        assert (why_not(vlm) is None) == (name == "mean")
        save_vlm(vlm, tmp_path / name)
        loaded = load_vlm(tmp_path / name, device="cpu")
        assert loaded.aspect == OneView(colour)  # type: ignore[arg-type]
        assert torch.equal(logits(loaded), logits(vlm))
        assert not torch.equal(logits(vlm), logits(plain))


def test_a_folder_that_lacks_a_part(tmp_path: Path) -> None:
    save_vlm(tiny_vlm(llm="GPT2"), tmp_path)
    (tmp_path / "projector" / "projector.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"projector\.safetensors"):
        load_vlm(tmp_path, device="cpu")


def test_nothing_of_an_earlier_model_is_read(tmp_path: Path) -> None:
    """Its processor and template, in whichever layout, and its weights, in one file or many."""
    first = tiny_vlm(tokenizer=plain_tokenizer(TEXT_TEMPLATE))
    processor = pil_processor("siglip", **SMALL)
    second = tiny_vlm(llm="GPT2", image_processor=processor, image_token="<pic>")
    assert second.chat_template is None
    third = tiny_vlm(llm="Bloom", tokenizer=plain_tokenizer(TEXT_TEMPLATE), projector="linear")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "model-card.md").write_text("mine")
    for number, vlm in enumerate((first, second, third, first)):
        for place in (shared, shared / "llm"):  # as if the earlier one had been in shards
            if place.exists():
                (place / "model-00001-of-00002.safetensors").write_bytes(b"old")
                (place / "model.safetensors.index.json").write_text("{}")
        folders = [save_vlm(vlm, place) for place in (shared, tmp_path / str(number))]
        loaded, alone = (load_vlm(folder, device="cpu") for folder in folders)
        assert loaded.chat_template == alone.chat_template
        assert loaded.image_processor.to_dict() == alone.image_processor.to_dict()
        assert torch.equal(logits(loaded), logits(vlm))
        assert not [*shared.glob("model-*-of-*"), *shared.glob("*.index.json")]
    assert (shared / "model-card.md").read_text() == "mine"


SMALL: dict[str, Any] = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3]}


def test_a_saving_that_stops_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_vlm(tiny_vlm(), tmp_path)
    moved: list[Path] = []
    replace_file = Path.replace

    def breaks(self: Path, target: Path) -> Path:
        if ".part" in str(self) and ".part" not in str(target):
            moved.append(target)
            if len(moved) == 3:
                raise OSError("the disk is full")
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", breaks)
    with pytest.raises(OSError, match="disk is full"):
        save_vlm(tiny_vlm(llm="GPT2"), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        load_vlm(tmp_path)


def test_a_home_is_where_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    vlm = tiny_vlm()
    assert save_vlm(vlm, "~/model") == tmp_path / "model"
    projector: Any = vlm.projector
    save_projector(projector, "~/projector")
    assert load_projector("~/projector").kind == projector.kind
    add_lora(vlm.llm, 2, 4.0, seed=0)
    save_lora(vlm.llm, "~/lora", "tiny")
    load_lora(tiny_vlm().llm, "~/lora")
    assert not (tmp_path / "~").exists()


def test_what_is_not_saved(tmp_path: Path) -> None:
    text_only = pair(None, tiny_llm("Llama", 300), plain_tokenizer())
    with pytest.raises(UnsupportedModelError, match="language model alone"):
        save_vlm(text_only, tmp_path)


def test_parts_are_loaded_by_name(tmp_path: Path) -> None:
    vlm = tiny_vlm(tower="siglip", llm="GPT2")
    save_vlm(vlm, tmp_path)
    for source in (tmp_path, tmp_path / "vision"):
        tower, processor = load_vision(source, device="cpu")
        assert type(tower) is type(vlm.vision)
        assert (processor is None) == (source != tmp_path)
    llm, tokenizer = load_llm(tmp_path, device="cpu")
    assert type(llm) is type(vlm.llm) and "<image>" in tokenizer.get_vocab()
    with pytest.raises(UnsupportedModelError, match=r"not a model for AutoModelForCausalLM"):
        load_llm(tmp_path / "vision", device="cpu")
