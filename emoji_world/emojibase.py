"""The names of the concepts in English and 27 languages, made from emojibase-data.

``python -m emoji_world.emojibase`` writes bridge/lab/variants/names.tsv.gz anew: a head with the
languages, then one concept a line, its emoji first. The names are emojibase's labels (MIT), which
are the short names of Unicode's CLDR, as they are but for one rule: what follows a comma or a
bracket goes where the rest still tells the concept from all others ("केला, फल" is "banana, fruit").
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bridge.errors import WeightsError
from bridge.files import write_whole
from bridge.lab.variants.vocabulary import LANGUAGES, NAMES_FILE
from emoji_world.concepts import CONCEPTS
from emoji_world.npm import read_package

PACKAGE = "emojibase-data@17.0.0"
_VARIATION = "\ufe0f"  # asks for colour; emojibase and our table write it at different places


def names_of(compact: bytes, language: str) -> list[str]:
    """The names of all concepts, in their order, from one language's ``compact.json``.

    Raises WeightsError for a concept without a name.
    """
    labels = {
        _plain(row["unicode"]): unicodedata.normalize("NFC", row["label"].strip())
        for row in json.loads(compact)
        if row.get("label")
    }
    missing = [c.emoji for c in CONCEPTS if _plain(c.emoji) not in labels]
    if missing:
        raise WeightsError(f"{PACKAGE} has no {language} name of {' '.join(missing)}.")
    return shortened([labels[_plain(c.emoji)] for c in CONCEPTS])


def shortened(names: Sequence[str]) -> list[str]:
    """Names up to their first comma or bracket, where that leaves them different from all."""
    heads = [re.split(r"\s*[,(]", name, maxsplit=1)[0] for name in names]
    counts = Counter(head.casefold() for head in heads)
    return [
        head if head and counts[head.casefold()] == 1 else name
        for head, name in zip(heads, names, strict=True)
    ]


def _plain(emoji: str) -> str:
    return emoji.replace(_VARIATION, "")


def write_names(path: Path) -> None:
    """Fetch emojibase-data and write the table. Raises as `read_package` and `names_of`."""
    files = read_package(PACKAGE, [f"{language}/compact.json" for language in LANGUAGES])
    columns = [names_of(file, language) for file, language in zip(files, LANGUAGES, strict=True)]
    lines = [("sign", "name", "one", "many", *LANGUAGES)]
    lines += [
        (c.emoji, c.name, c.one, c.many, *names)
        for c, names in zip(CONCEPTS, zip(*columns, strict=True), strict=True)
    ]
    table = "".join("\t".join(line) + "\n" for line in lines).encode()
    write_whole(path, gzip.compress(table, 9, mtime=0))


if __name__ == "__main__":
    write_names(NAMES_FILE)
