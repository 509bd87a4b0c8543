"""LoRAs in the text towers against weights fused by hand: ``W + strength * alpha / r * B @ A``.

Tolerance: 1e-5 of the largest entry, float32. A fused weight and a product added beside it are
the same number up to the order of summation.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
)
from safetensors.torch import save_file
from support.comparisons import Compared
from support.lora_files import LAYOUTS, Deltas, add_to, fused, random_deltas, write_lora
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

import bridge
from bridge.cli import main
from bridge.encoding import load_conditioning, save_conditioning
from bridge.errors import DialectWarning, OptionError, PromptError, WeightsError
from bridge.towers import TowerAddOns, adapted, read_lora

TOLERANCE = 1e-5
PEER = "weights fused by hand"
UNET = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 32)}


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd_pipeline("sd15")


def both(sdxl: Any, rank: int = 4, seed: int = 1) -> dict[str, Deltas]:
    return {
        "text_encoder": random_deltas(sdxl.text_encoder, rank, seed),
        "text_encoder_2": random_deltas(sdxl.text_encoder_2, rank, seed + 1),
    }


def wanted(pipe: Any, prompt: str, negative: str = "") -> tuple[torch.Tensor, ...]:
    """What diffusers' own encode_prompt gives."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        found = pipe.encode_prompt(prompt, negative_prompt=negative)
        return found[0], found[1], found[2], found[3]
    return tuple(pipe.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative))


NAMES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


def same(compared: Compared, feature: str, cond: Any, tensors: tuple[torch.Tensor, ...]) -> None:
    for name, tensor in zip(NAMES, tensors, strict=False):
        compared(feature, PEER, getattr(cond, name), tensor, TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_towers_in_every_layout(
    sdxl: Any, tmp_path: Path, layout: str, compared: Compared
) -> None:
    towers = both(sdxl)
    alpha = 2.0 if layout in ("kohya", "diffusers") else None
    path = write_lora(tmp_path / "style.safetensors", layout, towers, alpha=alpha)
    reference = fused(sdxl, towers, 0.7 * (alpha or 4.0) / 4)
    cond = bridge.condition(
        "a red cat", "a dog", model=sdxl, loras={"style": (path, 0.7)}, dialect="plain"
    )
    same(compared, f"LoRA, {layout} keys", cond, wanted(reference, "a red cat", "a dog"))
    plain = bridge.condition("a red cat", "a dog", model=sdxl, dialect="plain")
    assert not torch.allclose(cond.prompt_embeds, plain.prompt_embeds, atol=0.01)
    assert not torch.allclose(cond.pooled_prompt_embeds, plain.pooled_prompt_embeds, atol=0.01)


def test_peft_folders_take_alpha_from_their_config(
    sd: Any, tmp_path: Path, compared: Compared
) -> None:
    deltas = random_deltas(sd.text_encoder, 4, 3)
    folder = tmp_path / "toy"
    folder.mkdir()
    prefix = "base_model.model.text_model."
    save_file(
        {
            f"{prefix}{path}.lora_{letter}.weight": tensor.contiguous()
            for path, pair in deltas.items()
            for letter, tensor in zip("AB", pair, strict=True)
        },
        folder / "adapter_model.safetensors",
    )
    config = {"lora_alpha": 8, "r": 4, "use_rslora": True, "alpha_pattern": {"mlp.fc1": 6}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    reference = copy.deepcopy(sd)
    of_fc1 = {path: pair for path, pair in deltas.items() if path.endswith("fc1")}
    others = {path: pair for path, pair in deltas.items() if path not in of_fc1}
    # Rank-stabilised: alpha over the root of the rank (Kalajdzievski 2023).
    add_to(reference, {"text_encoder": of_fc1}, 6 / 2)
    add_to(reference, {"text_encoder": others}, 8 / 2)
    cond = bridge.condition("a cat <lora:toy:1>", model=sd, loras=tmp_path)
    assert bridge.condition("a cat", model=sd, loras=folder).addons == cond.addons
    same(compared, "LoRA, peft folder", cond, wanted(reference, "a cat"))


def test_every_prompt_of_a_batch_has_its_own_strengths_in_one_pass(
    sdxl: Any, tmp_path: Path, compared: Compared
) -> None:
    one, two = both(sdxl, 4, 1), both(sdxl, 3, 9)
    write_lora(tmp_path / "one.safetensors", "kohya", one, alpha=4.0)
    write_lora(tmp_path / "two.safetensors", "diffusers", two)
    prompts = [
        "a red cat <lora:one:0.8>",
        "a red cat",
        "<lora:two:-0.5:1>a <lora:one:te=0.25:unet=0>dog",
        "a red cat<lora:one:0.5><lora:one:0.3>",
    ]
    passes = [0, 0]

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            passes[index] += 1

        return hook

    handles = [
        tower.register_forward_hook(count(i))
        for i, tower in enumerate((sdxl.text_encoder, sdxl.text_encoder_2))
    ]
    cond = bridge.condition(prompts, "apples", model=sdxl, loras=tmp_path)
    for handle in handles:
        handle.remove()
    assert passes == [1, 1]
    for row, (text, first, second) in enumerate(
        [("a red cat", 0.8, 0.0), ("a red cat", 0, 0), ("a dog", 0.25, -0.5), ("a red cat", 0.8, 0)]
    ):
        reference = copy.deepcopy(sdxl)
        add_to(reference, one, first)
        add_to(reference, two, second)
        feature = "LoRA, strengths that differ in a batch"
        same(compared, feature, cond.rows(row, row + 1), wanted(reference, text, "apples"))
    # What is at 0 is nothing at all.
    bare = bridge.condition(["a red cat", "a dog"], "apples", model=sdxl)
    torch.testing.assert_close(cond.prompt_embeds[1], bare.prompt_embeds[0], rtol=0, atol=1e-6)
    assert [each.name for each in cond.addons] == ["one", "two"]
    assert cond.addons[0].strengths == (0.8, 0.0, 0.25, 0.8)
    assert cond.addons[1].unet_strengths == (0.0, 0.0, 1.0, 0.0)
    assert cond.rows(2, 3).addons[0].strengths == (0.25,)


@pytest.mark.parametrize("emphasis", ["a1111", "comfy", "compel"])
def test_lora_with_weights_and_windows(
    sdxl: Any, tmp_path: Path, emphasis: str, compared: Compared
) -> None:
    """The inputs that an emphasis needs beside the prompt have the LoRA too."""
    towers = both(sdxl)
    path = write_lora(tmp_path / "style.safetensors", "kohya", towers)
    text = "a (red:1.4) cat, [two apples], " + "left of a dog, " * 20
    cond = bridge.condition(f"<lora:style:0.6>{text}", model=sdxl, loras=path, emphasis=emphasis)
    reference = bridge.condition(text, model=fused(sdxl, towers, 0.6), emphasis=emphasis)
    for name in NAMES:
        compared("LoRA with weights", PEER, getattr(cond, name), getattr(reference, name), 2e-5)


def test_schedules_have_loras(sd: Any, tmp_path: Path) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 5)}
    write_lora(tmp_path / "style.safetensors", "kohya", deltas)
    texts = ["a [cat:dog:2] <lora:style:0.5>", "red"]
    plan = bridge.schedule(texts, steps=4, model=sd, loras=tmp_path)
    reference, red = fused(sd, deltas, 0.5), wanted(sd, "red")[0]
    for step, text in ((3, "a cat"), (4, "a dog")):
        both_rows = torch.cat([wanted(reference, text)[0], red])
        torch.testing.assert_close(plan.at(step).prompt_embeds, both_rows, rtol=0, atol=1e-4)
        assert plan.at(step).addons[0].strengths == (0.5, 0.0)


def test_all_parts_of_an_and_have_the_loras_of_their_prompt(sd: Any, tmp_path: Path) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 5)}
    write_lora(tmp_path / "style.safetensors", "kohya", deltas)
    prompts = ["red AND two", "a cat AND a dog <lora:style:0.5>"]
    found = bridge.compose(prompts, model=sd, loras=tmp_path).parts
    reference = fused(sd, deltas, 0.5)
    rows = [(sd, "red"), (sd, "two"), (reference, "a cat"), (reference, "a dog")]
    by_hand = torch.cat([wanted(pipe, text)[0] for pipe, text in rows])
    torch.testing.assert_close(found.prompt_embeds, by_hand, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_mean_what_diffusers_takes_them_for(sdxl: Any, tmp_path: Path, layout: str) -> None:
    towers = both(sdxl)
    for deltas in towers.values():
        # diffusers' converter of kohya keys takes a file's first "lora" for where names end.
        deltas.pop("text_projection", None)
    path = write_lora(tmp_path / "style.safetensors", layout, towers, alpha=None)
    state, _ = StableDiffusionXLPipeline.lora_state_dict(path)[:2]
    ours = read_lora(path)
    assert not ours.unused
    for component in towers:
        prefix = f"{component}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        theirs = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
        found = {
            f"text_model.{layer}.lora_{letter}.weight": tensor
            for layer, added in ours.towers[component].items()
            for letter, tensor in (("A", added.down), ("B", added.up))
        }
        assert theirs.keys() == found.keys()
        assert all(torch.equal(theirs[key], found[key]) for key in found)


def test_nothing_is_left_behind_and_threads_do_not_meet(sdxl: Any, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "style.safetensors", "kohya", both(sdxl))
    before = {k: v.clone() for k, v in sdxl.text_encoder.state_dict().items()}
    clean = bridge.condition("a cat", model=sdxl)
    # transformers leaves hooks of its own at the first call.
    hooks = [dict(layer._forward_hooks) for layer in sdxl.text_encoder.modules()]
    adapted = bridge.condition("a cat", model=sdxl, loras=path)
    failures = []

    def encode(with_lora: bool) -> None:
        for _ in range(15):
            found = bridge.condition("a cat", model=sdxl, loras=path if with_lora else None)
            right = adapted if with_lora else clean
            if not torch.equal(found.prompt_embeds, right.prompt_embeds):
                failures.append(with_lora)

    threads = [threading.Thread(target=encode, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [dict(layer._forward_hooks) for layer in sdxl.text_encoder.modules()] == hooks
    after = sdxl.text_encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_calls_share_the_matrices_and_follow_the_tower(sd: Any, tmp_path: Path) -> None:
    """The second call of one set of add-ons puts no matrices together; another dtype gets its own
    and the first is served again as it was."""
    deltas = random_deltas(sd.text_encoder, 4, 5)
    lora = read_lora(write_lora(tmp_path / "style.safetensors", "kohya", {"text_encoder": deltas}))
    (layers,) = lora.towers.values()
    addons = TowerAddOns(loras=(layers,))
    tower = copy.deepcopy(sd.text_encoder)
    ids = torch.tensor([[1, 5, 2], [1, 7, 2]])

    def encoded(addons: TowerAddOns) -> torch.Tensor:
        with torch.no_grad(), adapted(tower, ids, addons, [(0.5,), (1.0,)]) as (plain, known):
            return plain(known).last_hidden_state

    def joined(addons: TowerAddOns) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            encoded(addons)
        return sum(each.count for each in seen.key_averages() if each.key == "aten::cat")

    first = encoded(addons)
    fresh = joined(TowerAddOns(loras=(layers,)))
    assert fresh - joined(addons) == 2 * len(layers) > 0
    tower.double()
    wide = encoded(addons)
    assert torch.equal(wide, encoded(TowerAddOns(loras=(layers,))))
    assert_close(wide.float(), first)
    tower.float()
    assert torch.equal(encoded(addons), first)


def test_half_precision_towers(tmp_path: Path) -> None:
    pipe = tiny_sd_pipeline("sd15").to(torch.bfloat16)
    deltas = {"text_encoder": random_deltas(pipe.text_encoder, 4, 2)}
    path = write_lora(tmp_path / "style.safetensors", "kohya", deltas)
    cond = bridge.condition("a cat", model=pipe, loras=path)
    assert cond.prompt_embeds.dtype == torch.bfloat16
    exact = fused(tiny_sd_pipeline("sd15"), deltas, 1.0)
    # bfloat16 keeps 8 bits; three layers deep the states agree to some hundredths.
    torch.testing.assert_close(
        cond.prompt_embeds.float(), wanted(exact, "a cat")[0], rtol=0, atol=0.25
    )


# ---------------------------------------------------------------- account


def test_the_account(sdxl: Any, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "style.safetensors", "kohya", both(sdxl), others=UNET)
    text = "a <lora:style:0.8:0.4>(red:1.2) cat"
    cond = bridge.condition(text, model=sdxl, loras=path)
    (account,) = cond.addons
    assert account.towers == ("text_encoder", "text_encoder_2")
    assert account.unused == tuple(UNET)
    assert cond.fingerprints["lora style"] == account.hash == read_lora(path).hash
    report = cond.report()
    assert "lora style" in report.text() and "at 0.8" in report.text()
    assert "load_lora_weights) at 0.4: lora_unet_mid" in report.text()
    assert "lora style" in report.html()
    assert report.to_dict()["addons"][0]["strengths"] == [0.8]
    # Places are those of the prompt as it was written, tag included.
    rows = [row for row in report.prompts[0].towers[0].rows if row.weight != 1]
    assert report.prompts[0].prompt == text
    assert [text[row.start : row.end] for row in rows] == ["red"]
    saved = save_conditioning(cond, tmp_path / "out" / "cond.safetensors")
    back = load_conditioning(saved, model=sdxl)
    assert back.addons == cond.addons and back.fingerprints == dict(cond.fingerprints)


def test_a_lora_for_the_unet_alone_is_named_and_does_nothing(sd: Any, tmp_path: Path) -> None:
    save_file(UNET, tmp_path / "pose.safetensors")
    cond = bridge.condition("a cat <lora:pose:1>", model=sd, loras=tmp_path)
    assert torch.equal(cond.prompt_embeds, bridge.condition("a cat ", model=sd).prompt_embeds)
    assert cond.addons[0].towers == () and "no text tower" in cond.report().text()


def test_generate_has_loras_and_no_half_of_one(sd: Any, tmp_path: Path) -> None:
    """The part for the UNet cannot act where the model is given by name."""
    sd.save_pretrained(tmp_path / "sd")
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 5)}
    path = write_lora(tmp_path / "style.safetensors", "kohya", deltas)
    whole = write_lora(tmp_path / "whole.safetensors", "kohya", deltas, others=UNET)

    def draw(prompt: str, model: Any, loras: Any = None) -> bytes:
        made = bridge.generate(prompt, model=model, loras=loras, seed=1, steps=2, device="cpu")
        return made.images[0].tobytes()

    plain = draw("a cat ", sd)
    styled = draw("a cat <lora:style:40>", sd, path)
    assert styled != plain
    assert draw("a cat <lora:style:40>", tmp_path / "sd", path) == styled
    assert draw("a cat <lora:whole:40>", sd, whole) == styled  # a pipeline has the rest itself
    with pytest.raises(OptionError, match="'whole' has a part for the UNet"):
        draw("a cat", tmp_path / "sd", whole)
    assert draw("a cat <lora:whole:40:0>", tmp_path / "sd", whole) == styled


# ---------------------------------------------------------------- bad input


def refuse_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a tower was loaded")

    monkeypatch.setattr("bridge.encoding.model.load_tower", fail)
    bridge.release()


def test_loras_for_other_models_are_refused_before_towers_load(
    sdxl: Any, sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pipe in (("sdxl", sdxl), ("sd", sd)):
        pipe.save_pretrained(tmp_path / name)
    refuse_loading(monkeypatch)
    two = write_lora(tmp_path / "two.safetensors", "kohya", both(sdxl))
    with pytest.raises(WeightsError, match=r"two\.safetensors .*another model.*text_encoder_2"):
        bridge.condition("a cat", model=tmp_path / "sd", loras=two)
    wide = {"text_encoder": random_deltas(sdxl.text_encoder_2, 2, 0)}
    wide["text_encoder"].pop("text_projection")
    path = write_lora(tmp_path / "wide.safetensors", "kohya", wide)
    with pytest.raises(WeightsError, match=r"fc1 is \(64, 48\) in it, and \(64, 32\) in the"):
        bridge.condition("a cat", model=tmp_path / "sd", loras=path)
    beyond = f"encoder.layers.{sd.text_encoder.config.num_hidden_layers}.mlp.fc1"  # from 0
    deep = {"text_encoder": {beyond: (torch.ones(2, 32), torch.ones(64, 2))}}
    path = write_lora(tmp_path / "deep.safetensors", "kohya", deep)
    with pytest.raises(WeightsError, match=f"{beyond}, and the tower does not"):
        bridge.condition("a cat", model=tmp_path / "sd", loras=path)
    cross = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    save_file({cross: torch.zeros(2, 768)}, tmp_path / "unet.safetensors")
    with pytest.raises(WeightsError, match="text states 768 wide, and these are 80"):
        bridge.condition("a cat", model=tmp_path / "sdxl", loras=tmp_path / "unet.safetensors")


def test_files_that_are_no_lora(sd: Any, tmp_path: Path) -> None:
    def refused(match: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(WeightsError, match=match):
            read_lora(tmp_path / "x.safetensors")

    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    down, up = torch.ones(2, 32), torch.ones(64, 2)
    refused("not a LoRA.*textual_inversions", {"emb_params": down})
    refused("not DoRA", {f"{layer}.dora_scale": up, f"{layer}.lora_down.weight": down})
    refused("not DoRA", {f"{layer}.hada_w1_a": up})
    refused("its down only", {f"{layer}.lora_down.weight": down})
    refused(
        "do not multiply",
        {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": down.clone()},
    )
    with pytest.raises(WeightsError, match=r"There is no LoRA file '.*gone\.safetensors'; check"):
        bridge.condition("a cat", model=sd, loras=tmp_path / "gone.safetensors")
    (tmp_path / "old.pt").write_bytes(b"pickled")
    with pytest.raises(WeightsError, match=r"old\.pt is not a safetensors"):
        bridge.condition("a cat", model=sd, loras=tmp_path / "old.pt")


def test_ways_to_give_them(sd: Any, tmp_path: Path) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 5)}
    path = write_lora(tmp_path / "style.safetensors", "kohya", deltas)
    opened = read_lora(path)

    def strengths(loras: Any, prompt: str = "a cat") -> dict[str, tuple[float, ...]]:
        found = bridge.condition(prompt, model=sd, loras=loras)
        return {each.name: each.strengths for each in found.addons}

    assert strengths(path) == strengths(str(path)) == strengths([opened]) == {"style": (1.0,)}
    assert strengths((path, 0.5)) == strengths([(opened, 0.5)]) == {"style": (0.5,)}
    assert strengths({"mine": (path, 0.5)}) == {"mine": (0.5,)}
    assert strengths({"mine": path, "too": path}) == {"mine": (1.0,), "too": (1.0,)}
    assert strengths({"mine": path}, "a <lora:mine:2>cat") == {"mine": (2.0,)}
    # One in a folder waits for a prompt to name it, and one at 0 takes no part.
    assert strengths(tmp_path) == strengths([tmp_path]) == strengths((path, 0)) == {}
    assert strengths(tmp_path, "<lora:style:3>a cat") == {"style": (3.0,)}


def test_the_command_encodes_with_them(
    sd: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sd.save_pretrained(tmp_path / "sd")
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 5)}
    (tmp_path / "loras").mkdir()
    path = write_lora(tmp_path / "loras" / "style.safetensors", "kohya", deltas)
    word = tmp_path / "toy.safetensors"
    save_file({"<toy>": torch.ones(2, 32)}, word)
    lines = tmp_path / "prompts.txt"

    def run(text: str, lora: str, folder: str) -> int:
        lines.write_text(text)
        out = str(tmp_path / folder)
        options = ["--lora", lora, "--embedding", str(word), "-m", str(tmp_path / "sd"), "-o", out]
        return main(["encode", str(lines), *options])

    assert run("a <toy>", f"{path}=0.5", "one") == 0
    assert run("a <lora:style:0.5><toy>", str(path.parent), "two") == 0
    one, two = (load_conditioning(next((tmp_path / f).glob("*.s*"))) for f in ("one", "two"))
    assert torch.equal(one.prompt_embeds, two.prompt_embeds)
    assert [each.name for each in one.addons] == ["<toy>", "style"]
    assert run("a cat\na <lora:gone>dog", str(path.parent), "three") == 2
    assert not (tmp_path / "three").exists() and "'gone'" in capsys.readouterr().err


def test_names_and_options(sd: Any, tmp_path: Path) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 5)}
    path = write_lora(tmp_path / "style.safetensors", "kohya", deltas)
    with pytest.raises(PromptError, match=r"'stile'.*Did you mean 'style'\?") as caught:
        bridge.condition("a <lora:stile:0.8> cat", model=sd, loras=tmp_path)
    _, line, carets = str(caught.value).split("\n")
    assert line[carets.index("^") : carets.rindex("^") + 1] == "<lora:stile:0.8>"
    with pytest.raises(PromptError, match=r"Did you mean 'style'\?"):
        bridge.condition("a <lora:style.safetensors:0.8> cat", model=sd, loras=tmp_path)
    for gone, what in (("no", "LoRA file or folder"), ("no.safetensors", "LoRA file")):
        for prompt in ("a cat", "a <lora:style:0.8> cat"):
            with pytest.raises(WeightsError, match=rf"There is no {what} '.*{gone}'; check"):
                bridge.condition(prompt, model=sd, loras=[path, tmp_path / gone])
    with pytest.raises(PromptError, match=r"no 'style'; give its file with --lora"):
        bridge.condition("a <lora:style:0.8> cat", model=sd)
    with pytest.raises(PromptError, match="belongs into the prompt"):
        bridge.condition("a cat", "blurry <lora:style:1>", model=sd, loras=path)
    with pytest.raises(OptionError, match="strength of the LoRA 'style' must be a number"):
        bridge.condition("a cat", model=sd, loras={"style": (path, float("nan"))})
    with pytest.raises(OptionError, match=r"loras takes a file, a folder.*not int"):
        bridge.condition("a cat", model=sd, loras=[3])  # type: ignore[list-item]
    with pytest.raises(OptionError, match="Two LoRAs are called 'style'"):
        bridge.condition("a cat", model=sd, loras=[path, path])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / path.name).write_bytes(path.read_bytes())
    # A folder may have two of a name, as long as none is meant.
    bridge.condition("a <lora:style:1>cat", model=sd, loras=[path, tmp_path])
    with pytest.raises(OptionError, match=r"Two LoRAs in .* are called 'style'"):
        bridge.condition("a <lora:style:1>cat", model=sd, loras=tmp_path)
    # Other dialects have no tags: the characters are text, which is said.
    with pytest.warns(DialectWarning, match="no LoRA acts by it"):
        plain = bridge.condition("a <lora:style:0.8> cat", model=sd, dialect="plain")
    direct = StableDiffusionPipeline.encode_prompt(sd, "a <lora:style:0.8> cat", "cpu", 1, False)
    assert torch.equal(plain.prompt_embeds, direct[0])
