"""States as ComfyUI, ADV_CLIP_emb and Forge make them, from comfy.json and forge.json."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.places import DATA
from support.tool_states import sampled, settled_pipeline

import bridge


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {kind: settled_pipeline(kind) for kind in ("sd15", "flux")}


@pytest.mark.parametrize(("name", "least"), [("comfy.json", 40), ("forge.json", 30)])
@pytest.mark.filterwarnings("ignore::UserWarning")  # some weights leave the manifold
def test_states(name: str, least: int, pipes: dict[str, Any]) -> None:
    cases = json.loads((DATA / name).read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= least
    for case in cases:
        found = bridge.condition(case["prompt"], model=pipes[case["kind"]], **case["options"])
        states = found.prompt_embeds
        assert list(states.shape) == case["shape"], case
        assert sampled(states) == pytest.approx(case["states"], abs=5e-4, rel=1e-4), case
