"""``bridge.Encoder``: a model's text side, opened once and asked often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Unpack

import torch

from bridge.checks import is_whole, keywords
from bridge.encoding.addons import NO_INPUTS, AddOnInputs, bind_addons, read_addons
from bridge.encoding.composition import ComposeCall, Composition, read_composition
from bridge.encoding.conditioning import BIASES, TENSORS, Conditioning
from bridge.encoding.encode import Request, check_unet, encode
from bridge.encoding.model import Source, TextModel, Towers, kept_source, open_source
from bridge.encoding.options import (
    Call,
    CallOptions,
    Model,
    ModelOptions,
    RegionCallOptions,
    TextOptions,
    Texts,
    names_of,
    read_call,
    read_rules,
    takes,
)
from bridge.encoding.prompt_schedule import PromptSchedule, ScheduleCall, read_schedule, steps_of
from bridge.encoding.regions import (
    Region,
    RegionalCall,
    RegionalConditioning,
    join_regions,
    mean_shares,
    read_regional,
)
from bridge.encoding.state_cache import DEFAULT_BYTES, CacheInfo
from bridge.errors import OptionError, noted, warn
from bridge.prompt import TokenReport, plan_report
from bridge.prompt.prompt import Rule
from bridge.runtime import Dtype, check_dtype, resolve_device
from bridge.towers.watch import is_repeatable

_MODEL = names_of(ModelOptions)
_ANYWHERE = {"device": None, "dtype": None}


class EncoderOptions(ModelOptions, TextOptions, total=False):
    """What ``Encoder`` takes beside its model."""


@keywords
class Encoder(AbstractContextManager["Encoder"]):
    """Prompts in, the tensors of a diffusers pipeline out.

    ::

        with bridge.Encoder("sdxl", dialect="comfy") as encoder:
            conditioning = encoder("a (red:1.3) apple", "blurry")
            image = pipe(**conditioning.kwargs()).images[0]

    Options of the model (``towers``, ``adapter``, ``textual_inversions``, ``loras``, ``device``,
    ``dtype``, ``revision``) are said once, here. Those of the text (``dialect``, ``emphasis``,
    ``long_prompt`` ...) have their defaults here, and each call may say otherwise. All are those of
    ``bridge.condition``, which documents them.

    States of prompts that were encoded before are kept, and so are whole results, up to ``cache``
    bytes; nothing is kept of a tower that changed. An encoder may be used by several threads.

    Args:
        model: an embedded name, a short name (``sd15``, ``sd21``, ``sdxl``), a hub id, a folder in
            diffusers' layout, or a live pipeline, which is read and never changed. Configs and
            tokenizers are read now, weights when they are first needed; with ``towers`` or
            ``adapter``, which are checked against them, now.
        cache: bytes of states to keep; 0 keeps none.

    It raises what ``bridge.condition`` raises of a model or an option.
    """

    @takes(EncoderOptions)
    def __init__(
        self, model: Model, *, cache: int = DEFAULT_BYTES, **options: Unpack[EncoderOptions]
    ) -> None:
        if not is_whole(cache, 0):
            raise OptionError(f"cache must be a whole number of bytes from 0 up, not {cache!r}.")
        place = read_place(options)
        self._defaults = {name: options[name] for name in options if name not in _MODEL}  # type: ignore[literal-required]
        read_rules(self._defaults)
        revision = options.get("revision")
        self._setup(open_source(model, **place, revision=revision, cache=cache), options, place)
        self._changed()

    def _setup(self, source: Source, options: Mapping[str, Any], place: dict[str, Any]) -> None:
        self._source: Source | None = source
        self._options = {name: options.get(name) for name in _MODEL}
        self._place = place
        if self._options["adapter"] is not None:
            self._options["adapter"] = read_adapter(self._options["adapter"])
        self._swapped: tuple[tuple[object, ...], TextModel] | None = None

    @classmethod
    def over_kept(cls, model: Model, options: Mapping[str, Any]) -> Encoder:
        """One over the source that the verbs keep for a model; ``options`` are ``ModelOptions``."""
        place = read_place(options)
        found = cls.__new__(cls)
        found._defaults = {}
        source = kept_source(model, **place, revision=options.get("revision"))
        found._setup(source, options, place)
        return found

    # ------------------------------------------------------------ doors

    @takes(CallOptions)
    def __call__(
        self, prompt: Texts, negative_prompt: Texts | None = None, **options: Unpack[CallOptions]
    ) -> Conditioning:
        """Encode prompts and negatives. Args, result and errors as ``bridge.condition``."""
        return self.run(read_call(prompt, negative_prompt, self._with(options)))

    @takes(CallOptions)
    def schedule(
        self,
        prompt: Texts,
        negative_prompt: Texts | None = None,
        *,
        steps: int | None = None,
        num_inference_steps: int | None = None,
        rule: Rule = "new",
        **options: Unpack[CallOptions],
    ) -> PromptSchedule:
        """Encode prompts that change from step to step. As ``bridge.schedule``."""
        call = read_call(prompt, negative_prompt, self._with(options))
        return self.run_schedule(read_schedule(call, steps_of(steps, num_inference_steps), rule))

    @takes(CallOptions)
    def compose(
        self, prompt: Texts, negative_prompt: Texts | None = None, **options: Unpack[CallOptions]
    ) -> Composition:
        """Encode prompts of several parts that are drawn together. As ``bridge.compose``."""
        call = read_call(prompt, negative_prompt, self._with(options))
        return self.run_composition(read_composition(call))

    @takes(RegionCallOptions)
    def regional(
        self,
        prompt: str,
        regions: Sequence[Region],
        negative_prompt: str | None = None,
        *,
        base_weight: float = 0.0,
        **options: Unpack[RegionCallOptions],
    ) -> RegionalConditioning:
        """Encode a base prompt and those of regions. As ``bridge.regional``."""
        asked = read_regional(prompt, regions, negative_prompt, base_weight, self._with(options))
        return self.run_regional(asked)

    @takes(TextOptions)
    def tokens(self, prompt: str, **options: Unpack[TextOptions]) -> TokenReport:
        """What each tower reads of a prompt; loads no weights. Errors as the call itself."""
        call = read_call(prompt, None, self._with(options))
        rules = call.rules
        model = bind_addons(self._current(), self._inputs(call), rules.dialect)
        names = [use.component for use in model.recipe.towers]
        readers = model.readers(rules.max_sequence_length, rules.clean)
        return plan_report(
            call.tagged[0].source,
            [*zip(names, readers, strict=True)],
            dialect=rules.dialect.name,
            split=rules.long_prompt,
        )

    # ------------------------------------------------------------ what it owns

    def to(self, device: torch.device | str | None = None, dtype: Dtype | None = None) -> Encoder:
        """Have towers and results elsewhere or in another precision; gives the encoder itself.

        A live pipeline's towers stay where they are, and the result alone is moved.
        """
        place = read_place({"device": device, "dtype": dtype})
        before = self._open()
        self._source = before.at(**place)
        if self._source is not before:
            before.close()
        self._place = {name: place[name] or self._place[name] for name in place}
        self._changed()
        return self

    def close(self) -> None:
        """Let go of the towers, unless another encoder holds them, and of all that is kept."""
        if self._source is not None:
            self._source.close()
        self._source = self._swapped = None

    def cache_info(self) -> CacheInfo:
        """Hits, misses, entries and bytes of what it keeps."""
        return self._open().cache.info()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._source is None:
            return "Encoder(closed)"
        model = self._source.model()
        return f"Encoder({model.source}, {model.recipe.name})"

    # ------------------------------------------------------------ calls that were read

    def run(self, call: Call, request: Request | None = None) -> Conditioning:
        """Encode a call; ``request`` is what it says, if it was parsed before."""
        model, inputs, cache = self._fit(), self._inputs(call), self._open().cache
        # Where nothing can be known yet, the towers do not load before all is planned.
        towers = model.load() if len(cache) and model.mapped is None else None
        key = None if towers is None else self._key(model, call, inputs, towers)
        kept = None if key is None else cache.get(key)
        if kept is None:
            with noted() as notes:
                found = self._encode(model, call, inputs, request or call.request(), towers)
            kept = found, tuple(notes)
            # Not of a tower that changed while it ran.
            if key is not None and towers is not None and towers.are_unchanged:
                cache.put(key, (_copied(found), kept[1]), _bytes(found))
        else:
            found = _copied(kept[0])
        for note in kept[1]:
            warn(*note)
        return found

    def run_schedule(self, asked: ScheduleCall) -> PromptSchedule:
        """Encode what ``read_schedule`` read."""
        model, each_step = self._fit(), self._open().calls_per_step()
        calls = asked.steps * each_step
        if len(asked.last_steps(calls)) > 1 and not model.recipe.swapped:
            raise OptionError(
                f"The prompt changes from step to step, and the pipeline of {model.recipe.name} "
                "lets no callback change all that it is conditioned on; give a prompt that stays "
                "the same."
            )
        if asked.is_apart:
            check_unet(model, "The parts of an AND are summed")
        inputs = self._inputs(asked.call)
        return asked.scheduled(
            self._encode(model, asked.call, inputs, asked.request(calls)), each_step
        )

    def run_composition(self, asked: ComposeCall) -> Composition:
        """Encode what ``read_composition`` read."""
        model, inputs = self._fit(), self._inputs(asked.call)
        if asked.is_apart:
            check_unet(model, "The parts of an AND are summed")
        return Composition(self._encode(model, asked.call, inputs, asked.request), asked.weights)

    def run_regional(self, asked: RegionalCall) -> RegionalConditioning:
        """Encode what ``read_regional`` read."""
        model, inputs = self._fit(), self._inputs(asked.call)
        check_unet(model, "Regions act")
        regions = asked.placed(model.default_size)
        shares = mean_shares(regions, asked.base_weight)
        has_base = bool(shares[0] > 0)
        found = self._encode(model, asked.call, inputs, asked.request(has_base))
        joined = join_regions(found, shares if has_base else shares[1:])
        return RegionalConditioning(joined, regions, asked.base_weight, has_base)

    def _encode(
        self,
        model: TextModel,
        call: Call,
        inputs: AddOnInputs,
        request: Request,
        towers: Towers | None = None,
    ) -> Conditioning:
        bound = bind_addons(model, inputs, call.rules.dialect)
        found = encode(bound, call.rules, request, self._open().cache, towers)
        return found if self._place == _ANYWHERE else found.to(**self._place)

    # ------------------------------------------------------------ within

    def _with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._defaults, **options}

    def _open(self) -> Source:
        if self._source is None:
            raise OptionError("This encoder is closed; make another one.")
        return self._source

    def _current(self) -> TextModel:
        """The model as it is now, with the towers that stand in the place of its own."""
        model = self._open().model()
        towers, adapter = self._options["towers"], self._options["adapter"]
        if towers is None and adapter is None:
            return model
        from bridge.adapters.swap import with_towers

        own = model.load()
        state = (model.number, own.device, *(module.dtype for module in own.modules))
        if self._swapped is None or self._swapped[0] != state:
            self._swapped = state, with_towers(model, towers, adapter, self._place["device"])
        return self._swapped[1]

    def _fit(self) -> TextModel:
        """``_current``, of a pipeline that can draw what is encoded. Who names a dtype has a use
        of their own for the result, such as a pipeline whose towers are gone by then."""
        model = self._current()
        if self._place["dtype"] is None:
            self._open().check_dtypes()
        return model

    def _changed(self) -> None:
        """Check what was said of the model against it."""
        self._swapped = None
        self._current()

    def _inputs(self, call: Call) -> AddOnInputs:
        inversions, loras = self._options["textual_inversions"], self._options["loras"]
        if inversions is None and loras is None and not any(each.tags for each in call.tagged):
            return NO_INPUTS
        return read_addons(inversions, loras, call.tagged)

    def _key(
        self, model: TextModel, call: Call, inputs: AddOnInputs, towers: Towers
    ) -> tuple[object, ...] | None:
        """What a whole result depends on; None where it may not be kept."""
        if not all(map(is_repeatable, towers.modules)):
            return None
        return (model.number, call, inputs.key, towers.versions, *self._place.values())


def read_place(options: Mapping[str, Any]) -> dict[str, Any]:
    """Device and dtype, checked. Raises OptionError."""
    device = options.get("device")
    return {
        "device": None if device is None else resolve_device(device),
        "dtype": check_dtype(options.get("dtype")),
    }


def read_adapter(given: Any) -> Any:
    """An ``Adapter``, or that of a file. Errors as ``bridge.load_adapter``."""
    # Not at the top: adapters are fitted on an encoder's rows, so their room imports this one.
    from bridge.adapters.swap import read_adapter as read

    return read(given)


def _copied(found: Conditioning) -> Conditioning:
    """With tensors of its own, so that a caller may write into them."""
    return found.map_tensors(torch.Tensor.clone)


def _bytes(found: Conditioning) -> int:
    tensors = (getattr(found, name) for name in (*TENSORS, "add_time_ids", *BIASES))
    return sum(each.nbytes for each in tensors if each is not None)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the model, and those of the call."""
    own = {name: options[name] for name in options if name in _MODEL}
    return own, {name: options[name] for name in options if name not in _MODEL}
