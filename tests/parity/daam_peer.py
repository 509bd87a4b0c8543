"""DAAM's own tracing of cross-attention, run as it is.

It imports spaCy for the grammar of a prompt, which no test here asks for; a name is enough.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from peers import clone, on_path


def load_daam() -> ModuleType:
    """The package ``daam``. Skips (or fails) where its clone is missing."""
    folder = clone("daam")
    for name, values in (("spacy", {}), ("spacy.tokens", {"Token": object})):
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(values)
    vars(sys.modules["spacy"])["tokens"] = sys.modules["spacy.tokens"]
    with on_path(folder):
        return importlib.import_module("daam")
