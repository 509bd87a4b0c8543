"""Results while another thread loads a model in half precision are those without it, bit for bit.

transformers sets torch's default dtype for the whole process while it builds a model.
`tests/unit/repository/test_dtypes.py` has the same without chance; here is the race itself.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fuzz_support import Fuzz
from support.public_doors import digest, doors
from transformers import CLIPTextConfig, CLIPTextModel

from bridge.errors import OffManifoldWarning

# Those that train take seconds each.
SLOW = ("fit_adapter", "study")


@contextmanager
def loader(folder: Path) -> Iterator[None]:
    """A thread that loads a model in bf16 again and again: of many small layers, which take far
    longer to build than to read."""
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_attention_heads=2,
        num_hidden_layers=60, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            CLIPTextModel.from_pretrained(folder, dtype=torch.bfloat16)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_results_beside_a_loading_thread(fuzz: Fuzz, tmp_path: Path) -> None:
    warnings.simplefilter("ignore", OffManifoldWarning)
    some = {n: d for n, d in doors(tmp_path).items() if not n.startswith(SLOW)}
    alone = {name: digest(door()) for name, door in some.items()}
    in_half = 0
    with fuzz("results that differ while another thread loads a model", 160) as run:
        with loader(tmp_path / "loaded"):
            for rng in run.draws():
                name = rng.choice(list(some))
                in_half += torch.get_default_dtype() is torch.bfloat16
                try:
                    run.expect(digest(some[name]()) == alone[name], name)
                except Exception as error:
                    run.fail(f"{name}: {error!r}")
        assert in_half, "the loader never set the default dtype while a result was made"
    assert torch.get_default_dtype() is torch.float32
