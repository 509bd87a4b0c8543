"""Textual inversions against diffusers' ``load_textual_inversion`` and ``maybe_convert_prompt``.

Tolerance: 1e-6 of the largest entry, float32: the same modules read the same vectors, in another
batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.comparisons import Compared
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.encoding import load_conditioning, save_conditioning
from bridge.errors import OptionError, PromptError, WeightsError
from bridge.towers import read_textual_inversion

TOLERANCE = 1e-6
PEER = "diffusers 0.42.1"
PROMPT = "a photo of <cat-toy>, a red <cat-toy>s dog"
NAMES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


def vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
@pytest.mark.parametrize("count", [0, 1, 3], ids=["a vector", "one", "three"])
def test_diffusers_layout(kind: str, count: int, tmp_path: Path, compared: Compared) -> None:
    pipe = tiny_sd_pipeline(kind)
    tensor = vectors(count, 32) if count else vectors(1, 32)[0]
    path = tmp_path / "learned_embeds.safetensors"
    save_file({"<cat-toy>": tensor.contiguous()}, path)
    cond = bridge.condition(
        PROMPT, "<cat-toy>", model=pipe, textual_inversions=path, dialect="plain"
    )
    assert "<cat-toy>" not in pipe.tokenizer.get_vocab()
    assert len(pipe.text_encoder.get_input_embeddings().weight) == len(pipe.tokenizer)
    pipe.load_textual_inversion(str(path))
    wanted = pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt="<cat-toy>")
    for name, tensor in zip(NAMES, wanted, strict=False):
        compared("textual inversion", PEER, getattr(cond, name), tensor, TOLERANCE)
    # The same plan as that of the live pipeline that has the word loaded.
    loaded = bridge.condition(PROMPT, "<cat-toy>", model=pipe, dialect="plain")
    assert loaded.plans == cond.plans
    with pytest.raises(OptionError, match="'<cat-toy>', which the tokenizer"):
        bridge.condition(PROMPT, model=pipe, textual_inversions=path, dialect="plain")


def test_webui_layout_is_named_by_its_file(tmp_path: Path, compared: Compared) -> None:
    pipe = tiny_sd_pipeline("sd15")
    path = tmp_path / "easy-negative.safetensors"
    save_file({"emb_params": vectors(2, 32)}, path)
    cond = bridge.condition(
        "a cat", "easy-negative, dog", model=pipe, textual_inversions=[path], dialect="plain"
    )
    pipe.load_textual_inversion(str(path), token="easy-negative")
    wanted = pipe.encode_prompt("a cat", "cpu", 1, True, negative_prompt="easy-negative, dog")
    compared("textual inversion, emb_params", PEER, cond.prompt_embeds, wanted[0], TOLERANCE)
    compared(
        "textual inversion, emb_params", PEER, cond.negative_prompt_embeds, wanted[1], TOLERANCE
    )


def test_a_word_of_several_vectors_is_one_in_any_case(tmp_path: Path) -> None:
    """Where diffusers gives the model the first vector alone."""
    pipe = tiny_sd_pipeline("sd15")
    path = tmp_path / "EasyNegative.safetensors"
    save_file({"emb_params": vectors(3, 32)}, path)
    texts = ["a EasyNegative cat", "a easynegative cat"]
    cond = bridge.condition(texts, model=pipe, textual_inversions=path)
    assert torch.equal(cond.prompt_embeds[0], cond.prompt_embeds[1])
    assert cond.plans[0][0].ids == cond.plans[1][0].ids


def two_towers(pipe: Any, tensors: dict[str, torch.Tensor], word: str) -> None:
    """As diffusers' documentation loads a file of two towers."""
    for key, tail in (("clip_l", ""), ("clip_g", "_2")):
        tokenizer = getattr(pipe, f"tokenizer{tail}")
        encoder = getattr(pipe, f"text_encoder{tail}")
        pipe.load_textual_inversion(
            {word: tensors[key]}, token=word, tokenizer=tokenizer, text_encoder=encoder
        )


def test_two_towers(tmp_path: Path, compared: Compared) -> None:
    pipe = tiny_sdxl_pipeline()
    tensors = {"clip_l": vectors(3, 32), "clip_g": vectors(3, 48, 1)}
    path = tmp_path / "toy.safetensors"
    save_file(tensors, path)
    cond = bridge.condition(
        [PROMPT, "a cat"],
        "<cat-toy>",
        model=pipe,
        textual_inversions={"<cat-toy>": path},
        dialect="plain",
    )
    two_towers(pipe, tensors, "<cat-toy>")
    wanted = pipe.encode_prompt([PROMPT, "a cat"], negative_prompt="<cat-toy>")
    for name, tensor in zip(NAMES, wanted, strict=True):
        compared("textual inversion, two towers", PEER, getattr(cond, name), tensor, TOLERANCE)
    assert cond.addons[0].towers == ("text_encoder", "text_encoder_2")


def test_one_tensor_goes_to_the_tower_of_its_width(tmp_path: Path, compared: Compared) -> None:
    """The other tower reads the word as text, as with diffusers."""
    for width, tail in ((32, ""), (48, "_2")):
        pipe = tiny_sdxl_pipeline()
        path = tmp_path / f"toy{width}.safetensors"
        save_file({"<cat-toy>": vectors(2, width)}, path)
        cond = bridge.condition(PROMPT, model=pipe, textual_inversions=path, dialect="plain")
        pipe.load_textual_inversion(
            str(path),
            tokenizer=getattr(pipe, f"tokenizer{tail}"),
            text_encoder=getattr(pipe, f"text_encoder{tail}"),
        )
        wanted = pipe.encode_prompt(PROMPT)
        compared("textual inversion, one tower", PEER, cond.prompt_embeds, wanted[0], TOLERANCE)
        compared(
            "textual inversion, one tower", PEER, cond.pooled_prompt_embeds, wanted[2], TOLERANCE
        )


def test_old_configs_pool_at_eos_all_the_same(tmp_path: Path) -> None:
    """With ``eos_token_id`` 2 transformers pools at the highest id, which is an added word's
    (transformers issue 24650); bridge pools at EOS."""
    pipe = tiny_sdxl_pipeline()
    pipe.text_encoder_2.text_model.eos_token_id = 2
    path = tmp_path / "toy.safetensors"
    save_file({"clip_l": vectors(1, 32), "clip_g": vectors(1, 48)}, path)
    option = {"<cat-toy>": path}
    old = bridge.condition(PROMPT, model=pipe, textual_inversions=option)
    pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    new = bridge.condition(PROMPT, model=pipe, textual_inversions=option)
    assert torch.equal(old.pooled_prompt_embeds, new.pooled_prompt_embeds)


def test_words_have_weights_windows_places_and_an_account(tmp_path: Path) -> None:
    pipe = tiny_sdxl_pipeline()
    tensors = {"clip_l": vectors(4, 32), "clip_g": vectors(4, 48)}
    save_file(tensors, tmp_path / "toy.safetensors")
    # The word's four vectors would straddle the border of the first window.
    text = "a " * 73 + "(<cat-toy>:1.3) dog"
    cond = bridge.condition(
        text, model=pipe, textual_inversions={"<cat-toy>": tmp_path / "toy.safetensors"}
    )
    reference = tiny_sdxl_pipeline()
    two_towers(reference, tensors, "<cat-toy>")
    wanted = bridge.condition(text, model=reference)
    assert cond.plans == wanted.plans
    torch.testing.assert_close(cond.prompt_embeds, wanted.prompt_embeds, rtol=0, atol=1e-5)
    heavy = [token for token in cond.plans[0][0].tokens if token.weight != 1]
    assert len(heavy) == 4 and {text[t.start : t.end] for t in heavy} == {"<cat-toy>"}
    assert cond.fingerprints["textual inversion <cat-toy>"] == cond.addons[0].hash
    assert "textual inversion <cat-toy>" in cond.report().text()
    saved = save_conditioning(cond, tmp_path / "cond.safetensors")
    assert load_conditioning(saved, model=pipe).addons == cond.addons


def test_folders_and_their_cached_towers_stay_as_they_are(tmp_path: Path) -> None:
    pipe = tiny_sd_pipeline("sd15")
    pipe.save_pretrained(tmp_path / "sd")
    save_file({"<cat-toy>": vectors(2, 32)}, tmp_path / "toy.safetensors")
    path = tmp_path / "toy.safetensors"
    before = bridge.condition(PROMPT, model=tmp_path / "sd", device="cpu")
    with_word = bridge.condition(
        PROMPT, model=tmp_path / "sd", textual_inversions=path, device="cpu"
    )
    after = bridge.condition(PROMPT, model=tmp_path / "sd", device="cpu")
    assert torch.equal(before.prompt_embeds, after.prompt_embeds) and before.plans == after.plans
    assert not torch.allclose(before.prompt_embeds, with_word.prompt_embeds, atol=0.01)
    live = bridge.condition(PROMPT, model=pipe, textual_inversions=path)
    torch.testing.assert_close(with_word.prompt_embeds, live.prompt_embeds, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- bad input


def test_wrong_widths_are_told_before_towers_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_sd_pipeline("sd15").save_pretrained(tmp_path / "sd")
    tiny_sdxl_pipeline().save_pretrained(tmp_path / "sdxl")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a tower was loaded")

    monkeypatch.setattr("bridge.encoding.model.load_tower", fail)
    bridge.release()
    path = tmp_path / "toy.safetensors"
    save_file({"<toy>": vectors(1, 1024)}, path)
    with pytest.raises(
        WeightsError, match=r"toy\.safetensors: .*1024 wide.*sd15\) text_encoder takes 32"
    ):
        bridge.condition("a cat", model=tmp_path / "sd", textual_inversions=path)
    with pytest.raises(WeightsError, match="text_encoder takes 32, text_encoder_2 takes 48"):
        bridge.condition("a cat", model=tmp_path / "sdxl", textual_inversions=path)
    save_file({"clip_l": vectors(1, 32), "clip_g": vectors(1, 1280)}, path)
    with pytest.raises(WeightsError, match="for clip_g are 1280 wide"):
        bridge.condition("a cat", model=tmp_path / "sdxl", textual_inversions=path)
    save_file({"clip_g": vectors(1, 1280)}, path)
    with pytest.raises(WeightsError, match=r"has vectors for clip_g, but .* \(sd15\) has clip_l\."):
        bridge.condition("a cat", model=tmp_path / "sd", textual_inversions=path)


def test_pickles_are_opened_when_told(tmp_path: Path) -> None:
    pipe = tiny_sd_pipeline("sd15")
    webui = tmp_path / "toy.pt"
    torch.save({"string_to_param": {"*": vectors(2, 32)}, "name": "<toy>", "step": 5}, webui)
    with pytest.raises(WeightsError, match="allow_pickle=True"):
        bridge.condition("a <toy>", model=pipe, textual_inversions=webui)
    opened = read_textual_inversion(webui, allow_pickle=True)
    assert opened.word == "<toy>" and torch.equal(opened.vectors[""], vectors(2, 32))
    save_file({"<toy>": vectors(2, 32)}, tmp_path / "toy.safetensors")
    found = bridge.condition("a <toy>", model=pipe, textual_inversions=opened)
    same = bridge.condition("a <toy>", model=pipe, textual_inversions=tmp_path / "toy.safetensors")
    assert torch.equal(found.prompt_embeds, same.prompt_embeds)

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"<toy>": Harmful()}, tmp_path / "harmful.bin")
    with pytest.raises(WeightsError, match=r"harmful\.bin cannot be read as tensors alone"):
        read_textual_inversion(tmp_path / "harmful.bin", allow_pickle=True)
    assert not (tmp_path / "harm").exists()


def test_files_that_are_no_textual_inversion(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def refused(match: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, path)
        with pytest.raises(WeightsError, match=match):
            read_textual_inversion(path)

    refused("2 tensors, not one", {"a": vectors(1, 8), "b": vectors(1, 8)})
    refused("of torch.int64", {"a": torch.ones(1, 8, dtype=torch.int64)})
    refused("not finite", {"a": vectors(1, 8) / 0})
    refused("as many vectors", {"clip_l": vectors(1, 8), "clip_g": vectors(2, 8)})
    path.write_bytes(b"no header")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        read_textual_inversion(path)
    with pytest.raises(WeightsError, match=r"gone\.safetensors"):
        read_textual_inversion(tmp_path / "gone.safetensors")


def test_words_that_clash(tmp_path: Path) -> None:
    pipe = tiny_sd_pipeline("sd15")
    for name in ("one", "two"):
        save_file({"<toy>": vectors(2, 32)}, tmp_path / f"{name}.safetensors")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    with pytest.raises(OptionError, match="Two textual inversions are called '<toy>'"):
        bridge.condition("a cat", model=pipe, textual_inversions=[one, two])
    with pytest.raises(OptionError, match="'<toy>_1'"):
        bridge.condition(
            "a cat", model=pipe, textual_inversions={"<toy>": one, "<toy>_1": two}, dialect="plain"
        )
    with pytest.raises(OptionError, match="'cat</w>', which the tokenizer"):
        bridge.condition("a cat", model=pipe, textual_inversions={"cat</w>": one}, dialect="plain")
    with pytest.raises(OptionError, match="textual_inversions takes"):
        bridge.condition("a cat", model=pipe, textual_inversions=3)  # type: ignore[arg-type]


# ---------------------------------------------------------------- each tool's own rule


def test_a1111_finds_whole_runs_of_tokens(tmp_path: Path) -> None:
    """The webui's rule: a word of the vocabulary may be a name, and a longer word is none."""
    pipe = tiny_sd_pipeline("sd15")
    save_file({"emb_params": vectors(3, 32)}, tmp_path / "easynegative.safetensors")
    save_file({"emb_params": vectors(2, 32, 1)}, tmp_path / "cat.safetensors")
    files = sorted(tmp_path.glob("*"))
    found = bridge.condition("a EasyNegative cat dog", model=pipe, textual_inversions=files)
    pieces = [token.piece for token in found.plans[0][0].tokens if not token.special]
    assert pieces[1:6] == [
        "easynegative", "easynegative_1", "easynegative_2", "cat", "cat_1"
    ] and pieces[6] == "dog</w>"  # fmt: skip
    with pytest.warns(UserWarning, match="'easynegative' is part of a longer word"):
        longer = bridge.condition("easynegatives", model=pipe, textual_inversions=files)
    plain = bridge.condition("easynegatives", model=pipe)
    assert torch.equal(longer.prompt_embeds, plain.prompt_embeds)


def test_comfy_reads_embedding_names(tmp_path: Path) -> None:
    pipe = tiny_sd_pipeline("sd15")
    save_file({"emb_params": vectors(2, 32)}, tmp_path / "cat.safetensors")
    text = "a (embedding:cat:1.2) embedding:sub/cat.safetensors, embedding:cat xembedding:dog"
    found = bridge.condition(
        text, model=pipe, textual_inversions=tmp_path / "cat.safetensors", dialect="comfy"
    )
    tokens = [token for token in found.plans[0][0].tokens if not token.special]
    vectors_ = [(t.piece, t.weight) for t in tokens if t.piece in ("cat", "cat_1")]
    assert vectors_ == [("cat", 1.2), ("cat_1", 1.2), *[("cat", 1.0), ("cat_1", 1.0)] * 2]
    assert "".join(t.piece for t in tokens).replace("</w>", " ").startswith("a catcat_1catcat_1, ")
    with pytest.raises(PromptError, match="No textual inversion is named 'dog'"):
        bridge.condition("a embedding:dog", model=pipe, dialect="comfy")
    # A word that a live pipeline was taught is one too.
    pipe.load_textual_inversion({"toy": vectors(1, 32)}, token="toy")
    taught = bridge.condition("embedding:toy", model=pipe, dialect="comfy")
    assert [t.piece for t in taught.plans[0][0].tokens if not t.special] == ["toy"]
