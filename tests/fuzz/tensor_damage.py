"""A safetensors file, damaged: bytes, header, metadata, names, shapes, dtypes, numbers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fuzz_support import damage_bytes

Header = dict[str, Any]
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3",
          "F8_E5M2", "F8_E8M0", "F4", "C64", "U64", "U32", "U16", "X", "")  # fmt: skip
SIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
         "I16": 2, "U16": 2}  # fmt: skip
WRONG: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -1e308, float("nan"), float("inf"), "", "1",
    "text_encoder", "<b>", "\ud800", "é" * 3, [], {}, [1], [None], {"a": 1}, ["x"] * 3, [[[]]],
)  # fmt: skip


def damaged(rng: random.Random, data: bytes) -> bytes:
    """One of all ways, for a file that is whole."""
    if rng.random() < 0.25:
        return damage_bytes(rng, data)
    header, body = unpacked(data)
    body = rng.choice(WAYS)(rng, header, body)
    # What is damaged already need not bear more.
    with suppress(
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
    ):
        if rng.random() < 0.3:
            body = rng.choice(WAYS)(rng, header, body)
    return packed(header, body)


def damaged_json(rng: random.Random, text: str) -> str:
    """A JSON text in which one or two values are of another kind, or a name is another."""
    kind = rng.randrange(12)
    if kind == 0:
        depth = rng.choice((50, 2_000, 100_000))
        return "[" * depth + "]" * depth
    if kind == 1:
        return damage_bytes(rng, text.encode()).decode("utf-8", "replace")
    value = json.loads(text)
    if kind == 2:
        return json.dumps(rng.choice(WRONG))
    for _ in range(rng.choice((1, 1, 2))):
        change_one(rng, value)
    return json.dumps(value)


def change_one(rng: random.Random, value: Any) -> None:
    """Change one value or name somewhere inside a JSON value."""
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = at[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.85:
            at = inner
            continue
        break
    kind = rng.randrange(4)
    if kind == 0:
        del at[key]
    elif kind == 1 and isinstance(at, dict):
        at[renamed(rng, key)] = at.pop(key)
    elif kind == 1:
        at.append(inner)
    elif isinstance(inner, int | float) and not isinstance(inner, bool) and kind == 2:
        at[key] = inner + rng.choice((-1, 1, 0.5, 1e300, -(10**6)))
    else:
        at[key] = rng.choice(WRONG)


def renamed(rng: random.Random, name: str) -> str:
    at = rng.randrange(len(name) + 1)
    added = rng.choice(("", "9", "99999999", "9" * 5_000, ".", "_", "é", "٣", "\0", "lora_", "x"))
    return name[:at] + added + name[at + rng.randrange(3) :]


# ---------------------------------------------------------------- the parts of a file


def unpacked(data: bytes) -> tuple[Header, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def packed(header: Header, body: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"] or [""]


def of_metadata(rng: random.Random, header: Header, body: bytes) -> bytes:
    texts = header.get("__metadata__")
    if not texts or rng.random() < 0.1:
        header["__metadata__"] = rng.choice((*WRONG, {"a": "b"}))
        return body
    if isinstance(texts, dict):
        key = rng.choice(list(texts))
        if isinstance(texts[key], str) and texts[key].startswith(("{", "[")):
            texts[key] = damaged_json(rng, texts[key])
        else:
            texts[key] = str(rng.choice(WRONG)).replace("\ud800", "?")
    return body


def of_entry(rng: random.Random, header: Header, body: bytes) -> bytes:
    """A shape, dtype or offset that is wrong by itself."""
    entry = header.get(rng.choice(names(header)))
    if isinstance(entry, dict) and entry:
        change_one(rng, entry)
    return body


def of_kind(rng: random.Random, header: Header, body: bytes) -> bytes:
    """Another dtype for the same bytes; the last dimension makes up for it."""
    entry = header.get(rng.choice(names(header)))
    if isinstance(entry, dict) and isinstance(entry.get("shape"), list) and entry["shape"]:
        new = rng.choice(DTYPES)
        total = SIZES.get(entry.get("dtype", ""), 1) * int(entry["shape"][-1] or 0)
        entry["dtype"], entry["shape"][-1] = new, total // SIZES.get(new, 1)
    return body


def of_shape(rng: random.Random, header: Header, body: bytes) -> bytes:
    """Another shape of as many numbers: flat, turned, with dimensions of 1."""
    entry = header.get(rng.choice(names(header)))
    if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
        shape = entry["shape"]
        total = 1
        for side in shape:
            total *= side if isinstance(side, int) else 1
        entry["shape"] = rng.choice(
            ([total], shape[::-1], [1, *shape], [*shape, 1], [total, 1], [1, total], [1, 1, total])
        )
    return body


def of_name(rng: random.Random, header: Header, body: bytes) -> bytes:
    name = rng.choice(names(header))
    if name in header:
        new = rng.choice((renamed(rng, name), rng.choice(names(header)), name.upper()))
        header[new] = header.pop(name)
    return body


def of_numbers(rng: random.Random, header: Header, body: bytes) -> bytes:
    """NaN, infinities and enormous numbers in a tensor of float32, or noise."""
    entry = header.get(rng.choice(names(header)))
    if not isinstance(entry, dict) or not isinstance(entry.get("data_offsets"), list):
        return body
    start, end = (entry["data_offsets"] + [0, 0])[:2]
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start + 4 <= end <= len(body)):
        return body
    at = start + 4 * rng.randrange((end - start) // 4)
    number = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e30, 0.0))
    return body[:at] + struct.pack("<f", number) + body[at + 4 :]


def without_one(rng: random.Random, header: Header, body: bytes) -> bytes:
    """A tensor is gone, its bytes too."""
    name = rng.choice(names(header))
    entry = header.get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("data_offsets"), list):
        return body
    start, end = entry["data_offsets"]
    if not (isinstance(start, int) and isinstance(end, int)):
        return body
    del header[name]
    for other in header.values():
        offsets = other.get("data_offsets") if isinstance(other, dict) else None
        if isinstance(offsets, list) and all(isinstance(at, int) for at in offsets):
            other["data_offsets"] = [at - (end - start) * (at >= end) for at in offsets]
    return body[:start] + body[end:]


WAYS: tuple[Callable[[random.Random, Header, bytes], bytes], ...] = (
    of_metadata, of_metadata, of_entry, of_kind, of_shape, of_name, of_numbers, without_one,
)  # fmt: skip
