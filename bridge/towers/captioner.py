"""`open_captioner`: a CoCa that says what is in a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.errors import OptionError, UnsupportedModelError
from bridge.runtime import building, resolve_device, resolve_dtype
from bridge.towers.beam_search import beam_search
from bridge.towers.coca import (
    FAMILY,
    TEXT,
    encode_text,
    image_parts,
    picture_tokens,
    text_parts,
)
from bridge.towers.coca_decoder import CoCaDecoder, load_decoder
from bridge.towers.families import family_of
from bridge.towers.foreign import reading
from bridge.towers.image_tower import ImageTower
from bridge.towers.open_clip_files import read_files
from bridge.towers.source import find_source, find_tokenizer
from bridge.towers.states import Layer
from bridge.towers.text_tower import TextTower
from bridge.towers.tokenizer import load_tokenizer


@dataclass(frozen=True, eq=False)
class Captioner:
    """Both sides of a CoCa and its caption decoder.

    Attributes:
        text: the text tower, whose states before its last norm the decoder reads.
        image: the image tower, whose queries give the decoder a picture's tokens.
        decoder: the torch module.
    """

    text: TextTower
    image: ImageTower
    decoder: CoCaDecoder

    def caption(
        self,
        images: Any,
        *,
        num_beams: int = 6,
        min_new_tokens: int = 4,
        max_new_tokens: int = 30,
    ) -> list[str]:
        """What is in each picture.

        Args:
            images: a PIL picture, several, or what the image tower's processor made of them.
            num_beams: beams of the search, 1 for greedy. open_clip's default is as many, in
                groups that repel each other; these are plain ones, scored by mean log-probability.
            min_new_tokens: how many tokens a caption has at least, as open_clip's default.
            max_new_tokens: how many it has at most; a longer one is cut.

        Raises:
            ImageError: no pictures.
            OptionError: a number out of range.
        """
        for name, value, low, high in (
            ("num_beams", num_beams, 1, len(self.text.tokenizer)),
            ("max_new_tokens", max_new_tokens, 1, self.text.spec.context - 1),
            ("min_new_tokens", min_new_tokens, 0, max_new_tokens),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise OptionError(f"{name} is {value!r}; give a whole number from {low} to {high}")
        words = self.text.tokenizer
        captions = []
        for picture in self.picture_tokens(images).split(1):
            ids = beam_search(
                partial(self._next, picture),
                words.bos_token_id,
                words.eos_token_id,
                beams=num_beams,
                least=min_new_tokens,
                most=max_new_tokens,
                device=self.text.device,
            )
            captions.append(words.decode(ids, skip_special_tokens=True).strip())
        return captions

    @torch.no_grad()
    def picture_tokens(self, images: Any) -> Tensor:
        """What the decoder is shown of each picture: ``(B, Q - 1, D)`` in the model's dtype."""
        return picture_tokens(self.image.module, self.image.pixels(images))

    @torch.no_grad()
    def logits(self, picture: Tensor, ids: Tensor) -> Tensor:
        """Logits of the next token after each place, ``(B, T, V)``.

        Args:
            picture: rows of `picture_tokens`, ``(B, Q - 1, D)``.
            ids: ``(B, T)`` long, beginning with the tokenizer's ``bos_token_id``.
        """
        states = encode_text(self.text.module, ids, None, (Layer(-1, norm=False),))
        found: Tensor = self.decoder(picture, states.hidden[0])
        return found

    def _next(self, picture: Tensor, ids: Tensor) -> Tensor:
        rows = picture.expand(len(ids), -1, -1)
        return self.logits(rows, ids)[:, -1].float().log_softmax(-1)


def open_captioner(
    source: str | Path = "coca-l",
    *,
    device: Any = None,
    dtype: Any = None,
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
) -> Captioner:
    """Open a CoCa in open_clip's layout; arguments and errors as `open_text_tower`.

    Raises UnsupportedModelError for a model of another family, or without its caption decoder.
    """
    place = resolve_device(device)
    name, folder, known, words = find_source(source)
    with reading(f"{folder}: the captioner cannot load"), building():
        family = known or family_of(folder)
        if family != FAMILY:
            raise UnsupportedModelError(
                f"{name} ({family}) writes no captions; give a CoCa, such as 'coca-l', or ask a "
                "VLM: bridge.describe"
            )
        precision = resolve_dtype(dtype, place, folder)
        files = read_files(folder, allow_pickle)  # once: it has all three parts
        said = text_parts(files, precision, place)
        seen = image_parts(files, precision, place)
        decoder = load_decoder(files, precision, place)
    words = find_tokenizer(tokenizer) if tokenizer is not None else words
    reader = load_tokenizer(words or folder, TEXT.tokenizer)
    return Captioner(
        TextTower(name, FAMILY, said.spec, said.module, reader, said.scoring),
        ImageTower(name, FAMILY, seen.spec, seen.module, seen.processor, seen.scoring),
        decoder,
    )
