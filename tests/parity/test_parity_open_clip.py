"""open_clip 3.3 beside bridge: what becomes of a picture, and of a config that leaves fields out.

Pixels are equal bit for bit. Pooled states are compared at 1e-5 of the largest entry: open_clip
runs ``nn.MultiheadAttention``, bridge transformers' attention, whose sums come in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpus
import pytest
import torch
import transformers
from open_clip_peer import SMALL, WAYS, opened, small_model, write
from parity_support import Equal
from peers import clone, package
from PIL import Image
from support.comparisons import relative
from support.drawn_pictures import MODES, picture
from support.tiny_tokenizers import tiny_xlmr_tokenizer

from bridge.rgb import is_transparent, is_wide
from bridge.towers import open_image_tower, open_text_tower

TOLERANCE = 1e-5
VOCABULARY = "backend/huggingface/stabilityai/stable-diffusion-xl-base-1.0/tokenizer"

SIZES = ((640, 427), (427, 640), (500, 375), (333, 500), (32, 32), (31, 33), (1, 7), (200, 10))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """200 of drawn sizes, each mode in each size of the list."""
    made = [picture(number) for number in range(200)]
    return made + [picture(k, size) for size in SIZES for k in range(len(MODES))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ways")
    vision = {"width": 64, "patch_size": 8, "image_size": 32}
    model = small_model({"width": 64}, vision)
    return {name: write(root / name, model, told) for name, told in WAYS.items()}


def test_preprocessing(folders: dict[str, Path], pictures: list[Image.Image], equal: Equal) -> None:
    with equal("open_clip: preprocessing") as count:
        for name, folder in folders.items():
            tower, (_, transform) = open_image_tower(folder, device="cpu"), opened(folder)
            for image in pictures:
                case = f"{image.mode} {image.width}x{image.height}"
                wanted = transform(image)
                found = tower.pixels(image, alpha="drop")[0]
                count.check(torch.equal(found, wanted), f"{name}: {case}")
                if is_transparent(image) or is_wide(image):
                    count.differs_by("transparency is laid over white, 16 bits keep their range")
                else:
                    same = torch.equal(tower.pixels(image)[0], wanted)
                    count.check(same, f"{name}, over white: {case}")


# Each leaves out what open_clip has a default for, or says what it reads.
CONFIGS: dict[str, dict[str, Any]] = {
    "heads left out": small_model({"width": 64}, {"width": 128}),
    "wide towers": small_model({"width": 128}, {"width": 1280, "layers": 1, "mlp_ratio": 0.1}),
    "heads told": small_model({"width": 48, "heads": 6}, {"width": 48, "head_width": 16}),
    "quick gelu": small_model({"width": 64}, {"width": 64}, quick_gelu=True),
    "custom text": small_model({"width": 64}, {"width": 64}, custom_text=True),
    "sides that the patch does not divide": small_model(
        {"width": 64}, {"width": 64, "patch_size": 14, "image_size": 45}
    ),
    "a side twice": small_model(
        {"width": 64}, {"width": 64, "patch_size": 8, "image_size": [32, 32]}
    ),
    "epsilon of the norms": small_model(
        {"width": 64, "norm_kwargs": {"eps": 1e-2}},
        {"width": 64, "norm_kwargs": {"eps": 1e-3}},
        custom_text=True,
    ),
    "GELU by tanh": small_model(
        {"width": 64, "act_kwargs": {"approximate": "tanh"}},
        {"width": 64, "act_kwargs": {"approximate": "tanh"}},
    ),
    "no projection": small_model({"width": 64, "proj_type": "none"}, {"width": 64}, embed_dim=64),
    "a bias of the logits": small_model({"width": 64}, {"width": 64}, init_logit_bias=-10.0),
    "a short context": small_model({"width": 64, "context_length": 16}, {"width": 64}),
}
COCA = {
    "custom_text": True,
    "multimodal_cfg": {"width": 64, "layers": 1, "context_length": 76, "heads": 8},
}
POOLED = {"attentional_pool": True, "attn_pooler_queries": 5, "output_tokens": True}
SAID = {"embed_cls": True, "output_tokens": True, "context_length": 76, "width": 64}
COCAS: dict[str, dict[str, Any]] = {
    "CoCa": small_model(SAID, {"width": 64, **POOLED}, embed_dim=64, **COCA),
    "CoCa, pad_id": small_model(
        {**SAID, "pad_id": 5}, {"width": 64, **POOLED}, embed_dim=64, **COCA
    ),
}
TEXTS = ["two red apples left of a cat", "", "a cat! of the dog", "!!! !cat!", "of the " * 50]


@torch.no_grad()
def test_configs(tmp_path: Path, equal: Equal) -> None:
    with equal("open_clip: configs with defaults") as count:
        for number, (name, model) in enumerate({**CONFIGS, **COCAS}.items()):
            folder = write(tmp_path / str(number), model)
            peer, transform = opened(folder)
            text, image = (
                open_(folder, device="cpu") for open_ in (open_text_tower, open_image_tower)
            )
            batch = text.tokenize(TEXTS)
            found = text.encode(batch).pooled
            wanted = peer.encode_text(batch.ids, normalize=False)
            count.check(relative(found, wanted) <= TOLERANCE, f"{name}: texts")
            shown = [picture(0, (90, 40)), picture(13, (33, 50))]
            pixels = torch.stack([transform(each) for each in shown])
            seen = image.encode(shown).pooled
            wanted = peer.encode_image(pixels, normalize=False)
            count.check(relative(seen, wanted) <= TOLERANCE, f"{name}: pictures")
            if hasattr(peer, "get_logits"):
                wanted = peer.get_logits(pixels, batch.ids)[1]
                same = relative(text.scores(found, seen), wanted) <= TOLERANCE
                count.check(same, f"{name}: scores")


@torch.no_grad()
def test_states_of_coca(tmp_path: Path, equal: Equal) -> None:
    from bridge.towers import Layer

    with equal("open_clip: CoCa's states of texts") as count:
        for number, (name, model) in enumerate(COCAS.items()):
            folder = write(tmp_path / str(number), model)
            peer, _ = opened(folder)
            text = open_text_tower(folder, device="cpu")
            batch = text.tokenize(TEXTS)
            found = text.encode(batch, (Layer(-1, norm=False),)).hidden[0]
            wanted = peer.text(batch.ids)[1]
            for case, mine, theirs in zip(TEXTS, found, wanted, strict=True):
                count.check(relative(mine, theirs) <= TOLERANCE, f"{name}: {case!r}")


@pytest.mark.parametrize("kwargs", [{}, {"clean": "lower"}, {"clean": "canonicalize"}])
def test_cleaning(tmp_path: Path, kwargs: dict[str, str], equal: Equal) -> None:
    """Ids of texts that need mending, in open_clip's vocabulary; what it reads as a special token
    is written otherwise in transformers' copy of it."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clone("forge") / VOCABULARY)
    text = {"vocab_size": len(tokenizer), "width": 64, **SMALL, "tokenizer_kwargs": kwargs}
    folder = write(tmp_path, small_model(text, {"width": 64}), {}, tokenizer)
    peer = package("open_clip").get_tokenizer(f"local-dir:{folder}")
    tower = open_text_tower(folder, device="cpu")
    texts = list(corpus.draw("odd", 800))
    with equal(f"open_clip: cleaning, {kwargs.get('clean', 'default')}") as count:
        batch = tower.tokenize(texts)
        for text, mine, theirs in zip(texts, batch.ids, peer(texts), strict=True):
            count.check(torch.equal(mine, theirs), repr(text))


@pytest.mark.parametrize("kwargs", [{}, {"clean": "canonicalize"}])
def test_cleaning_of_transformers(tmp_path: Path, kwargs: dict[str, str], equal: Equal) -> None:
    """The same beside a tokenizer of transformers, which keeps capitals."""
    tokenizer = tiny_xlmr_tokenizer()
    base = tmp_path / "base"
    transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=96, max_position_embeddings=80,
    ).save_pretrained(base)  # fmt: skip
    text = {"hf_model_name": str(base), "tokenizer_kwargs": kwargs}
    model = {"embed_dim": 24, "text_cfg": text, "vision_cfg": {**SMALL, "width": 64}}
    folder = write(tmp_path / "whole", model, {}, tokenizer)
    peer = package("open_clip").tokenizer.HFTokenizer(str(folder), **kwargs)
    tower = open_text_tower(folder, device="cpu")
    texts = list(corpus.draw("odd", 300))
    with equal(
        f"open_clip: cleaning beside transformers, {kwargs.get('clean', 'default')}"
    ) as count:
        for text, mine, theirs in zip(texts, tower.tokenize(texts).ids, peer(texts), strict=True):
            count.check(torch.equal(mine, theirs), repr(text))


@torch.no_grad()
def test_text_models_of_transformers(tmp_path: Path, equal: Equal) -> None:
    """Of a config that is no published model's: heads of 16 and an epsilon of its own."""
    tokenizer = tiny_xlmr_tokenizer()
    values = {
        "vocab_size": len(tokenizer), "hidden_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 96, "max_position_embeddings": 80,
        "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-3,
    }  # fmt: skip
    cases = {
        "mlp": ("XLMRoberta", {}),
        "linear": ("XLMRoberta", {"hf_proj_type": "linear"}),
        "RoBERTa": ("Roberta", {"hf_pooler_type": "mean_pooler"}),
        "BERT": ("Bert", {"hf_proj_type": "linear"}),
    }
    with equal("open_clip: text models of transformers") as count:
        for name, (kind, told) in cases.items():
            base = tmp_path / name / "base"
            getattr(transformers, f"{kind}Config")(**values).save_pretrained(base)
            text = {"hf_model_name": str(base), **told}
            model = {"embed_dim": 24, "text_cfg": text, "vision_cfg": {**SMALL, "width": 64}}
            folder = write(tmp_path / name / "whole", model, {}, tokenizer)
            peer, _ = opened(folder)
            tower = open_text_tower(folder, device="cpu")
            batch = tower.tokenize(["two red apples left of a cat", "", "of the " * 60])
            wanted = peer.encode_text(batch.ids, normalize=False)
            for text, mine, theirs in zip(
                batch.texts, tower.encode(batch).pooled, wanted, strict=True
            ):
                count.check(relative(mine, theirs) <= TOLERANCE, f"{name}: {text[:40]!r}")
