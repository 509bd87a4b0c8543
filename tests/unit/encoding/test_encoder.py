"""bridge.Encoder: every door with every option, what it keeps, and what it lets go."""

from __future__ import annotations

import copy
import gc
import inspect
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.lora_files import random_deltas, write_lora
from support.tiny_models import tiny_clip_tokenizer, tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.encoding import Encoder
from bridge.encoding.conditioning import TENSORS
from bridge.errors import OptionError, PromptError
from bridge.prompt import TruncationWarning
from bridge.towers.watch import Watch, watched

TOLERANCE = 1e-5  # as in test_conditioning: rows of another batch size
PROMPT, NEGATIVE = "a (red:1.3) apple", "blurry"


@pytest.fixture
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("encoder") / "model"
    tiny_sdxl_pipeline().save_pretrained(place)
    return place


@contextmanager
def counted(*modules: Any) -> Iterator[list[int]]:
    """The number of rows of each forward pass."""
    rows: list[int] = []

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        rows.append(len(ids))

    # To be hung before the first call: a hook that comes later is a change of the module.
    hooks = [each.register_forward_pre_hook(count, with_kwargs=True) for each in modules]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def same(found: Any, wanted: Any) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=TOLERANCE))
        for name in TENSORS
        for a, b in [(getattr(found, name), getattr(wanted, name))]
    )


# ---------------------------------------------------------------- doors


def test_each_door_gives_what_its_verb_gives(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    fresh = copy.deepcopy(sdxl)
    assert same(encoder(PROMPT, NEGATIVE), bridge.condition(PROMPT, NEGATIVE, model=fresh))
    plan = encoder.schedule("a [cat:dog:0.5]", NEGATIVE, steps=4)
    wanted = bridge.schedule("a [cat:dog:0.5]", NEGATIVE, steps=4, model=fresh)
    assert plan.last_steps == wanted.last_steps
    assert all(map(same, plan.conditionings, wanted.conditionings))
    both = encoder.compose("a cat AND a dog :0.7", NEGATIVE)
    wanted_parts = bridge.compose("a cat AND a dog :0.7", NEGATIVE, model=fresh)
    assert same(both.parts, wanted_parts.parts) and both.weights == wanted_parts.weights
    region = bridge.Region("a cat", box=(0, 0, 0.5, 1))
    assert same(
        encoder.regional("a meadow", [region], NEGATIVE).joined,
        bridge.regional("a meadow", [region], NEGATIVE, model=fresh).joined,
    )


def test_defaults_of_the_text_and_what_a_call_says_otherwise(sdxl: Any) -> None:
    encoder = Encoder(sdxl, dialect="comfy", clip_skip=1)
    assert same(encoder(PROMPT), bridge.condition(PROMPT, model=sdxl, dialect="comfy", clip_skip=1))
    assert same(
        encoder(PROMPT, dialect="plain"),
        bridge.condition(PROMPT, model=sdxl, dialect="plain", clip_skip=1),
    )


def test_every_door_has_every_option(sdxl: Any, tmp_path: Path) -> None:
    """Tags, add-ons, other towers and the second tower's own text."""
    lora = write_lora(
        tmp_path / "style.safetensors", "kohya",
        {"text_encoder": random_deltas(sdxl.text_encoder, 2, 0)},
    )  # fmt: skip
    other = tiny_sdxl_pipeline(seed=3)
    tower = bridge.towers.TextTower.from_modules(
        other.text_encoder, other.tokenizer, name="another"
    )
    options: dict[str, Any] = {"loras": {"style": lora}, "towers": {"text_encoder": tower}}
    encoder = Encoder(sdxl, **options)
    tagged = "a cat <lora:style:0.5>"
    plain = encoder(tagged, prompt_2="a dog")
    assert plain.addons and plain.addons[0].kind.endswith("tower")
    assert not same(plain, bridge.condition("a cat", model=sdxl, prompt_2="a dog"))
    assert same(encoder.compose(tagged, prompt_2="a dog").parts, plain)
    assert same(encoder.schedule(tagged, steps=2, prompt_2="a dog").conditionings[0], plain)
    region = bridge.Region(tagged, box=(0, 0, 1, 1))
    regions = bridge.regional("a", [region], model=sdxl, **options)
    alone = encoder(tagged)
    assert torch.allclose(regions.joined.prompt_embeds, alone.prompt_embeds, atol=TOLERANCE)
    assert same(bridge.compose(tagged, model=sdxl, prompt_2="a dog", **options).parts, plain)


def test_the_second_text_changes_with_the_steps(sdxl: Any) -> None:
    plan = bridge.schedule("a cat", steps=4, prompt_2="a [cat:dog:2]", model=sdxl)
    first, last = plan.conditionings[0], plan.conditionings[-1]
    assert same(first, bridge.condition("a cat", prompt_2="a cat", model=sdxl))
    assert same(last, bridge.condition("a cat", prompt_2="a dog", model=sdxl))
    with pytest.raises(PromptError, match="cannot go with a prompt of several parts"):
        bridge.compose("a cat AND a dog", prompt_2="a bird", model=sdxl)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda pipe: bridge.condition("a", pipe=pipe), r"'pipe'\. Did you mean 'model'\?"),
        (lambda pipe: bridge.compose("a", pipeline=pipe), r"'pipeline'\. Did you mean 'model'\?"),
        (lambda pipe: bridge.generate("a", pipe=pipe), r"'pipe'\. Did you mean 'model'\?"),
        (lambda pipe: bridge.study("a", pipe=pipe), r"'pipe'\. Did you mean 'model'\?"),
        (lambda pipe: bridge.condition(pipe, "a"), r"not StableDiffusionXL\w+; .* model=pipe\."),
        (lambda pipe: bridge.generate(pipe), r"not StableDiffusionXL\w+; .* model=pipe\."),
        (lambda pipe: bridge.condition("a", syntax="comfy"), r"Did you mean 'dialect'\?"),
        (lambda pipe: Encoder(pipe)("a", syntax="comfy"), r"Did you mean 'dialect'\?"),
        (lambda pipe: bridge.condition("a", dialect="webui"), r"'webui'; .* mean 'a1111'\?"),
        (lambda pipe: bridge.condition("a", dialect="Auto1111"), r"mean 'a1111'\?"),
        (lambda pipe: bridge.condition("a", dialect="automatic1111"), r"mean 'a1111'\?"),
        (lambda pipe: bridge.condition("a", dialect="comfyui"), r"mean 'comfy'\?"),
        (lambda pipe: bridge.prompt.parse("a", "comfyui"), r"mean 'comfy'\?"),
        (
            lambda pipe: bridge.condition("a", model=pipe, guidance_scale=3.0),
            r"guidance_scale .* condition; it goes to the pipeline's call, or to bridge\.gen",
        ),
        (lambda pipe: Encoder(pipe)("a", num_inference_steps=3), "goes to the pipeline's call"),
        (lambda pipe: bridge.train_clip("x", "y", rank=8), r"'rank'\. Did you mean 'lora'\?"),
        (lambda pipe: bridge.train_clip("x", "y", lora_rank=8), r"Did you mean 'lora'\?"),
        (lambda pipe: bridge.train_clip("x", "y", lr=1), r"Did you mean 'learning_rate'\?"),
        (lambda pipe: bridge.train_vlm("x", "y", r=8), r"'r'\. Did you mean 'lora'\?"),
        (lambda pipe: bridge.train_vlm("x", "y", lr=1), r"Did you mean 'learning_rate'\?"),
    ],
)
def test_what_other_tools_call_it(sdxl: Any, call: Any, told: str) -> None:
    with pytest.raises((OptionError, PromptError), match=told):
        call(sdxl)


def test_names_that_a_door_has_not(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    with pytest.raises(OptionError, match=r"prompt_2 has no meaning for Encoder\.regional"):
        encoder.regional("a", [bridge.Region("b", box=(0, 0, 1, 1))], prompt_2="c")  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="loras has no meaning for encoder"):
        encoder("a", loras="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'clipskip'\. Did you mean 'clip_skip'"):
        encoder("a", clipskip=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Did you mean 'emphasis'"):
        bridge.condition("a", model=sdxl, emphasys="comfy")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        Encoder(sdxl, colour=1)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="cache must be"):
        Encoder(sdxl, cache=-1)


def test_help_shows_every_option() -> None:
    """Verbs and doors spell their options out, and all verbs have the same ones."""
    own = {"steps", "num_inference_steps", "rule", "regions", "base_weight"}
    verbs = (bridge.condition, bridge.schedule, bridge.compose)
    declared = [{*inspect.signature(verb).parameters} - own for verb in verbs]
    assert all(each == declared[0] for each in declared)
    later = {name for name in declared[0] if name.endswith(("_2", "_3"))}
    assert {*inspect.signature(bridge.regional).parameters} - own == declared[0] - later
    assert {"dialect", "loras", "towers", "prompt_2", "target_size"} <= declared[0]
    assert "options" not in declared[0]


def test_options_are_checked_when_it_is_made(sdxl: Any) -> None:
    with pytest.raises(OptionError, match="dialect"):
        Encoder(sdxl, dialect="a1112")
    with pytest.raises(OptionError, match="has no text_encoder_9"):
        Encoder(sdxl, towers={"text_encoder_9": "emoji-1"})


def test_tokens_loads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(folder, dialect="comfy")

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    with monkeypatch.context() as patch:
        patch.setattr("bridge.encoding.model.load_tower", load)
        report = encoder.tokens("a (cat:1.2)")
    assert [tower.name for tower in report.towers] == ["text_encoder", "text_encoder_2"]
    assert "1.2" in report.text()
    encoder.close()


def test_a_closed_encoder_says_so(folder: Path) -> None:
    with Encoder(folder) as encoder:
        encoder("a cat")
    for door in (encoder, encoder.compose, encoder.tokens):
        with pytest.raises(OptionError, match="encoder is closed"):
            door("a cat")
    with pytest.raises(OptionError, match="encoder is closed"):
        encoder.schedule("a cat", steps=2)
    assert repr(encoder) == "Encoder(closed)"
    encoder.close()


# ---------------------------------------------------------------- what it keeps


def test_a_known_prompt_and_negative_run_no_tower(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    with counted(sdxl.text_encoder, sdxl.text_encoder_2) as rows:
        first = encoder(PROMPT, NEGATIVE)
        assert rows == [2, 2]
        again = encoder(PROMPT, NEGATIVE)
        assert rows == [2, 2]
        # The other way round is not the same result, but of the same rows.
        turned = encoder(NEGATIVE, PROMPT, dialect="plain")
        assert rows == [2, 2, 1, 1]  # "blurry" is known; the other is other text in plain
    assert all(
        torch.equal(getattr(first, name), getattr(again, name))
        for name in ("prompt_embeds", "negative_pooled_prompt_embeds")
    )
    assert same(turned, bridge.condition(NEGATIVE, PROMPT, model=sdxl, dialect="plain"))
    info = encoder.cache_info()
    assert info.hits >= 3 and info.entries and 0 < info.bytes <= info.limit


def test_of_a_batch_that_is_half_known_the_other_half_runs(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    with counted(sdxl.text_encoder) as rows:
        encoder(["a cat", "a dog"], "ugly")
        found = encoder(["a cat", "a bird", "a fish"], "blurry")
    assert rows == [3, 3]
    assert same(
        found,
        bridge.condition(["a cat", "a bird", "a fish"], "blurry", model=copy.deepcopy(sdxl)),
    )


def test_what_is_given_out_is_the_callers_own(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    wanted = encoder("a cat").prompt_embeds.clone()
    for _ in range(2):
        encoder("a cat").prompt_embeds.zero_()
    assert torch.equal(encoder("a cat").prompt_embeds, wanted)


def test_without_a_cache_every_call_runs(sdxl: Any) -> None:
    encoder = Encoder(sdxl, cache=0)
    with counted(sdxl.text_encoder) as rows:
        encoder("a cat", "")
        encoder("a cat", "")
    assert rows == [2, 2]
    assert encoder.cache_info().entries == encoder.cache_info().bytes == 0


def test_a_tower_is_looked_at_once_before_it_runs_and_once_after(
    sdxl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes a walk through a tower, and was made five times a call."""
    looks: list[Any] = []
    look = Watch.look
    monkeypatch.setattr(Watch, "look", lambda watch: looks.append(watch) or look(watch))

    def looked(encoder: Encoder, prompt: str) -> list[int]:
        looks.clear()
        encoder(prompt, "blurry")
        return [looks.count(watched(tower)) for tower in (sdxl.text_encoder, sdxl.text_encoder_2)]

    encoder = Encoder(sdxl)
    assert looked(encoder, "a cat") == [2, 2]
    assert looked(encoder, "a dog") == [2, 2]
    assert looked(encoder, "a dog") == [1, 1]
    assert looked(Encoder(sdxl, cache=0), "a dog") == [1, 1]


def test_the_cache_is_bounded_and_drops_the_oldest(sdxl: Any) -> None:
    encoder = Encoder(sdxl, cache=200_000)
    with counted(sdxl.text_encoder) as rows:
        for number in range(40):
            encoder(f"{number} cats", "ugly")
            assert encoder.cache_info().bytes <= 200_000
        rows.clear()
        encoder("39 cats", "ugly")
        assert not rows
        encoder("0 cats", "ugly")
        assert rows == [1]


def test_a_warning_is_given_again_at_the_callers_line(sdxl: Any) -> None:
    encoder = Encoder(sdxl, long_prompt="truncate")
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            encoder("word " * 100)
        (told,) = (each for each in caught if each.category is TruncationWarning)
        assert told.filename == __file__


# ---------------------------------------------------------------- what changed is seen


def _replaced(pipe: Any) -> None:
    pipe.text_encoder_2 = tiny_sdxl_pipeline(seed=9).text_encoder_2


def _trained(pipe: Any) -> None:
    optimizer = torch.optim.SGD(pipe.text_encoder.parameters(), lr=0.1)
    pipe.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _loaded(pipe: Any) -> None:
    state = tiny_sdxl_pipeline(seed=5).text_encoder.state_dict()
    pipe.text_encoder.load_state_dict(state)


def _wrapped(pipe: Any) -> None:
    """As a LoRA is put on: a layer in the place of another."""

    class WithLora(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.up = torch.nn.Parameter(torch.full_like(base.weight, 0.02))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + x @ self.up.T

    for name, module in [*pipe.text_encoder.named_modules()]:
        if name.endswith("q_proj"):
            pipe.text_encoder.set_submodule(name, WithLora(module))


def _hooked(pipe: Any) -> None:
    pipe.text_encoder.register_forward_hook(
        lambda module, args, out: type(out)(
            dict(out.items()) | {"hidden_states": tuple(2 * each for each in out.hidden_states)}
        )
    )


def _moved(pipe: Any) -> None:
    """To half precision and back, which rounds, perhaps to the same address."""
    pipe.text_encoder.half()
    pipe.text_encoder.float()


def _vocabulary(pipe: Any) -> None:
    pipe.tokenizer.add_tokens(["<thing>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))


@pytest.mark.parametrize(
    "change", [_replaced, _trained, _loaded, _wrapped, _hooked, _moved, _vocabulary]
)
@pytest.mark.parametrize("door", ["encoder", "verb"])
def test_what_changes_in_a_live_pipeline_is_seen(sdxl: Any, change: Any, door: str) -> None:
    encoder = Encoder(sdxl)

    def encoded() -> Any:
        text = "a <thing> (cat:1.2)"
        if door == "encoder":
            return encoder(text, NEGATIVE)
        return bridge.condition(text, NEGATIVE, model=sdxl)

    before = encoded()
    change(sdxl)
    after = encoded()
    fresh = Encoder(sdxl, cache=0)("a <thing> (cat:1.2)", NEGATIVE)
    assert torch.equal(after.prompt_embeds, fresh.prompt_embeds) or same(after, fresh)
    assert dict(after.fingerprints) == dict(fresh.fingerprints)
    assert not torch.equal(before.prompt_embeds, after.prompt_embeds)
    assert change is _hooked or dict(before.fingerprints) != dict(after.fingerprints)


def test_what_changes_while_it_runs_is_not_kept(sdxl: Any) -> None:
    due = [False]

    def train(module: Any, *_: Any) -> None:
        if due.pop():
            with torch.no_grad():
                module.get_input_embeddings().weight.mul_(1.5)
        due.append(False)

    sdxl.text_encoder.register_forward_hook(train)
    encoder = Encoder(sdxl)
    encoder("a dog")
    due[:] = [True]
    encoder("a cat")
    assert same(encoder("a cat"), Encoder(sdxl, cache=0)("a cat"))


def test_another_dtype_is_seen(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    assert encoder("a cat").prompt_embeds.dtype == torch.float32
    sdxl.to(torch.bfloat16)
    assert encoder("a cat").prompt_embeds.dtype == torch.bfloat16


def test_strengths_and_files_of_add_ons_are_told_apart(sdxl: Any, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"

    def write(seed: int) -> None:
        deltas = random_deltas(sdxl.text_encoder, 2, seed)
        write_lora(path, "kohya", {"text_encoder": deltas})

    write(0)
    encoder = Encoder(sdxl, loras={"style": path})
    half, whole = encoder("a cat <lora:style:0.5>"), encoder("a cat <lora:style:1>")
    assert not torch.equal(half.prompt_embeds, whole.prompt_embeds)
    assert torch.equal(encoder("a cat <lora:style:0.5>").prompt_embeds, half.prompt_embeds)
    write(1)
    other = encoder("a cat <lora:style:0.5>")
    assert not torch.equal(other.prompt_embeds, half.prompt_embeds)
    assert same(other, Encoder(sdxl, loras={"style": path}, cache=0)("a cat <lora:style:0.5>"))


def test_dropout_and_autocast_are_not_kept(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    plain = encoder("a cat").prompt_embeds
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder("a cat").prompt_embeds
    assert not torch.equal(plain, rounded)
    sdxl.text_encoder.train()
    with counted(sdxl.text_encoder) as rows:
        encoder("a cat")
        encoder("a cat")
    assert len(rows) == 2


# ---------------------------------------------------------------- what it owns


def test_a_pipeline_goes_when_its_owner_lets_it_go() -> None:
    pipe = tiny_sd_pipeline()
    bridge.condition("a cat", model=pipe)
    there = weakref.ref(pipe.text_encoder)
    del pipe
    gc.collect()
    assert there() is None


def test_two_encoders_of_a_folder_share_towers_until_the_last_is_closed(folder: Path) -> None:
    bridge.release()
    one, other = Encoder(folder), Encoder(folder)
    one("a cat")
    other("a cat")
    modules = one._source.model().load().modules  # type: ignore[union-attr]
    assert all(a is b for a, b in zip(modules, other._source.model().load().modules, strict=True))  # type: ignore[union-attr]
    there = weakref.ref(modules[0])
    del modules
    one.close()
    gc.collect()
    assert there() is not None
    assert other("a dog").prompt_embeds.isfinite().all()
    other.close()
    gc.collect()
    assert there() is None


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_close_gives_the_memory_back(tmp_path: Path) -> None:
    """A tower of 160 MB, read in half precision, so that it is not just mapped from its file."""
    pipe = tiny_sd_pipeline()
    width = pipe.text_encoder.config.hidden_size
    pipe.text_encoder.resize_token_embeddings(160 * 2**20 // (4 * width), mean_resizing=False)
    pipe.save_pretrained(tmp_path / "model")
    del pipe
    gc.collect()
    encoder = Encoder(tmp_path / "model", dtype="bfloat16")
    before = _resident()
    encoder("a cat")
    loaded = _resident()
    encoder.close()
    gc.collect()
    after = _resident()
    assert loaded - before > 70 * 2**20, (before, loaded)
    assert loaded - after > 70 * 2**20, (loaded, after)


def test_to_moves_towers_and_results(folder: Path) -> None:
    encoder = Encoder(folder)
    whole = encoder("a cat")
    assert encoder.to(dtype="bfloat16") is encoder
    half = encoder("a cat")
    assert half.prompt_embeds.dtype == torch.bfloat16
    assert dict(half.fingerprints) != dict(whole.fingerprints)
    encoder.close()


def test_eight_threads_get_what_each_gets_alone(sdxl: Any) -> None:
    texts = [
        f"a ({word}:1.{at}) and {at} more" for at, word in enumerate(["cat", "dog", "owl", "fox"])
    ]
    alone = [Encoder(sdxl, cache=0)(text, NEGATIVE) for text in texts]
    encoder = Encoder(sdxl)
    wrong: list[str] = []

    def ask(start: int) -> None:
        for step in range(12):
            at = (start + step) % len(texts)
            if not same(encoder(texts[at], NEGATIVE), alone[at]):
                wrong.append(texts[at])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tokenizer_of_another_model_is_read_anew(sdxl: Any) -> None:
    encoder = Encoder(sdxl)
    before = encoder("a cat")
    sdxl.tokenizer = tiny_clip_tokenizer(words=("cat", "dog"))
    after = encoder("a cat")
    assert not torch.equal(before.prompt_embeds, after.prompt_embeds)
