"""From plain JSON values to dataclasses, each field checked against its annotation.

What a file's header says is text from anywhere: a number may be a list, a name a number. Read here
are int, float, str, bool, None, unions, Literal, ``tuple[T, ...]``, ``tuple[A, B]``,
``Mapping[str, T]`` and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bridge.checks import is_whole

T = TypeVar("T")
Read = Callable[[Any], Any]

# Whole numbers beyond it have no exact float, and no tensor takes them.
_MOST = 2**53


def read_as(kind: type[T], value: Any) -> T:
    """``value`` as ``kind``. Raises ValueError that says where it differs and what was wanted, such
    as ``.plans[0][1].limit must be a whole number, not '77'``."""
    hashable: Any = kind
    found: T = _reader(hashable)(value)
    return found


@cache
def _reader(kind: Any) -> Read:
    """The function that checks values of one kind; made once, as a prompt has many tokens."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if origin is Literal:
        return _literal(parts)
    if origin in (Union, types.UnionType):
        return _either(parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return _row(_reader(parts[0]))
    if origin is tuple:
        return _fixed(tuple(map(_reader, parts)))
    if origin in (Mapping, dict):
        return _mapping(_reader(parts[1]))
    raise TypeError(f"{kind} is no kind that a JSON value is read as")


def _refused(wanted: str, value: Any) -> ValueError:
    return ValueError(f" must be {wanted}, not {value!r:.60}")


# ---------------------------------------------------------------- plain values


def _whole(value: Any) -> int:
    if not is_whole(value, -_MOST, _MOST):
        raise _refused("a whole number", value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused("a number", value)
    return float(_whole(value)) if isinstance(value, int) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _refused("text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _refused("text that UTF-8 can hold", value) from error
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused("true or false", value)
    return value


def _nothing(value: Any) -> None:
    if value is not None:
        raise _refused("null", value)


_PLAIN: dict[Any, Read] = {
    int: _whole, float: _number, str: _text, bool: _flag, type(None): _nothing,
}  # fmt: skip


def _literal(choices: tuple[Any, ...]) -> Read:
    def read(value: Any) -> Any:
        if value not in choices:
            raise _refused(f"one of {', '.join(map(repr, choices))}", value)
        return value

    return read


def _either(kinds: tuple[Any, ...]) -> Read:
    readers = [_reader(kind) for kind in kinds if kind is not type(None)]
    optional = type(None) in kinds

    def read(value: Any) -> Any:
        if optional and value is None:
            return None
        for each in readers[:-1]:
            try:
                return each(value)
            except ValueError:
                continue
        return readers[-1](value)

    return read


# ---------------------------------------------------------------- what holds others


def _inside(read: Read, value: Any, place: str) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{place}{error}") from error


def _row(each: Read) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _refused("a list", value)
        return tuple(_inside(each, item, f"[{at}]") for at, item in enumerate(value))

    return read


def _fixed(parts: tuple[Read, ...]) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise _refused(f"a list of {len(parts)}", value)
        pairs = enumerate(zip(parts, value, strict=True))
        return tuple(_inside(each, item, f"[{at}]") for at, (each, item) in pairs)

    return read


def _mapping(each: Read) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refused("an object", value)
        return {_text(name): _inside(each, item, f"[{name!r:.40}]") for name, item in value.items()}

    return read


def _record(kind: Any) -> Read:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _refused("an object", value)
        strange = next((name for name in value if name not in readers), None)
        if strange is not None:
            raise ValueError(f" has {strange!r:.40}, which is not known")
        missing = next((name for name in needed if name not in value), None)
        if missing is not None:
            raise ValueError(f" lacks {missing}")
        fields = {name: _inside(readers[name], item, f".{name}") for name, item in value.items()}
        return kind(**fields)

    return read
