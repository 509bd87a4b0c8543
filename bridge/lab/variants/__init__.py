"""Phrasings of a prompt, by named operations; ``OPERATIONS`` is the table."""

from bridge.lab.variants.operations import (
    OPERATIONS,
    USUAL,
    check_operations,
    original,
    own,
    read_variants,
    vary,
)
from bridge.lab.variants.variant import ORIGINAL, Operation, Settings, Variant

__all__ = [
    "OPERATIONS",
    "ORIGINAL",
    "USUAL",
    "Operation",
    "Settings",
    "Variant",
    "check_operations",
    "original",
    "own",
    "read_variants",
    "vary",
]
