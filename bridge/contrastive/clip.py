"""CLIP as an object: both towers of one shared space, and what they say of each other.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision";
Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", where each pair is judged by
itself. The names of methods and checkpoints are open_clip's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bridge.checks import keywords
from bridge.contrastive.classifier import (
    Classifier,
    HeadChoice,
    Labels,
    build_classifier,
    read_wordings,
)
from bridge.contrastive.embeddings import (
    Embeddings,
    PictureBatch,
    Unreadable,
    check_batch_size,
    in_batches,
    read_ahead,
    side_by_side,
    unit,
)
from bridge.contrastive.head import Head, own_head
from bridge.contrastive.templates import TemplateSet
from bridge.embedded import IMAGE_TOWER
from bridge.errors import ImageError, OptionError, PromptError
from bridge.images import is_one_image
from bridge.progress import OnProgress, Progress, unwatched
from bridge.runtime import Dtype
from bridge.towers.family import Scoring, cosines
from bridge.towers.registry import find_row
from bridge.towers.tower import (
    ImageTower,
    TextTower,
    open_image_tower,
    open_text_tower,
    together,
)
from bridge.towers.watch import watched

# Texts are sorted by length within so many batches, so that a long one holds up few short ones.
_SORTED = 16
_KEPT = 8  # classifiers
_ON_CPU, _ELSEWHERE = 8, 64  # pictures a pass

Vectors = Tensor
"""``(N, P)`` embeddings in the shared space."""


@keywords
class CLIP:
    """Both towers of one shared space.

    ::

        clip = bridge.CLIP("openclip-b32")
        probabilities = clip.probabilities(clip.encode_image("cat.png"), clip.encode_text(labels))

    It owns its towers until `close`; it is a context manager too.

    Attributes:
        text, image: the towers, ``bridge.towers.TextTower`` and ``ImageTower``.
        scoring: the learned scale and bias; None for towers that were not trained to score.
        head: the linear head for names that the model ships (`bridge.contrastive.head`), or None.

    Args:
        model: a short name of `bridge towers`, a folder, a hub id, or one of open_clip's names with
            its tag, ``ViT-B-32/laion2b_s34b_b79k``.
        text: another text tower for the same space, by name, folder or open: a multilingual one
            beside the images of the CLIP that it was taught by.
        image: another image tower, likewise.
        device, dtype, allow_pickle: as in ``bridge.towers.open_text_tower``.

    Raises:
        OptionError: a model of one side, for which the error names what it can be paired with;
            towers whose pooled states are not equally wide.
        UnknownModelError, UnsupportedModelError, WeightsError, HubError: as
            ``bridge.towers.open_text_tower``.
    """

    def __init__(
        self,
        model: str | PathLike[str] = IMAGE_TOWER,
        *,
        text: str | PathLike[str] | TextTower | None = None,
        image: str | PathLike[str] | ImageTower | None = None,
        device: torch.device | str | None = None,
        dtype: Dtype | None = None,
        allow_pickle: bool = False,
    ) -> None:
        options = {"device": device, "dtype": dtype, "allow_pickle": allow_pickle}
        towers = _open_towers(model, text, image, options)
        self._towers: tuple[TextTower, ImageTower] | None = towers
        self.scoring: Scoring | None = towers[1].scoring or towers[0].scoring
        # A text tower that was taught another's space lies near it and may have a head of its own.
        heads = (own_head(tower.spec.source, self.width) for tower in towers)
        self.head: Head | None = next(filter(None, heads), None)
        self._classifiers: OrderedDict[Any, Classifier] = OrderedDict()

    # ------------------------------------------------------------ towers

    @property
    def text(self) -> TextTower:
        """The text tower. Raises OptionError after `close`."""
        return self._open()[0]

    @property
    def image(self) -> ImageTower:
        """The image tower. Raises OptionError after `close`."""
        return self._open()[1]

    @property
    def name(self) -> str:
        """What its towers were opened by."""
        text, image = self._open()
        return image.name if text.name == image.name else f"{text.name} + {image.name}"

    @property
    def device(self) -> torch.device:
        """Where its towers are."""
        return self.image.device

    @property
    def width(self) -> int:
        """The width P of the shared space."""
        return self.image.spec.pooled_width

    def to(self, device: torch.device | str | None = None, dtype: Dtype | None = None) -> CLIP:
        """Move both towers, or cast them; gives the CLIP itself. Raises OptionError."""
        from bridge.runtime import check_dtype, resolve_device

        place = None if device is None else resolve_device(device)
        precision = check_dtype(dtype)
        for tower in self._open():
            tower.module.to(device=place, dtype=precision)
        return self

    def close(self) -> None:
        """Let go of both towers; what is asked afterwards is an OptionError."""
        self._towers = None
        self._classifiers.clear()

    def __enter__(self) -> CLIP:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "CLIP(closed)" if self._towers is None else f"CLIP({self.name}, width {self.width})"

    def _open(self) -> tuple[TextTower, ImageTower]:
        if self._towers is None:
            raise OptionError("this CLIP is closed; make another with bridge.CLIP(...)")
        return self._towers

    # ------------------------------------------------------------ into the shared space

    def tokenizer(self, texts: str | Sequence[str]) -> Tensor:
        """Ids as the text tower takes them, as open_clip's ``get_tokenizer`` gives them.

        Returns:
            int64 ``(N, T)`` on the CPU, filled up to the context where the family fills.

        Raises:
            PromptError: not texts, or none.
        """
        return self.text.tokenize([texts] if isinstance(texts, str) else texts).ids

    def preprocess(self, image: Any) -> Any:
        """One picture as the image tower takes it, as open_clip's ``preprocess`` gives it.

        Args:
            image: a path, bytes, an array or a PIL picture.

        Returns:
            ``(3, H, W)``; for a tower of free shapes, a mapping of such tensors.

        Raises:
            ImageError: it is not a readable picture.
        """
        return self.image.prepare(image)

    def encode_text(
        self,
        texts: str | Iterable[str] | Tensor,
        *,
        normalize: bool = True,
        batch_size: int = 64,
        on_progress: OnProgress = unwatched,
    ) -> Vectors:
        """Texts in the shared space.

        Only the pooled states are computed. A causal tower runs to the longest text of a batch and
        not to its whole context: nothing behind a text's end changes its state.

        Args:
            texts: one, several, or `tokenizer`'s ids.
            normalize: give them length 1 (open_clip's ``encode_text`` has False as its default).
            batch_size: texts a pass.
            on_progress: told after each batch; ``bridge.progress.ProgressLine`` shows it.

        Returns:
            float32 ``(N, P)`` on the tower's device.

        Raises:
            PromptError: not texts, or none.
        """
        size = check_batch_size(batch_size)
        if isinstance(texts, Tensor):
            pooled = self.text.pool(texts)
            return unit(pooled) if normalize else pooled.float()
        given = [texts] if isinstance(texts, str) else texts
        if not isinstance(given, Iterable):
            raise PromptError(f"texts is {texts!r}; give one text or several")
        total = len(given) if isinstance(given, Sequence) else None
        parts = []
        done = 0
        for some in in_batches(given, size * _SORTED):
            order = sorted(range(len(some)), key=lambda place: _length(some[place]))
            found: list[Tensor] = []
            for places in in_batches(order, size):
                found.append(self.text.pool([some[place] for place in places]).float())
                done += len(places)
                on_progress(Progress("texts", done, total, "texts"))
            back = torch.empty(len(order), dtype=torch.long)
            back[order] = torch.arange(len(order), dtype=torch.long)
            parts.append(torch.cat(found)[back.to(found[0].device)])
        if not parts:
            raise PromptError("texts is empty; give one text at least")
        pooled = torch.cat(parts)
        return unit(pooled) if normalize else pooled

    def encode_image(
        self,
        images: Any,
        *,
        normalize: bool = True,
        batch_size: int | None = None,
        on_progress: OnProgress = unwatched,
    ) -> Vectors:
        """Pictures in the shared space; any that cannot be read is an error (`embed_images` skips).

        Args:
            images: one picture or path, several, or what `preprocess` made of them, ``(N, 3, H,
                W)``.
            normalize: give them length 1 (open_clip's ``encode_image`` has False as its default).
            batch_size: pictures a pass; by default 8 on a CPU, whose cores take a pass each, and 64
                elsewhere.
            on_progress: told after each batch.

        Returns:
            float32 ``(N, P)`` on the tower's device; ``(N, Q, P)`` for BLIP-2.

        Raises:
            ImageError: a picture that cannot be read; none.
        """
        size = self._batch(batch_size)
        if isinstance(images, Tensor | dict):
            pooled = self.image.pool(images)
            return unit(pooled) if normalize else pooled.float()
        found: list[Tensor] = []
        for batch in self._read(images, size, on_progress):
            for each in batch.unreadable:
                raise ImageError(f"images[{each.place}]: {each.why}")
            if batch.vectors is not None:
                found.append(batch.vectors)
        if not found:
            raise ImageError("images is empty; give one picture at least")
        pooled = torch.cat(found)
        return unit(pooled) if normalize else pooled

    def embed_images(
        self,
        images: Iterable[Any],
        *,
        batch_size: int | None = None,
        on_progress: OnProgress = unwatched,
    ) -> Embeddings:
        """Any number of pictures into vectors; one that cannot be read is left out and listed.

        Pictures are read in threads ahead of the tower, two batches at most, and on a CPU a batch a
        core, so that memory stays bounded whatever their number; a generator is read as it is
        needed.

        Args:
            images: paths or pictures.
            batch_size: pictures a pass; by default 8 on a CPU, whose cores take a pass each, and 64
                elsewhere.
            on_progress: told after each batch, with the number of unreadable ones.

        Returns:
            Embeddings of length 1 on the CPU, with names and what was left out.

        Raises:
            ImageError: none of them can be read; none were given.
        """
        vectors: list[Tensor] = []
        places: list[int] = []
        names: list[str] = []
        unreadable: list[Unreadable] = []
        for batch in self._read(images, self._batch(batch_size), on_progress):
            unreadable += batch.unreadable
            places += batch.places
            names += batch.names
            if batch.vectors is not None:
                vectors.append(unit(batch.vectors).cpu())
        if not vectors:
            if not unreadable:
                raise ImageError("images is empty; give one picture at least")
            raise ImageError(
                f"none of the {len(unreadable)} pictures can be read; the first: "
                f"{unreadable[0].why}"
            )
        return Embeddings(torch.cat(vectors), tuple(places), tuple(names), tuple(unreadable))

    def _read(self, images: Any, size: int, on_progress: OnProgress) -> Iterator[PictureBatch]:
        given = [images] if is_one_image(images) else images
        if not isinstance(given, Iterable):
            raise ImageError(f"images is {images!r}; give one picture or several")
        total = len(given) if isinstance(given, Sequence) else None
        tower = self.image
        if tower.device.type == "cpu" and (total is None or total > size):
            threads = torch.get_num_threads()
            batches = side_by_side(given, tower.prepare, self._pool, size, threads)
        else:
            batches = read_ahead(given, tower.prepare, self._pool, size)
        left_out = 0
        for batch in batches:
            yield batch
            left_out += len(batch.unreadable)
            figures = f"{left_out} unreadable" if left_out else ""
            on_progress(Progress("pictures", batch.done, total, "pictures", figures))

    def _batch(self, batch_size: int | None) -> int:
        if batch_size is not None:
            return check_batch_size(batch_size)
        return _ON_CPU if self.device.type == "cpu" else _ELSEWHERE

    def _pool(self, prepared: Sequence[Any]) -> Tensor:
        return self.image.pool(together(prepared)).float()

    # ------------------------------------------------------------ comparing

    def similarity(self, images: Vectors, texts: Vectors) -> Tensor:
        """Plain cosines ``(I, T)`` of every picture with every text.

        Args:
            images: ``(I, P)`` of `encode_image`, or ``(I, Q, P)``, of which the best query counts
                (BLIP-2, Li et al. 2023, section 3.2); normalised or not.
            texts: ``(T, P)`` of `encode_text`, likewise.

        Raises:
            OptionError: they are not equally wide.
        """
        return cosines(texts.to(images.device), images).T

    def scores(self, images: Vectors, texts: Vectors) -> Tensor:
        """Logits ``(I, T)``: the cosine times the learned scale, plus the learned bias.

        Args and errors as `similarity`. Raises OptionError too for towers without a scale.
        """
        return self._scoring().scores(texts.to(images.device), images).T

    def probabilities(self, images: Vectors, texts: Vectors) -> Tensor:
        """``(I, T)`` as the model was trained: a softmax over the texts, each row summing to 1, or
        for SigLIP a sigmoid of each pair alone. Args and errors as `scores`."""
        return self._scoring().probabilities(texts.to(images.device), images).T

    def classifier(
        self,
        labels: Labels,
        templates: TemplateSet | str | Sequence[str] | None = None,
        *,
        head: HeadChoice = "own",
    ) -> Classifier:
        """A zero-shot classifier over names, its weights built once and kept for the next call.

        Args:
            labels: names; or each name with its wording, or several, which are averaged.
            templates: a set of ``bridge.contrastive.TEMPLATES`` ("name", "photo", "clip-7",
                "clip-80"), or sentences of your own with ``{}`` for the name. Default: those of the
                head; without one OpenAI's 7.
            head: "own" takes the linear head that a model ships beside its weights, if it does;
                None leaves plain cosines; or one of ``bridge.contrastive.fit_head``.

        Raises:
            OptionError: no labels, one twice or without letters; a template without a place for
                the name; another head.
        """
        wordings = read_wordings(self, labels, templates, head)
        key = (wordings, watched(self.text.module).look())
        found = self._classifiers.get(key)
        if found is None:
            found = build_classifier(self, wordings)
            self._classifiers[key] = found
            if len(self._classifiers) > _KEPT:
                self._classifiers.popitem(last=False)
        return found

    def _scoring(self) -> Scoring:
        if self.scoring is None:
            raise OptionError(
                f"{self.name} has no scale to score texts and pictures by; similarity(...) gives "
                "plain cosines"
            )
        return self.scoring


def _open_towers(
    model: Any, text: Any, image: Any, options: dict[str, Any]
) -> tuple[TextTower, ImageTower]:
    """Both towers; what is open already stays as it is."""
    _check_sides(model, text, image)
    if not isinstance(image, ImageTower):
        image = open_image_tower(model if image is None else image, **options)
    if not isinstance(text, TextTower):
        text = open_text_tower(model if text is None else text, **options)
    wide = {text.name: text.spec.pooled_width, image.name: image.spec.pooled_width}
    if len(set(wide.values())) > 1 or 0 in wide.values():
        told = " and ".join(f"{name} {width}" for name, width in wide.items())
        raise OptionError(
            f"the shared space is {told} wide; give two towers that were trained for one space"
        )
    return text, image


def _check_sides(model: Any, text: Any, image: Any) -> None:
    """Refuse a name of the table that lacks a side, before anything is opened."""
    row = find_row(model) if isinstance(model, str) else None
    if row is None:
        return
    if image is None and not row.patch:
        if row.partner:
            raise OptionError(
                f"{row.name} has no image side; it shares {row.partner}'s space: "
                f"bridge.CLIP({row.partner!r}, text={row.name!r})"
            )
        raise OptionError(f"{row.name} has no image side; `bridge towers` lists models with both")
    if text is None and not row.text_width:
        raise OptionError(f"{row.name} has no text side; `bridge towers` lists models with both")


def _length(text: Any) -> int:
    return len(text) if isinstance(text, str) else 0
