"""Damaged JSON in a model folder is one error that names the file, never a traceback or a hang."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fuzz_support import Fuzz, damage_bytes

from bridge.errors import WeightsError
from bridge.files import read_json

GOOD = json.dumps({"a": [1, 2.5, None, {"b": "c"}], "d": {"e": True}, "f": "ä"}).encode()


def test_damaged_json(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with fuzz("damaged JSON files", 300) as run:
        for rng in run.draws():
            path.write_bytes(damage_bytes(rng, GOOD))
            with run.within(5):
                try:
                    run.expect(isinstance(read_json(path), dict), "not an object")
                except WeightsError as error:
                    run.expect(str(path) in str(error), f"the file is not named: {error}")
                except Exception as error:
                    run.fail(repr(error))


def test_files_that_never_end(fuzz: Fuzz, tmp_path: Path) -> None:
    fifo, deep, long = tmp_path / "fifo", tmp_path / "deep.json", tmp_path / "long.json"
    os.mkfifo(fifo)
    deep.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    long.write_text('{"a": ' + "9" * 5_000 + "}")
    paths = [fifo, deep, long, Path("/dev/zero"), Path(tmp_path / ("n" * 5_000)), tmp_path / "a\0b"]
    with fuzz("damaged JSON files", 1) as run:
        for _ in run.draws():
            for path in paths:
                with run.within(20):
                    try:
                        read_json(path)
                        run.fail(f"{path} was read")
                    except WeightsError:
                        pass
