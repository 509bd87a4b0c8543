"""How long prompts take to become a conditioning, beside diffusers and compel.

    python -m benchmarks.encode_speed

Text towers of the sizes of SD 1.5 (CLIP ViT-L/14) and SDXL (with OpenCLIP bigG/14) with random
weights, in fp16 on CUDA and fp32 on a CPU; the other parts of the pipelines are small, since
nobody draws. Each prompt has a negative; on a CPU torch has one thread, unless told otherwise. All
sides are timed in turn, and what they give is compared: diffusers' ``encode_prompt``, compel,
``bridge.Encoder`` without its cache. On the shipped model the bare towers run beside them, on ids
that are ready, and an encoder that knows the prompt. Results go to encode-speed.json, on CUDA to
encode-speed-cuda.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

import bridge
from benchmarks.results import RESULTS, Row, command_of, commit, median_row, report, save, show
from benchmarks.speed import seconds
from bridge.embedded import DRAWING
from bridge.runtime import resolve_device
from bridge.store import resolve

_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
_HEADS = 64  # width of an attention head in both
_IN_A_ROW = 10  # calls of an encoder that knows the prompt, which are too short to time alone
_PROMPTS = ("two red apples left of a cat", "a photo of the dog on a green background")


def _tower(kind: Any, tokenizer: CLIPTokenizer, sizes: dict[str, int], act: str) -> Any:
    width = sizes["hidden_size"]
    config = CLIPTextConfig(
        **sizes,
        vocab_size=49408,
        num_attention_heads=width // _HEADS,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config).eval()


def _unet(width: int, **others: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
        **others,
    )


def sd15() -> StableDiffusionPipeline:
    """SD 1.5's text tower in an else small pipeline."""
    tokenizer = CLIPTokenizer.from_pretrained(
        resolve("emoji-xl") / "tokenizer", trust_remote_code=False
    )
    return StableDiffusionPipeline(
        vae=AutoencoderTiny(),
        text_encoder=_tower(CLIPTextModel, tokenizer, _L, "quick_gelu"),
        tokenizer=tokenizer,
        unet=_unet(_L["hidden_size"]),
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """SDXL's text towers in an else small pipeline."""
    folder = resolve("emoji-xl")
    first, second = (
        CLIPTokenizer.from_pretrained(folder / f"tokenizer{n}", trust_remote_code=False)
        for n in ("", "_2")
    )
    return StableDiffusionXLPipeline(
        vae=AutoencoderTiny(),
        text_encoder=_tower(CLIPTextModel, first, _L, "quick_gelu"),
        text_encoder_2=_tower(CLIPTextModelWithProjection, second, _BIG_G, "gelu"),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet(
            _L["hidden_size"] + _BIG_G["hidden_size"],
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=_BIG_G["hidden_size"] + 6 * 256,
        ),
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


Encoded = tuple[torch.Tensor, torch.Tensor]
"""Token states of the prompts and of the negatives."""


def sides(pipe: Any, prompts: list[str], negatives: list[str]) -> dict[str, Callable[[], Encoded]]:
    """The peers, each from texts to states."""
    from compel import Compel, ReturnedEmbeddingsType

    encoder = bridge.Encoder(pipe, cache=0)

    def ours() -> Encoded:
        made = encoder(prompts, negatives)
        assert made.negative_prompt_embeds is not None
        return made.prompt_embeds, made.negative_prompt_embeds

    def diffusers() -> Encoded:
        made = pipe.encode_prompt(
            prompt=prompts,
            negative_prompt=negatives,
            device=pipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
        return made[0], made[1]

    if isinstance(pipe, StableDiffusionXLPipeline):
        two = Compel(
            tokenizer=[pipe.tokenizer, pipe.tokenizer_2],
            text_encoder=[pipe.text_encoder, pipe.text_encoder_2],
            returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            requires_pooled=[False, True],
            device=str(pipe.device),
        )

        def compel() -> Encoded:
            return two(prompts)[0], two(negatives)[0]

    else:
        one = Compel(
            tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, device=str(pipe.device)
        )

        def compel() -> Encoded:
            return one(prompts), one(negatives)

    return {"bridge": ours, "diffusers": diffusers, "compel": compel}


def measure(name: str, pipe: Any, size: int, repeats: int) -> list[Row]:
    """Milliseconds of every side for ``size`` prompts, and bridge's share of each peer's.

    Raises AssertionError unless the states agree: in fp32 to a hundredth of their spread, in fp16
    to a twentieth, since one batch of prompts and negatives is rounded otherwise than two.
    """
    prompts = [f"{_PROMPTS[i % len(_PROMPTS)]}, number {i}" for i in range(size)]
    negatives = [f"blurry, number {i}" for i in range(size)]
    made = sides(pipe, prompts, negatives)

    def timed(action: Callable[[], Encoded]) -> float:
        def done() -> None:
            action()
            _wait(pipe.device)

        _wait(pipe.device)
        return 1000 * seconds(done)

    apart = 0.01 if pipe.dtype == torch.float32 else 0.05
    with torch.inference_mode():
        given = {side: [part.float() for part in action()] for side, action in made.items()}
        for side, parts in given.items():
            for ours, theirs in zip(given["bridge"], parts, strict=True):
                assert (ours - theirs).abs().max() < apart * ours.std(), (name, side)
        rounds = [
            {side: timed(action) for side, action in made.items()} for _ in range(repeats + 2)
        ][2:]
    rows = []
    for side in made:
        rows.append(median_row(f"{name}/{size}/{side}", [r[side] for r in rounds], "ms"))
    for side in ("diffusers", "compel"):
        shares = [r["bridge"] / r[side] for r in rounds]
        rows.append(median_row(f"{name}/{size}/bridge_over_{side}", shares, "x"))
    return rows


def measure_shipped(device: torch.device, repeats: int) -> list[Row]:
    """Milliseconds for a prompt and a negative on the shipped model, and what bridge takes beside
    the bare towers: the median of differences, round by round."""
    pipe = bridge.load_pipeline(DRAWING, device=device)
    prompt, negative = _PROMPTS[0], "blurry"
    made: dict[str, Callable[[], object]] = {**sides(pipe, [prompt], [negative])}
    knowing = bridge.Encoder(pipe)
    made["known"] = lambda: [knowing(prompt, negative) for _ in range(_IN_A_ROW)]
    found = knowing(prompt, negative)
    towers = (pipe.text_encoder, pipe.text_encoder_2)
    ids = [
        torch.tensor(
            [plans[at].windows[0].ids for plans in found.plans + found.negative_plans],
            dtype=torch.long,
        )
        for at in range(len(towers))
    ]

    def bare() -> object:
        return [
            tower(own.to(device), output_hidden_states=True)
            for tower, own in zip(towers, ids, strict=True)
        ]

    made["bare_towers"] = bare

    def timed(action: Callable[[], object]) -> float:
        def done() -> None:
            action()
            _wait(device)

        _wait(device)
        return 1000 * seconds(done)

    with torch.no_grad():
        rounds = [
            {side: timed(action) for side, action in made.items()} for _ in range(repeats + 5)
        ][5:]
    for each in rounds:
        each["known"] /= _IN_A_ROW
    rows = [median_row(f"shipped/{side}", [r[side] for r in rounds], "ms") for side in made]
    beside = [r["bridge"] - r["bare_towers"] for r in rounds]
    return [*rows, median_row("shipped/bridge_beside_bare_towers", beside, "ms")]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.encode_speed")
    parser.add_argument("--device", help="cpu, cuda ...; without it, CUDA if there is one")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8], help="prompts at once")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shipped", type=int, default=50, help="rounds on the shipped model")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    commit()
    device = resolve_device(args.device)
    on_cuda = device.type == "cuda"
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: list[Row] = measure_shipped(device, args.shipped)
    for name, build in (("sd15", sd15), ("sdxl", sdxl)):
        pipe = build().to(device, torch.float16 if on_cuda else torch.float32)
        for size in args.sizes:
            rows += measure(f"encode/{name}", pipe, size, args.repeats)
    show(rows)
    command = command_of(parser, args, ("sizes", "repeats", "shipped"))
    file = "encode-speed-cuda.json" if on_cuda else "encode-speed.json"
    save(args.out / file, report(command, rows, device, what="prompts with negatives"))


if __name__ == "__main__":
    main()
