"""What packages ask for on this machine, by their own metadata and by pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.places import ROOT


def project() -> dict[str, Any]:
    """The table ``project`` of pyproject.toml as it is now; what is installed may be older."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def closure(*extras: str) -> frozenset[str]:
    """The names of all that bridge installs with these extras, and without any, of its core."""
    return frozenset().union(*(_asked_by("bridge", extra) for extra in ("", *extras))) - {"bridge"}


@cache
def _asked_by(name: str, extra: str) -> frozenset[str]:
    return frozenset(_asked(_requires(name), extra))


def _asked(wishes: Iterable[Requirement], extra: str) -> Iterator[str]:
    for wish in wishes:
        if wish.marker is None or wish.marker.evaluate({"extra": extra}):
            name = canonicalize_name(wish.name)
            yield name
            for own in {"", *wish.extras}:
                yield from _asked_by(name, own)


def _requires(name: str) -> list[Requirement]:
    if name != "bridge":
        return [Requirement(each) for each in metadata.requires(name) or []]
    told = project()
    found = [Requirement(each) for each in told["dependencies"]]
    for extra, wishes in told["optional-dependencies"].items():
        for each in map(Requirement, wishes):
            assert each.marker is None
            found.append(Requirement(f"{each}; extra == {extra!r}"))
    return found
