"""From a tower's short name, hub id or folder to a local folder."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from bridge.errors import UnknownModelError
from bridge.store import DEFAULT_PATTERNS, EMBEDDED, resolve
from bridge.towers.registry import ROWS, find_row


def find_source(source: str | Path) -> tuple[str, Path, str | None]:
    """A tower's name, its folder, and its family where the table says it.

    Raises UnknownModelError with the nearest names, HubError, WeightsError.
    """
    row = find_row(source) if isinstance(source, str) else None
    if row is not None:
        patterns = None if row.source in EMBEDDED else (*DEFAULT_PATTERNS, *row.files)
        return row.name, resolve(row.source, allow_patterns=patterns), row.family
    try:
        return str(source), resolve(source), None
    except UnknownModelError as error:
        near = get_close_matches(str(source).lower(), [each.name for each in ROWS], n=3)
        if not near:
            raise UnknownModelError(f"{error} Towers by name: `bridge towers`.") from error
        names = " or ".join(map(repr, near))
        raise UnknownModelError(
            f"No tower {str(source)!r}: did you mean {names}? All names: `bridge towers`; or give "
            "a folder or a hub id such as 'owner/name'."
        ) from error
