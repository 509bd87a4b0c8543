"""What ComfyUI, ADV_CLIP_emb and Forge make of some prompts, written to tests/data.

``PEERS=... python tests/parity/tool_vectors.py`` writes ``comfy.json`` and ``forge.json``;
``tests/unit/encoding/test_tool_vectors.py`` holds bridge to them where the peers are not there. The
towers and vocabularies are the tests' own tiny ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import conftest  # noqa: E402, F401  (names torchvision operators, so that transformers imports)
import corpus  # noqa: E402
import peers  # noqa: E402
import torch  # noqa: E402
from comfy_peer import Comfy, load_comfy  # noqa: E402
from forge_peer import load_forge  # noqa: E402
from parity_support import plain  # noqa: E402
from support.places import DATA  # noqa: E402
from support.tool_states import sampled, settled_pipeline  # noqa: E402
from transformers import CLIPTokenizer, T5TokenizerFast  # noqa: E402

Case = dict[str, Any]

ADVANCED = (
    "a (red apple:1.4) and (two dogs:0.6)",
    "(a photo:0.5) of the (cat:1.2), (left of:0.8) (an apple in red:1.7)",
    "(red:1.3) cat, " * 26,
)
SHORT = 90
"""Characters of the corpus' prompts that are taken."""


def short(prompts: Iterator[str], count: int) -> list[str]:
    found = [each for each in prompts if len(each) < SHORT and "embedding:" not in each]
    return found[:count]


def case(kind: str, prompt: str, states: torch.Tensor, **options: object) -> Case:
    shape = list(states.shape)
    return {"kind": kind, "prompt": prompt, "options": options, "shape": shape,
            "states": sampled(states)}  # fmt: skip


def small_tokenizer(comfy: Comfy, tokenizer: Any, folder: Path, **options: Any) -> Any:
    """The peer's tokenizer over one of the tests' vocabularies."""
    tokenizer.save_pretrained(folder)
    return comfy.sd1_clip.SDTokenizer(str(folder), **options)


def small_comfy(comfy: Comfy, kind: str, pipe: Any, folder: Path) -> tuple[dict[str, Any], Any]:
    """Its tokenizers by their keys, and its encoder with the special tokens of the vocabulary."""
    first = pipe.tokenizer
    readers = {
        "l": small_tokenizer(comfy, first, folder / f"{kind}-l", tokenizer_class=CLIPTokenizer)
    }
    encoder = comfy.encoder(kind, pipe)
    start, end = first.bos_token_id, first.eos_token_id
    encoder.clip_l.special_tokens = {"start": start, "end": end, "pad": end}
    if kind == "flux":
        readers["t5xxl"] = small_tokenizer(
            comfy, pipe.tokenizer_2, folder / "t5", tokenizer_class=T5TokenizerFast,
            pad_with_end=False, has_start_token=False, pad_to_max_length=False,
            max_length=99999999, min_length=256, embedding_key="t5xxl",
        )  # fmt: skip
    return readers, encoder


def of_comfy(folder: Path) -> Iterator[Case]:
    comfy = load_comfy(adv=True)
    for kind, count in (("sd15", 14), ("flux", 8)):
        pipe = settled_pipeline(kind)
        readers, encoder = small_comfy(comfy, kind, pipe, folder)

        def read(text: str, words: bool = False, readers: dict[str, Any] = readers) -> Any:
            return {key: each.tokenize_with_weights(text, words) for key, each in readers.items()}

        for prompt in short(corpus.draw("comfy", 200), count):
            states = encoder.encode_token_weights(read(prompt))[0]
            yield case(kind, prompt, states, dialect="comfy")
        if kind == "flux":
            continue

        class Reader:
            tokenize_with_weights = staticmethod(
                lambda text, return_word_ids=False, read=read: read(text, return_word_ids)
            )

        ways = product(("comfy++", "down_weight"), ("none", "length", "length+mean"))
        for (emphasis, normalisation), prompt in product(ways, ADVANCED):
            states, _ = comfy.advanced(Reader, encoder, prompt, normalisation, emphasis)
            options = {"emphasis": emphasis, "token_normalization": normalisation}
            yield case(kind, prompt, states, dialect="comfy", **options)


def of_forge() -> Iterator[Case]:
    forge = load_forge()
    pipe = settled_pipeline("sd15")
    engine = forge.clip(pipe.tokenizer, pipe.text_encoder)
    prompts = [*short(plain("a1111", 60), 6), ADVANCED[-1]]
    ways = (("Original", "a1111"), ("No norm", "no_norm"), ("Ignore", "none"))
    for (theirs, ours), prompt in product(ways, prompts):
        forge.opts.emphasis = theirs
        yield case("sd15", prompt, engine([prompt]), emphasis=ours, align="empty")
    forge.opts.emphasis = "Original"
    for number, prompt in product((2, 3), prompts[:3]):
        engine.clip_skip = number
        yield case("sd15", prompt, engine([prompt]), clip_skip=number - 1, align="empty")
    pipe = settled_pipeline("flux")
    engine = forge.t5(pipe.tokenizer_2, pipe.text_encoder_2)
    prompts = [each for each in short(plain("a1111", 120), 20) if "BREAK" not in each]
    for prompt in [*prompts[:6], "a red cat, " * 60]:
        yield case("flux", prompt, engine([prompt]))


def write(name: str, clones: tuple[str, ...], cases: list[Case]) -> None:
    lines = ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in cases)
    commits = json.dumps({each: peers.CLONES[each].commit for each in clones})
    text = f'{{\n "peers": {commits},\n "cases": [\n  {lines}\n ]\n}}\n'
    (DATA / name).write_text(text, encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        write("comfy.json", ("comfyui", "adv_clip_emb"), [*of_comfy(Path(folder))])
        write("forge.json", ("forge",), [*of_forge()])


if __name__ == "__main__":
    main()
