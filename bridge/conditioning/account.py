"""The account of what was brought along: which textual inversions and LoRAs took part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class AddOn:
    """The account of one textual inversion or LoRA that took part.

    Attributes:
        kind: ``"textual inversion"`` or ``"lora"``.
        name: the word, or the LoRA's name.
        source: its file.
        hash: the first 16 hex digits of the file's sha256.
        towers: the towers that it acts in.
        strengths: of a LoRA, one for each prompt.
        unet_strengths: what the prompts ask of its UNet part; the pipeline's business.
        unused: keys of its tensors that are not for text towers; the pipeline's business too.
    """

    kind: str
    name: str
    source: str
    hash: str
    towers: tuple[str, ...]
    strengths: tuple[float, ...] = ()
    unet_strengths: tuple[float, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its key among a conditioning's fingerprints."""
        return f"{self.kind} {self.name}"

    def take(self, rows: Sequence[int], count: int) -> AddOn:
        """The account for the prompts at ``rows`` of ``count``; it may have one for several."""

        def of(strengths: tuple[float, ...]) -> tuple[float, ...]:
            return taken(strengths, rows, count)

        return replace(self, strengths=of(self.strengths), unet_strengths=of(self.unet_strengths))

    def text(self) -> str:
        """One line."""
        line = f"{self.label} ({self.source}, {self.hash})"
        if self.kind == "lora":
            line += f" at {_shown(self.strengths)}"
        line += f": in {', '.join(self.towers) or 'no text tower'}"
        if self.unused:
            line += (
                f"; {len(self.unused)} tensors are for the pipeline (load_lora_weights) at "
                f"{_shown(self.unet_strengths)}: {self.unused[0]} …"
            )
        return line

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def taken(accounts: tuple[Any, ...], rows: Sequence[int], count: int) -> tuple[Any, ...]:
    """The accounts of ``rows`` of ``count`` rows, where each may stand for several rows in turn:
    repeating a prompt leaves one account for all of its rows."""
    each = count // max(1, len(accounts))
    return tuple(accounts[row // each] for row in rows) if accounts else ()


def _shown(strengths: Sequence[float]) -> str:
    """``0.8``, or one for each prompt where they differ."""
    distinct = dict.fromkeys(f"{value:.4g}" for value in strengths)
    return ", ".join(distinct if len(distinct) == 1 else (f"{value:.4g}" for value in strengths))
