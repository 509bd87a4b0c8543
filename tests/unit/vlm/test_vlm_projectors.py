"""Projectors: equal to transformers or to a slow way of their own, and as many tokens as said."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.vlm.projectors import (
    PROJECTORS,
    Projector,
    build_projector,
    load_projector,
    qformer_from_blip2,
    save_projector,
)

VISION, LLM = 12, 8
QFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
# Small enough to be fast; every name of the table is here.
SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp2x_gelu": {},
    "mlp3x_gelu": {"bias": False},
    "identity": {},
    "pixel_shuffle": {"scale": 2},
    "average_pool": {"stride": 3},
    "perceiver": {"latents": 5, "depth": 2, "heads": 4, "kv_heads": 2, "head_width": 4},
    "qformer": {"queries": 3, **QFORMER},
    "c_abstractor": {"tokens": 4, "depth": 2, "hidden_width": 8, "grid": (4, 4)},
}

NEED_GRID = {"pixel_shuffle", "average_pool", "c_abstractor"}


def small(name: str) -> Any:
    torch.manual_seed(0)
    width = VISION if name == "identity" else LLM
    return build_projector(name, VISION, width, **SMALL[name]).eval()  # type: ignore[attr-defined]


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """fp32 sums in another order differ by a few units in the last place."""
    assert found.shape == wanted.shape
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


# -- the protocol -------------------------------------------------------------------------


def test_the_table_is_covered() -> None:
    assert set(PROJECTORS) <= set(SMALL)


kept = lru_cache(small)


@pytest.mark.parametrize("name", SMALL)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_as_many_soft_tokens_as_said(name: str, data: st.DataObject) -> None:
    projector = kept(name)
    assert isinstance(projector, Projector)
    step = 2 if name == "pixel_shuffle" else 1
    rows = step * data.draw(st.integers(1, 5))
    columns = step * data.draw(st.integers(1, 5))
    batch = data.draw(st.integers(1, 3))
    states = torch.randn(batch, rows * columns, VISION)
    with torch.inference_mode():
        soft = projector(states, (rows, columns))
    assert soft.shape == (batch, projector.n_soft_tokens((rows, columns)), projector.llm_width)
    if name in NEED_GRID:
        with pytest.raises(OptionError, match="grid"):
            projector.n_soft_tokens(rows * columns)
        with pytest.raises(OptionError, match="grid"):
            projector(states)
    else:
        assert projector.n_soft_tokens(rows * columns) == soft.shape[1]
        with torch.inference_mode():
            assert torch.equal(projector(states), soft)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_equals_single_pictures(name: str) -> None:
    projector = small(name)
    states = torch.randn(3, 16, VISION)
    with torch.inference_mode():
        whole = projector(states, (4, 4))
        singles = torch.cat([projector(row[None], (4, 4)) for row in states])
    assert close(whole, singles)


@pytest.mark.parametrize("name", SMALL)
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    projector = small(name)
    save_projector(projector, tmp_path / "p")
    loaded: Any = load_projector(tmp_path / "p")
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "projector.json",
        "projector.safetensors",
    ]
    assert (loaded.kind, loaded.options()) == (projector.kind, projector.options())
    states = torch.randn(2, 16, VISION)
    with torch.inference_mode():
        assert torch.equal(loaded(states, (4, 4)), projector(states, (4, 4)))
    half = projector.to(torch.bfloat16)
    save_projector(half, tmp_path / "p")
    assert all(p.dtype == torch.bfloat16 for p in load_projector(tmp_path / "p").parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"identity"}))
def test_every_parameter_is_learnt(name: str) -> None:
    """A gradient reaches each: no part is dead from the start."""
    projector = small(name).train()
    projector(torch.randn(2, 16, VISION), (4, 4)).square().sum().backward()
    silent = [n for n, p in projector.named_parameters() if p.grad is None or not p.grad.any()]
    # Softmax does not see a shift of all keys; BLIP-2's Q-Former carries that dead bias.
    assert [n for n in silent if not n.endswith("key.bias")] == []


# -- equal to transformers ----------------------------------------------------------------


def test_mlp_equals_llavas() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    stock = LlavaMultiModalProjector(
        LlavaConfig(
            vision_config=CLIPVisionConfig(hidden_size=VISION, num_attention_heads=2),
            text_config=LlamaConfig(hidden_size=LLM, num_attention_heads=2),
        )
    )
    ours: Any = build_projector("mlp2x_gelu", VISION, LLM)
    names = {"linear_1": "0", "linear_2": "2"}  # transformers' -> LLaVA's own
    ours.load_state_dict(
        {names[k.split(".")[0]] + "." + k.split(".")[1]: v for k, v in stock.state_dict().items()}
    )
    states = torch.randn(2, 16, VISION)
    assert close(ours(states), stock(states))


def test_linear_and_deep_mlp_equal_written_out_layers() -> None:
    states = torch.randn(2, 5, VISION)
    line: Any = build_projector("linear", VISION, LLM)
    assert close(line(states), states @ line.weight.T + line.bias)
    deep: Any = build_projector("mlp3x_gelu", VISION, LLM)
    assert [tuple(m.weight.shape) for m in deep if hasattr(m, "weight")] == [
        (LLM, VISION),
        (LLM, LLM),
        (LLM, LLM),
    ]
    x = states
    for before, after in pairwise([deep[0], deep[2], deep[4], None]):
        x = x @ before.weight.T + before.bias
        x = x if after is None else F.gelu(x)
    assert close(deep(states), x)
    assert build_projector("identity", LLM, LLM)(states) is states


def test_pixel_shuffle_equals_idefics3() -> None:
    from transformers import Idefics3Config, Idefics3VisionConfig, LlamaConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    for scale in (2, 3):
        stock = Idefics3Connector(
            Idefics3Config(
                vision_config=Idefics3VisionConfig(hidden_size=VISION, num_attention_heads=2),
                text_config=LlamaConfig(hidden_size=LLM, num_attention_heads=2),
                scale_factor=scale,
            )
        )
        ours: Any = build_projector("pixel_shuffle", VISION, LLM, scale=scale)
        ours.proj.load_state_dict(stock.modality_projection.proj.state_dict())
        states = torch.randn(2, 36, VISION)
        assert close(ours(states, (6, 6)), stock(states))


def test_pixel_shuffle_of_an_oblong_grid_keeps_neighbours_together() -> None:
    """Against a loop: token (i, j) holds the states of its square, row by row."""
    ours: Any = build_projector("pixel_shuffle", VISION, 4 * VISION)
    ours.proj.weight.data = torch.eye(4 * VISION)
    states = torch.randn(1, 24, VISION)
    grid = states.view(4, 6, VISION)
    squares = [
        torch.cat([grid[2 * i + y, 2 * j + x] for y in (0, 1) for x in (0, 1)])
        for i in range(2)
        for j in range(3)
    ]
    assert close(ours(states, (4, 6))[0], torch.stack(squares))


def test_perceiver_equals_idefics2() -> None:
    from transformers import Idefics2Config, MistralConfig
    from transformers.models.idefics2.configuration_idefics2 import (
        Idefics2PerceiverConfig,
        Idefics2VisionConfig,
    )
    from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

    perceiver = Idefics2PerceiverConfig(
        hidden_size=LLM,
        resampler_n_latents=5,
        resampler_depth=2,
        resampler_n_heads=4,
        num_key_value_heads=2,
        resampler_head_dim=4,
    )
    stock = Idefics2Connector(
        Idefics2Config(
            vision_config=Idefics2VisionConfig(hidden_size=VISION, num_attention_heads=2),
            text_config=MistralConfig(hidden_size=LLM, intermediate_size=20, num_attention_heads=2),
            perceiver_config=perceiver,
        )
    ).eval()
    for parameter in stock.parameters():  # norms and latents start at one, which hides mistakes
        torch.nn.init.normal_(parameter)
    ours: Any = build_projector("perceiver", VISION, LLM, **SMALL["perceiver"], inner_width=20)
    ours.load_state_dict(stock.state_dict())
    states = torch.randn(2, 16, VISION)
    want = stock(states, torch.ones(2, 16, dtype=torch.long))
    assert close(ours(states), want)


# -- BLIP-2 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    torch.manual_seed(1)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=VISION,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        qformer_config=Blip2QFormerConfig(**QFORMER, encoder_hidden_size=VISION),
        text_config=OPTConfig(
            vocab_size=64,
            hidden_size=LLM,
            word_embed_proj_dim=LLM,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        ),
        num_query_tokens=3,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)
    folder = tmp_path_factory.mktemp("blip2")
    model.save_pretrained(folder)
    return model, folder


def test_qformer_of_a_checkpoint_equals_blip2(blip2: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = blip2
    ours: Any = qformer_from_blip2(folder)
    assert (ours.vision_width, ours.llm_width, ours.n_soft_tokens((4, 4))) == (VISION, LLM, 3)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        states = model.vision_model(pixels).last_hidden_state
        read = model.qformer(
            query_embeds=model.query_tokens.expand(2, -1, -1), encoder_hidden_states=states
        ).last_hidden_state
        assert close(ours(states), model.language_projection(read))
        save_projector(ours, tmp_path)
        assert torch.equal(load_projector(tmp_path)(states), ours(states))


def test_qformer_for_another_language_model(blip2: tuple[Any, Path]) -> None:
    model, folder = blip2
    ours: Any = qformer_from_blip2(folder, llm_width=20)
    assert torch.equal(ours.query_tokens, model.query_tokens)
    assert ours(torch.randn(1, 17, VISION)).shape == (1, 3, 20)


def test_qformer_of_a_damaged_or_other_folder(blip2: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = (blip2[1] / "config.json").read_text()
    tensors = load_file(blip2[1] / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match="no safetensors"):
        qformer_from_blip2(tmp_path)
    del tensors[next(k for k in tensors if "qformer.layernorm.weight" in k)]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"layernorm\.weight"):
        qformer_from_blip2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="cannot be read"):
        qformer_from_blip2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(UnsupportedModelError, match="'llava'"):
        qformer_from_blip2(tmp_path)


# -- slow ways of their own ---------------------------------------------------------------


def test_average_pool_equals_a_loop() -> None:
    ours: Any = small("average_pool")
    states = torch.randn(1, 20, VISION)
    grid = states.view(4, 5, VISION)
    means = [
        grid[i : i + 3, j : j + 3].flatten(0, 1).mean(0)  # slices stop at the edge
        for i in range(0, 4, 3)
        for j in range(0, 5, 3)
    ]
    assert close(ours(states, (4, 5)), ours.mlp(torch.stack(means)[None]))


def naive_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """Over the channels of (D, h, w), written out."""
    centred = x - x.mean(0)
    scaled = centred / (centred.square().mean(0) + 1e-6).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def naive_block(x: torch.Tensor, block: Any) -> torch.Tensor:
    """One RegNet block on one picture (D, h, w), convolutions as sums over neighbours."""

    def mix(y: torch.Tensor, conv: Any) -> torch.Tensor:
        out = torch.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0], y)
        return out if conv.bias is None else out + conv.bias[:, None, None]

    y = F.silu(naive_norm(mix(x, block.conv1), block.norm1))
    wide, (rows, columns) = F.pad(y, (1, 1, 1, 1)), y.shape[1:]
    y = sum(
        block.conv2.weight[:, 0, i, j, None, None] * wide[:, i : i + rows, j : j + columns]
        for i in range(3)
        for j in range(3)
    )
    y = F.silu(naive_norm(y, block.norm2))
    mean = y.mean((1, 2), keepdim=True)
    y = y * torch.sigmoid(mix(F.silu(mix(mean, block.squeeze)), block.excite))
    y = naive_norm(mix(y, block.conv3), block.norm3)
    short = (
        x
        if isinstance(block.shortcut, torch.nn.Identity)
        else naive_norm(mix(x, block.shortcut[0]), block.shortcut[1])
    )
    return F.silu(y + short)


def test_c_abstractor_equals_a_naive_one() -> None:
    ours = small("c_abstractor")
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    states = torch.randn(1, 16, VISION)
    image = states[0].T.reshape(VISION, 4, 4) + ours.positions[0]
    for block in ours.before:
        image = naive_block(image, block)
    image = image.view(-1, 2, 2, 2, 2).mean((2, 4))  # 4x4 into 2x2 squares
    for block in ours.after:
        image = naive_block(image, block)
    tokens = image.flatten(1).T
    first, _, last = ours.readout
    want = F.silu(tokens @ first.weight.T + first.bias) @ last.weight.T + last.bias
    assert close(ours(states, (4, 4))[0], want)


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "mlp0x_gelu", "mlp17x_gelu", "resampler", "", None, 3])
def test_a_name_that_is_not_in_the_table(name: Any) -> None:
    with pytest.raises(OptionError, match="mlpNx_gelu"):
        build_projector(name, 4, 4)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("linear", {"scale": 2}, "scale"),
        ("identity", {}, r"12.*8.*linear"),
        ("pixel_shuffle", {"scale": 0}, "scale is 0"),
        ("average_pool", {"stride": 0}, "stride is 0"),
        ("perceiver", {"heads": 6, "kv_heads": 4}, "kv_heads"),
        ("c_abstractor", {"tokens": 12}, "tokens is 12"),
        ("c_abstractor", {"depth": 0}, "depth 0"),
    ],
)
def test_options_that_a_projector_cannot_have(
    name: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        build_projector(name, VISION, LLM, **options)


def test_shapes_that_a_projector_cannot_take() -> None:
    shuffle, pool = small("pixel_shuffle"), small("average_pool")
    for count in (
        lambda: shuffle.n_soft_tokens((3, 4)),
        lambda: shuffle(torch.ones(1, 12, 12), (3, 4)),
    ):
        with pytest.raises(OptionError, match=r"3x4 .* scale 2"):
            count()
    with pytest.raises(OptionError, match=r"17 states for a grid of 4x4"):
        pool(torch.ones(1, 17, VISION), (4, 4))


def test_damaged_projector_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        load_projector(tmp_path)
    save_projector(small("linear"), tmp_path)
    config = json.loads((tmp_path / "projector.json").read_text())
    for change, error, match in (
        ({"kind": "mlp2x_gelu"}, WeightsError, "does not fit"),
        ({"kind": "magic"}, OptionError, "magic"),
        ({"vision_width": "wide"}, WeightsError, "whole numbers"),
        ({"options": 3}, WeightsError, "options"),
    ):
        (tmp_path / "projector.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error, match=match):
            load_projector(tmp_path)
    (tmp_path / "projector.json").write_text(json.dumps(config))
    (tmp_path / "projector.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_projector(tmp_path)
