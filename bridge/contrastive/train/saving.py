"""A CLIP as a folder that transformers and bridge open, its card, and models between two."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.checks import keywords
from bridge.contrastive.clip import CLIP
from bridge.contrastive.train.open_clip_layout import came_in_layout, save_open_clip
from bridge.contrastive.train.options import ClipTrainOptions
from bridge.contrastive.train.trainee import check_trainable
from bridge.errors import OptionError, UnsupportedModelError
from bridge.files import check_output_folder, filled_folder, home_path, write_whole
from bridge.runtime import building, quiet_loading
from bridge.towers.captioner import CoCaDecoder
from bridge.towers.family import SCORING, Scoring
from bridge.towers.image_processor import OpenClipPictures, pil_processor
from bridge.towers.open_clip_config import CONFIG

_CONFIG = "config.json"


@keywords
def save_clip(
    clip: CLIP,
    folder: str | os.PathLike[str],
    scoring: Scoring | None = None,
    decoder: CoCaDecoder | None = None,
) -> Path:
    """Write both towers as one `CLIPModel` or `SiglipModel`, in their dtype, and give the folder.

    transformers' ``from_pretrained`` and `bridge.CLIP` read it; what was opened from a folder of
    open_clip's is written in that layout, for open_clip and `bridge.CLIP`. Every file is whole or
    absent, the config last.

    Args:
        clip: a CLIP, SigLIP or SigLIP 2 of transformers' classes, or one of open_clip's layout.
        folder: new, or that of an earlier model.
        scoring: the learnt scale and bias, where they are not the CLIP's own.
        decoder: of a CoCa, where it is not the one that it was opened with.

    Raises:
        UnsupportedModelError: towers that no layout of transformers holds.
    """
    check_trainable(clip)
    if came_in_layout(clip):
        return save_open_clip(clip, folder, scoring, decoder)
    processor = check_can_save(clip)
    place = home_path(folder)
    with filled_folder(place) as part, quiet_loading():
        model = _whole(clip, scoring or clip.scoring)
        model.save_pretrained(part)
        _tokenizer(clip).save_pretrained(part)
        processor.save_pretrained(part)
        names = sorted(p.name for p in part.iterdir())
        for name in [*(n for n in names if n != _CONFIG), _CONFIG]:
            (part / name).replace(place / name)
    return place


def check_can_save(clip: CLIP) -> Any:
    """The image processor as transformers has it. Raises UnsupportedModelError for a way with
    pictures that it has no words for."""
    processor = clip.image.processor
    if came_in_layout(clip) or not isinstance(processor, OpenClipPictures):
        return processor
    height, width = processor.size
    if processor.mode != "shortest" or height != width:
        raise UnsupportedModelError(
            f"{clip.image.name} brings pictures to size by {processor.mode!r}, which transformers' "
            "CLIP processor cannot say; the model cannot be saved in its layout"
        )
    return pil_processor(
        "clip",
        size={"shortest_edge": height},
        crop_size={"height": height, "width": width},
        resample=processor.resample,
        image_mean=list(processor.mean),
        image_std=list(processor.std),
    )


def _whole(clip: CLIP, scoring: Scoring | None) -> Any:
    """Both towers as one model of transformers; weights are shared, not copied."""
    import transformers

    kind = type(clip.image.module).__name__.partition("Vision")[0]
    sides = {"text_config": clip.text.module.config, "vision_config": clip.image.module.config}
    told: dict[str, Any] = {name: side.to_dict() for name, side in sides.items()}
    if kind == "CLIP":
        told["projection_dim"] = clip.width
    config = getattr(transformers, f"{kind}Config")(**told)
    with building(), torch.random.fork_rng(devices=[]):
        model = getattr(transformers, f"{kind}Model")(config)
    dtype = next(clip.image.module.parameters()).dtype
    model = model.to(dtype)
    for name in ("logit_scale", "logit_bias"):  # bf16 would make 98.9 of a scale of 100
        if hasattr(model, name):
            getattr(model, name).data = getattr(model, name).data.float()
    state: dict[str, Tensor] = {}
    for module, side in ((clip.text.module, "text_model"), (clip.image.module, "vision_model")):
        for name, tensor in module.state_dict().items():
            whole = name if name.startswith((side, "text_projection", "visual_projection")) else ""
            state[whole or f"{side}.{name}"] = tensor
    if scoring is not None:
        state["logit_scale"] = _like(model.logit_scale, math.log(scoring.scale))
        if hasattr(model, "logit_bias"):
            state["logit_bias"] = _like(model.logit_bias, scoring.bias)
        if hasattr(model, "logit_bias") != scoring.sigmoid:
            setattr(model.config, SCORING, {"bias": scoring.bias, "sigmoid": scoring.sigmoid})
    missing = model.load_state_dict(state, strict=False)
    lost = [n for n in missing.missing_keys if "position_ids" not in n]
    if lost or missing.unexpected_keys:
        raise UnsupportedModelError(
            f"{clip.name} does not go into a {kind}Model: "
            f"{', '.join([*lost, *missing.unexpected_keys][:3])}"
        )
    return model.eval()


def _tokenizer(clip: CLIP) -> Any:
    """A copy that cuts where the tower does, which may have more positions than it began with, and
    that does not pad or cut by itself because somebody has just asked for it."""
    tokenizer = copy.deepcopy(clip.text.tokenizer)
    if tokenizer.model_max_length < clip.text.spec.context:
        tokenizer.model_max_length = clip.text.spec.context
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _like(parameter: Tensor, value: float) -> Tensor:
    return torch.full_like(parameter.detach(), value)


@keywords
def interpolate(
    start: str | os.PathLike[str] | CLIP,
    tuned: str | os.PathLike[str] | CLIP,
    alpha: float,
    output: str | os.PathLike[str],
) -> Path:
    """WiSE-FT (Wortsman et al. 2022): a model between two, ``(1 - alpha) start + alpha tuned``.

    Args:
        start, tuned: a CLIP before and after it was tuned: what `bridge.CLIP` opens.
        alpha: 0 gives ``start``, 1 ``tuned``; 0.5 is the paper's choice where nothing is known.
        output: a new folder.

    Raises:
        OptionError: an alpha out of range; two models of different shapes.
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha is {alpha!r}; give a number from 0 (start) to 1 (tuned)")
    place = home_path(output)
    check_output_folder(place)
    first, second = (each if isinstance(each, CLIP) else CLIP(each) for each in (start, tuned))
    for one, other in ((first.text, second.text), (first.image, second.image)):
        mine, theirs = one.module.state_dict(), other.module.state_dict()
        if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in theirs.items()}:
            raise OptionError(
                f"{first.name} and {second.name} are models of different shapes; give a model "
                "before and after it was tuned"
            )
    scoring = second.scoring
    if first.scoring is not None and scoring is not None:
        a, b = first.scoring, scoring
        scale = (1 - alpha) * math.log(a.scale) + alpha * math.log(b.scale)
        scoring = Scoring(math.exp(scale), (1 - alpha) * a.bias + alpha * b.bias, sigmoid=b.sigmoid)
    with torch.no_grad():
        for one, other in ((first.text, second.text), (first.image, second.image)):
            mine = one.module.state_dict()
            mixed = {
                n: torch.lerp(mine[n].to(t), t, alpha) if t.is_floating_point() else t
                for n, t in other.module.state_dict().items()
            }
            other.module.load_state_dict(mixed)
    return save_clip(second, place, scoring)


def write_card(
    folder: Path,
    base: str,
    options: ClipTrainOptions,
    told: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
) -> None:
    """README.md: what the model was made of, how, and what it gained and forgot."""
    settings = options.settings()
    lines = [
        "---",
        f"library_name: {'open_clip' if (folder / CONFIG).exists() else 'transformers'}",
        "pipeline_tag: zero-shot-image-classification",
        "---",
        "",
        f"# {_plain(folder.name)}",
        "",
        f"`bridge.train_clip` made it of {_plain(base)} (mode {options.mode}) with "
        f"{told['rows']} pairs in {told['steps']} steps.",
        "",
    ]
    rows: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for row in evaluations:
        first, _ = rows.get(row["set"], (row, row))
        rows[row["set"]] = (first, row)
    if rows:
        lines += [
            "| pairs | recall@1 text to image, before | after | image to text, before | after |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, (first, last) in rows.items():
            begun = first["step"] > 0  # the set came to a run that went on
            figures = " | ".join(
                f"{'not measured' if begun else _percent(first[metric])} | {_percent(last[metric])}"
                for metric in ("text_to_image@1", "image_to_text@1")
            )
            lines.append(f"| {_plain(name)} | {figures} |")
        lines.append("")
    lines += ["| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | {_plain(str(value))} |" for name, value in settings.items()]
    lines += ["", "Settings and data are in `training.json`, the losses in `log.json`.", ""]
    write_whole(folder / "README.md", "\n".join(lines).encode())
    write_whole(folder / "training.json", json.dumps({**told, "options": settings}).encode())
