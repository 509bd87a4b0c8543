"""Training data of each layout gives the same rows, and bad data one clear error."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bridge.errors import DataError, MissingDependencyError
from bridge.training.records import read_records

COLOURS = {"red": (220, 30, 30), "blue": (20, 40, 210), "green": (30, 200, 40)}


def png(colour: str) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (12, 8), COLOURS[colour]).save(made, "png")
    return made.getvalue()


def add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def write_shard(path: Path, colours: list[str], start: int = 0) -> Path:
    with tarfile.open(path, "w") as shard:
        for number, colour in enumerate(colours, start=start):
            add(shard, f"part/{number:04}.png", png(colour))
            add(shard, f"part/{number:04}.txt", f"a {colour} picture".encode())
            add(shard, f"part/{number:04}.json", json.dumps({"likes": number}).encode())
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    for colour in COLOURS:
        (path / f"{colour}.png").write_bytes(png(colour))
    return path


def table(path: Path, name: str, separator: str, column: str = "file_name") -> Path:
    with (folder(path) / name).open("w", newline="") as stream:
        rows = csv.writer(stream, delimiter=separator)
        rows.writerows([(column, "text"), *((f"{c}.png", f"a {c} picture") for c in COLOURS)])
    return path / name


def make(kind: str, root: Path) -> Any:
    """The three rows in one layout."""
    if kind == "csv":
        return table(root / "data", "rows.csv", ",")
    if kind == "tsv, as open_clip":
        return table(root / "data", "rows.tsv", "\t", "filepath")
    if kind == "folder with a table":
        return table(root / "data", "captions.csv", ",").parent
    if kind == "folder with texts":
        for colour in COLOURS:
            place = root / "data" if (root / "data").exists() else folder(root / "data")
            (place / f"{colour}.txt").write_text(f"a {colour} picture\n")
        return root / "data"
    if kind == "a shard":
        return write_shard(root / "rows.tar", [*COLOURS])
    if kind == "folder of shards":
        write_shard(root / "rows-000.tar", [*COLOURS][:2])
        return write_shard(root / "rows-001.tar", [*COLOURS][2:], start=2).parent
    if kind == "counted shards":
        write_shard(root / "rows-009.tar", [*COLOURS][:2])
        write_shard(root / "rows-010.tar", [*COLOURS][2:])
        return root / "rows-{009..010}.tar"
    if kind == "rows":
        return [
            {"image": Image.new("RGB", (12, 8), rgb), "text": f"a {colour} picture"}
            for colour, rgb in COLOURS.items()
        ]
    return ({"image": png(colour), "text": f"a {colour} picture"} for colour in COLOURS)


@pytest.mark.parametrize(
    "kind",
    [
        "csv",
        "tsv, as open_clip",
        "folder with a table",
        "folder with texts",
        "a shard",
        "folder of shards",
        "counted shards",
        "rows",
        "a generator",
    ],
)
def test_every_layout_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    rows = read_records(make(kind, tmp_path))
    found = {
        row.fields["text"].strip(): (row.pictures[0].size, row.pictures[0].load().getpixel((3, 3)))
        for row in rows
    }
    assert found == {f"a {c} picture": ((8, 12), rgb) for c, rgb in COLOURS.items()}
    assert len({row.where for row in rows}) == 3
    assert len({row.pictures[0].key() for row in rows}) == 3


def test_a_shards_json_gives_fields(tmp_path: Path) -> None:
    rows = read_records(write_shard(tmp_path / "rows.tar", [*COLOURS]))
    assert [row.fields["likes"] for row in rows] == [0, 1, 2]
    assert rows[1].where == f"{tmp_path / 'rows.tar'}, part/0001"


def test_a_shards_members_stand_before_what_its_json_says(tmp_path: Path) -> None:
    told = json.dumps({"image": "https://a.b/c.png", "text": "an address", "likes": 3}).encode()
    for names in (("1.json", "1.png", "1.txt"), ("1.png", "1.txt", "1.json")):
        data = {"1.json": told, "1.png": png("red"), "1.txt": b"a red picture"}
        with tarfile.open(tmp_path / "rows.tar", "w") as shard:
            for name in names:
                add(shard, name, data[name])
        (row,) = read_records(tmp_path / "rows.tar")
        assert (row.fields["text"], row.fields["likes"]) == ("a red picture", 3)
        assert row.pictures[0].load().getpixel((0, 0)) == COLOURS["red"]


@pytest.mark.parametrize("damage", ["header", "zeros", "cut", "joined"])
def test_a_shard_that_is_damaged_in_the_middle_loses_no_row_in_silence(
    damage: str, tmp_path: Path
) -> None:
    place = write_shard(tmp_path / "rows.tar", [*COLOURS] * 2)
    with tarfile.open(place) as shard:
        start = shard.getmembers()[9].offset
    data = bytearray(place.read_bytes())
    if damage == "cut":
        del data[start + 100 :]
    elif damage == "joined":
        start = shard.offset
        data = data * 2
    else:
        data[start : start + 512] = (b"\xff" if damage == "header" else b"\0") * 512
    place.write_bytes(data)
    with pytest.raises(DataError, match=rf"rows\.tar is damaged at byte {start}: "):
        read_records(place)


def test_parquet_without_pyarrow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        read_records(tmp_path / "rows.parquet")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    packed = [{"bytes": png(colour), "path": None} for colour in COLOURS]
    texts = [f"a {colour} picture" for colour in COLOURS]
    parquet.write_table(arrow.table({"image": packed, "text": texts}), tmp_path / "rows.parquet")
    rows = read_records(tmp_path / "rows.parquet")
    assert [row.fields["text"] for row in rows] == texts
    assert [row.pictures[0].load().getpixel((0, 0)) for row in rows] == [*COLOURS.values()]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="as Parquet"):
        read_records(tmp_path / "bad.parquet")


def test_unreadable_pictures_are_left_out_where_that_is_asked(tmp_path: Path) -> None:
    place = table(tmp_path / "data", "rows.csv", ",")
    (tmp_path / "data" / "blue.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"row 2: "):
        read_records(place)
    told: list[tuple[str, str]] = []
    rows = read_records(place, skipped=lambda where, why: told.append((where, why)))
    assert [row.fields["text"] for row in rows] == ["a red picture", "a green picture"]
    ((where, why),) = told
    assert where == f"{place}, row 2" and "blue.png" in why


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("red.png,a red, round apple\nblue.png,b", r"row 1 has more cells .* with ',' in it"),
        ('red.png,one\nblue.png,"two\ngreen.png,three', r"row 2 cannot be read: unexpected end"),
        ('red.png,"one\nblue.png,a 5" disc\ngreen.png,three', "row 1 cannot be read: .* expected"),
        (f"red.png,{'x' * 200_000}", "row 1 cannot be read: field larger"),
    ],
)
def test_a_table_that_would_be_read_as_another_is_told(
    lines: str, message: str, tmp_path: Path
) -> None:
    place = folder(tmp_path / "data") / "rows.csv"
    place.write_text(f"file_name,text\n{lines}\n")
    with pytest.raises(DataError, match=message):
        read_records(place)
    place.write_text('file_name,text,\nred.png,"a red, ""round"" apple",,\n')
    assert read_records(place)[0].fields["text"] == 'a red, "round" apple'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.tar", b"no shard" * 200, "uncompressed .tar"),
        ("rows-{3..1}.tar", None, "does not count up"),
        ("rows-{1..3}.tar", None, r"no such shard .*rows-1\.tar"),
        ("rows.bin", b"x", r"give \.json, \.jsonl, \.csv, \.tsv, \.parquet or \.tar, or a folder"),
        ("none.csv", None, "no such file or folder"),
    ],
)
def test_bad_data_is_told(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / name)
