"""Every public door that gives numbers, each as a call whose result is the same each time.

For tests of what must not change results: what another thread does, what it sets for the process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel

import bridge
from bridge.encoding import EMPHASES, blend
from bridge.encoding.algebra import concatenate, interpolate, subtract
from bridge.towers import TextTower
from support.lora_files import random_deltas, write_lora
from support.tiny_models import LATENT_SIZE, text_config, tiny_clip_tokenizer, tiny_sdxl_pipeline
from support.tiny_t5 import tiny_t5_pipeline

Door = Callable[[], Any]

WEIGHTED = {
    "a1111": "a (red:1.3) cat left of a [dog], (apple:0.6)",
    "comfy": "a (red:1.3) cat left of a dog, (apple:0.6)",
    "compel": "a red++ cat left of a dog, (apple)0.6",
}
_COLOURS = ("red", "two", "left", "photo")
_THINGS = ("cat", "dog", "apple", "apples")
FITTED_ON = [f"{c} {a} of {b}" for c, a, b in itertools.product(_COLOURS[:2], _THINGS, _THINGS)]
SETTINGS = {
    "perceiver": {"latents": 4, "depth": 1, "heads": 2, "kv_heads": 2, "head_width": 8},
    "qformer": {"queries": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 64, "vocab_size": 10},
    "c_abstractor": {"tokens": 4},
}  # fmt: skip
HALF = (0, 0, 0.3, 1)


def digest(result: Any) -> str:
    """A hash of all numbers and texts in a result, dtypes included, bit for bit."""
    found = sha256()
    for part in _parts(result):
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield repr(value.tolist()).encode()
    elif isinstance(value, Image.Image):
        yield value.tobytes()
    elif isinstance(value, torch.nn.Module):
        yield from _parts(value.state_dict())
    elif hasattr(value, "to_json"):  # a table
        yield value.to_json(double_precision=15).encode()
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield field.name.encode()
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield repr(key).encode()
            yield from _parts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _parts(each)
    elif isinstance(value, str | int | float | None):
        yield repr(value).encode()


def doors(folder: Path) -> dict[str, Door]:
    """The doors by name; ``folder`` is for the files that they read."""
    torch.manual_seed(3)
    return {**_conditionings(folder), **_combined(), **_adapters(folder), **_drawn(), **_answers()}


def _conditionings(folder: Path) -> dict[str, Door]:
    pipe, t5 = tiny_sdxl_pipeline(), tiny_t5_pipeline("sd3")
    word = torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    save_file({"<toy>": word}, folder / "toy.safetensors")
    deltas = {"text_encoder": random_deltas(pipe.text_encoder, 2, 5)}
    lora = write_lora(folder / "style.safetensors", "kohya", deltas, alpha=1.7)
    found: dict[str, Door] = {
        f"condition, {dialect}, {emphasis}": partial(
            bridge.condition, text, "photo", model=pipe, dialect=dialect, emphasis=emphasis
        )
        for dialect, text in WEIGHTED.items()
        for emphasis in EMPHASES
    }
    weighted = WEIGHTED["a1111"]
    return {
        **found,
        "condition, plain": partial(bridge.condition, "a red cat", model=pipe, dialect="plain"),
        "condition, parts": partial(
            bridge.condition, '("a red cat", "two apples").blend(0.3, 0.9)', model=pipe,
            dialect="compel",
        ),
        "condition, sequence": partial(
            bridge.condition, '("a red cat", "two apples").and(0.3, 0.9)', model=pipe,
            dialect="compel",
        ),
        "condition, long": partial(
            bridge.condition, weighted + ", a photo of the dog" * 30, model=pipe,
            emphasis="text_attention_bias",
        ),
        "condition, T5": partial(bridge.condition, weighted, "photo", model=t5),
        "condition, T5 compel": partial(bridge.condition, weighted, model=t5, emphasis="compel"),
        "condition, LoRA": partial(bridge.condition, weighted, model=pipe, loras=[(lora, 0.77)]),
        "condition, LoRA tag": partial(
            bridge.condition, "a cat <lora:style:0.37>", model=pipe, loras={"style": lora}
        ),
        "condition, embedding": partial(
            bridge.condition, "a <toy> cat", model=pipe,
            textual_inversions=folder / "toy.safetensors",
        ),
        "condition, normalized": partial(
            bridge.condition, weighted, model=pipe, token_normalization="length+mean"
        ),
    }  # fmt: skip


def _combined() -> dict[str, Door]:
    pipe = tiny_sdxl_pipeline()
    cat = bridge.condition("a cat", "red", model=pipe)
    dog = bridge.condition("a (dog:1.2) in the photo", "", model=pipe)
    mask = [[0.1, 0.3, 0.7], [1.0, 0.9, 0.13]]
    regions = [bridge.Region("a dog", HALF), bridge.Region("a cat", mask=mask)]

    def shared() -> Any:
        found = bridge.regional("a photo", regions, model=pipe, base_weight=0.3)
        return found, found.shares(LATENT_SIZE, LATENT_SIZE)

    return {
        "blend": partial(blend, [cat, dog], (0.3, 0.41)),
        "interpolate": partial(interpolate, cat, dog, 0.37),
        "interpolate, spherical": partial(interpolate, cat, dog, 0.37, method="spherical"),
        "concatenate": partial(concatenate, [cat, dog]),
        "subtract": partial(subtract, cat, dog, base=bridge.condition("", model=pipe)),
        "compose": partial(bridge.compose, "a cat AND two (dog:1.3):0.7", model=pipe),
        "schedule": partial(
            bridge.schedule, "a [cat:dog:0.37] (red:1.3)", steps=5, model=pipe, emphasis="comfy"
        ),
        "regional": shared,
    }


def _adapters(folder: Path) -> dict[str, Door]:
    pipe = tiny_sdxl_pipeline()
    tokenizer = tiny_clip_tokenizer(words=("ca", "do", "app", "photo", "le", "of"))
    module = CLIPTextModel(text_config(tokenizer, hidden_size=48)).eval()
    foreign = TextTower.from_modules(module, tokenizer, name="foreign")
    fit = partial(bridge.fit_adapter, foreign, model=pipe, prompts=FITTED_ON, steps=2)
    files = {kind: folder / f"{kind}.safetensors" for kind in ("random-features", "resampler")}
    for kind, path in files.items():
        fit(kind=kind).save(path)

    def used(path: Path) -> Any:
        adapter = bridge.load_adapter(path)
        return bridge.condition("a (red:1.2) cat", model=pipe, towers=foreign, adapter=adapter)

    kinds = ("ridge", "procrustes", "random-features", "resampler")
    fitted: dict[str, Door] = {f"fit_adapter, {k}": lambda k=k: fit(kind=k).maps for k in kinds}
    return fitted | {f"condition, {kind}": partial(used, path) for kind, path in files.items()}


def _drawn() -> dict[str, Door]:
    pipe = tiny_sdxl_pipeline()
    pipe.set_progress_bar_config(disable=True)
    generate = partial(bridge.generate, model=pipe, seed=1, steps=3)

    def seen() -> Any:
        cond = bridge.condition("a red cat", model=pipe)
        with bridge.diffusion.heat_maps(pipe, cond) as heat:
            drawn = pipe(
                **cond.kwargs(), num_inference_steps=2, generator=torch.Generator().manual_seed(0)
            )
        return drawn.images, heat.of("cat"), heat.keys()

    def previewed() -> Any:
        seen: list[Any] = []

        def note(step: Any) -> None:
            seen.append((step.latents, step.images))

        return generate("a cat", on_step=note).images, seen

    def studied() -> Any:
        found = bridge.study(
            "two red apples", model=pipe, variants=["number"], seeds=(1,), steps=2,
            image_tower="emoji-1",
        )  # fmt: skip
        drawn = [(each.image, each.heat) for each in found.drawn]
        return (
            found.table,
            found.words,
            found.sets,
            found.towers,
            found.pairs,
            found.pictures,
            drawn,
        )

    return {
        "generate": lambda: generate("a (red:1.3) cat", emphasis="comfy").images,
        "generate, AND": lambda: generate("a cat AND a dog:0.7").images,
        "generate, UNet bias": lambda: generate("a [cat:dog:0.4]", emphasis="a1111").images,
        "generate, biased": lambda: (
            generate("a (red:1.3) cat", emphasis="unet_attention_bias", guidance_rescale=0.3).images
        ),
        "generate, previews": previewed,
        "heat maps": seen,
        "study": studied,
    }


def _answers() -> dict[str, Door]:
    vlm = bridge.load_vlm("emoji-llava", device="cpu")
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    options = ("a cat", "two dogs")

    def parts(name: str) -> Any:
        from bridge.vlm.projectors import build_projector

        torch.manual_seed(0)
        return build_projector(name, 32, 32, **SETTINGS.get(name, {}))

    def widths() -> Any:
        states = torch.randn(
            64, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        )
        from bridge.vlm.projectors.per_state import fit_linear_projector

        return fit_linear_projector([(states, states[:, :8] * 2)])

    return {
        "describe": partial(bridge.describe, picture, model=vlm),
        "ask": partial(vlm.answer, picture, "what is on the left?"),
        "choose": partial(vlm.choose, picture, "what is it?", options),
        "lens": partial(bridge.vlm.lens, vlm, picture),
        "rollout": partial(bridge.vlm.attention_rollout, vlm, picture, "what is it?"),
        "occlusion": partial(bridge.vlm.occlusion, vlm, picture, "what is it?", window=4, stride=4),
        "closed form": widths,
        **{
            f"projector, {name}": partial(parts, name)
            for name in ("linear", "mlp2x_gelu", "pixel_shuffle", "perceiver", "qformer",
                         "c_abstractor")
        },
    }  # fmt: skip
