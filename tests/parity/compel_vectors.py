"""What compel says of some prompts, written to tests/data/compel.json: texts and weights by its
parser (null where it raises an error), ids by its ``CompelForSD``, some states by that and
``CompelForSDXL``.

``python tests/parity/compel_vectors.py`` writes it;
``tests/unit/encoding/test_compel_vectors.py`` holds bridge to it where the peer is not there.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import conftest  # noqa: E402, F401  (names torchvision operators, so that transformers imports)
import corpus  # noqa: E402
import pyparsing  # noqa: E402
import torch  # noqa: E402
from compel import CompelForSD, CompelForSDXL  # noqa: E402
from compel.prompt_parser import PromptParser  # noqa: E402
from compel_peer import read_by_compel  # noqa: E402
from support.places import DATA  # noqa: E402
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline  # noqa: E402

LONGEST = 100
ENCODED = (
    "a (red cat)1.3 of the dog--",
    '("a cat++", "two apples, ' + "a dog, " * 40 + '").and()',
    '("a cat", "a (red dog)0.5").blend(0.7, 0.3)',
    "a cat.swap(dog) in a house",
)


def _some(states: Any) -> Any:
    """A few of a row's numbers: places 0, 5, 30 and the last, three of each."""
    return [[round(x, 6) for x in states[0, at, :3].tolist()] for at in (0, 5, 30, -1)]


@torch.no_grad()
def main() -> None:
    pyparsing.ParserElement.enable_packrat(None)
    parser = PromptParser()
    read: dict[str, Any] = {}
    for prompt in corpus.draw("compel", 100):
        if len(prompt) <= LONGEST:
            try:
                read[prompt] = read_by_compel(parser, prompt)
            except Exception:  # of many kinds
                read[prompt] = None
    sd, sdxl = CompelForSD(tiny_sd_pipeline("sd15")), CompelForSDXL(tiny_sdxl_pipeline())
    encoded = {}
    for prompt in ENCODED:
        one, two = (each(prompt, negative_prompt="a dog") for each in (sd, sdxl))
        assert one.negative_embeds is not None and two.pooled_embeds is not None
        encoded[prompt] = {
            "length": one.embeds.shape[1],
            "sd15": _some(one.embeds),
            "negative": _some(one.negative_embeds),
            "sdxl": _some(two.embeds),
            "pooled": [round(x, 6) for x in two.pooled_embeds[0, :6].tolist()],
        }
    weighed = ENCODED[0]
    ids = sd(weighed).tokenization_info["main_positive"][0].flatten().tolist()
    written = {
        "peer": f"compel {importlib.metadata.version('compel')}",
        "read": read,
        "ids": {weighed: ids},
        "encoded": encoded,
    }
    path = DATA / "compel.json"
    path.write_text(json.dumps(written, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
