"""What the web UI writes into its pictures, read back from text, PNG and JPEG."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from bridge.errors import ImageError
from bridge.prompt.parameters import Parameters, parse_parameters, read_parameters

TEXT = """a (red:1.3) apple,
on two lines: really
Negative prompt: ugly, [blurry]
more of it
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 1234567890, Size: 512x768, \
Model hash: abc, Clip skip: 2, Lora hashes: "one: 1a, two: 2b", Version: v1.10.1"""


def check(found: Parameters) -> None:
    assert found.prompt == "a (red:1.3) apple,\non two lines: really"
    assert found.negative_prompt == "ugly, [blurry]\nmore of it"
    assert (found.steps, found.seed, found.guidance_scale) == (20, 1234567890, 6.5)
    assert found.size == (768, 512) and found.clip_skip == 1
    assert found.settings["Sampler"] == "DPM++ 2M Karras"
    assert found.settings["Lora hashes"] == "one: 1a, two: 2b"
    assert found.settings["Version"] == "v1.10.1"


def test_the_text() -> None:
    check(parse_parameters(TEXT))


def test_clip_skip_goes_by_the_tool_and_the_model() -> None:
    def skips(version: str, number: int) -> tuple[int | None, int | None]:
        text = f"a\nSteps: 2, Seed: 1, Clip skip: {number}, Version: {version}"
        found = parse_parameters(text)
        assert found.clip_skip == found.clip_skip_for("sd15")
        assert found.clip_skip_for("sd3") == found.clip_skip_for("sdxl")
        return found.clip_skip_for("sd15"), found.clip_skip_for("sdxl")

    assert skips("v1.10.1", 2) == (1, None)
    assert skips("f2.0.1v1.10.1-previous", 2) == (1, 0)
    assert skips("f2.0.1v1.10.1-previous", 1) == (0, 0)
    assert skips("f2.0.1v1.10.1-previous", 4) == (3, 2)
    assert parse_parameters("a").clip_skip_for("sdxl") is None


def test_fields_of_newer_versions_are_kept() -> None:
    fields = {
        "Emphasis": "No norm",
        "RNG": "CPU",
        "Hires prompt": "a cat, (red:1.2)",
        "Hires negative prompt": "ugly: very",
        "TI hashes": "easy: 1a, two: 2b",
        "Lora hashes": "x: 3c",
    }
    line = ", ".join(
        f'{k}: "{v}"' if set(v) & set(",:") else f"{k}: {v}" for k, v in fields.items()
    )
    found = parse_parameters(f"a cat\nSteps: 2, Seed: 1, {line}")
    assert {name: found.settings[name] for name in fields} == fields


def test_without_a_negative_or_settings() -> None:
    assert parse_parameters("a cat") == Parameters("a cat", "", {})
    assert parse_parameters("") == Parameters("", "", {})
    # Two pairs are a prompt that has colons.
    assert parse_parameters("a: b, c: d").prompt == "a: b, c: d"
    only = parse_parameters("a cat\nSteps: 5, Seed: 1, Size: 64x64")
    assert (only.prompt, only.negative_prompt, only.steps) == ("a cat", "", 5)
    odd = parse_parameters("a cat\nSteps: five, Seed: , Size: big, CFG scale: much")
    assert (odd.steps, odd.seed, odd.size, odd.guidance_scale, odd.clip_skip) == (None,) * 5


def test_a_png(tmp_path: Path) -> None:
    note = PngImagePlugin.PngInfo()
    note.add_text("parameters", TEXT)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=note)
    check(read_parameters(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_a_user_comment(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + TEXT.encode("utf-16-be")
    Image.new("RGB", (4, 4)).save(tmp_path / f"a.{kind}", exif=exif)
    check(read_parameters(tmp_path / f"a.{kind}"))


def test_pictures_that_say_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="does not say"):
        read_parameters(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"b\.png.* is not an image"):
        read_parameters(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"c\.png"):
        read_parameters(tmp_path / "c.png")
    with pytest.raises(ImageError, match="File name too long"):
        read_parameters(tmp_path / ("n" * 300 + ".png"))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_parameters(tmp_path / "pipe.png")


def test_a_hostile_last_line_is_fast() -> None:
    parse_parameters("a: " * 50_000)
    parse_parameters('a: "' + "\\" * 50_000)
    parse_parameters("a " * 200_000 + "b")
    parse_parameters("a:" + "\t" * 200_000 + '"')


def test_numbers_that_are_none() -> None:
    nines = "9" * 5_000
    found = parse_parameters(
        f"a cat\nSteps: {nines}, Seed: -{nines}, Size: {nines}x1, CFG scale: {nines}, Clip skip: ٣"
    )
    assert (found.steps, found.seed, found.size, found.guidance_scale) == (None,) * 4
    assert found.clip_skip == 2  # digits of any script


def test_values_are_quoted_as_in_json() -> None:
    found = parse_parameters(
        'a cat\nSteps: 20, Seed: 1, Sampler: Euler, Wildcard prompt: "a face,\\nblue \\"eyes\\""'
    )
    assert found.settings["Wildcard prompt"] == 'a face,\nblue "eyes"'
