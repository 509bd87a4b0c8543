"""What the peers' own functions clean odd texts to, written to tests/data/cleaned.json.

``PEERS=... python tests/parity/write_cleaned.py`` in the environment of ``make parity`` writes it;
``tests/unit/test_cleaning.py`` holds bridge to it where the peers are not there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import conftest  # noqa: E402, F401  (names torchvision operators, so that open_clip imports)
import corpus  # noqa: E402
from open_clip.tokenizer import get_clean_fn  # noqa: E402
from support.places import DATA  # noqa: E402

# As CLIPTokenizer._tokenize of transformers 4.30.2 begins.
OLD = """
import ftfy, json, sys
from transformers.models.clip.tokenization_clip import whitespace_clean
texts = json.load(sys.stdin)
print(json.dumps([whitespace_clean(ftfy.fix_text(text)).lower() for text in texts]))
"""


def main() -> None:
    texts = [*corpus.ODD, *corpus.draw("odd", 40)]
    python = Path(sys.prefix) / "webui" / "bin" / "python"
    old = subprocess.run(
        [python, "-c", OLD], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    found = {"ftfy": json.loads(old.stdout)}
    for how in ("whitespace", "lower", "canonicalize"):
        found[how] = [*map(get_clean_fn(how), texts)]
    written = {"peers": ["transformers 4.30.2", "open_clip 3.3.0"], "texts": texts, **found}
    path = DATA / "cleaned.json"
    path.write_text(json.dumps(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
