"""Towers ready to run, whatever their family: texts or pictures in, states out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.checks import keywords
from bridge.errors import ImageError, OptionError, UnsupportedModelError, WeightsError
from bridge.images import is_one_image, load_image
from bridge.runtime import building, resolve_device, resolve_dtype
from bridge.towers.checkpoint import reading
from bridge.towers.families import IMAGE_FAMILIES, TEXT_FAMILIES, family_of, family_of_config
from bridge.towers.family import Parts, Scoring, TextFamily, TowerSpec
from bridge.towers.image_processor import Alpha, a_picture, to_pixels
from bridge.towers.registry import find_source, find_tokenizer
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.tokenizer import (
    TextBatch,
    TokenRule,
    check_ids,
    load_tokenizer,
    mask_of_ids,
    tokenize,
)
from bridge.towers.watch import fingerprint


class _Tower:
    """What text and image towers have in common."""

    name: str
    spec: TowerSpec
    module: Any
    scoring: Scoring | None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.module.parameters()).device

    def fingerprint(self) -> str:
        """16 hex digits that change with its weights and precision (`towers.fingerprint`)."""
        return fingerprint(self.module)

    def scores(self, text_pooled: Tensor, image_pooled: Tensor) -> Tensor:
        """Scores ``(T, I)`` as its model was trained to give them (`Scoring.scores`).

        Raises:
            OptionError: a tower of a model that has but one side.
        """
        if self.scoring is None:
            raise OptionError(
                f"{self.name} has no scale to score texts and pictures by; open a model with two "
                "sides"
            )
        return self.scoring.scores(text_pooled, image_pooled)

    def _check_layers(self, layers: Iterable[int]) -> None:
        deepest = -self.spec.layers - 1
        for layer in layers:
            if not deepest <= layer <= -1:
                raise OptionError(
                    f"layer {layer}: {self.name} has {self.spec.layers}; count from the end, -1 "
                    f"to {deepest + 1}, or {deepest} for the embeddings"
                )


@dataclass(frozen=True, eq=False)
class TextTower(_Tower):
    """A text tower with its tokenizer.

    Attributes:
        name: what it was opened by.
        family: a name of ``TEXT_FAMILIES``.
        spec: widths, layers and context.
        module: the torch module.
        tokenizer: a transformers tokenizer.
        scoring: how its model scores texts with pictures; None for a tower without image side.
        reads: how it reads texts otherwise than its family, by fields of `TokenRule`.
    """

    name: str
    family: str
    spec: TowerSpec
    module: Any
    tokenizer: Any
    scoring: Scoring | None = None
    reads: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_modules(cls, module: Any, tokenizer: Any, *, name: str | None = None) -> TextTower:
        """A tower from live modules, such as a pipeline's; they are not copied.

        Args:
            module: the text encoder.
            tokenizer: a transformers tokenizer.
            name: what the tower is called; by default the module's class.

        Raises:
            UnsupportedModelError: a module of no known family.
        """
        kind = type(module).__name__
        family = family_of_config(getattr(module, "config", None))
        describe = TEXT_FAMILIES[family].spec
        if describe is None:
            raise UnsupportedModelError(
                f"A {kind} alone is not a whole {family} tower; open its folder: open_text_tower"
            )
        return cls(name or kind, family, describe(module, name or kind), module, tokenizer)

    @property
    def feeds_cross_attention(self) -> bool:
        """Whether its token states are fit for a UNet; False for a family trained pooled only."""
        return self._family.tokens

    @property
    def rule(self) -> TokenRule:
        """How it is shown its texts: its family's rule, with what its config says."""
        return replace(self._family.rule, **self.reads)

    def tokenize(self, texts: Sequence[str]) -> TextBatch:
        """Tokenize by the family's rule of cleaning, padding and cutting; errors as `encode`."""
        return tokenize(self.tokenizer, texts, self.rule, self.spec.context)

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str] | TextBatch,
        layers: Sequence[Layer] = (Layer(),),
        attentions: bool = False,
    ) -> TextStates:
        """One forward pass over all texts.

        Args:
            texts: texts, or a batch of this tower's `tokenize`.
            layers: the layers wanted, counted from the end; ``-layers - 1`` is the embeddings.
            attentions: give the attention weights too, by eager attention (whose rounding is a
                little other than SDPA's).

        Returns:
            TextStates on the module's device, in its dtype: hidden ``(B, T, D)`` for each layer;
            pooled ``(B, P)``, projected into the space shared with pictures where the model has
            one, not normalised, or None; the batch's mask.

        Raises:
            OptionError: a layer that the tower does not have.
            PromptError: no texts.
        """
        batch = texts if isinstance(texts, TextBatch) else self.tokenize(texts)
        self._check_layers(layer.index for layer in layers)
        check_ids(int(batch.ids.max()), self.module, self.spec.source)
        ids, mask = batch.ids.to(self.device), batch.mask.to(self.device)
        if not attentions:
            return self._family.encode(self.module, ids, layers, mask, False)
        with eager_attention(self.module):
            return self._family.encode(self.module, ids, layers, mask, True)

    @torch.no_grad()
    def pool(self, texts: Sequence[str] | TextBatch | Tensor) -> Tensor:
        """The pooled states of `encode` alone, by the shortest way that the family has.

        A causal tower runs to the longest text of the batch and not to its whole context, and of
        its last layer computes the pooled rows only: the same states up to rounding.

        Args:
            texts: texts, a batch of `tokenize`, or the ids of one, ``(B, T)``.

        Returns:
            ``(B, P)`` in the module's dtype, not normalised.

        Raises:
            OptionError: a tower without a pooled state; ids of another shape or type.
            PromptError: no texts.
        """
        if isinstance(texts, Tensor):
            ids, mask = texts, mask_of_ids(texts, self.tokenizer, self.rule)
        else:
            batch = texts if isinstance(texts, TextBatch) else self.tokenize(texts)
            ids, mask = batch.ids, batch.mask
        check_ids(int(ids.max()), self.module, self.spec.source)
        ids, mask = ids.to(self.device), mask.to(self.device)
        if self._family.pool is not None:
            return self._family.pool(self.module, ids, mask)
        pooled = self._family.encode(self.module, ids, (Layer(),), mask, False).pooled
        if pooled is None:
            raise OptionError(f"{self.name} ({self.family}) has no pooled state")
        return pooled

    @property
    def _family(self) -> TextFamily:
        return TEXT_FAMILIES[self.family]


@dataclass(frozen=True, eq=False)
class ImageTower(_Tower):
    """An image tower with its image processor.

    Attributes:
        name: what it was opened by.
        family: a name of ``IMAGE_FAMILIES``.
        spec: widths, layers and context (patches, with the class token where there is one).
        module: the torch module.
        processor: a transformers image processor, on its PIL backend.
        scoring: how its model scores texts with pictures; None where it does not.
    """

    name: str
    family: str
    spec: TowerSpec
    module: Any
    processor: Any
    scoring: Scoring | None = None

    @torch.no_grad()
    def encode(
        self, images: Any, layers: Sequence[int] = (-1,), alpha: Alpha = "white"
    ) -> ImageStates:
        """One forward pass over all pictures.

        Args:
            images: a picture or several, as paths or anything that ``bridge.images.load_image``
                reads; or what the tower's processor made of them.
            layers: layers wanted of the patches, counted from the end.
            alpha: what becomes of transparency, as in `pixels`.

        Returns:
            ImageStates in the module's dtype: patches ``(B, N, D)`` for each layer, pooled
            ``(B, P)`` in the space shared with texts, not normalised, and the grid ``(h, w)``.

        Raises:
            ImageError: no pictures, or a tensor of another size.
            WeightsError: its processor makes pictures of another size.
            OptionError: a layer that the tower does not have, another ``alpha``.
        """
        self._check_layers(layers)
        return IMAGE_FAMILIES[self.family].encode(self.module, self.pixels(images, alpha), layers)

    @torch.no_grad()
    def pool(self, images: Any, alpha: Alpha = "white") -> Tensor:
        """The pooled states of `encode` alone, by the shortest way that the family has.

        Args and errors as `encode`. Raises OptionError for a tower without a pooled state.

        Returns:
            ``(B, P)`` in the module's dtype, not normalised; ``(B, Q, P)`` for BLIP-2.
        """
        family = IMAGE_FAMILIES[self.family]
        pixels = self.pixels(images, alpha)
        if family.pool is not None:
            return family.pool(self.module, pixels)
        pooled = family.encode(self.module, pixels, (-1,)).pooled
        if pooled is None:
            raise OptionError(f"{self.name} ({self.family}) shares no space with texts")
        return pooled

    def prepare(self, image: Any) -> Any:
        """One picture as its processor makes it, on the CPU: ``(3, H, W)`` float32, or a mapping
        of tensors. `together` makes a batch of several.

        Args:
            image: anything that ``bridge.images.load_image`` reads; a live picture as it is.

        Raises:
            ImageError: it cannot be read.
        """
        made = to_pixels(self.processor, [load_image(image)])
        return {k: v[0] for k, v in made.items()} if isinstance(made, dict) else made[0]

    def pixels(self, images: Any, alpha: Alpha = "white") -> Any:
        """What the module takes of a picture, of several, or of what the processor made of them:
        ``(B, 3, H, W)``, or a mapping of tensors, in its dtype and on its device.

        Args:
            images: as in `encode`.
            alpha: "white" lays a transparent picture over white, as everywhere in bridge; "drop"
                takes its alpha off, and what was transparent shows the colour that lay hidden
                there, as OpenAI's CLIP and open_clip have it.

        Raises:
            ImageError: no pictures, or a tensor of another size.
            WeightsError: its processor makes pictures of another size.
            OptionError: another ``alpha``.
        """
        given = isinstance(images, Tensor | dict)
        if given:
            found = images
        else:
            one = is_one_image(images) or not isinstance(images, Iterable)
            some = [images] if one else list(images)
            found = to_pixels(self.processor, some, alpha)
        self._check_size(found, given)
        return self._placed(found)

    def _check_size(self, pixels: Any, given: bool) -> None:
        """Refuse a tensor that a vision transformer of one size cannot take, as `pixels`."""
        config = getattr(self.module.config, "vision_config", self.module.config)
        side, patch = (getattr(config, name, None) for name in ("image_size", "patch_size"))
        if IMAGE_FAMILIES[self.family].any_size and isinstance(pixels, Tensor) and pixels.ndim == 4:
            return
        if not isinstance(pixels, Tensor) or not side or not patch:
            return  # a mapping, or a network of any size
        if pixels.ndim == 4 and tuple(pixels.shape[1:]) == (3, side, side):
            return
        if given:
            raise ImageError(
                f"the pixels are of shape {tuple(pixels.shape)}, and {self.name} takes "
                f"(B, 3, {side}, {side}); give PIL pictures, which its processor resizes"
            )
        raise WeightsError(
            f"{self.name}: its image processor makes pixels of {tuple(pixels.shape[1:])}, and the "
            f"tower takes (3, {side}, {side}); set this size in its preprocessor_config.json or "
            "processor_config.json, or fetch its files again"
        )

    def _placed(self, pixels: Any) -> Any:
        if isinstance(pixels, dict):
            return {name: self._placed(tensor) for name, tensor in pixels.items()}
        dtype = next(self.module.parameters()).dtype
        return pixels.to(self.device, dtype if pixels.is_floating_point() else None)


def together(prepared: Sequence[Any]) -> Any:
    """A batch of what `ImageTower.prepare` made of several pictures."""
    if isinstance(prepared[0], dict):
        return {name: torch.stack([each[name] for each in prepared]) for name in prepared[0]}
    return torch.stack(list(prepared))


@keywords
def open_text_tower(
    source: str | Path,
    *,
    device: Any = None,
    dtype: Any = None,
    tokenizer: str | Path | None = None,
    family: str | None = None,
    allow_pickle: bool = False,
) -> TextTower:
    """Open a text tower.

    Args:
        source: a short name of the table (`towers`, `bridge towers`), a hub id, or a folder.
        device: torch device; by default CUDA where there is one.
        dtype: by default fp32 on a CPU and for small models (`runtime.resolve_dtype`).
        tokenizer: folder or hub id of its tokenizer, where that is not beside the weights.
        family: a name of ``TEXT_FAMILIES``, for a folder that does not tell its own.
        allow_pickle: read a folder's ``.bin`` and ``.pt`` files too, tensors only.

    Raises:
        UnknownModelError: no such name or folder; the message has the nearest names.
        UnsupportedModelError: a layout that no family reads.
        WeightsError: files missing or damaged.
        HubError: the hub cannot be reached.
    """
    name, folder, family, parts, words = _load(
        TEXT_FAMILIES, source, family, device=device, dtype=dtype, allow_pickle=allow_pickle
    )
    words = find_tokenizer(tokenizer) if tokenizer is not None else words
    reader = load_tokenizer(words or folder, TEXT_FAMILIES[family].tokenizer)
    tower = TextTower(name, family, parts.spec, parts.module, reader, parts.scoring, parts.reads)
    with reading(f"{folder}: the text tower does not read its tokenizer's ids"):
        tower.encode(["a cat"])
    return tower


@keywords
def open_image_tower(
    source: str | Path,
    *,
    device: Any = None,
    dtype: Any = None,
    family: str | None = None,
    allow_pickle: bool = False,
) -> ImageTower:
    """Open an image tower; arguments and errors as `open_text_tower`."""
    name, folder, family, parts, _ = _load(
        IMAGE_FAMILIES, source, family, device=device, dtype=dtype, allow_pickle=allow_pickle
    )
    tower = ImageTower(name, family, parts.spec, parts.module, parts.processor, parts.scoring)
    with reading(f"{folder}: the image tower cannot load"):
        tower.encode(a_picture())  # its processor may be another tower's
    return tower


def _load(
    families: Mapping[str, Any], source: str | Path, family: str | None,
    *, device: Any, dtype: Any, allow_pickle: bool,
) -> tuple[str, Path, str, Parts, Path | None]:  # fmt: skip
    """A tower's name, folder, family, what is loaded of one side, and its tokenizer's folder."""
    side, other = ("text", "image") if families is TEXT_FAMILIES else ("image", "text")
    place = resolve_device(device)
    name, folder, known, words = find_source(source)
    with reading(f"{folder}: the {side} tower cannot load"):
        family = family or known or family_of(folder)
        if family not in families:
            raise OptionError(
                f"{name} ({family}) has no {side} side; open it with open_{other}_tower"
            )
        precision = resolve_dtype(dtype, place, folder)
        with building():
            parts = families[family].load(folder, precision, place, allow_pickle)
    return name, folder, family, parts, words


@contextmanager
def eager_attention(module: Any) -> Iterator[None]:
    """Every transformers model in ``module`` with eager attention, which gives its weights."""
    from transformers import PreTrainedModel

    models = [each for each in module.modules() if isinstance(each, PreTrainedModel)]
    before = [each.config._attn_implementation for each in models]
    try:
        for each in models:
            each.config._attn_implementation = "eager"
        yield
    finally:
        for each, was in zip(models, before, strict=True):
            each.config._attn_implementation = was
