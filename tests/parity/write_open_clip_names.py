"""open_clip's names of its published models, written to bridge/towers/open_clip_names.json.

``python tests/parity/write_open_clip_names.py`` in the environment of ``make parity``; the parity
test of open_clip's names holds the file to the installed open_clip.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import conftest  # noqa: E402, F401  (names torchvision operators, so that open_clip imports)
from open_clip.pretrained import _PRETRAINED  # noqa: E402
from support.places import ROOT  # noqa: E402

NAMES = ROOT / "bridge" / "towers" / "open_clip_names.json"


def repositories() -> dict[str, dict[str, str]]:
    """Model name -> tag -> ``owner/name`` on the hub."""
    return {
        model: {tag: "/".join(told["hf_hub"].split("/")[:2]) for tag, told in tags.items()}
        for model, tags in _PRETRAINED.items()
    }


if __name__ == "__main__":
    NAMES.write_text(json.dumps(repositories(), indent=1) + "\n", encoding="utf-8")
