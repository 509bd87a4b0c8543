"""Damaged safetensors, through the doors that read them: one error that names the file, or a
result, never a traceback or a hang."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_support import Fuzz, Run
from safetensors.torch import load_file, save, save_file
from support.lora_files import random_deltas, write_lora
from support.tiny_gemma import tiny_gemma3
from support.tiny_models import (
    text_config,
    tiny_clip_tokenizer,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
)
from support.tiny_vlm import tiny_llava
from tensor_damage import damaged, damaged_json
from torch import nn
from transformers import CLIPTextModel

import bridge
from bridge.encoding import load_conditioning, save_conditioning
from bridge.errors import BridgeError
from bridge.towers import TextTower, read_lora, read_textual_inversion
from bridge.training.lora import take_lora
from bridge.training.run_state import load_checkpoint, save_checkpoint
from bridge.vlm import build_projector, load_projector, save_projector
from bridge.vlm.load import load_vlm
from bridge.vlm.lora import add_lora, load_lora, save_lora

ROW = "damaged safetensors that end in a traceback"
SECONDS = 120


def tried(run: Run, file: Path, use: Callable[[], Any]) -> None:
    """A use of a damaged file: it works, or one error names the file."""
    with run.within(SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use()
        except BridgeError as error:
            run.expect(file.name in str(error), f"the file is not named: {error}")
        except Exception as error:
            run.fail(f"{file.name}: {error!r}")


def checked(
    fuzz: Fuzz, cases: int, files: list[tuple[Path, Callable[[], Any]]], *others: Path
) -> None:
    """Damage each file in turn and use it; ``others`` are JSON files beside them."""
    whole = {file: file.read_bytes() for file, _ in files}
    texts = {other: other.read_text() for other in others}
    for file, use in files:
        use()
        assert file.read_bytes() == whole[file]
    with fuzz(ROW, cases) as run:
        for rng in run.draws():
            file, use = rng.choice(files)
            beside = [other for other in others if other.parent == file.parent]
            if beside and rng.random() < 0.5:
                (other,) = beside
                other.write_text(damaged_json(rng, texts[other]))
                # Where the two do not go together, either may be named.
                tried(run, other.parent, use)
                other.write_text(texts[other])
            else:
                file.write_bytes(damaged(rng, whole[file]))
                tried(run, file, use)
                file.write_bytes(whole[file])


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd_pipeline("sd21")


# ---------------------------------------------------------------- conditionings and adapters


def test_conditionings(fuzz: Fuzz, sdxl: Any, tmp_path: Path) -> None:
    lora = write_lora(
        tmp_path / "style.safetensors",
        "kohya",
        {"text_encoder": random_deltas(sdxl.text_encoder, 2, 1)},
    )
    cond = bridge.condition(["a (cat:2)", "a dog"], "b", model=sdxl, loras=lora)
    biased = bridge.condition("a (cat:0) dog", model=sdxl, emphasis="unet_attention_bias")
    files = [
        save_conditioning(cond, tmp_path / "states.safetensors"),
        save_conditioning(biased, tmp_path / "biased.safetensors"),
    ]

    def use(file: Path) -> Callable[[], None]:
        def used() -> None:
            found = load_conditioning(file)
            report = found.report()
            assert report.text() and report.html() and json.dumps(report.to_dict())
            assert len(found.repeat(2).take([0, len(found)]).to(dtype=torch.float16)) == 2
            found.without_bias().kwargs(2)

        return used

    checked(fuzz, 120, [(file, use(file)) for file in files])


def test_adapters(fuzz: Fuzz, sd: Any, tmp_path: Path) -> None:
    tokenizer = tiny_clip_tokenizer(words=("ca", "do", "of"))
    module = CLIPTextModel(text_config(tokenizer, hidden_size=16)).eval()
    foreign = TextTower.from_modules(module, tokenizer, name="foreign")
    words = ("red", "two", "cat", "dog", "apple", "of")
    prompts = [f"{a} {b}" for a in words for b in words]
    files = []
    for kind in ("ridge", "random-features", "resampler"):
        options = {"steps": 1} if kind == "resampler" else {}
        made = bridge.fit_adapter(foreign, model=sd, prompts=prompts, kind=kind, **options)
        files.append(made.save(tmp_path / f"{kind}.safetensors"))

    def use(file: Path) -> Callable[[], Any]:
        return lambda: bridge.condition("a cat", model=sd, towers=foreign, adapter=file)

    checked(fuzz, 40, [(file, use(file)) for file in files])


# ---------------------------------------------------------------- LoRAs and inversions


def test_loras(fuzz: Fuzz, sd: Any, tmp_path: Path) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 1)}
    files = []
    for layout in ("kohya", "diffusers", "oldest"):
        cross = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
        files.append(
            write_lora(
                tmp_path / f"{layout}.safetensors",
                layout,
                deltas,
                alpha=2.0,
                others={cross: torch.zeros(2, sd.text_encoder.config.hidden_size)},
            )
        )
    folder = tmp_path / "peft"
    folder.mkdir()
    prefix = "base_model.model.text_model."
    save_file(
        {
            f"{prefix}{path}.lora_{letter}.weight": tensor.contiguous()
            for path, pair in deltas["text_encoder"].items()
            for letter, tensor in zip("AB", pair, strict=True)
        },
        folder / "adapter_model.safetensors",
    )
    config = folder / "adapter_config.json"
    config.write_text(
        json.dumps(
            {"lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"mlp.fc1": 6, r".*\.1\..*": 2}}
        )
    )
    files.append(folder / "adapter_model.safetensors")

    def use(file: Path) -> Callable[[], Any]:
        given = file.parent if file.parent == folder else file
        return lambda: bridge.condition("a cat", model=sd, loras=given)

    checked(fuzz, 50, [(file, use(file)) for file in files], config)
    # Reading alone is cheap, and most damage is found by it.
    checked(
        fuzz, 200, [(file, (lambda file=file: read_lora(file))) for file in files], config
    )  # fmt: skip


def test_alpha_patterns_of_all_kinds(fuzz: Fuzz, sd: Any, tmp_path: Path) -> None:
    deltas = {"text_encoder": random_deltas(sd.text_encoder, 2, 1)}
    path = write_lora(tmp_path / "x.safetensors", "diffusers", deltas, alpha=1.0)
    pieces = ("(", ")", "(?:", "|", "*", "+", "?", "{1,99}", "{999}", ".", "a", "[a-z]", "[^x]",
              "\\d", "\\w", "\\1", "(?=", "(?P<x>", "(.*)*", "(a|a)*", "(\\w+\\.?)+x", "text", "^",
              "$", "(.|.)", "((a+)+)+", "٣", "\0", ".*", "[", "]", "\\")  # fmt: skip
    held = load_file(path)
    with fuzz(ROW, 150) as run:
        for rng in run.draws():
            pattern = "".join(rng.choice(pieces) for _ in range(rng.choice((1, 3, 8, 60))))
            config = {"text_encoder.alpha_pattern": {pattern: 4, "mlp.fc1": 3}}
            save_file(held, path, {"lora_adapter_metadata": json.dumps(config)})
            tried(run, path, lambda: read_lora(path))


def test_textual_inversions(fuzz: Fuzz, sdxl: Any, tmp_path: Path) -> None:
    widths = [tower.config.hidden_size for tower in (sdxl.text_encoder, sdxl.text_encoder_2)]
    layouts: dict[str, dict[str, torch.Tensor]] = {
        "named": {"<cat-toy>": torch.randn(widths[0])},
        "webui": {"emb_params": torch.randn(3, widths[0])},
        "both": {"clip_l": torch.randn(2, widths[0]), "clip_g": torch.randn(2, widths[1])},
    }
    files = []
    for name, tensors in layouts.items():
        files.append(tmp_path / f"{name}.safetensors")
        save_file(tensors, files[-1], {"a": "{}"})

    def use(file: Path) -> Callable[[], Any]:
        given = {"<own>": file}
        return lambda: bridge.condition("a <own> cat", model=sdxl, textual_inversions=given)

    checked(fuzz, 40, [(file, use(file)) for file in files])
    checked(fuzz, 100, [(f, (lambda f=f: read_textual_inversion(f))) for f in files])


# ---------------------------------------------------------------- projectors and training


def test_projectors(fuzz: Fuzz, tmp_path: Path) -> None:
    files = []
    options: dict[str, dict[str, Any]] = {
        "linear": {}, "mlp2x_gelu": {}, "pixel_shuffle": {},
        "perceiver": {"latents": 4, "depth": 1, "heads": 2, "kv_heads": 1, "head_width": 4},
        "qformer": {"queries": 2, "hidden_size": 8, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "intermediate_size": 8},
        "c_abstractor": {"tokens": 4, "depth": 1, "grid": [4, 4]},
    }  # fmt: skip
    for kind, given in options.items():
        save_projector(build_projector(kind, 8, 8, **given), tmp_path / kind)
        files.append(tmp_path / kind / "projector.safetensors")

    def use(file: Path) -> Callable[[], Any]:
        return lambda: load_projector(file.parent)

    configs = [file.parent / "projector.json" for file in files]
    checked(fuzz, 80, [(file, use(file)) for file in files], *configs)


def test_loras_of_language_models(fuzz: Fuzz, tmp_path: Path) -> None:
    llm = tiny_gemma3()
    add_lora(llm, 2, 4.0, seed=0)
    save_lora(llm, tmp_path, "tiny")
    take_lora(llm, merge=False)

    def use() -> None:
        try:
            load_lora(llm, tmp_path)
        finally:
            take_lora(llm, merge=False)

    file = tmp_path / "adapter_model.safetensors"
    checked(fuzz, 60, [(file, use)], tmp_path / "adapter_config.json")


def test_checkpoints(fuzz: Fuzz, tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    adam = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 4)).sum().backward()
    adam.step()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, module, adam, 3, {"lr": 0.1, "rows": 7})

    def use() -> None:
        load_checkpoint(path, module, adam, {"lr": 0.1, "rows": 7})
        adam.step()

    def named() -> None:
        try:
            use()
        except BridgeError as error:
            # Settings that differ are told by the run's folder.
            raise type(error)(f"{error} ({path})") from error

    checked(fuzz, 120, [(path, named)])


# ---------------------------------------------------------------- what a study keeps, and towers


def test_kept_readings_are_made_again(fuzz: Fuzz, sd: Any, tmp_path: Path) -> None:
    tower = TextTower.from_modules(sd.text_encoder, sd.tokenizer, name="one")

    def study() -> Any:
        return bridge.study("a cat", towers=[tower], variants={"mine": ["a dog"]}, cache=tmp_path)

    before = study().table
    files = sorted(tmp_path.rglob("*.safetensors"))
    whole = {file: file.read_bytes() for file in files}
    with fuzz(ROW, 5) as run:
        for rng in run.draws():
            for file in rng.sample(files, 8):
                file.write_bytes(damaged(rng, whole[file]))

            def same() -> None:
                assert study().table.columns.tolist() == before.columns.tolist()

            tried(run, tmp_path, same)
            for file in files:
                file.write_bytes(whole[file])


def test_towers(fuzz: Fuzz, sd: Any, tmp_path: Path) -> None:
    sd.save_pretrained(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"

    def use() -> None:
        bridge.release()
        try:
            bridge.condition("a cat", model=tmp_path)
        except BridgeError as error:
            # transformers names the folder that it was given.
            raise type(error)(str(error).replace("text_encoder ", f"{file.name} ")) from error

    checked(fuzz, 10, [(file, use)])


def test_pipelines_and_vision_language_models(fuzz: Fuzz, sd: Any, tmp_path: Path) -> None:
    painter = tmp_path / "painter"
    sd.save_pretrained(painter)
    llava = tiny_llava(tmp_path)
    parts = [(f"{part}/diffusion_pytorch_model", painter) for part in ("unet", "vae")]

    def use(load: Callable[[Path], Any], folder: Path, file: Path) -> Callable[[], Any]:
        def used() -> None:
            try:
                load(folder)
            except BridgeError as error:
                # Where the parts are named by transformers and diffusers, it is by their folder.
                assert str(folder) in str(error)
                raise type(error)(file.name) from error

        return used

    files = [(folder / f"{name}.safetensors", folder) for name, folder in parts]
    uses = [(file, use(bridge.load_pipeline, folder, file)) for file, folder in files]
    whole = llava / "model.safetensors"
    checked(fuzz, 16, [*uses, (whole, use(load_vlm, llava, whole))])


def test_the_damage_is_of_all_kinds() -> None:
    data = save({"a": torch.ones(2, 3), "b": torch.ones(4)}, {"x": '{"y": [1, 2]}'})
    made = {damaged(random.Random(seed), data) for seed in range(300)}
    assert len(made) > 200 and data not in made
