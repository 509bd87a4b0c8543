"""What tests of the encoding room share: what diffusers encodes, and passes counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bridge
from bridge.prompt import TruncationWarning

TOLERANCE = 1e-5

LONG = "two red apples left of a cat " * 20

NAMES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


def expected_of(pipe: Any, prompt: Any, negative: Any, clip_skip: int | None, **more: Any) -> dict:
    """``encode_prompt``, with its negatives broadcast as bridge does."""
    if hasattr(pipe, "text_encoder_2"):
        out = pipe.encode_prompt(prompt, negative_prompt=negative, clip_skip=clip_skip, **more)
        found = dict(zip(NAMES, out, strict=True))
        return found
    if isinstance(negative, str) and isinstance(prompt, list):
        # StableDiffusionPipeline refuses one string for several prompts.
        negative = [negative] * len(prompt)
    with old_layout(pipe.text_encoder):
        out = pipe.encode_prompt(
            prompt, "cpu", 1, True, negative_prompt=negative, clip_skip=clip_skip
        )
    return dict(zip(NAMES[:2], out, strict=True))


@contextmanager
def old_layout(encoder: Any) -> Iterator[None]:
    """Let diffusers 0.42 find ``text_encoder.text_model``, which transformers 5 has dissolved.

    With ``clip_skip`` its Stable Diffusion pipelines ask for that attribute and fail without it.
    """
    if hasattr(encoder, "text_model"):
        yield
        return
    # Around nn.Module's registry: a module that is its own child could not be walked.
    object.__setattr__(encoder, "text_model", encoder)
    try:
        yield
    finally:
        object.__delattr__(encoder, "text_model")


@contextmanager
def count_passes(towers: list[Any]) -> Iterator[list[int]]:
    """Count forward passes of each tower, of which nothing is known before."""
    bridge.release()
    counts = [0] * len(towers)

    def hook(index: int) -> Any:
        def count(*_: Any) -> None:
            counts[index] += 1

        return count

    handles = [tower.register_forward_hook(hook(i)) for i, tower in enumerate(towers)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        yield
