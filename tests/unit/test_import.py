"""`import bridge` stays light, whatever its rooms need."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

HEAVY = {"torch", "numpy", "transformers", "diffusers", "PIL", "gradio", "huggingface_hub"}


def modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter that ran ``code``."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_import_bridge_loads_nothing_heavy() -> None:
    assert not HEAVY & modules_after("import bridge")


def test_errors_and_listing_load_nothing_heavy() -> None:
    code = "import bridge, bridge.errors\ndir(bridge)\nbridge.BridgeError"
    assert not HEAVY & modules_after(code)


def test_prompts_are_planned_without_torch() -> None:
    assert "torch" not in modules_after("import bridge.prompt")


def test_the_table_of_towers_is_read_without_torch() -> None:
    code = "from bridge.towers import towers\nfrom bridge.towers.registry import table_lines\n"
    assert "torch" not in modules_after(f"{code}assert table_lines(towers())")


# With a name of theirs where that is light; test_docs.py runs what the documents write.
REACHED = ["adapters.Adapter", "comfyui", "diffusion", "encoding.Encoder", "errors.BridgeError"]
REACHED += ["lab.vary", "lab.variants", "prompt.parse", "towers.towers", "vlm.load_image"]
REACHED += ["towers.registry.table_lines", "vlm.explain", "vlm.projectors", "vlm.hf_models"]


@pytest.mark.parametrize("name", REACHED)
def test_a_room_is_reached_after_import_bridge_alone(name: str) -> None:
    modules_after(f"import bridge\nassert bridge.{name} is not None")


def test_rooms_are_listed_before_they_load() -> None:
    code = (
        "import bridge, sys\n"
        "assert {'vlm', 'lab', 'towers', 'encoding', 'diffusion', 'prompt'} <= set(dir(bridge))"
        "\nassert 'bridge.vlm' not in sys.modules"
    )
    assert not HEAVY & modules_after(code)


@pytest.mark.parametrize("name, file", [("plan", "token_plan"), ("translate", "translation")])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_function_beside_its_file_stays_a_function(name: str, file: str, order: str) -> None:
    """`bridge.prompt.plan` is the verb, whoever imports the file that it is in, and when."""
    steps = ["import bridge.prompt." + file, f"assert callable(bridge.prompt.{name})"]
    steps = ["import bridge", *(steps if order == "before" else reversed(steps))]
    modules_after("\n".join([*steps, f"assert callable(bridge.prompt.{name})"]))


ROOMS = ["bridge.encoding", "bridge.diffusion", "bridge.lab", "bridge.prompt", "bridge.towers"]
ROOMS += ["bridge.vlm"]


@pytest.mark.parametrize("name", ["bridge", *ROOMS])
def test_public_names_are_all_listed(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, each) is not None for each in package.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_of_a_room_hides_a_public_name(room: str) -> None:
    """An imported file becomes an attribute of its room, and would stand before a function."""
    package = importlib.import_module(room)
    files = {path.stem for path in Path(str(package.__file__)).parent.iterdir()}
    assert not files & set(package.__all__)


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    """Before and after files of no room were imported, as all that is used imports some."""
    shown = "sorted({*bridge.__all__, 'adapters', 'comfyui', 'contrastive', 'diffusion', "
    shown += "'encoding', 'errors', 'lab', 'prompt', 'towers', 'vlm'})"
    code = f"import bridge\nassert dir(bridge) == {shown}, dir(bridge)\n"
    modules_after(f"{code}import bridge.files, bridge.kept, bridge.towers.registry\n{code}")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import bridge

    with pytest.raises(AttributeError, match="no attribute 'condtion'"):
        _ = bridge.condtion
