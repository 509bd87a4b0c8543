"""How fast CLIP's two sides are, beside open_clip: ``python -m benchmarks.clip_speed``.

Runs where open_clip is installed (``make parity``'s environment). The shipped CLIP's weights are
written in open_clip's layout and a ViT-B/32 is made by open_clip with random weights; both tools
open the same folders, and their logits are compared first. Pictures are PNG files of random scenes'
size; open_clip runs the loop of its own README (preprocess, stack, encode) in batches of 16 and of
64, and once more with a DataLoader of two workers, of which the fastest counts; ours has its own
default. Texts are short captions, their
tokenizing included on both sides. All are timed in turn, and a ratio is that of medians.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.results import RESULTS, Row, report, save, show
from bridge.contrastive import CLIP
from bridge.contrastive.embeddings import in_batches

# torchvision's wheel asks the CPU build of torch for operators that it does not have; open_clip
# imports torchvision and never calls them.
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    if not hasattr(torch.ops.torchvision, _schema.partition("(")[0]):
        _LIBRARY.define(_schema)

_THINGS = ("cat", "dog", "red apple", "blue car", "penguin", "key", "rose", "bicycle")
_FRAMES = ("a photo of a {}", "a {} on a table", "two {}s in the snow", "a drawing of a {}")
_BATCH = 64


def captions(count: int) -> list[str]:
    """Short captions."""
    rng = random.Random(0)
    return [rng.choice(_FRAMES).format(rng.choice(_THINGS)) for _ in range(count)]


def files(folder: Path, side: int, count: int) -> list[Path]:
    """PNG files of smooth noise, a little larger than the tower takes."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        small = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        path = folder / f"{side}-{number}.png"
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path)
        found.append(path)
    return found


# ---------------------------------------------------------------- the same weights in one layout


def shipped(folder: Path) -> Path:
    """The shipped CLIP in open_clip's layout."""
    clip = CLIP(dtype="float32", device="cpu")
    text, image = clip.text.module, clip.image.module
    state = dict(_text_state(text.state_dict())) | dict(_image_state(image.state_dict()))
    assert clip.scoring is not None
    state["logit_scale"] = torch.tensor(clip.scoring.scale, dtype=torch.float32).log()
    seen, read = image.config, text.config
    model = {
        "embed_dim": clip.width,
        "quick_gelu": seen.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": seen.image_size, "patch_size": seen.patch_size,
            "layers": seen.num_hidden_layers, "width": seen.hidden_size,
            "head_width": seen.hidden_size // seen.num_attention_heads,
            "mlp_ratio": seen.intermediate_size / seen.hidden_size,
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": read.vocab_size, "width": read.hidden_size,
            "heads": read.num_attention_heads, "layers": read.num_hidden_layers,
            "mlp_ratio": read.intermediate_size / read.hidden_size,
        },
    }  # fmt: skip
    ways = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    return _write(folder, model, ways, state, clip.text.tokenizer)


def vit_b32(folder: Path) -> Path:
    """open_clip's ViT-B/32 with random weights, and the tokenizer that open_clip brings."""
    import open_clip

    torch.manual_seed(0)
    made = open_clip.create_model("ViT-B-32")
    return _write(folder, open_clip.get_model_config("ViT-B-32"), {}, made.state_dict(), _words())


def _write(
    folder: Path, model: Mapping[str, Any], ways: Mapping[str, Any], state: Any, words: Any
) -> Path:
    folder.mkdir(parents=True)
    config = {"model_cfg": model, "preprocess_cfg": ways}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    kept = {name: each.clone().contiguous() for name, each in state.items()}
    save_file(kept, folder / "open_clip_model.safetensors")
    words.save_pretrained(folder)
    return folder


def _words() -> Any:
    """OpenAI's vocabulary, which open_clip brings, as transformers reads it."""
    import gzip

    import open_clip
    from transformers import CLIPTokenizer

    simple = open_clip.SimpleTokenizer()
    path = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {ends.get(word, word): place for word, place in simple.encoder.items()}
    return CLIPTokenizer(vocab=vocab, merges=merges)


def _text_state(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    own = {name.removeprefix("text_model."): each for name, each in state.items()}
    return [
        ("token_embedding.weight", own["embeddings.token_embedding.weight"]),
        ("positional_embedding", own["embeddings.position_embedding.weight"]),
        ("ln_final.weight", own["final_layer_norm.weight"]),
        ("ln_final.bias", own["final_layer_norm.bias"]),
        ("text_projection", own["text_projection.weight"].T),
        *_blocks(own, ""),
    ]


def _image_state(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    own = {name.removeprefix("vision_model."): each for name, each in state.items()}
    return [
        ("visual.class_embedding", own["embeddings.class_embedding"]),
        ("visual.conv1.weight", own["embeddings.patch_embedding.weight"]),
        ("visual.positional_embedding", own["embeddings.position_embedding.weight"]),
        ("visual.ln_pre.weight", own["pre_layrnorm.weight"]),
        ("visual.ln_pre.bias", own["pre_layrnorm.bias"]),
        ("visual.ln_post.weight", own["post_layernorm.weight"]),
        ("visual.ln_post.bias", own["post_layernorm.bias"]),
        ("visual.proj", own["visual_projection.weight"].T),
        *_blocks(own, "visual."),
    ]


def _blocks(own: Mapping[str, Tensor], start: str) -> list[tuple[str, Tensor]]:
    named = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
    }  # fmt: skip
    found = []
    for layer in range(sum(name.endswith("layer_norm1.weight") for name in own)):
        here, there = f"encoder.layers.{layer}.", f"{start}transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [own[f"{here}self_attn.{each}_proj.{kind}"] for each in "qkv"]
            found.append((f"{there}attn.in_proj_{kind}", torch.cat(parts)))
            found += [
                (f"{there}{new}.{kind}", own[f"{here}{old}.{kind}"]) for old, new in named.items()
            ]
    return found


# ---------------------------------------------------------------- timing


def in_turn(ways: Mapping[str, Callable[[], Any]], times: int) -> dict[str, list[float]]:
    """Seconds of each, so many times, one after the other; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 1):
        for name, run in ways.items():
            begun = time.perf_counter()
            run()
            if turn:
                taken[name].append(time.perf_counter() - begun)
    return taken


def ratio_row(name: str, theirs: Sequence[float], ours: Sequence[float]) -> Row:
    """How many times as fast we are: the ratio of medians, its interval by the bootstrap."""
    rng = np.random.default_rng(0)
    draws = [
        np.median(rng.choice(theirs, len(theirs))) / np.median(rng.choice(ours, len(ours)))
        for _ in range(2000)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    value = median(theirs) / median(ours)
    return Row(name, round(value, 2), round(float(low), 2), round(float(high), 2), len(ours), "x")


def cosine_row(name: str, cosine: float, n: int) -> Row:
    """The least cosine of ``n`` vectors with those in fp32."""
    least = round(cosine, 5)
    return Row(name, least, least, least, n, "cosine")


class Pictures(torch.utils.data.Dataset[Tensor]):
    """Files through open_clip's ``preprocess``."""

    def __init__(self, paths: Sequence[Path], preprocess: Any) -> None:
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Tensor:
        made: Tensor = self.preprocess(Image.open(self.paths[place]))
        return made


def opened(folder: Path) -> tuple[Any, Any, Any]:
    """open_clip's model, preprocess and tokenizer of a folder."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.no_grad()
def images(folder: Path, paths: list[Path], times: int, name: str) -> list[Row]:
    """Pictures a second, ours beside theirs, of one folder."""
    model, preprocess, _ = opened(folder)
    clip = CLIP(folder, device="cpu", dtype="float32")

    def looped(size: int = _BATCH) -> Tensor:
        found = []
        for some in in_batches(paths, size):
            pixels = torch.stack([preprocess(Image.open(path)) for path in some])
            found.append(model.encode_image(pixels, normalize=True))
        return torch.cat(found)

    def loaded() -> Tensor:
        loader = torch.utils.data.DataLoader(Pictures(paths, preprocess), _BATCH, num_workers=2)
        return torch.cat([model.encode_image(pixels, normalize=True) for pixels in loader])

    def ours() -> Tensor:
        return clip.encode_image(paths)

    off = float((looped() - ours()).abs().max())
    assert off < 1e-5, f"{name}: pictures differ by {off}"
    ways = {"loop": looped, "loop_16": lambda: looped(16), "loader": loaded, "ours": ours}
    taken = in_turn(ways, times)
    best = min(("loop", "loop_16", "loader"), key=lambda each: median(taken[each]))
    rows = [ratio_row(f"{name}/images", taken[best], taken["ours"])]
    for way in taken:
        rate, low, high = (
            round(len(paths) / each, 1)
            for each in (median(taken[way]), max(taken[way]), min(taken[way]))
        )
        rows.append(Row(f"{name}/images/{way}", rate, low, high, times, "1/s"))
    return rows


@torch.no_grad()
def halved(folder: Path, paths: list[Path], times: int, name: str) -> list[Row]:
    """bf16 beside fp32, both ours, once pictures are pixels."""
    exact = CLIP(folder, device="cpu", dtype="float32")
    half = CLIP(folder, device="cpu", dtype="bfloat16")
    pixels = torch.stack([exact.preprocess(path) for path in paths])
    cosine = (exact.encode_image(pixels) * half.encode_image(pixels)).sum(1).min()
    taken = in_turn(
        {"fp32": lambda: exact.encode_image(pixels), "bf16": lambda: half.encode_image(pixels)},
        times,
    )
    return [
        ratio_row(f"{name}/images/bf16", taken["fp32"], taken["bf16"]),
        cosine_row(f"{name}/images/bf16/least_cosine", float(cosine), len(paths)),
    ]


@torch.no_grad()
def texts(folder: Path, times: int, name: str) -> list[Row]:
    """A batch of short texts, and one alone in fp32 and bf16, beside open_clip's in fp32."""
    model, _, tokenizer = opened(folder)
    exact = CLIP(folder, device="cpu", dtype="float32")
    half = CLIP(folder, device="cpu", dtype="bfloat16")
    rows = []
    for label, some in (("batch_64", captions(64)), ("one", captions(1))):

        def theirs(some: list[str] = some) -> Tensor:
            found: Tensor = model.encode_text(tokenizer(some), normalize=True)
            return found

        ways = {
            "open_clip": theirs,
            "fp32": lambda some=some: exact.encode_text(some),
            "bf16": lambda some=some: half.encode_text(some),
        }
        off = float((theirs() - exact.encode_text(some)).abs().max())
        assert off < 1e-5, f"{name}: texts differ by {off}"
        taken = in_turn(ways, times)
        cosine = float((exact.encode_text(some) * half.encode_text(some)).sum(1).min())
        rows.append(ratio_row(f"{name}/{label}/fp32", taken["open_clip"], taken["fp32"]))
        rows.append(ratio_row(f"{name}/{label}/bf16", taken["open_clip"], taken["bf16"]))
        least = round(cosine, 5)
        rows.append(
            Row(f"{name}/{label}/bf16/least_cosine", least, least, least, len(some), "cosine")
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        small, base = shipped(root / "shipped"), vit_b32(root / "ViT-B-32")
        rows = images(small, files(root, 144, args.pictures), args.times, "shipped")
        show(rows)
        rows += halved(base, files(root, 256, 64), args.times, "ViT-B-32")
        rows += texts(base, args.times, "ViT-B-32")
        show(rows)
    notes = {"threads": torch.get_num_threads(), "pictures": args.pictures}
    table = report("python -m benchmarks.clip_speed", rows, "cpu", **notes)
    save(args.out / "clip-speed.json", table)


if __name__ == "__main__":
    main()
