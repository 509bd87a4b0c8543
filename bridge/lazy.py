"""Public names of a package that load on first use (PEP 562).

A package imports its public names in an ``if TYPE_CHECKING:`` block, which type checkers and
readers see, and gives that block to `lazy_imports`: the names are listed once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_imports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, by its TYPE_CHECKING block.

    ``from package import room`` in the block makes a submodule an attribute without an import of
    its own; it is not in ``__all__``. ``dir()`` shows these and those, and no file that happens to
    be imported.
    """
    homes, rooms = {}, []
    for module, name in _type_checked(Path(str(sys.modules[package].__file__))):
        if module == package:
            rooms.append(name)
        else:
            homes[name] = module

    def load(name: str) -> Any:
        if name in homes:
            return getattr(import_module(homes[name]), name)
        if name in rooms:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*homes, *rooms})

    return load, names, sorted(homes)


def _type_checked(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import under ``if TYPE_CHECKING:``."""
    import ast

    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                assert isinstance(each, ast.ImportFrom) and each.module
                yield from ((each.module, alias.name) for alias in each.names)
