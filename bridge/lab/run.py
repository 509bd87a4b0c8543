"""``bridge.study``: many phrasings, several towers, and what each makes of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.adapters import label_swap
from bridge.adapters.opened import open_tower
from bridge.diffusion.options import check_size, checked_options, default_guidance
from bridge.embedded import EMBEDDED, IMAGE_TOWER, STUDY_TOWERS
from bridge.encoding.model import TextModel, open_model
from bridge.errors import OptionError
from bridge.lab.ablation import WHOLE, choices_of
from bridge.lab.cache import Cache
from bridge.lab.cache_keys import pipeline_key
from bridge.lab.gallery import Judge, paint, picture_rows, verdict_rows
from bridge.lab.measures import UNRELATED, scipy_stats
from bridge.lab.painting import Brush, Painter
from bridge.lab.result import Study
from bridge.lab.subject import Subject, read_subjects
from bridge.lab.swaps import drawable, read_adapters
from bridge.lab.tower_study import pair_rows, study_tower
from bridge.progress import OnProgress, unwatched
from bridge.prompt import check_prompts
from bridge.runtime import check_dtype, resolve_device
from bridge.towers import ImageTower, TextTower, open_image_tower


def study(
    prompt: str | Sequence[str],
    *,
    towers: Any = None,
    variants: Any = None,
    model: Any = None,
    seed: int = 0,
    names: Mapping[str, Mapping[str, str]] | Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    unrelated: Sequence[str] = UNRELATED,
    seeds: int | Sequence[int] = 0,
    steps: int = 20,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    choices: str | Sequence[str] | None = None,
    adapters: Mapping[str, Any] | None = None,
    heat: bool = True,
    image_tower: Any = None,
    judge: Judge | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: Any = None,
    dtype: Any = None,
    on_progress: OnProgress | None = None,
) -> Study:
    """Compare phrasings of a prompt across text towers, and draw them if there is a model.

    Prompts and their variants are plain text; weights are the business of the operation
    ``emphasis`` and of ``Variant``s with a dialect. Each tower reads all texts in one pass for each
    length, plus one for the prompts' attention and one for each dialect with weights. Options are
    checked before anything loads; what depends on the model (choices, sizes of a live pipeline)
    and names that do not open, before a text is read.

    Args:
        prompt: one prompt or several.
        towers: a short name, hub id, folder or ``TextTower``, or a list of these. Default: the
            model's own, or without a model the embedded ones (`bridge.embedded.STUDY_TOWERS`).
        variants: names of operations (``bridge.lab.OPERATIONS``), ``Variant``s, or
            ``{label: texts}`` of your own. Default: all operations that need nothing else.
        model: draw with it: a name, folder, hub id or live diffusers pipeline.
        seed: of operations that choose at random.
        names: for the operation ``language``: languages, such as ``["de", "ja"]``, or names of
            your own, ``{"de": {"cat": "Katze"}}``, words or whole prompts. Default: the 27
            languages that bridge has names of the embedded world's things in.
        weights: for the operation ``emphasis``.
        unrelated: texts that chance is measured on, two at least.
        seeds: of the pictures, the same for each variant.
        steps, guidance_scale, height, width: as ``bridge.generate``.
        choices: what draws: ``whole``, the model as it is; a component of it (that tower's token
            states alone); ``pooled``; or the name of one of ``towers`` that stands in the place of
            one of the model's, or comes through its adapter. Default: ``whole``; ``"all"``.
        adapters: ``{tower name: bridge.Adapter or its file}`` for foreign towers.
        heat: keep heat maps of the first words with each picture, where the model is a UNet.
        image_tower: measures how far pictures drift: a name, folder, hub id or ``ImageTower``.
            Default: the embedded one for the embedded models, else none.
        judge: called with each picture and the prompt (not the variant: all phrasings are judged
            by one truth); gives named numbers, 1 and 0 for yes and no.
        cache: a folder that keeps what is done, so that a study that was cut off goes on, and a
            larger one begins where a smaller one ended.
        device, dtype: where and how precisely what is opened by name runs. Default for towers
            beside a model: as its own.
        on_progress: called with a `bridge.progress.Progress`, which is a line as text: ``print``
            will do.

    Raises:
        PromptError, OptionError, MissingDependencyError: input out of range, before anything loads.
        UnknownModelError, HubError, WeightsError, UnsupportedModelError: a tower or model that
            does not open.
    """
    scipy_stats()
    subjects = read_subjects(prompt, variants, seed=seed, names=names, weights=weights)
    chance_texts = _unrelated(unrelated)
    scale = default_guidance(model) if guidance_scale is None else guidance_scale
    brush = _brush(seeds, steps, scale, height, width)
    kept = Cache(cache)
    if model is None and (choices is not None or adapters is not None):
        raise OptionError("choices and adapters say what of a model draws; pass model too.")
    given = _listed(towers, model)
    fitted = read_adapters(adapters, [_name_of(each) for each in given or ()])
    place, precision = device and resolve_device(device), check_dtype(dtype)
    say = on_progress or unwatched

    pipe, text_model = _open_model(model, brush, place, precision)
    opened = _open_towers(given, text_model, place, precision)
    swaps = [label_swap(tower, pipe) for tower in opened] if text_model is not None else []
    swapped = drawable(opened, swaps, fitted) if text_model is not None else {}
    chosen = _choices(choices, text_model, swapped)
    eye = _open_eye(image_tower, model, device, dtype) if pipe is not None else None

    studies = []
    for tower in opened:
        studies.append(study_tower(tower, subjects, chance_texts, kept, say))
    about = [each.about() for each in studies]
    drawn: list[Any] = []
    pictures: list[dict[str, Any]] = []
    if pipe is not None and text_model is not None:
        for row, swap in zip(about, swaps, strict=True):
            places = ", ".join(swap.components)
            row |= {"swap": swap.label, "component": places, "reason": swap.reason}
        painter = Painter(pipe, text_model, brush, swapped, kept, pipeline_key(pipe), heat)
        drawn = paint(painter, subjects, chosen, say)
        pictures = picture_rows(drawn, eye, judge)

    from pandas import DataFrame

    return Study(
        table=DataFrame([row for each in studies for row in each.rows(subjects)]),
        words=DataFrame([row for each in studies for row in each.words(subjects)]),
        sets=DataFrame([row for each in studies for row in each.sets(subjects)]),
        towers=DataFrame(about),
        pairs=DataFrame(pair_rows(studies, subjects)),
        pictures=DataFrame(pictures),
        verdicts=DataFrame(verdict_rows(pictures)),
        drawn=tuple(picture for _, picture in drawn),
        settings=_settings(subjects, seed, model, brush, chosen),
    )


def _unrelated(texts: Sequence[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(check_prompts(texts, "unrelated")))
    if isinstance(texts, str) or len(found) < 2 or not all(text.strip() for text in found):
        raise OptionError("unrelated must be a list of at least two different texts.")
    return found


def _brush(
    seeds: object, steps: object, guidance_scale: object, height: object, width: object
) -> Brush:
    wanted: list[Any] = [seeds]
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        wanted = list(dict.fromkeys(seeds))
        if not wanted:
            raise OptionError("seeds is empty; give at least one.")
    checked = checked_options(
        "any", None, seed=wanted, steps=steps, guidance_scale=guidance_scale,
        num_images=len(wanted), height=height, width=width,
    )  # fmt: skip
    return Brush(
        checked.seeds, checked.steps, checked.guidance_scale, checked.height, checked.width
    )


def _open_model(model: Any, brush: Brush, device: Any, dtype: Any) -> tuple[Any, TextModel | None]:
    """Raises OptionError for sizes that the model does not draw; for a name before it loads."""
    if model is None:
        return None, None
    if isinstance(model, (str, os.PathLike)):
        from bridge.diffusion import load_pipeline
        from bridge.diffusion.load import locate, size_factor

        folder = locate(model)
        check_size(brush.height, brush.width, size_factor(folder))
        model = load_pipeline(folder, device=device, dtype=dtype)
    text_model = open_model(model)
    # DeepFloyd IF draws pixels.
    check_size(brush.height, brush.width, getattr(model, "vae_scale_factor", 1))
    return model, text_model


def _choices(
    choices: str | Sequence[str] | None, text_model: TextModel | None, swapped: Mapping[str, Any]
) -> tuple[str, ...]:
    """Raises OptionError for a choice that the model does not have, or none."""
    if text_model is None:
        return ()
    if choices is None:
        return (WHOLE,)
    there = (*choices_of(text_model), *swapped)
    if choices == "all":
        return there
    wanted = (choices,) if isinstance(choices, str) else tuple(choices)
    for choice in wanted or ("",):
        if choice not in there:
            raise OptionError(
                f"{text_model.source} has no tower choice {choice!r}; it has {', '.join(there)}. "
                "(Foreign towers draw if they are among towers and of its widths, or have an "
                "adapter.)"
            )
    return tuple(dict.fromkeys(wanted))


def _listed(towers: Any, model: Any) -> list[Any] | None:
    """The towers as they were given, each once; None for the model's own.

    Raises OptionError for an empty list, what is no tower, or two towers of one name.
    """
    if towers is None and model is not None:
        return None
    given = STUDY_TOWERS if towers is None else towers
    single = isinstance(given, (str, os.PathLike, TextTower, Mapping))
    some = [given] if single or not isinstance(given, Iterable) else list(given)
    if not some:
        raise OptionError(f"towers is empty; name at least one, such as {STUDY_TOWERS[0]!r}.")
    for each in some:
        if not isinstance(each, (str, os.PathLike, TextTower)):
            raise OptionError(
                "towers takes a name, a folder, a hub id, a TextTower or a list of these, not "
                f"{type(each).__name__} ({each!r:.60})."
            )
    different = list(dict.fromkeys(some))
    labels = [_name_of(each) for each in different]
    if len(set(labels)) < len(labels):
        raise OptionError(f"Two towers have one name ({', '.join(labels)}); give each its own.")
    return different


def _name_of(tower: Any) -> str:
    return tower.name if isinstance(tower, TextTower) else os.fspath(tower)


def own_towers(text_model: TextModel) -> list[TextTower]:
    """A model's text towers, each by the name of its component."""
    modules = text_model.load().modules
    return [
        TextTower.from_modules(module, tokenizer, name=use.component)
        for use, module, tokenizer in zip(
            text_model.recipe.towers, modules, text_model.tokenizers, strict=True
        )
    ]


def _open_towers(
    given: Sequence[Any] | None, text_model: TextModel | None, device: Any, dtype: Any
) -> list[TextTower]:
    """The towers; beside a model where its own are and as precise, so that they can draw."""
    if given is None:
        assert text_model is not None
        return own_towers(text_model)
    if text_model is not None:
        loaded = text_model.load()
        device, dtype = device or loaded.device, dtype or loaded.modules[0].dtype
    return [open_tower(each, device, dtype) for each in given]


def _open_eye(image_tower: Any, model: Any, device: Any, dtype: Any) -> ImageTower | None:
    if isinstance(image_tower, ImageTower):
        return image_tower
    if image_tower is None:
        image_tower = IMAGE_TOWER if isinstance(model, str) and model in EMBEDDED else None
    if image_tower is None:
        return None
    return open_image_tower(image_tower, device=device, dtype=dtype)


def _settings(
    subjects: Sequence[Subject], seed: int, model: Any, brush: Brush, choices: Sequence[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompts": [subject.prompt for subject in subjects],
        "variants": sum(len(subject.variants) - 1 for subject in subjects),
        "seed": seed,
    }
    if model is not None:
        named = isinstance(model, (str, os.PathLike))
        found |= {
            "model": str(model) if named else type(model).__name__,
            "seeds": list(brush.seeds),
            "choices": list(choices),
            **brush.settings(),
        }
    return found
