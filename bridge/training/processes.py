"""One process or several, and in which precision: what accelerate says of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from bridge.errors import OptionError
from bridge.runtime import has_bf16


@contextmanager
def accelerator_of(device: torch.device, mixed_precision: str | None) -> Iterator[Any]:
    """An `Accelerator` for the processes that this program was launched as.

    accelerate's device is plain "cuda", whichever GPU is current; a single process has ``device``
    as its current one inside the block. Of several, each has the GPU of its rank.

    accelerate keeps its state for the whole process; if it was ours alone it is put away after
    the block, so that the next run may choose another precision. Raises OptionError when what is
    left of an `Accelerator` made elsewhere contradicts this one.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    if mixed_precision is None:
        mixed_precision = "bf16" if device.type == "cuda" and has_bf16() else "no"
    ours = not PartialState._shared_state
    try:
        # The trainers cut their batches themselves; what `accelerate launch` is told of
        # accumulation would divide each loss.
        whole = GradientAccumulationPlugin(num_steps=1)
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=mixed_precision,
            gradient_accumulation_plugin=whole,
        )
    except ValueError as error:
        raise OptionError(f"accelerate cannot run so here: {error}") from error
    alone = accelerator.num_processes == 1
    named = alone and device.type == "cuda" and device.index is not None
    try:
        with torch.cuda.device(device) if named else nullcontext():
            yield accelerator
    finally:
        if ours and alone:
            AcceleratorState._reset_state(reset_partial_state=True)
