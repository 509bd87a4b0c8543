"""Is plain text still answered as before? A language model alone, and inside a bridge.

    python -m benchmarks.forgetting --vlm emoji-gemma --llm gemma-270m

Plain prompts without a picture are continued greedily by the stock model, from ids, and by the
bridge, from the embeddings that it makes of the same ids. A frozen language model must give the
very tokens (``lora_off``). With the LoRA on it need not; how many prompts go on alike, and the
share of tokens before the first that differs, say how far it went from the text it came with.
Writes benchmarks/results/forgetting.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import (
    RESULTS,
    Row,
    command_of,
    commit,
    grouped_share_row,
    report,
    results_file,
    save,
    share_row,
    show,
)
from bridge.vlm import BridgeVLM, load_llm, load_vlm
from bridge.vlm.answering import n_common
from bridge.vlm.lora import without_lora

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, there was a little",
    "The three primary colours are",
    "To make a cup of tea, first",
    "The largest planet in the solar system is",
    "In 1969, the first man",
    "A cat is an animal that",
    "The recipe for pancakes needs flour,",
    "My favourite season of the year is",
    "def add(a, b):\n    return",
    "1, 2, 3, 4, 5,",
    "Dear Sir or Madam,\n",
    "The opposite of hot is",
    "Question: What is two plus two?\nAnswer:",
    "Question: Who wrote Romeo and Juliet?\nAnswer:",
    "Bonjour, je m'appelle",
    "Der schnelle braune Fuchs",
    "Breaking news: scientists have discovered",
    "The meaning of life is",
)


@torch.inference_mode()
def continued(llm: Any, tokenizer: Any, prompt: str, n: int) -> list[int]:
    """The greedy continuation of a stock model, from ids."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(llm.device)
    made = llm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        do_sample=False,
        trust_remote_code=False,
    )
    return made[0, ids.shape[1] :].tolist()


@torch.inference_mode()
def continued_inside(vlm: BridgeVLM, prompt: str, n: int) -> list[int]:
    """The greedy continuation of a bridge without a picture, from its embeddings."""
    rows = vlm.embed([vlm.tokenizer(prompt)["input_ids"]], [])
    made = vlm.llm.generate(
        inputs_embeds=rows.inputs_embeds,
        attention_mask=rows.attention_mask,
        max_new_tokens=n,
        do_sample=False,
        trust_remote_code=False,
    )
    return made[0].tolist()


def compared(name: str, stock: Sequence[list[int]], found: Sequence[list[int]]) -> list[Row]:
    """Rows ``forgetting/<name>/same_prompts`` and ``.../tokens_before_the_first_other``."""
    pairs = list(zip(stock, found, strict=True))
    # One token that differs makes all others after it differ, so prompts are what varies.
    alike = [
        [place < n_common(one, other) for place in range(max(len(one), len(other)))]
        for one, other in pairs
    ]
    return [
        share_row(f"forgetting/{name}/same_prompts", [one == other for one, other in pairs]),
        grouped_share_row(f"forgetting/{name}/tokens_before_the_first_other", alike),
    ]


def run(llm: Any, tokenizer: Any, vlm: BridgeVLM, n: int) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows, and what was said to each prompt."""
    stock = [continued(llm, tokenizer, prompt, n) for prompt in PROMPTS]
    lora_on = [continued_inside(vlm, prompt, n) for prompt in PROMPTS]
    with without_lora(vlm.llm):
        lora_off = [continued_inside(vlm, prompt, n) for prompt in PROMPTS]
    examples = [
        {
            "prompt": prompt,
            **{
                name: tokenizer.decode(ids)
                for name, ids in (("stock", one), ("lora_off", off), ("lora_on", on))
            },
        }
        for prompt, one, off, on in zip(PROMPTS, stock, lora_off, lora_on, strict=True)
    ]
    rows = compared("lora_off", stock, lora_off) + compared("lora_on", stock, lora_on)
    return rows, examples


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forgetting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--vlm", default="emoji-gemma", help="the bridge: name or folder")
    parser.add_argument("--llm", default="gemma-270m", help="its language model alone")
    parser.add_argument("--tokens", type=int, default=24, help="of each continuation, at most")
    parser.add_argument("--device", help="cpu, cuda ...; without it, CUDA if there is one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    commit()
    vlm = load_vlm(args.vlm, device=args.device)
    llm, tokenizer = load_llm(args.llm, device=args.device, dtype=vlm.llm.dtype)
    rows, examples = run(llm, tokenizer, vlm, args.tokens)
    show(rows)
    command = command_of(parser, args, ("vlm", "llm", "tokens"))
    which = ((args.vlm, "emoji-gemma"), (args.llm, "gemma-270m"))
    path = results_file(args.out, "forgetting.json", *which)
    save(path, report(command, rows, vlm.device, examples=examples))


if __name__ == "__main__":
    main()
