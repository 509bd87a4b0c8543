"""Artwork: from an SVG to sprites, through the cache, with clear errors; no npm, no network."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_world import synthetic_sprites

from bridge.errors import BridgeError, MissingDependencyError, WeightsError
from emoji_world import art
from emoji_world.concepts import CONCEPTS, Concept
from emoji_world.scenes import SIZES, STYLES

# A red square off the middle of a large clear box, and a wide green bar through an alias.
ICONS: dict[str, Any] = {
    "icons": {
        "square": {"body": '<path fill="#ff0000" d="M8 8h40v40H8z"/>'},
        "bar": {"body": '<path fill="#00c000" d="M0 16h64v16H0z"/>', "width": 64, "height": 64},
    },
    "aliases": {"beam": {"parent": "bar"}},
    "width": 128,
    "height": 128,
}
TWO = (
    Concept("🟥", "square", "square", "squares", dict.fromkeys(STYLES, "square")),
    Concept("🟩", "beam", "beam", "beams", dict.fromkeys(STYLES, "beam")),
)


def fake_npm(folder: Path, script: str) -> None:
    """An ``npm`` of our own on the PATH: the real one would need a network."""
    npm = folder / "npm"
    npm.write_text(f"#!{sys.executable}\n{script}\n")
    npm.chmod(0o755)


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    for style in STYLES:
        (tmp_path / f"{style}.json").write_text(json.dumps(ICONS))
    return tmp_path


def test_sprites_fill_their_box_and_keep_a_clear_margin(icons: Path) -> None:
    pytest.importorskip("resvg_py")
    sprites = art.render(icons, TWO)
    for name, side in SIZES.items():
        images = sprites.images[name]
        assert images.shape == (len(STYLES), 2, side, side, 4) and images.dtype == np.uint8
        square = images[0, 0]
        assert (square[1:-1, 1:-1, 3] == 255).all()
        assert (square[1:-1, 1:-1, :3] == (255, 0, 0)).all()
        rim = np.ones((side, side), dtype=bool)
        rim[1:-1, 1:-1] = False
        assert (images[:, :, rim, 3] == 0).all()


def test_aliases_and_own_sizes_of_icons_are_followed(icons: Path) -> None:
    pytest.importorskip("resvg_py")
    beam = art.render(icons, TWO).get("noto", 1, "big")
    ink = beam[..., 3] > 128
    rows, columns = np.nonzero(ink)
    # As wide as the box, a quarter as high, and in the middle.
    assert columns.min() <= 1 and columns.max() >= 62
    assert 14 <= rows.max() - rows.min() <= 18
    assert abs((rows.max() + rows.min()) / 2 - 31.5) <= 1
    assert abs(beam[ink][:, :3].astype(int) - (0, 192, 0)).max() <= 16


def test_soft_edges_keep_their_colour(icons: Path) -> None:
    """Reduced without premultiplied alpha, an edge would darken toward the clear black."""
    pytest.importorskip("resvg_py")
    beam = art.render(icons, TWO).get("noto", 1, "small")
    edge = (beam[..., 3] > 60) & (beam[..., 3] < 200)
    if edge.any():
        assert (beam[edge][:, 1] > 170).all() and (beam[edge][:, 0] < 20).all()


def test_the_held_out_style_is_found_by_its_emoji(icons: Path) -> None:
    pytest.importorskip("resvg_py")
    heart = Concept("\u2764\ufe0f", "heart", "heart", "hearts", {})
    sprites = art.render_held_out(ICONS, {"2764": "beam"}, (heart,))
    assert sprites.styles == ("openmoji",)
    assert (sprites.get("openmoji", 0, "big") == art.render(icons, TWO).get("noto", 1, "big")).all()


def test_a_thing_that_the_held_out_style_does_not_have_is_named() -> None:
    with pytest.raises(WeightsError, match=r"@iconify-json/openmoji.*no icon of square, beam"):
        art.render_held_out(ICONS, {"2764": "beam"}, TWO)


def test_the_held_out_style_is_kept_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = {name: images[:1] for name, images in synthetic_sprites().images.items()}
    np.savez(tmp_path / f"sprites-openmoji-{len(CONCEPTS)}.npz", **made)
    assert (
        art.load_held_out_sprites(tmp_path).get("openmoji", 7, "big") == made["big"][0, 7]
    ).all()
    with pytest.raises(MissingDependencyError):  # the others are not there
        art.load_sprites(tmp_path)


def test_the_cache_is_read_and_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = synthetic_sprites()
    np.savez(tmp_path / f"sprites-{len(CONCEPTS)}.npz", **made.images)
    read = art.load_sprites(tmp_path)
    assert set(read.images) == set(SIZES)
    assert all((read.images[name] == made.images[name]).all() for name in SIZES)


def test_the_cache_folder_is_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_CACHE", str(tmp_path / "there"))
    assert art.default_cache() == tmp_path / "there"
    monkeypatch.delenv("BRIDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert art.default_cache() == tmp_path / ".cache" / "bridge"


def test_without_npm_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"npm.*Node\.js.*sprites\.npz|npm") as caught:
        art.load_sprites(tmp_path / "cache")
    assert isinstance(caught.value, BridgeError)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import sys; print('no such host', file=sys.stderr); sys.exit(1)", "no such host"),
        ("", "left no archive"),
    ],
    ids=["in its own words", "nothing left"],
)
def test_an_npm_that_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    fake_npm(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WeightsError, match=rf"npm pack .*@iconify-json/noto.*{told}"):
        art.fetch(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.json"))


def packed(data: bytes) -> bytes:
    """What ``npm pack`` leaves of a package whose icons.json is ``data``."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"<html>no archive</html>",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:20] + b"\xff" * 8 + whole[28:],
        lambda whole: whole[:-8] + bytes(8),  # the checksum, read last
    ],
    ids=["other", "cut", "overwritten", "checksum"],
)
def test_a_damaged_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    archive = tmp_path / "made.tgz"
    archive.write_bytes(damage(packed(bytes(300_000))))
    fake_npm(tmp_path, f"import shutil; shutil.copy({str(archive)!r}, 'icons.tgz')")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WeightsError, match=r"icons\.tgz.*@iconify-json/noto.*npm cache clean"):
        art.fetch(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.json"))


def test_fetch_keeps_each_packages_icons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps(ICONS).encode()
    archive = tmp_path / "made.tgz"
    archive.write_bytes(packed(data))
    log = tmp_path / "log"
    fake_npm(
        tmp_path,
        f"import shutil, sys; shutil.copy({str(archive)!r}, 'icons.tgz')\n"
        f"open({str(log)!r}, 'a').write(sys.argv[-1] + '\\n')",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cache = tmp_path / "cache"
    art.fetch(cache)
    art.fetch(cache)  # nothing left to fetch
    assert log.read_text().split() == list(art.PACKAGES.values())
    assert {p.name for p in cache.iterdir()} == {f"{style}.json" for style in STYLES}
    assert all((cache / f"{style}.json").read_bytes() == data for style in STYLES)
