"""Opens model folders with code in every place that transformers or diffusers would run it from.

Run as a process of its own with "y" on its standard input, since that is what transformers asks
for when nobody says whether a folder's code may run:

    yes | python hostile_code.py FOLDER COUNT SEED

FOLDER is empty; of all the ways COUNT are tried, drawn by SEED. Prints JSON: ``tried``, how many
folders were opened, ``ran``, those of them whose code ran, and ``mark``, whether code that does
run is seen at all.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from support.tiny_folders import KINDS, make_all

MARK = "BRIDGE_TEST_MARK"
PLACE = "PLACE-OF-THE-FOLDER"  # in texts, until the folder is written

# Run on import, and whatever is called of it; ``number`` keeps one folder's module from being
# taken for another's.
CODE = """\
import os
with open(os.environ["BRIDGE_TEST_MARK"], "a") as stream:
    stream.write("ran {number}")
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PretrainedConfig):
    model_type = "hostile"
class Hostile(PreTrainedModel):
    config_class = Config
class Words(PreTrainedTokenizerFast):
    pass
def generate(model, **options):
    return model.generate(**options)
"""
FILES = ("code.py", "pipeline.py", "generate.py", "modeling.py", "my_part.py")

_AUTO = (
    "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForVision2Seq",
    "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor",
)  # fmt: skip
AUTO_MAP: dict[str, Any] = dict.fromkeys(_AUTO, "code.Hostile") | {
    "AutoConfig": "code.Config",
    "AutoTokenizer": ["code.Words", "code.Words"],
}
# What tells transformers a kind of its own; taken away, only the folder's code is left.
_KINDS = (
    "model_type", "architectures", "tokenizer_class", "image_processor_type",
    "feature_extractor_type", "processor_class",
)  # fmt: skip

# Ways out of Jinja's sandbox that work, or once worked, where it is not tight.
ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system(%r) }}",
    "{{ namespace.__init__.__globals__['os'].system(%r) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ lipsum.__globals__.os.system(%r) }}",
    "{%% set f = '{0.__class__.__init__.__globals__}' | attr('format') %%}{{ f(messages) }}"
    "{{ (messages | attr('__class__')).__base__.__subclasses__()[0].__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['__import__']('os').system(%r) }}",
)


# Kinds that transformers has a config for, and that AutoModel or AutoModelForCausalLM does not
# build: of a part of such a kind, it would look for code.
_UNBUILT = ("vision-encoder-decoder", "trocr", "clip_vision_model")
# Classes that load parts by what those parts' own files say.
_JOINED = ("LlavaProcessor", "CLIPProcessor", "AutoTokenizer", "LlavaForConditionalGeneration")


def places(folder: Path) -> Iterator[tuple[str, dict[Path, dict[str, Any]]]]:
    """Each way to name code in a folder: a word for it, and the files with their new values."""
    for what, path, values in in_one_file(folder):
        yield what, {path: values}
    index = folder / "model_index.json"
    named = json.loads(index.read_text()) if index.is_file() else {}
    for part in ("tokenizer", "text_encoder", "scheduler", "unet", "feature_extractor"):
        for kind in _JOINED if named else ():
            inside = {key: f"Hostile{key}" for key in _KINDS} | {"auto_map": AUTO_MAP}
            files = {
                folder / part / f"{name}config.json": inside
                for name in ("", "tokenizer_", "processor_", "preprocessor_")
            }
            yield f"{part} of {kind}", {index: {**named, part: ["transformers", kind]}, **files}


def in_one_file(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Those that need no more than one file changed."""
    # A part of a model must say where its code is.
    elsewhere = {k: v if isinstance(v, list) else f"{PLACE}--{v}" for k, v in AUTO_MAP.items()}
    for path in sorted(folder.rglob("*.json")):
        if not path.stem.endswith(("config", "index")) or path.name.endswith(".index.json"):
            continue
        found = json.loads(path.read_text())
        yield "beside its own", path, {**found, "auto_map": AUTO_MAP}
        other = {key: f"Hostile{key}" for key in _KINDS if key in found}
        other |= {"architectures": ["Hostile"]} if "architectures" in found else {}
        if other:
            yield "in its stead", path, {**found, **other, "auto_map": AUTO_MAP}
        for part in ("text_config", "vision_config", "image_processor"):
            if isinstance(found.get(part), dict):
                inner = {**found[part], "auto_map": AUTO_MAP}
                yield f"in {part}", path, {**found, part: inner}
                inner = {**inner, **{key: "hostile" for key in _KINDS if key in inner}}
                yield f"as {part}", path, {**found, part: inner}
                for kind in _UNBUILT:
                    inner = {**found[part], "model_type": kind, "auto_map": elsewhere}
                    yield f"{kind} as {part}", path, {**found, part: inner}
        if path.name == "model_index.json":
            yield "as pipeline", path, {**found, "_class_name": ["pipeline", "Hostile"]}
            for part, named in found.items():
                if isinstance(named, list):
                    for code in (["my_part", "Hostile"], ["transformers", "AutoModelForCausalLM"]):
                        yield f"{part} is {code[1]}", path, {**found, part: code}
        if path.name == "generation_config.json":
            named = {"custom_generate": str(folder)}
            yield "as custom_generate", path, {**found, **named}


def write_code(folder: Path, number: int) -> None:
    """The code under every name that is looked for, in the folder and those in it."""
    folder.mkdir(exist_ok=True)
    inside = [each for each in folder.rglob("*") if each.is_dir()]
    for place in (folder, folder / "custom_generate", *inside):
        place.mkdir(exist_ok=True)
        for name in FILES:
            (place / name).write_text(CODE.format(number=number))


@dataclass(frozen=True)
class Case:
    """One folder to open: what is hostile in it, and by which door."""

    kind: str
    door: str
    what: str
    files: dict[Path, str]  # inside the folder, and what they hold


def cases(whole: dict[str, Path], mark: Path) -> Iterator[Case]:
    for kind, good in whole.items():
        doors = KINDS[kind].doors
        for what, values in places(good):
            files = {path.relative_to(good): json.dumps(v) for path, v in values.items()}
            for door in doors:
                yield Case(kind, door, what, files)
        for number, escape in enumerate(ESCAPES):
            text = escape % f"touch {mark}" if "%r" in escape else escape.replace("%%", "%")
            for door in {"ask", "llm"} & {*doors}:
                what = f"escape {number}"
                yield Case(kind, door, what, {Path("chat_template.jinja"): text})


def leaves_a_mark(folder: Path, mark: Path) -> bool:
    """Whether the code does run where a caller wants it: else nothing here is seen."""
    write_code(folder, -1)
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "code.Config"}}')
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


def main(root: Path, count: int, seed: int) -> None:
    mark = root / "mark"
    os.environ[MARK] = str(mark)
    whole = make_all(root / "whole")
    every = list(cases(whole, mark))
    tried = random.Random(seed).sample(every, min(count, len(every)))
    ran = []
    for number, case in enumerate(tried):
        folder = root / f"folder-{number}"
        shutil.copytree(whole[case.kind], folder)
        write_code(folder, number)
        for name, text in case.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text.replace(PLACE, str(folder)))
        # How it is refused is another test's part.
        with suppress(Exception):
            KINDS[case.kind].doors[case.door](folder)
        if mark.exists():
            ran.append(f"{case.kind} by {case.door}: {case.what} {[*map(str, case.files)]}")
            mark.unlink()
        shutil.rmtree(folder)
    seen = leaves_a_mark(root / "trusted", mark)
    print(json.dumps({"tried": len(tried), "ran": ran, "mark": seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
