"""A tower that ends early gives what the whole one gives there, and only where nobody would miss
the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from bridge.towers import Layer
from bridge.towers.clip import shortened, states_of

SIZES = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "projection_dim": 8,
    "eos_token_id": 98,
}
KINDS = ("CLIPTextModel", "CLIPTextModelWithProjection")


@pytest.fixture(params=KINDS)
def module(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, request.param)(transformers.CLIPTextConfig(**SIZES)).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    found = torch.randint(0, 98, (3, 12), generator=torch.Generator().manual_seed(1))
    found[:, 7:] = 98
    return found


def layers_run(module: Any, call: Any) -> list[int]:
    """The layers that ran, by their numbers."""
    layers = getattr(module, "text_model", module).encoder.layers
    seen: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, number=number: seen.append(number))
        for number, layer in list(enumerate(layers))[:3]
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("index", [-2, -3, -4])
@torch.no_grad()
def test_the_states_are_the_whole_towers_bit_for_bit(
    module: Any, ids: torch.Tensor, index: int
) -> None:
    norm = getattr(module, "text_model", module).final_layer_norm
    wanted = module(ids, output_hidden_states=True).hidden_states[index]
    for layer in (Layer(index, norm=False), Layer(index, norm=True)):
        cut = shortened(module, layer)
        found = states_of(module, cut, ids, layer)
        assert torch.equal(found, norm(wanted) if layer.norm else wanted)
    again = module(ids, output_hidden_states=True)
    assert len(again.hidden_states) == 5 and torch.equal(again.hidden_states[index], wanted)


@torch.no_grad()
def test_no_later_layer_runs_and_the_module_stays_as_it_was(module: Any, ids: torch.Tensor) -> None:
    layer = Layer(-3, norm=False)
    before = [id(part) for part in module.modules()]
    cut = shortened(module, layer)
    assert layers_run(module, lambda: states_of(module, cut, ids, layer)) == [0, 1]
    assert [id(part) for part in module.modules()] == before


def test_it_runs_whole_where_somebody_would_miss_the_rest(module: Any) -> None:
    text = getattr(module, "text_model", module)
    layer = Layer(-2, norm=False)
    assert shortened(module, Layer(-1)) is None
    assert shortened(module, Layer(-5)) is None  # the embeddings
    assert shortened(torch.nn.Linear(2, 2), layer) is None
    last = text.encoder.layers[-1]
    for part in (module, text, text.encoder, last, last.mlp.fc1, text.final_layer_norm):
        hook = part.register_forward_hook(lambda *_: None)
        assert shortened(module, layer) is None
        hook.remove()
    hook = text.encoder.layers[0].register_forward_hook(lambda *_: None)
    assert shortened(module, layer) is not None
    hook.remove()
    text.encoder.forward = text.encoder.forward  # as offloading's hooks have it
    assert shortened(module, layer) is None
    del text.encoder.forward
    module.compile(backend="eager")
    assert shortened(module, layer) is None
