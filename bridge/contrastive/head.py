"""A linear head between a CLIP's vectors: what a name says and the rest of a picture does not.

A picture's vector holds its ground, its size and its style beside what it shows, and the vectors of
pictures and of texts lie in two clouds apart (Liang et al. 2022, "Mind the Gap"), so a bare name is
near to pictures of much else, and some names are near to nearly all. A head is fitted on pictures
with their names, by ridge regression from the centred pictures to the centred vectors of the
names, and cut to its largest singular values; it has no row for any name, so it serves those it
never saw as well.

Both sides are multiplied by one half of it: with picture means ``m``, text means ``n`` and the map
``U diag(s) V'``, the score is the cosine of ``(x - m) U sqrt(s)`` and ``(t - n) V sqrt(s)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bridge.checks import finite, keywords, whole
from bridge.contrastive.embeddings import unit
from bridge.errors import OptionError, WeightsError
from bridge.files import home_path, parse_json, write_whole
from bridge.towers.tensors import check_finite, load_tensors

FILE = "zero_shot_head.safetensors"
_NOTE = "bridge.head"
_SCALES = tuple(2.0**power for power in range(9))


@dataclass(frozen=True, eq=False)
class Head:
    """See the module.

    Attributes:
        image_mean, text_mean: ``(P,)`` float32, the middle of either side's vectors.
        image_map, text_map: ``(P, K)`` float32.
        scale: what its cosines are multiplied by before a softmax.
        templates: the sentences that it was fitted on, which a classifier takes by itself.
    """

    image_mean: Tensor
    text_mean: Tensor
    image_map: Tensor
    text_map: Tensor
    scale: float
    templates: tuple[str, ...]

    def __repr__(self) -> str:
        width, rank = self.image_map.shape
        return f"Head(width {width}, rank {rank}, scale {self.scale:g})"

    def images(self, vectors: Tensor) -> Tensor:
        """``(N, K)`` of length 1 from pictures ``(N, P)`` of length 1."""
        place = vectors.device
        return unit((vectors - self.image_mean.to(place)) @ self.image_map.to(place))

    def texts(self, vectors: Tensor) -> Tensor:
        """``(T, K)`` of length 1 from texts ``(T, P)`` of length 1."""
        place = vectors.device
        return unit((vectors - self.text_mean.to(place)) @ self.text_map.to(place))

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors by name, on the CPU, and what JSON says of it: parts of a file."""
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _TENSORS}
        return tensors, {"scale": self.scale, "templates": self.templates}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], told: Any, file: Path) -> Head:
        """Of what `packed` gave; others among ``tensors`` are left. Raises WeightsError."""
        try:
            parts = {name: tensors[name].float() for name in _TENSORS}
            scale, templates = float(told["scale"]), tuple(map(str, told["templates"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{file} does not hold a head of bridge") from error
        check_finite(file, parts.items())
        vector, matrix = parts["image_mean"].shape, parts["image_map"].shape
        shapes = [vector, vector, matrix, matrix]
        fits = len(vector) == 1 and len(matrix) == 2 and matrix[0] == vector[0] and templates
        if not fits or [each.shape for each in parts.values()] != shapes:
            raise WeightsError(f"{file}: the parts of the head do not fit together")
        return cls(**parts, scale=scale, templates=templates)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file in fp16, whole or not at all. Raises WriteError."""
        from safetensors.torch import save

        tensors, told = self.packed()
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        write_whole(home_path(path), save(halves, {_NOTE: json.dumps(told)}))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Head:
        """Read a file of `save`. Raises WeightsError."""
        file = home_path(path)
        tensors, notes = load_tensors(file)
        return cls.unpacked(tensors, parse_json(notes.get(_NOTE, "null"), str(file)), file)


_TENSORS = ("image_mean", "text_mean", "image_map", "text_map")


@keywords
def fit_head(
    images: Tensor,
    texts: Tensor,
    which: Sequence[int] | Tensor,
    *,
    templates: Sequence[str],
    rank: int = 16,
    ridge: float = 1e-4,
) -> Head:
    """Fit a head on pictures and the texts that name what they show.

    Args:
        images: ``(N, P)`` vectors of pictures, of length 1.
        texts: ``(C, P)`` vectors of the C names, each the mean over ``templates``.
        which: of each picture the row of its name in ``texts``.
        templates: the sentences that ``texts`` are of.
        rank: how many singular values are kept.
        ridge: what is added to the mean square of the pictures in every direction; a thousandth of
            a vector's length by itself.

    Returns:
        Head, its scale the one among powers of two that makes the pictures' own names likeliest.

    Raises:
        OptionError: rows that do not fit together; fewer than two names.
    """
    rows = torch.as_tensor(which, dtype=torch.long, device=images.device)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise OptionError(
            f"images are {tuple(images.shape)} and texts {tuple(texts.shape)}; give (N, P), (C, P)"
        )
    fits = len(rows) == len(images) > 0 and bool(((rows >= 0) & (rows < len(texts))).all())
    if not fits or len(texts) < 2:
        raise OptionError("which must have a row of texts for each picture, of two texts or more")
    rank = whole(rank, "rank", 1, images.shape[1])
    ridge = finite(ridge, "ridge")
    x, t = unit(images).double(), unit(texts).double()
    image_mean, text_mean = x.mean(0), t.mean(0)
    x, t = x - image_mean, unit((t - text_mean).float()).double()
    square = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    left, values, right = torch.linalg.svd(torch.linalg.solve(square, x.T @ t[rows] / len(x)))
    root = values[:rank].sqrt()
    image_map, text_map = left[:, :rank] * root, right[:rank].T * root
    head = Head(
        image_mean.float(), text_mean.float(), image_map.float(), text_map.float(),
        scale=1.0, templates=tuple(templates),
    )  # fmt: skip
    cosines = head.images(images) @ head.texts(texts).T
    scale = min(_SCALES, key=lambda each: float(cross_entropy(each * cosines, rows)))
    return replace(head, scale=scale)


def own_head(folder: str | PathLike[str], width: int) -> Head | None:
    """The head that lies beside a model's weights, if there is one.

    Raises WeightsError for a damaged one, and one of vectors that are not ``width`` wide.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    head = Head.load(file)
    if len(head.image_mean) != width:
        raise WeightsError(
            f"{file} is of vectors {len(head.image_mean)} wide, and the model has {width}"
        )
    return head
