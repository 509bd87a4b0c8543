"""What is wrong in a safetensors file that opens: one error names the file and the fault."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.lora_files import random_deltas, write_lora
from support.tiny_gemma import tiny_gemma3
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from torch import nn

import bridge
from bridge.encoding import load_conditioning, save_conditioning
from bridge.errors import WeightsError
from bridge.towers import read_lora, read_textual_inversion
from bridge.towers.layer_pattern import LayerPatternError, matches
from bridge.training.lora import lora_layers, take_lora
from bridge.training.run_state import load_checkpoint, save_checkpoint
from bridge.vlm import build_projector, load_projector, save_projector
from bridge.vlm.lora import add_lora, load_lora, save_lora

NOT_FINITE = (float("nan"), float("inf"))
LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
Change = Callable[[dict[str, torch.Tensor], dict[str, str]], None]


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd_pipeline("sd15")


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


def changed(path: Path, change: Change) -> Path:
    """A file with its tensors and the texts of its header changed in place."""
    with safe_open(path, "pt") as opened:
        texts = dict(opened.metadata() or {})
    tensors = load_file(path)
    change(tensors, texts)
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, texts or None)
    return path


def poisoned(path: Path, name: str, number: float) -> Path:
    def change(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
        tensors[name].view(-1)[-1] = number

    return changed(path, change)


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("number", NOT_FINITE)
def test_loras_that_are_not_finite(sd: Any, tmp_path: Path, number: float) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 1)}
    for part in ("lora_down.weight", "lora_up.weight", "alpha"):
        path = write_lora(tmp_path / "x.safetensors", "kohya", deltas, alpha=1.0)
        poisoned(path, f"{LAYER}.{part}", number)
        with pytest.raises(WeightsError, match=rf"x\.safetensors.*fc1\.{part}.*not finite"):
            bridge.condition("a cat", model=sd, loras=path)
    path = write_lora(tmp_path / "y.safetensors", "diffusers", deltas, alpha=number)
    with pytest.raises(WeightsError, match=r"y\.safetensors.*lora_alpha must be a finite number"):
        bridge.condition("a cat", model=sd, loras=path)


@pytest.mark.parametrize("number", NOT_FINITE)
def test_conditionings_that_are_not_finite(sdxl: Any, tmp_path: Path, number: float) -> None:
    cond = bridge.condition("a cat", model=sdxl)
    for name in ("prompt_embeds", "negative_pooled_prompt_embeds", "add_time_ids"):
        path = save_conditioning(cond, tmp_path / "x.safetensors")
        poisoned(path, name, number)
        with pytest.raises(WeightsError, match=rf"x\.safetensors.*{name}.*not finite"):
            load_conditioning(path)


def test_a_word_hidden_from_the_unet_is_no_damage(sdxl: Any, tmp_path: Path) -> None:
    cond = bridge.condition("a (cat:0) dog", model=sdxl, emphasis="unet_attention_bias")
    path = save_conditioning(cond, tmp_path / "x.safetensors")
    back = load_conditioning(path).attention_bias
    assert back is not None and bool((back == -torch.inf).any())
    for number in NOT_FINITE:
        poisoned(path, "attention_bias", number)
        with pytest.raises(WeightsError, match=r"attention_bias.*not finite"):
            load_conditioning(path)


@pytest.mark.parametrize("number", NOT_FINITE)
def test_other_small_files_that_are_not_finite(tmp_path: Path, number: float) -> None:
    save_projector(build_projector("linear", 4, 4), tmp_path)
    poisoned(tmp_path / "projector.safetensors", "weight", number)
    with pytest.raises(WeightsError, match=r"projector\.safetensors.*'weight'.*not finite"):
        load_projector(tmp_path)

    save_file({"<x>": torch.tensor([1.0, number])}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"x\.safetensors.*not finite"):
        read_textual_inversion(tmp_path / "x.safetensors")

    module = nn.Linear(2, 2)
    adam = torch.optim.AdamW(module.parameters())
    save_checkpoint(tmp_path / "c.safetensors", module, adam, 1, {})
    poisoned(tmp_path / "c.safetensors", "weight.bias", number)
    with pytest.raises(WeightsError, match=r"c\.safetensors.*weight\.bias.*not finite"):
        load_checkpoint(tmp_path / "c.safetensors", module, adam, {})

    llm = tiny_gemma3()
    add_lora(llm, 2, 4.0, seed=0)
    save_lora(llm, tmp_path / "lora", "tiny")
    name = f"base_model.model.{next(iter(lora_layers(llm)))}.lora_A.weight"
    take_lora(llm, merge=False)
    poisoned(tmp_path / "lora" / "adapter_model.safetensors", name, number)
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors.*lora_A.*not finite"):
        load_lora(llm, tmp_path / "lora")
    assert not lora_layers(llm)


# ---------------------------------------------------------------- against the header's words


def said(change: Callable[[dict[str, Any]], None]) -> Change:
    def changing(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
        header = json.loads(texts["bridge"])
        change(header)
        texts["bridge"] = json.dumps(header)

    return changing


def tensors(**new: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def changing(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
        for name, change in new.items():
            tensors[name] = change(tensors[name])

    return changing


def token(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header["plans"][0][0]["windows"][0]["tokens"][1]
    return found


DAMAGED: list[tuple[str, Change]] = [
    (r"plans\[0\]\[0\]\.limit must be a whole number, not '<b>'",
     said(lambda h: h["plans"][0][0].update(limit="<b>"))),
    (r"windows\[0\]\.tokens\[1\]\.id must be a whole number, not '<b>'",
     said(lambda h: token(h).update(id="<b>"))),
    (r"cut_tokens must be a whole number, not True",
     said(lambda h: h["plans"][0][0].update(cut_tokens=True))),
    (r"\.weight must be a number, not \[1\]", said(lambda h: token(h).update(weight=[1]))),
    (r"no finite weight", said(lambda h: token(h).update(weight=float("nan")))),
    (r"has a token beyond its text", said(lambda h: token(h).update(end=999))),
    (r"ids that are no tokens'", said(lambda h: token(h).update(id=-1))),
    (r"77 places of its limit", said(lambda h: h["plans"][0][0]["windows"][0]["ids"].pop())),
    (r"recipe must be text, not None", said(lambda h: h.update(recipe=None))),
    (r"there is no recipe 'sdxxl'", said(lambda h: h.update(recipe="sdxxl"))),
    (r"tensors are not those of sd15", said(lambda h: h.update(recipe="sd15", shapes={}))),
    (r"header has 'more', which is not known", said(lambda h: h.update(more=1))),
    (r"header lacks plans", said(lambda h: h.pop("plans"))),
    (r"2 plans and 3 traces", said(lambda h: h["traces"].append(h["traces"][0]))),
    (r"0 plans for 2 rows", said(lambda h: h.update(plans=[], traces=[]))),
    (r"sizes\.target_size must be a list of 2", said(lambda h: h["sizes"].update(target_size=[1]))),
    (r"not those of its sizes", said(lambda h: h["sizes"].update(target_size=[9, 9]))),
    (r"prompt_embeds is \(2, 80, 77\) and its header says \(2, 77, 80\)",
     tensors(prompt_embeds=lambda t: t.transpose(1, 2))),
    (r"its header says \(2, 77, 80\)", tensors(negative_prompt_embeds=lambda t: t[:, :60])),
    (r"its header says \(2, 40\)", tensors(pooled_prompt_embeds=lambda t: t[:1])),
    (r"states are of torch\.float16, torch\.float32",
     tensors(pooled_prompt_embeds=lambda t: t.half())),
    (r"states are of torch\.float32, torch\.int64", tensors(add_time_ids=lambda t: t.long())),
]  # fmt: skip


@pytest.mark.parametrize(("match", "change"), DAMAGED, ids=[match for match, _ in DAMAGED])
def test_a_conditioning_that_is_not_as_its_header_says(
    sdxl: Any, tmp_path: Path, match: str, change: Change
) -> None:
    cond = bridge.condition(["a cat", "a dog"], model=sdxl)
    path = changed(save_conditioning(cond, tmp_path / "x.safetensors"), change)
    with pytest.raises(WeightsError, match=rf"x\.safetensors is damaged: .*{match}"):
        load_conditioning(path)


def test_files_of_earlier_versions_are_checked_by_what_they_say(sdxl: Any, tmp_path: Path) -> None:
    """Without ``shapes``, traces and add-ons."""

    def older(header: dict[str, Any]) -> None:
        for name in ("shapes", "traces", "negative_traces", "addons"):
            del header[name]

    cond = bridge.condition(["a cat", "a dog"], model=sdxl)
    path = changed(save_conditioning(cond, tmp_path / "x.safetensors"), said(older))
    assert load_conditioning(path).plans == cond.plans
    changed(path, tensors(negative_prompt_embeds=lambda t: t[:, :60]))
    with pytest.raises(WeightsError, match=r"negative_prompt_embeds is \(2, 60, 80\) beside"):
        load_conditioning(path)


def test_deep_json_in_a_header(sdxl: Any, tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    path = tmp_path / "x.safetensors"
    for key, tensor, read in (
        ("bridge", "prompt_embeds", load_conditioning),
        ("bridge_adapter", "a", bridge.load_adapter),
        ("lora_adapter_metadata", f"{LAYER}.lora_down.weight", read_lora),
    ):
        save_file({tensor: torch.ones(2, 2)}, path, {key: deep})
        with pytest.raises(WeightsError, match=r"x\.safetensors.*JSON"):
            read(path)


# ---------------------------------------------------------------- LoRAs and inversions


def test_loras_of_wrong_shapes_and_kinds(tmp_path: Path) -> None:
    down, up = torch.ones(2, 32), torch.ones(64, 2)
    good = {f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up}
    cross = "lora_unet_x_attn2_to_k.lora_down.weight"
    path = tmp_path / "x.safetensors"
    for match, more in (
        ("alpha of .2,. in", {f"{LAYER}.alpha": torch.ones(2)}),
        ("alpha of .. in torch.complex64", {f"{LAYER}.alpha": torch.ones((), dtype=torch.cfloat)}),
        ("do not multiply", {f"{LAYER}.lora_down.weight": torch.ones(64)}),
        ("numbers with a point", {f"{LAYER}.lora_down.weight": down.long()}),
        (f"'{cross}' is .8,., not a matrix", {cross: torch.ones(8)}),
        ("second down of", {LAYER.replace("te_", "te1_") + ".lora_down.weight": down.clone()}),
        (
            "not a LoRA of a linear layer",
            {f"{LAYER.replace('0', '9' * 5000)}.lora_up.weight": up.clone()},
        ),
    ):
        save_file(good | more, path)
        with pytest.raises(WeightsError, match=rf"x\.safetensors.*{match}"):
            read_lora(path)


def test_float8_is_read(sd: Any, tmp_path: Path) -> None:
    vectors = torch.randn(2, sd.text_encoder.config.hidden_size)
    seen = {}
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float32):
        path = tmp_path / "x.safetensors"
        # Rounded alike, so that all give the same.
        save_file({"<x>": vectors.to(torch.float8_e5m2).float().to(dtype)}, path)
        seen[dtype] = bridge.condition("a <x>", model=sd, textual_inversions=path).prompt_embeds
    assert torch.equal(seen[torch.float8_e5m2], seen[torch.float32])


# ---------------------------------------------------------------- peft's patterns


def test_patterns_are_those_of_re() -> None:
    """Against Python's own, on short paths, where it cannot go on for ever."""
    pieces = ("a", "b", ".", "\\.", "[ab]", "[^a]", "(", "(?:", ")", "|", "*", "+", "?", "{1,2}",
              "{2}", "{0,}", "*?", "^", "$", "\\d", "\\w")  # fmt: skip
    compared = 0
    for seed in range(20_000):
        rng = random.Random(seed)
        pattern = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 9)))
        path = "".join(rng.choice("ab1.") for _ in range(rng.randrange(7)))
        try:
            found = matches(pattern, path)
        except LayerPatternError:
            continue
        assert found == bool(re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path)), (pattern, path)
        compared += 1
    assert compared > 3_000


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+x", "(\\w+\\.?)+x", "(.*)*x", "(?=a)b", "(a)\\1", "(?P<n>a)", "a" * 150 + "(b)" * 50,
     "(", "*", "[", "(?i)a"],
)  # fmt: skip
def test_patterns_that_are_refused(sd: Any, tmp_path: Path, pattern: str) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 1)}
    path = write_lora(tmp_path / "x.safetensors", "diffusers", deltas, alpha=1.0)
    config = {"text_encoder.alpha_pattern": {pattern: 4}}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(WeightsError, match=r"x\.safetensors.*alpha_pattern.*plain names"):
        bridge.condition("a cat", model=sd, loras=path)


def test_patterns_take_linear_time(sd: Any, tmp_path: Path) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 1)}
    path = write_lora(tmp_path / "x.safetensors", "diffusers", deltas, alpha=1.0)
    slow = [".*" * 95 + "x", "(.|.)" * 39 + "x", "(.|.|.|..|){999}" * 12, ".?" * 95, "\\w*" * 60]
    start = time.monotonic()
    for pattern in slow:
        config = {"text_encoder.alpha_pattern": {f"{pattern}x{at}": 4 for at in range(19)}}
        save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(config)})
        assert read_lora(path).towers
    assert time.monotonic() - start < 60
    many = {f"{'a*' * 90}{at}": 4 for at in range(100)}
    save_file(
        load_file(path), path, {"lora_adapter_metadata": json.dumps({".alpha_pattern": many})}
    )
    with pytest.raises(WeightsError, match="regular expressions of"):
        read_lora(path)


# ---------------------------------------------------------------- projectors and checkpoints


def test_a_projector_larger_than_its_tensors_is_not_built(tmp_path: Path) -> None:
    save_projector(build_projector("perceiver", 8, 8, latents=2, depth=1), tmp_path)
    config = json.loads((tmp_path / "projector.json").read_text())
    for change in ({"vision_width": 10**9}, {"options": {**config["options"], "depth": 10**9}}):
        (tmp_path / "projector.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(WeightsError, match=r"projector\.json has (vision_width|depth) 10{9}"):
            load_projector(tmp_path)


def test_a_checkpoint_of_other_shapes_changes_nothing(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    adam = torch.optim.AdamW(module.parameters())
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, module, adam, 1, {})
    # One number would be spread over all places.
    changed(path, tensors(**{"weight.bias": lambda t: t[:1], "weight.weight": torch.zeros_like}))
    before = module.weight.clone()
    with pytest.raises(WeightsError, match=r"c\.safetensors.*bias does not fit"):
        load_checkpoint(path, module, adam, {})
    assert torch.equal(module.weight, before)
