"""``bridge.study``: many phrasings, several towers, and what each makes of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.adapters import Swap, label_swap
from bridge.adapters.swap import open_tower
from bridge.checks import either, keywords, needed
from bridge.diffusion.options import check_size, default_guidance
from bridge.embedded import EMBEDDED, IMAGE_TOWER
from bridge.encoding.model import TextModel, open_model
from bridge.encoding.options import AdapterInput, Model, Tower
from bridge.errors import OptionError
from bridge.lab.cache import Cache
from bridge.lab.measures import UNRELATED, scipy_stats
from bridge.lab.picture_tables import Judge, picture_rows, verdict_rows
from bridge.lab.result import Study
from bridge.lab.study_inputs import (
    DrawSettings,
    Subject,
    read_draw_settings,
    read_subjects,
    read_towers,
    read_unrelated,
    tower_name,
)
from bridge.lab.tower_choices import drawable, read_adapters, read_choices
from bridge.lab.tower_study import TowerStudy, pair_rows, study_tower
from bridge.lab.variant_pictures import Renderer, draw_variants
from bridge.lab.variants.operations import Variants
from bridge.progress import OnProgress, unwatched
from bridge.runtime import Dtype, check_dtype, resolve_device
from bridge.towers import ImageTower, TextTower, open_image_tower

if TYPE_CHECKING:
    import torch


@keywords
def study(
    prompt: str | Sequence[str],
    *,
    towers: Tower | Sequence[Tower] | None = None,
    variants: Variants | None = None,
    model: Model | None = None,
    seed: int = 0,
    names: Mapping[str, Mapping[str, str]] | Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    unrelated: Sequence[str] = UNRELATED,
    seeds: int | Sequence[int] = 0,
    steps: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    choices: str | Sequence[str] | None = None,
    adapters: Mapping[str, AdapterInput] | None = None,
    heat: bool = True,
    image_tower: str | os.PathLike[str] | ImageTower | None = None,
    judge: Judge | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
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
        unrelated: texts that chance is measured on, eight at least.
        seeds: of the pictures, the same for each variant.
        steps, num_inference_steps, guidance_scale, height, width: as ``bridge.generate``.
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
    pandas = needed("pandas", "lab", "bridge.study")
    scipy_stats()
    subjects = read_subjects(prompt, variants, seed=seed, names=names, weights=weights)
    unrelated = read_unrelated(unrelated)
    scale = default_guidance(model) if guidance_scale is None else guidance_scale
    count = either(steps, num_inference_steps, "steps and num_inference_steps")
    settings = read_draw_settings(seeds, 20 if count is None else count, scale, height, width)
    kept = Cache(cache)
    if model is None and (choices is not None or adapters is not None):
        raise OptionError("choices and adapters say what of a model draws; pass model too.")
    given = read_towers(towers, model)
    fitted = read_adapters(adapters, [tower_name(each) for each in given or ()])
    place, precision = device and resolve_device(device), check_dtype(dtype)
    say = on_progress or unwatched

    pipe, text_model = _open_model(model, settings, place, precision)
    opened = _open_towers(given, text_model, place, precision)
    swaps: list[Swap] = []
    chosen: tuple[str, ...] = ()
    renderer = eye = None
    if text_model is not None:
        swaps = [label_swap(tower, text_model) for tower in opened]
        swapped = drawable(opened, swaps, fitted)
        chosen = read_choices(choices, text_model, swapped)
        renderer = Renderer(pipe, text_model, settings, swapped, kept, heat)
        eye = _open_image_tower(image_tower, model, device, dtype)

    studies = [study_tower(tower, subjects, unrelated, kept, say) for tower in opened]
    drawn = [] if renderer is None else draw_variants(renderer, subjects, chosen, say)
    pictures = picture_rows(drawn, eye, judge)

    return Study(
        table=pandas.DataFrame([row for each in studies for row in each.rows(subjects)]),
        words=pandas.DataFrame([row for each in studies for row in each.words(subjects)]),
        sets=pandas.DataFrame([row for each in studies for row in each.sets(subjects)]),
        towers=pandas.DataFrame(_tower_rows(studies, swaps)),
        pairs=pandas.DataFrame(pair_rows(studies, subjects)),
        pictures=pandas.DataFrame(pictures),
        verdicts=pandas.DataFrame(verdict_rows(pictures)),
        drawn=tuple(picture for _, picture in drawn),
        settings=_settings(subjects, seed, model, settings, chosen),
    )


def _open_model(
    model: Any, settings: DrawSettings, device: Any, dtype: Any
) -> tuple[Any, TextModel | None]:
    """The pipeline and its text side; nothing without a model.

    Raises:
        OptionError: sizes that the model does not draw; of a name before it loads.
    """
    if model is None:
        return None, None
    if isinstance(model, (str, os.PathLike)):
        from bridge.diffusion import load_pipeline
        from bridge.diffusion.load import locate, size_factor

        folder = locate(model)
        check_size(settings.height, settings.width, size_factor(folder))
        model = load_pipeline(folder, device=device, dtype=dtype)
    text_model = open_model(model)
    # DeepFloyd IF draws pixels.
    check_size(settings.height, settings.width, getattr(model, "vae_scale_factor", 1))
    return model, text_model


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


def _open_image_tower(image_tower: Any, model: Any, device: Any, dtype: Any) -> ImageTower | None:
    if isinstance(image_tower, ImageTower):
        return image_tower
    if image_tower is None:
        image_tower = IMAGE_TOWER if isinstance(model, str) and model in EMBEDDED else None
    if image_tower is None:
        return None
    return open_image_tower(image_tower, device=device, dtype=dtype)


def _tower_rows(studies: Sequence[TowerStudy], swaps: Sequence[Swap]) -> list[dict[str, Any]]:
    """A row per tower; ``swaps`` are empty without a model."""
    rows = [each.about() for each in studies]
    for row, swap in zip(rows, swaps, strict=False):
        places = ", ".join(swap.components)
        row |= {"swap": swap.label, "component": places, "reason": swap.reason}
    return rows


def _settings(
    subjects: Sequence[Subject],
    seed: int,
    model: Any,
    drawing: DrawSettings,
    choices: Sequence[str],
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
            "seeds": list(drawing.seeds),
            "choices": list(choices),
            **drawing.arguments(),
        }
    return found
