"""Calls that type checkers must refuse, as an editor then underlines them; nothing runs them.

mypy reads this file with the library (pyproject.toml), and an ``ignore`` that ignores nothing is an
error (`warn_unused_ignores`): a name that is a ``str`` again, or an option that is ``Any``, fails
`make lint`. The calls that are right stand beside those that are not.
"""

from __future__ import annotations

import torch

import bridge
from bridge.contrastive import evaluate
from bridge.encoding.algebra import interpolate
from bridge.prompt import LongPrompt, parse, translate
from bridge.vlm import convert


def names_of_closed_sets(cond: bridge.Conditioning, vlm: bridge.BridgeVLM) -> None:
    bridge.condition("a cat", dialect="comfy", emphasis="a1111", align="repeat", clean="ftfy")
    bridge.condition("a cat", dialect="a1112")  # type: ignore[arg-type]
    bridge.condition("a cat", emphasis="weights")  # type: ignore[arg-type]
    bridge.condition("a cat", token_normalization="lenght")  # type: ignore[arg-type]
    bridge.condition("a cat", long_prompt="cut")  # type: ignore[arg-type]
    bridge.condition("a cat", long_prompt=LongPrompt("comma", join="average"))
    bridge.condition("a cat", align="pad")  # type: ignore[arg-type]
    bridge.condition("a cat", clean="strip")  # type: ignore[arg-type]
    bridge.condition("a cat", dtype="float46")  # type: ignore[arg-type]
    bridge.condition("a cat", dtype=torch.float16)
    LongPrompt("commas")  # type: ignore[arg-type]
    LongPrompt("comma", join="sum", pooled="none", uneven="fil")  # type: ignore[arg-type]
    bridge.schedule("a cat", steps=4, rule="newer")  # type: ignore[arg-type]
    bridge.generate("a cat", dialect="a1112")  # type: ignore[arg-type]
    bridge.Encoder("sdxl", dialect="a1112")  # type: ignore[arg-type]
    bridge.Encoder("sdxl")("a cat", emphasis="weights")  # type: ignore[arg-type]
    bridge.study("a cat", variants=["case", "typo"])
    bridge.study("a cat", variants=["cases"])  # type: ignore[list-item]
    bridge.fit_adapter("clip-l", prompts=[], kind="lasso")  # type: ignore[arg-type]
    bridge.load_vlm("a", conversation="v2")  # type: ignore[arg-type]
    bridge.TrainOptions(stage=3)  # type: ignore[arg-type]
    bridge.train_vlm("a", [], "out", stage=2, lora=8, mixed_precision="no")
    bridge.train_vlm("a", [], "out", stage=3)  # type: ignore[arg-type]
    bridge.train_vlm("a", [], "out", mixed_precision="fp8")  # type: ignore[arg-type]
    bridge.train_clip("a", [], "out", mode="lora", loss="sigmoid", same_caption="mask")
    bridge.train_clip("a", [], "out", mode="adapter")  # type: ignore[arg-type]
    bridge.train_clip("a", [], "out", loss="clip")  # type: ignore[arg-type]
    bridge.train_clip("a", [], "out", same_caption="skip")  # type: ignore[arg-type]
    evaluate(bridge.CLIP(), "data", task="zero_shot")  # type: ignore[arg-type]
    vlm.choose("a.png", "what?", ["a", "b"], normalise="words")  # type: ignore[arg-type]
    interpolate(cond, cond, 0.5, method="cubic")  # type: ignore[arg-type]
    cond.interpolate(cond, 0.5, method="cubic")  # type: ignore[arg-type]
    translate(parse("a cat", "comfy"), "webui")  # type: ignore[arg-type]
    convert("a", "b", to="openai")  # type: ignore[arg-type]


def keywords_and_models() -> None:
    bridge.generate("a cat", num_inference_steps=4, generator=torch.Generator())
    bridge.generate("a cat", num_inference_step=4)  # type: ignore[call-arg]
    bridge.generate("a cat", pipeline=None)  # type: ignore[call-arg]
    bridge.train_vlm("a", [], "out", lora_rank=8)  # type: ignore[call-arg]
    bridge.train_clip("a", [], "out", learningrate=1e-4)  # type: ignore[call-arg]
    bridge.regional("a", [], prompt_2="b")  # type: ignore[call-arg]
    bridge.load_vlm(7)  # type: ignore[arg-type]
    bridge.describe("a.png", model=7)  # type: ignore[call-overload]
