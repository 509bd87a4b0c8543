"""The explicit bridge against stock LLaVA, and everything a person may ask wrongly."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_vlm import IMAGE_SIZE, SOFT_TOKENS, tiny_llava, tiny_llava_model
from transformers import PixtralVisionConfig

from bridge.errors import (
    BridgeError,
    ImageError,
    OptionError,
    PromptError,
    UnknownModelError,
    UnsupportedModelError,
    WeightsError,
)
from bridge.towers.image_processor import load_image_processor
from bridge.vlm import describe, from_llava, load_vlm
from bridge.vlm.answering import _loaded
from bridge.vlm.merge_embeddings import expand_placeholder, merge_embeddings, pad_rows
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import mlp2x_gelu

QUESTIONS = ["what is on the left?", "how many cats are there?", "is it noto?"]
HISTORY = [("what is on the left?", "a cat"), ("how many?", "two")]


def picture(seed: int = 0, size: tuple[int, int] = (50, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    from transformers import AutoTokenizer, LlavaProcessor

    # AutoProcessor of transformers 5.17 wants torchvision; the class itself does not.
    return LlavaProcessor(
        image_processor=load_image_processor(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="module")
def vlm(folder: Path) -> BridgeVLM:
    return load_vlm(folder, device="cpu")


def stock_batch(processor: Any, images: list[Image.Image], texts: list[str]) -> Any:
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# -- equal to stock -----------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS)
def test_logits_equal_stock(vlm: BridgeVLM, stock: Any, processor: Any, question: str) -> None:
    batch = stock_batch(processor, [picture()], [f"USER: <image>\n{question} ASSISTANT:"])
    with torch.inference_mode():
        want = stock(**batch).logits
    got = vlm.logits([picture()], [[(question, "")]])
    assert got.shape == want.shape
    assert relative(got, want) <= 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_equal_stock(vlm: BridgeVLM, stock: Any, processor: Any, seed: int) -> None:
    turns = [*HISTORY, ("is it noto?", "")]
    batch = stock_batch(processor, [picture(seed)], [vlm.prompt_text(turns)])
    want = stock.generate(**batch, max_new_tokens=24, do_sample=False)
    want = want[0, batch["input_ids"].shape[1] :]
    got = vlm._generate(vlm.inputs([picture(seed)], [turns]), 24)[0]
    assert got.tolist() == want.tolist()
    assert len(set(got.tolist())) > 3, "an answer of one token repeated proves little"
    text = processor.tokenizer.decode(want, skip_special_tokens=True).strip()
    answer = vlm.answer(picture(seed), "is it noto?", history=HISTORY, max_new_tokens=24)
    assert answer == text


def test_the_answer_depends_on_picture_question_and_history(vlm: BridgeVLM) -> None:
    base = vlm.answer(picture(0), QUESTIONS[0], max_new_tokens=12)
    assert base != vlm.answer(picture(1), QUESTIONS[0], max_new_tokens=12)
    assert base != vlm.answer(picture(0), QUESTIONS[1], max_new_tokens=12)
    assert base != vlm.answer(picture(0), QUESTIONS[0], history=HISTORY, max_new_tokens=12)


@pytest.mark.parametrize("select", [{"select_layer": -1}, {"select_layer": -3}])
def test_the_exactness_test_can_fail(
    vlm: BridgeVLM, stock: Any, processor: Any, select: dict[str, Any]
) -> None:
    """With the layer chosen wrongly on purpose the logits are far off."""
    batch = stock_batch(processor, [picture()], [vlm.prompt_text([(QUESTIONS[0], "")])])
    with torch.inference_mode():
        want = stock(**batch).logits
    got = replace(vlm, **select).logits([picture()], [[(QUESTIONS[0], "")]])
    assert relative(got, want) > 1e-2


@pytest.mark.parametrize(
    "config",
    [
        {"vision_feature_select_strategy": "full"},
        {"vision_feature_layer": [-1, -3]},
        {"vision_feature_layer": 1},
        {"projector_hidden_act": "relu"},
        {"multimodal_projector_bias": False},
    ],
)
def test_other_settings_of_the_config_equal_stock(
    vlm: BridgeVLM, processor: Any, config: dict[str, Any]
) -> None:
    whole = config.get("vision_feature_select_strategy") == "full"
    model = tiny_llava_model(vocab_size=len(processor.tokenizer), seed=3, **config)
    other = from_llava(model, processor.tokenizer, processor.image_processor)
    ids = torch.tensor([vlm.prompt_ids([(QUESTIONS[0], "")], SOFT_TOKENS + whole)])
    pixel_values = processor.image_processor(picture(), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        want = model(input_ids=ids, pixel_values=pixel_values).logits
    got = other.logits([picture()], [[(QUESTIONS[0], "")]])
    assert got.shape == want.shape
    assert relative(got, want) <= 1e-5


def test_parameters_are_shared_not_copied(stock: Any, processor: Any) -> None:
    vlm = from_llava(stock, processor.tokenizer, processor.image_processor)
    ours = {id(p) for part in (vlm.vision, vlm.projector, vlm.llm) for p in part.parameters()}  # type: ignore[attr-defined]
    assert ours == {id(p) for p in stock.parameters()}


def test_a_batch_of_ragged_chats_equals_single_calls(vlm: BridgeVLM) -> None:
    images = [picture(seed) for seed in range(3)]
    histories = [(), HISTORY, HISTORY[:1]]
    batch = vlm.answers(images, QUESTIONS, histories, max_new_tokens=16)
    single = [
        vlm.answer(image, question, history=history, max_new_tokens=16)
        for image, question, history in zip(images, QUESTIONS, histories, strict=True)
    ]
    assert batch == single
    assert vlm.answers([], []) == []
    with pytest.raises(OptionError, match="as many"):
        vlm.answers(images, QUESTIONS[:1])


def test_the_template_of_the_folder_is_used(vlm: BridgeVLM) -> None:
    assert vlm.chat_template is not None
    bare = replace(vlm, chat_template=None)
    turns = [*HISTORY, ("is it noto?", "")]
    assert vlm.prompt_text(turns) == bare.prompt_text(turns)
    text_only = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant]"
    )
    assert replace(vlm, chat_template=text_only).prompt_text([("why?", "")]) == (
        "[user] <image>\nwhy? [assistant]"
    )
    with pytest.raises(UnsupportedModelError, match="does not place"):
        replace(vlm, chat_template="no pictures here").prompt_text([("why?", "")])


def test_soft_tokens_are_counted_in_one_place(vlm: BridgeVLM) -> None:
    assert vlm.n_soft_tokens(IMAGE_SIZE, IMAGE_SIZE) == SOFT_TOKENS
    assert replace(vlm, select_feature="cls_patch").n_soft_tokens(32, 32) == SOFT_TOKENS + 1
    soft = vlm.soft_tokens(torch.zeros(2, 3, 32, 32))
    assert soft.shape == (2, SOFT_TOKENS, 32)


def test_a_fresh_projector_can_be_put_in(vlm: BridgeVLM) -> None:
    other = replace(vlm, projector=mlp2x_gelu(24, 32).eval())
    assert isinstance(other.answer(picture(), "what?", max_new_tokens=4), str)


# -- splicing -----------------------------------------------------------------------------


def test_expand_and_pad() -> None:
    assert expand_placeholder([1, 4, 7], 4, 3) == [1, 4, 4, 4, 7]
    ids, mask = pad_rows([[1, 2, 3], [9]], 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_splice_places_soft_tokens_and_counts_positions() -> None:
    embed = torch.nn.Embedding(4, 2)  # id 9, the image, lies past the table
    ids, mask = pad_rows([[1, 9, 9, 2], [9, 9, 3]], 0)
    soft = torch.arange(8.0).view(2, 2, 2) + 100
    out = merge_embeddings(embed, ids, mask, 9, soft)
    assert out.inputs_embeds[0, 1:3].tolist() == soft[0].tolist()
    assert out.inputs_embeds[1, 1:3].tolist() == soft[1].tolist()
    assert torch.equal(out.inputs_embeds[0, 3], embed.weight[2])
    assert out.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    with pytest.raises(PromptError, match=r"4 image positions.*1 picture.*2 soft tokens make 2"):
        merge_embeddings(embed, ids, mask, 9, soft[:1])


# -- streaming ----------------------------------------------------------------------------


@pytest.mark.parametrize("history", [(), HISTORY], ids=["first", "later"])
def test_streamed_pieces_join_to_the_answer(vlm: BridgeVLM, history: Any) -> None:
    asked: dict[str, Any] = {"history": history, "max_new_tokens": 20}
    for seed in range(4):
        pieces = list(vlm.stream(picture(seed), QUESTIONS[0], **asked))
        assert "".join(pieces) == vlm.answer(picture(seed), QUESTIONS[0], **asked)
        assert all(pieces)


def test_an_error_in_the_worker_reaches_the_reader(vlm: BridgeVLM) -> None:
    from bridge.vlm.answering import stream_text

    def breaks(streamer: Any, **_: Any) -> None:
        streamer.put(torch.tensor([[]]))
        streamer.put(torch.tensor(vlm.tokenizer(" a cat ")["input_ids"]))
        raise RuntimeError("out of memory")

    seen: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        seen.extend(stream_text(vlm.tokenizer, breaks))
    assert "".join(seen) == "a cat"


def test_leaving_the_stream_stops_the_model(vlm: BridgeVLM) -> None:
    from bridge.vlm.answering import stream_text

    ended: list[str] = []
    word = torch.tensor(vlm.tokenizer(" cat", add_special_tokens=False)["input_ids"])

    def run(streamer: Any, stopping_criteria: Any) -> None:
        streamer.put(torch.tensor([[]]))
        for _ in range(5_000):
            streamer.put(word)
            if stopping_criteria(word[None], None).all():
                ended.append("asked to stop")
                return
            time.sleep(0.001)
        ended.append("ran to its end")

    stream = stream_text(vlm.tokenizer, run)
    assert next(stream) == "cat"
    stream.close()  # type: ignore[attr-defined]
    assert ended == ["asked to stop"]


def test_leaving_an_answer_leaves_no_thread_behind(vlm: BridgeVLM) -> None:
    before = threading.active_count()
    stream = vlm.stream(picture(), QUESTIONS[0], max_new_tokens=60)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_bad_input_is_refused_when_the_stream_is_made(vlm: BridgeVLM) -> None:
    with pytest.raises(PromptError):
        vlm.stream(picture(), "  ")


# -- describe -----------------------------------------------------------------------------


def test_describe_answers_streams_and_keeps_the_model(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    picture().save(file)
    whole = describe(file, QUESTIONS[0], model=folder, max_new_tokens=8)
    assert isinstance(whole, str)
    before = _loaded.cache_info()
    pieces = describe(picture(), QUESTIONS[0], model=folder, max_new_tokens=8, stream=True)
    assert "".join(pieces) == whole
    after = _loaded.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
    assert (
        describe(np.asarray(picture()), QUESTIONS[0], model=str(folder), max_new_tokens=8) == whole
    )


def test_describe_takes_a_loaded_model_and_tells_it_the_history(vlm: BridgeVLM) -> None:
    asked: dict[str, Any] = {"history": HISTORY, "max_new_tokens": 12}
    want = vlm.answer(picture(), QUESTIONS[0], **asked)
    assert describe(picture(), QUESTIONS[0], model=vlm, **asked) == want
    assert "".join(describe(picture(), QUESTIONS[0], model=vlm, stream=True, **asked)) == want
    assert describe(picture(), QUESTIONS[0], model=vlm, max_new_tokens=12) != want


@pytest.mark.parametrize(
    ("question", "match"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("what\0?", "NUL"),
        (None, "NoneType"),
        (b"what?", "bytes"),
        ("\ud83d", "surrogate"),
        ("why " * 30_000, "characters"),
    ],
)
def test_bad_questions_before_any_model_loads(question: Any, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        describe(picture(), question, model="/no/such/model")


@pytest.mark.parametrize(
    "history", ["what?", 5, [("a",)], ["ab"], [("", "b")], [("a", 3)], [("a\0", "b")]]
)
def test_bad_history(history: Any) -> None:
    with pytest.raises(PromptError):
        describe(picture(), "what?", model="/no/such/model", history=history)


@pytest.mark.parametrize("value", [0, -1, 5000, 1.5, True, "8", None])
def test_bad_max_new_tokens(value: Any) -> None:
    with pytest.raises(OptionError, match="max_new_tokens"):
        describe(picture(), "what?", model="/no/such/model", max_new_tokens=value)


def test_bad_image_before_any_model_loads() -> None:
    with pytest.raises(ImageError):
        describe(b"nonsense", "what?", model="/no/such/model")


@pytest.mark.parametrize("mark", ["</s>", "<s>", "<pad>"])
def test_control_tokens_in_a_question(vlm: BridgeVLM, mark: str) -> None:
    with pytest.raises(PromptError, match="control token"):
        vlm.answer(picture(), f"what {mark} is it?")
    with pytest.raises(PromptError, match="control token"):
        vlm.answer(picture(), "what?", history=[("a", f"b{mark}")])


def test_emoji_and_right_to_left_questions_are_fine(vlm: BridgeVLM) -> None:
    assert isinstance(vlm.answer(picture(), "🐈 מה זה?", max_new_tokens=4), str)


def test_context_overrun_is_said_with_the_counts(vlm: BridgeVLM) -> None:
    with pytest.raises(PromptError, match=r"16 of them the picture.*128 in all.*ask more briefly"):
        vlm.answer(picture(), "zq " * 100)
    with pytest.raises(PromptError, match="drop earlier turns"):
        vlm.answer(picture(), "what?", history=[("why?", "because")] * 20)


def test_answers_stop_at_the_end_of_the_context(vlm: BridgeVLM) -> None:
    turns = [("zq " * 25, "")]
    rows = vlm.inputs([picture()], [turns])
    length = rows.inputs_embeds.shape[1]
    endless = {"suppress_tokens": [vlm.tokenizer.eos_token_id]}
    assert length + vlm._generate(rows, 4096, **endless).shape[1] == vlm.context
    assert vlm._generate(rows, 5, **endless).shape[1] == 5


# -- loading ------------------------------------------------------------------------------


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("model", [None, 3, {"a": "b"}])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="BridgeVLM"):
        describe(picture(), "what is it?", model=model)


def test_a_question_past_the_context_says_so_and_no_more(
    vlm: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PromptError, match="ask more briefly"):
        vlm.answer(picture(), "word " * 1000)
    assert capfd.readouterr().err == ""


def test_unknown_model_name() -> None:
    with pytest.raises(UnknownModelError):
        load_vlm("emoji-lava")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        load_vlm(tmp_path)


def test_another_architecture(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "bert")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        load_vlm(other)
    (other / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="JSON"):
        load_vlm(other)


def test_a_pixtral_is_no_llava(folder: Path, processor: Any, tmp_path: Path) -> None:
    """Its config says "llava", but its pictures are written row by row."""
    other = copy_of(folder, tmp_path / "pixtral")
    config = json.loads((other / "config.json").read_text())
    config["vision_config"] = {"model_type": "pixtral"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"Pixtral.*\[IMG_BREAK\].*llava-hf"):
        load_vlm(other)
    model = tiny_llava_model(vocab_size=320)
    model.config.vision_config = PixtralVisionConfig()
    with pytest.raises(UnsupportedModelError, match="Pixtral"):
        from_llava(model, processor.tokenizer, processor.image_processor)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json", "model.safetensors"])
def test_missing_and_damaged_files(folder: Path, tmp_path: Path, name: str) -> None:
    gone = copy_of(folder, tmp_path / "gone")
    (gone / name).unlink()
    with pytest.raises(BridgeError):
        load_vlm(gone)
    cut = copy_of(folder, tmp_path / "cut")
    data = (cut / name).read_bytes()
    (cut / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError):
        load_vlm(cut)


def test_tied_embeddings_are_no_missing_tensor(processor: Any, tmp_path: Path) -> None:
    """The embedded model's layout: the output head is the embedding table, saved once."""
    tied = tiny_llava(tmp_path, tie_word_embeddings=True)
    loaded = load_vlm(tied, device="cpu")
    assert loaded.llm.lm_head.weight is loaded.llm.get_input_embeddings().weight
    from transformers import LlavaForConditionalGeneration

    stock = LlavaForConditionalGeneration.from_pretrained(tied).eval()
    batch = stock_batch(processor, [picture()], [loaded.prompt_text([(QUESTIONS[0], "")])])
    with torch.inference_mode():
        want = stock(**batch).logits
    assert relative(loaded.logits([picture()], [[(QUESTIONS[0], "")]]), want) <= 1e-5


def test_a_missing_tensor_is_not_filled_with_noise(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    short = copy_of(folder, tmp_path / "short")
    tensors = load_file(short / "model.safetensors")
    dropped = next(key for key in tensors if "linear_1.weight" in key)
    del tensors[dropped]
    save_file(tensors, short / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="linear_1"):
        load_vlm(short)


@pytest.mark.parametrize("number", [40, 10**6])
def test_a_tokenizer_without_the_image_token(
    stock: Any, processor: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(stock.config, "image_token_index", number)  # a usual token, or none
    with pytest.raises(UnsupportedModelError, match=f"image token {number} is not a special token"):
        from_llava(stock, processor.tokenizer, processor.image_processor)


@pytest.mark.parametrize("option", [{"device": "gpu9"}, {"device": "cuda:99"}, {"dtype": "int8"}])
def test_bad_device_and_dtype(folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        load_vlm(folder, **option)


def test_half_precision(folder: Path) -> None:
    half = load_vlm(folder, device="cpu", dtype="bfloat16")
    assert half.llm.dtype == torch.bfloat16
    assert isinstance(half.answer(picture(), "what?", max_new_tokens=4), str)


def test_an_older_folder_layout(folder: Path, tmp_path: Path) -> None:
    """preprocessor_config.json and chat_template.json, as published LLaVA folders have."""
    old = copy_of(folder, tmp_path / "old")
    settings = json.loads((old / "processor_config.json").read_text())["image_processor"]
    (old / "preprocessor_config.json").write_text(json.dumps(settings))
    (old / "processor_config.json").write_text(json.dumps({"patch_size": 8}))
    template = (old / "chat_template.jinja").read_text()
    (old / "chat_template.jinja").unlink()
    (old / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    loaded, again = load_vlm(old, device="cpu"), load_vlm(folder, device="cpu")
    assert loaded.chat_template == again.chat_template
    got, want = (m.answer(picture(), "what?", max_new_tokens=8) for m in (loaded, again))
    assert got == want


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(folder: Path, vlm: BridgeVLM) -> None:
    there = load_vlm(folder, dtype="float32")
    assert there.device.type == "cuda"
    got = there.logits([picture()], [[(QUESTIONS[0], "")]]).cpu()
    assert relative(got, vlm.logits([picture()], [[(QUESTIONS[0], "")]])) < 1e-3
