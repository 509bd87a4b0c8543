"""What stable-diffusion-webui's own parser says of some prompts, written to tests/data/webui.json.

``PEERS=... python tests/parity/webui_vectors.py`` writes it;
``tests/unit/prompt/test_webui_vectors.py`` holds bridge to it where the peer is not there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import conftest  # noqa: E402, F401  (names torchvision operators, so that transformers imports)
import corpus  # noqa: E402
import peers  # noqa: E402
import torch  # noqa: E402
from support.places import DATA  # noqa: E402
from support.tiny_models import tiny_sd_pipeline  # noqa: E402
from webui_peer import load_webui  # noqa: E402

CALLS = 7
LONGEST = 120


def _parts(parser: Any, prompt: str) -> Any:
    (parts,), flat, indexes = parser.get_multicond_prompt_list([prompt])
    return parts, flat, indexes


def main() -> None:
    webui = load_webui(tiny_sd_pipeline("sd15").tokenizer)
    parser = webui.prompt_parser
    read = {}
    for prompt in corpus.draw("a1111", 80):
        ((index, weight), *others), flat, _ = _parts(parser, prompt)
        if others or weight != 1 or len(prompt) > LONGEST:
            continue
        first = parser.get_learned_conditioning_prompt_schedules(flat, CALLS)[index][0][1]
        read[prompt] = [[t, weight] for t, weight in parser.parse_prompt_attention(first) if t]
    drawn = {}
    for prompt in corpus.draw("scheduled", 25):
        (entries,) = parser.get_learned_conditioning_prompt_schedules([prompt], CALLS)
        known = [
            parser.ScheduledPromptConditioning(end, torch.tensor([place]))
            for place, (end, _) in enumerate(entries)
        ]
        at = [int(parser.reconstruct_cond_batch([known], call)) for call in range(CALLS)]
        drawn[prompt] = [entries[place][1] for place in at]
    written = {
        "peer": peers.CLONES["webui"].commit,
        "calls": CALLS,
        "weights": read,
        "drawn": drawn,
    }
    path = DATA / "webui.json"
    path.write_text(json.dumps(written, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
