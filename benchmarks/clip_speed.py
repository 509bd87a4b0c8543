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

import benchmarks.torchvision_names  # noqa: F401 - before open_clip imports torchvision
from benchmarks.results import RESULTS, Row, report, save, show
from bridge.contrastive import CLIP
from bridge.contrastive.embeddings import in_batches
from bridge.contrastive.train.open_clip_layout import save_open_clip

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
        small = save_open_clip(CLIP(dtype="float32", device="cpu"), root / "shipped")
        base = vit_b32(root / "ViT-B-32")
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
