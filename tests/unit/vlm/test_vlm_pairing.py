"""Any tower with any language model: equal to one sequence computed by hand, however batched."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_pairs import (
    INSIDE,
    LATER,
    LLMS,
    SIDE,
    TEXT_TEMPLATE,
    TOWERS,
    picture,
    plain_tokenizer,
    tiny_llm,
    tiny_pair,
    tiny_tower,
)
from support.tiny_vlm import tiny_llava_model

from bridge.errors import ImageError, OptionError, PromptError, UnsupportedModelError
from bridge.vlm import BridgeVLM, from_llava, pair
from bridge.vlm.chat import IMAGE_TOKEN, chat_text, read_messages
from bridge.vlm.projectors import PROJECTORS
from bridge.vlm.vision import n_extra_states

ASKED = [("what is on the left?", "")]
TOLERANCE = 1e-5  # fp32, batches of other shapes: sums in another order


def states_by_hand(name: str, vlm: BridgeVLM, images: list[Image.Image], layer: int) -> Any:
    """What the layer gives, caught where it leaves it, without states that are no patch."""
    tower: Any = vlm.vision
    layers = next(
        m
        for m in tower.modules()
        if isinstance(m, torch.nn.ModuleList) and len(m) == tower.config.num_hidden_layers
    )
    caught: list[torch.Tensor] = []

    def catch(module: Any, args: Any, out: Any) -> None:
        caught.append(out if isinstance(out, torch.Tensor) else out[0])

    hook = layers[layer].register_forward_hook(catch)
    pixels = vlm.image_processor(images=images, return_tensors="pt")["pixel_values"]
    if name == "siglip2":
        from transformers.models.siglip2.image_processing_pil_siglip2 import (
            convert_image_to_patches,
        )

        patches = np.stack([convert_image_to_patches(p.numpy(), 8) for p in pixels])
        n = len(pixels)
        tower(torch.from_numpy(patches), torch.ones(n, 16), torch.tensor([[4, 4]] * n))
    else:
        tower(pixels)
    hook.remove()
    return caught[0][:, TOWERS[name][3] :]


@torch.inference_mode()
def logits_by_hand(
    name: str, vlm: BridgeVLM, images: list[Image.Image], turns: Any, layer: int = -2
) -> torch.Tensor:
    """One sequence, alone: words and soft tokens end to end, no mask, no padding, no positions."""
    soft = (
        vlm.projector(states_by_hand(name, vlm, images, layer), (4, 4))  # type: ignore[misc]
        if images
        else []
    )
    inside = any(IMAGE_TOKEN in question for question, _ in turns)
    text = chat_text(turns, False, 0 if inside else len(images))
    embed = vlm.llm.get_input_embeddings()
    parts = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        if index:
            parts.append(soft[index - 1])
        ids = vlm.tokenizer(piece, add_special_tokens=index == 0)["input_ids"]
        parts.append(embed(torch.tensor(ids, dtype=torch.long)))
    return vlm.llm(inputs_embeds=torch.cat(parts)[None]).logits[0]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


ROWS: list[tuple[list[Image.Image], Any]] = [
    ([picture(1)], ASKED),
    ([picture(2), picture(3)], LATER),
    ([], LATER),
    ([picture(4), picture(5)], INSIDE),
]


def worst(name: str, vlm: BridgeVLM, padding: Any) -> float:
    """How far a ragged batch is from single sequences, on the worst row."""
    found = vlm.logits([images for images, _ in ROWS], [turns for _, turns in ROWS], padding)
    rows = []
    for index, (images, turns) in enumerate(ROWS):
        want = logits_by_hand(name, vlm, images, turns)
        got = found[index, -len(want) :] if padding == "left" else found[index, : len(want)]
        rows.append(relative(got, want))
    assert all(map(math.isfinite, rows))  # max would pass over a NaN
    return max(rows)


# -- exact --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_equals_one_sequence_by_hand(tower: str, padding: Any) -> None:
    assert worst(tower, tiny_pair(tower, "Qwen2"), padding) <= TOLERANCE


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("llm", LLMS)
def test_every_language_model_equals_one_sequence_by_hand(llm: str, padding: Any) -> None:
    assert worst("siglip", tiny_pair("siglip", llm), padding) <= TOLERANCE


@pytest.mark.parametrize("projector", sorted(PROJECTORS.keys() - {"identity"}))
def test_every_projector_equals_one_sequence_by_hand(projector: str) -> None:
    options = {
        "qformer": {
            "queries": 3,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 24,
        },
        "perceiver": {"latents": 5, "heads": 4, "kv_heads": 2, "head_width": 4},
        "c_abstractor": {"tokens": 4, "hidden_width": 8, "grid": (4, 4)},
    }.get(projector)
    vlm = tiny_pair("dinov2", projector=projector, projector_options=options)
    assert worst("dinov2", vlm, "left") <= TOLERANCE


@pytest.mark.parametrize("llm", ["Llama", "GPT2", "Gemma", "Bloom"])
def test_batched_answers_equal_single_ones(llm: str) -> None:
    vlm = tiny_pair("siglip", llm)
    chats = [(images, turns[-1][0], turns[:-1]) for images, turns in ROWS]
    batch = vlm.answers(*map(list, zip(*chats, strict=True)), max_new_tokens=12)  # type: ignore[arg-type]
    single = [vlm.answer(i, q, history=h, max_new_tokens=12) for i, q, h in chats]
    assert batch == single
    assert len(set(batch)) >= 3, "answers that are all one prove little"
    streamed = vlm.stream(chats[3][0], chats[3][1], max_new_tokens=12)
    assert "".join(streamed) == single[3]


def stock_rows(padding: str, vlm: BridgeVLM, n_soft: int) -> tuple[Any, list[Image.Image]]:
    """The rows as transformers takes them, its own marks repeated; no row without a picture."""
    tokenizer = vlm.tokenizer
    tokenizer.padding_side = padding
    rows = [row for row in ROWS if row[0]]
    texts = []
    for images, turns in rows:
        inside = IMAGE_TOKEN in turns[0][0]
        text = chat_text(turns, False, 0 if inside else len(images))
        texts.append(text.replace(IMAGE_TOKEN, IMAGE_TOKEN * n_soft))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    return batch, [image for images, _ in rows for image in images]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2_registers"])
def test_equal_to_stock_llava(tower: str, strategy: str, padding: Any) -> None:
    """Several pictures, several turns, ragged rows; towers with and without a class token."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    base = tiny_llava_model(vocab_size=320)
    vision = tiny_tower(tower)
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=base.config.text_config,
        image_token_index=4,
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
    )
    torch.manual_seed(3)
    stock = LlavaForConditionalGeneration(config).eval()
    stock.model.vision_tower.load_state_dict(vision.state_dict())
    tokenizer = plain_tokenizer(image_token=True)
    processor = pair(vision, tiny_llm("Llama", 300), tokenizer).image_processor
    vlm = from_llava(stock, with_special(tokenizer), processor)
    n_soft = 16 + TOWERS[tower][3] - (strategy == "default")
    assert vlm.n_soft_tokens(SIDE, SIDE) == n_soft
    batch, images = stock_rows(padding, vlm, n_soft)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        want = stock(**batch, pixel_values=pixels).logits
    rows = [row for row in ROWS if row[0]]
    got = vlm.logits([i for i, _ in rows], [t for _, t in rows], padding)
    real = batch["attention_mask"].bool()
    assert relative(got[real], want[real]) <= TOLERANCE


def with_special(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return tokenizer


# -- and broken on purpose, not equal -----------------------------------------------------


@pytest.mark.parametrize(("layer", "module"), [(-1, -1), (-3, -3), (1, 0)])
def test_a_wrong_layer_is_seen(layer: int, module: int) -> None:
    """Hidden state 0 is the embeddings, so hidden state 1 is what module 0 gives."""
    vlm = replace(tiny_pair("siglip"), select_layer=layer)
    found = vlm.logits([picture()], [ASKED])[0]
    assert relative(found, logits_by_hand("siglip", vlm, [picture()], ASKED, module)) <= TOLERANCE
    assert relative(found, logits_by_hand("siglip", vlm, [picture()], ASKED)) > 1e-2


@pytest.mark.parametrize("tower", ["clip", "dinov2_registers"])
def test_a_wrong_class_token_rule_is_seen(tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is wrong in counting and in cutting alike, as an honest mistake would be."""
    from bridge.vlm import vision

    vlm = tiny_pair(tower)
    wrong = {"patch": 0}
    monkeypatch.setattr(vision, "n_dropped", lambda tower, select: wrong[select])
    want = logits_by_hand(tower, vlm, [picture()], ASKED)
    assert vlm.logits([picture()], [ASKED]).shape[1] != len(want)
    assert not vlm.logits([picture()], [ASKED])[0, -1].allclose(want[-1], rtol=1e-2)


def test_wrong_positions_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With learned positions, padding that counts moves every word of the shorter rows."""
    from bridge.vlm import model
    from bridge.vlm.merge_embeddings import merge_embeddings

    def counts_padding(*args: Any) -> Any:
        rows = merge_embeddings(*args)
        places = torch.arange(rows.attention_mask.shape[1]).expand_as(rows.position_ids)
        return replace(rows, position_ids=places)

    vlm = tiny_pair("siglip", "GPT2")
    monkeypatch.setattr(model, "merge_embeddings", counts_padding)
    assert worst("siglip", vlm, "left") > 1e-2


def test_a_mask_that_shows_padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.vlm import model
    from bridge.vlm.merge_embeddings import merge_embeddings

    def shows_padding(*args: Any) -> Any:
        rows = merge_embeddings(*args)
        return replace(rows, attention_mask=torch.ones_like(rows.attention_mask))

    vlm = tiny_pair("siglip", "Qwen2")
    monkeypatch.setattr(model, "merge_embeddings", shows_padding)
    assert worst("siglip", vlm, "left") > 1e-2


# -- counts -------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("select", ["patch", "cls_patch", "drop_first"])
def test_the_count_is_what_comes_out(tower: str, select: Any) -> None:
    vlm = tiny_pair(tower, select_feature=select)
    extra = TOWERS[tower][3]
    count = vlm.count(SIDE, SIDE)
    assert n_extra_states(vlm.vision) == extra  # type: ignore[arg-type]
    assert count.count == 16 + {"patch": 0, "cls_patch": extra, "drop_first": extra - 1}[select]
    with torch.inference_mode():
        assert vlm.soft_tokens(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, count.count, 32)
    assert count.layout == ((4, 4) if count.states == 16 else None)
    assert f"{count.count} soft tokens" in str(count) and "4x4 patches" in str(count)


def test_soft_tokens_of_elsewhere_must_fill_their_places() -> None:
    vlm = tiny_pair()
    row = vlm.prompt_ids(ASKED, 16)
    match = r"16 image positions, but 1 picture.* make 15.*CLIPVisionModel -> patch -> MlpProjector"
    with pytest.raises(PromptError, match=match):
        vlm.embed([row], torch.ones(1, 15, 32))


def test_a_projector_that_needs_a_grid_gets_no_class_token() -> None:
    vlm = tiny_pair("clip", projector="pixel_shuffle", select_feature="cls_patch")
    with pytest.raises(OptionError, match=r"pixel_shuffle.*grid.*class token"):
        vlm.answer(picture(), "what?")


def test_a_projector_that_breaks_its_word_is_told_so() -> None:
    class Odd(torch.nn.Identity):
        kind, vision_width, llm_width = "odd", 24, 24

        def forward(self, states: torch.Tensor, grid: Any = None) -> torch.Tensor:
            return states[:, 1:]

        def n_soft_tokens(self, states: Any) -> int:
            return 16

    llm = tiny_llm("GPT2", 300)
    odd: Any = Odd()
    odd.llm_width = 32
    vlm = pair(tiny_tower("clip"), llm, plain_tokenizer(), projector=odd)
    with pytest.raises(UnsupportedModelError, match=r"gave 15 .* 16 .*CLIPVisionModel: 4x4"):
        vlm.answer(picture(), "what?")


# -- pair: what it makes, and what it leaves alone ----------------------------------------


def test_nothing_given_is_changed() -> None:
    tower, llm, tokenizer = tiny_tower("clip"), tiny_llm("Llama", 300), plain_tokenizer()
    before = (len(tokenizer), dict(tokenizer.added_tokens_decoder), llm.config.vocab_size)
    weights = {k: v.clone() for k, v in llm.state_dict().items()}
    vlm = pair(tower, llm, tokenizer)
    assert isinstance(vlm.answer(picture(), "what?", max_new_tokens=4), str)
    assert before == (len(tokenizer), dict(tokenizer.added_tokens_decoder), llm.config.vocab_size)
    assert vlm.vision is tower and vlm.llm is llm and vlm.tokenizer is not tokenizer
    assert all(torch.equal(weights[k], v) for k, v in llm.state_dict().items())
    assert vlm.tokenizer.decode([vlm.image_token_id], skip_special_tokens=True) == ""
    has_it = vlm.tokenizer
    assert pair(tower, llm, has_it).tokenizer is has_it


def test_a_model_with_two_towers_gives_its_image_tower() -> None:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    both = CLIPModel(
        CLIPConfig(text_config=text, vision_config=tiny_tower("clip").config.to_dict())
    )
    vlm = pair(both.eval(), tiny_llm("Llama", 300), plain_tokenizer())
    assert vlm.vision is both.vision_model
    assert isinstance(vlm.answer(picture(), "what?", max_new_tokens=4), str)


def test_the_fresh_projector_is_of_the_language_models_dtype() -> None:
    llm = tiny_llm("Llama", 300).bfloat16()
    vlm = pair(tiny_tower("siglip"), llm, plain_tokenizer(), projector="linear")
    assert {p.dtype for p in vlm.projector.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert isinstance(vlm.answer(picture(), "what?", max_new_tokens=4), str)


def test_the_template_of_a_text_model_is_used() -> None:
    vlm = tiny_pair(tokenizer=plain_tokenizer(TEXT_TEMPLATE))
    assert vlm.prompt_text(LATER, 2) == (
        "[user]<image>\n<image>\nwhat is it?</s>[assistant]a cat</s>"
        "[user]is there a dog?</s>[assistant]"
    )
    assert vlm.prompt_text(INSIDE, 2) == f"[user]{INSIDE[0][0]}</s>[assistant]"
    assert vlm.writer.text(ASKED, 1, answer="a cat").endswith("[assistant]a cat</s>")
    assert isinstance(vlm.answer(picture(), "what?", max_new_tokens=4), str)


def test_another_image_token() -> None:
    vlm = tiny_pair(image_token="<|picture|>")
    assert vlm.prompt_text(INSIDE, 2).count("<|picture|>") == 2
    assert "<image>" not in vlm.prompt_text(ASKED, 1)
    assert worst("clip", replace(vlm), "left") <= TOLERANCE
    with pytest.raises(PromptError, match="control token"):
        vlm.answer(picture(), "what is <|picture|>?")


def test_a_tokenizer_that_closes_texts_leaves_the_answer_open() -> None:
    from tokenizers.processors import TemplateProcessing

    vlm = tiny_pair()
    want = vlm.prompt_ids(ASKED, 16)
    vlm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert vlm.tokenizer("a")["input_ids"][-1] == 2
    assert vlm.prompt_ids(ASKED, 16) == want


def test_messages() -> None:
    vlm = tiny_pair()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(1)},
                {"type": "image", "image": picture(2)},
                {"type": "text", "text": "what is it?"},
            ],
        },
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "is there a dog?"},
    ]
    want = vlm.answer([picture(1), picture(2)], LATER[1][0], history=LATER[:1], max_new_tokens=8)
    assert vlm.chat(messages, max_new_tokens=8) == want
    third = {"role": "assistant", "content": "no"}
    last = {"role": "user", "content": [{"type": "image", "image": picture(3)}]}
    # With a picture in a later message, each stands in its own.
    asked: dict[str, Any] = {
        "question": "<image>\n",
        "history": [("<image>\n<image>\nwhat is it?", "a cat"), (LATER[1][0], "no")],
        "max_new_tokens": 8,
    }
    want = vlm.answer([picture(1), picture(2), picture(3)], **asked)
    assert vlm.chat([*messages, third, last], max_new_tokens=8) == want
    assert vlm.answer([picture(3), picture(2), picture(1)], **asked) != want


def test_pictures_beside_the_messages() -> None:
    """For the places that the messages have, as for transformers' processors; else at the head."""
    vlm, place = tiny_pair(), {"type": "image"}
    pictures = [picture(seed) for seed in (1, 2, 3)]

    def talk(*parts: dict[str, Any]) -> list[dict[str, Any]]:
        first, second, third = parts
        return [
            {"role": "user", "content": [first, {"type": "text", "text": "is it"}, second]},
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": [{"type": "text", "text": "and it?"}, third]},
        ]

    shown = [{"type": "image", "image": each} for each in pictures]
    want = vlm.chat(talk(*shown), max_new_tokens=8)
    assert vlm.chat(talk(place, place, place), pictures, max_new_tokens=8) == want
    # Some in the messages, the others beside them.
    mixed = talk(place, shown[1], place)
    assert vlm.chat(mixed, images=[pictures[0], pictures[2]], max_new_tokens=8) == want
    assert vlm.chat(talk(place, place, place), pictures[::-1], max_new_tokens=8) != want
    # Without a place they come first, or where a text says so.
    plain = [{"role": "user", "content": "what is it?"}]
    want = vlm.answer(pictures[0], "what is it?", max_new_tokens=8)
    assert vlm.chat(plain, pictures[0], max_new_tokens=8) == want
    marked = [{"role": "user", "content": "what is <image> to <image>?"}]
    want = vlm.answer(pictures[:2], "what is <image> to <image>?", max_new_tokens=8)
    assert vlm.chat(marked, pictures[:2], max_new_tokens=8) == want


@pytest.mark.parametrize(
    ("content", "given", "match"),
    [
        ([{"type": "image"}], 0, r"message 1 has a place for a picture, .*images=\[\.\.\.\]"),
        ([{"type": "image"}] * 2, 1, "none is left for it"),
        ([{"type": "image"}], 2, r"images has 2 picture\(s\), .* for 1; give as many"),
        ([{"type": "image", "image": picture(1)}], 1, r"has 1 picture\(s\), .* for 0"),
        ("<image> what?", 2, r"1 <image> mark\(s\) and 2 picture"),
    ],
)
def test_as_many_pictures_as_places(content: Any, given: int, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        tiny_pair().chat([{"role": "user", "content": content}], [picture(1)] * given)


IMAGES = [{"type": "image", "image": picture(seed)} for seed in (1, 2)]
WHAT = {"type": "text", "text": "what is it?"}


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ([IMAGES[0], WHAT], "what is it?"),
        ([WHAT, IMAGES[0]], "what is it?"),  # the usual order with chat servers
        ([*IMAGES, WHAT], "what is it?"),
        ([IMAGES[0], WHAT, IMAGES[1]], "<image>\nwhat is it?<image>\n"),
        ([WHAT], "what is it?"),
        (" what is it? ", " what is it? "),
    ],
)
def test_pictures_of_messages_go_to_the_head_as_in_training(content: Any, question: str) -> None:
    """Unless words stand between them, which the head would lose."""
    later = [{"role": "assistant", "content": "a cat"}, {"role": "user", "content": "and then?"}]
    first = {"role": "user", "content": content}
    images, asked, history = read_messages([first])
    assert (asked, history) == (question, [])
    wanted = [part["image"] for part in content if part in IMAGES]
    assert all(one is other for one, other in zip(images, wanted, strict=True))
    assert read_messages([first, *later])[1:] == ("and then?", [(question, "a cat")])


def test_a_picture_of_a_later_message_stays_there() -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    _, asked, _ = read_messages([*said, {"role": "user", "content": [WHAT, IMAGES[0]]}])
    assert asked == "what is it?<image>\n"


def test_pictures_as_chat_servers_write_them(tmp_path: Path) -> None:
    """OpenAI's image_url, and the url and path of transformers: what holds it, or a local file."""
    vlm, file = tiny_pair(), tmp_path / "a.png"
    picture(1).save(file)
    held = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    want = vlm.answer(picture(1), "what is it?", max_new_tokens=8)
    for part in (
        {"type": "image_url", "image_url": {"url": held, "detail": "low"}},
        {"type": "image_url", "image_url": held},
        {"type": "input_image", "image_url": held},
        {"type": "image", "url": file.as_uri()},
        {"type": "image", "url": held},
        {"type": "image", "path": str(file)},
    ):
        messages = [{"role": "user", "content": [WHAT, part]}]
        assert vlm.chat(messages, max_new_tokens=8) == want
    far = {"type": "image_url", "image_url": {"url": "https://example.org/" + "a" * 10_000}}
    with pytest.raises(ImageError, match="download the picture") as caught:
        vlm.chat([{"role": "user", "content": [WHAT, far]}])
    assert len(str(caught.value)) < 300
    for part in ({"type": "image_url"}, {"type": "image", "url": held, "path": "a"}):
        with pytest.raises(PromptError, match="neither a text nor"):
            vlm.chat([{"role": "user", "content": [WHAT, part]}])


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "question", "match"),
    [
        ([picture()], "<image> and <image>?", r"2 <image> mark\(s\) and 1 picture"),
        ([picture(), picture()], "<image> what?", r"1 <image> mark\(s\) and 2 picture"),
        (None, "<image> what?", r"1 <image> mark\(s\) and 0 picture"),
    ],
)
def test_marks_and_pictures_that_differ(images: Any, question: str, match: str) -> None:
    vlm = tiny_pair()
    with pytest.raises(PromptError, match=match):
        vlm.answer(images, question)
    with pytest.raises(PromptError, match=match):
        vlm.choose(images, question, ["yes", "no"])


def test_a_mark_in_an_answer_is_a_control_token() -> None:
    with pytest.raises(PromptError, match="control token"):
        tiny_pair().answer(picture(), "what?", history=[("a", "b <image>")])
    with pytest.raises(PromptError, match="control token"):
        tiny_pair().answer(picture(), "what <im<image>age> is it?")


def test_a_picture_into_a_text_model() -> None:
    vlm = pair(None, tiny_llm("Llama", 300), plain_tokenizer())
    assert isinstance(vlm.answer(None, "what?", max_new_tokens=4), str)
    for ask in (
        lambda: vlm.answer(picture(), "what?"),
        lambda: vlm.choose(picture(), "what?", ["yes", "no"]),
        lambda: vlm.stream(picture(), "what?"),
    ):
        with pytest.raises(UnsupportedModelError, match=r"text alone.*LlamaForCausalLM.*pair"):
            ask()


def test_an_overrun_is_said_before_the_tower_runs() -> None:
    vlm = tiny_pair()

    def never(*_: Any) -> None:
        raise AssertionError("the tower ran")

    vlm.vision.register_forward_pre_hook(never)  # type: ignore[union-attr]
    match = r"takes \d+ positions \(160 of them the 10 pictures\).* 160 in all.*fewer pictures"
    with pytest.raises(PromptError, match=match):
        vlm.answer([picture()] * 10, "what?")
    with pytest.raises(PromptError, match=r"takes \d+ positions \(16 of them the picture\)"):
        vlm.choose(picture(), "what?", ["yes", "no " * 200])


def test_a_chat_that_fills_the_context_leaves_no_room_for_an_answer() -> None:
    vlm = tiny_pair()
    used = len(vlm.prompt_ids(ASKED, 16))
    vlm.llm.config.max_position_embeddings = used + 1
    assert len(replace(vlm).prompt_ids(ASKED, 16)) == used  # replaced, for a writer of its own
    vlm.llm.config.max_position_embeddings = used
    with pytest.raises(PromptError, match=f"takes {used} positions .* has {used} in all"):
        replace(vlm).answer(picture(), ASKED[0][0])


@pytest.mark.parametrize(
    ("widths", "match"),
    [((20, 32), r"takes states of width 20.*CLIPVisionModel has 24"),
     ((24, 20), r"gives soft tokens of width 20.*LlamaForCausalLM has 32")],
)  # fmt: skip
def test_a_projector_of_the_wrong_width(widths: tuple[int, int], match: str) -> None:
    from bridge.vlm import build_projector

    projector = build_projector("mlp2x_gelu", *widths)
    with pytest.raises(OptionError, match=match):
        pair(tiny_tower("clip"), tiny_llm("Llama", 300), plain_tokenizer(), projector=projector)
    with pytest.raises(OptionError, match=match):
        replace(tiny_pair(), projector=projector)


def test_two_layers_make_a_wider_state() -> None:
    vlm = tiny_pair(select_layer=(-1, -2))
    assert vlm.projector.vision_width == 48  # type: ignore[union-attr]
    with pytest.raises(OptionError, match=r"width 48.*has 24"):
        replace(vlm, select_layer=-2)


def test_a_tokenizer_without_the_image_token() -> None:
    vlm = tiny_pair()
    with pytest.raises(UnsupportedModelError, match=r"'<image>'.*pair adds it"):
        replace(vlm, tokenizer=plain_tokenizer())


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "no user turn"),
        ([{"role": "assistant", "content": "hi"}], "of the assistant, where the user's"),
        ([{"role": "system", "content": "be kind"}], "role 'system'"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "ends with"),
        ([{"role": "user", "content": "a"}] * 2, "message 2 is of the user"),
        ([{"role": "user", "content": [{"type": "video"}]}], "neither"),
        ([{"role": "user", "content": 3}], "int as content"),
        ([{"role": "user", "content": "<image> what?"}], r"1 <image> mark\(s\) and 0 picture"),
        (
            [{"role": "user", "content": [IMAGES[0], {"type": "text", "text": "<image> what?"}]}],
            r"2 <image> mark\(s\) and 1 picture",
        ),
        ("hi", "str"),
        ([3], "role None"),
    ],
)
def test_bad_messages(messages: Any, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        tiny_pair().chat(messages)


def test_a_chat_without_a_user_turn() -> None:
    vlm = tiny_pair()
    with pytest.raises(PromptError, match="turn of the user"):
        vlm.logits([picture()], [[]])
    with pytest.raises(OptionError, match="1 rows of pictures, 2 chats"):
        vlm.logits([picture()], [ASKED, ASKED])


def test_parts_of_another_kind() -> None:
    from transformers import ConvNextConfig, ConvNextModel, LlamaModel, T5Config
    from transformers import T5ForConditionalGeneration as T5

    tower, llm, tokenizer = tiny_tower("clip"), tiny_llm("Llama", 300), plain_tokenizer()
    small = {"num_layers": 1, "d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "vocab_size": 9}
    convolutions = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1]))
    for error, match, parts in (
        (UnsupportedModelError, "encoder-decoder", (tower, T5(T5Config(**small)), tokenizer)),
        (UnsupportedModelError, "causal", (tower, torch.nn.Linear(2, 2), tokenizer)),
        (UnsupportedModelError, "head|causal", (tower, LlamaModel(llm.config), tokenizer)),
        (UnsupportedModelError, "does not know how|no image tower", (convolutions, llm, tokenizer)),
        (UnsupportedModelError, "not an image tower", (llm, llm, tokenizer)),
        (OptionError, "vision is a str", ("clip", llm, tokenizer)),
    ):
        with pytest.raises(error, match=match):
            pair(*parts)
    for options, match in (
        ({"select_layer": 4}, "3 layers: -4 to 3"),
        ({"select_feature": "cls"}, "select_feature is 'cls'"),
        ({"projector": "mlp"}, "mlpNx_gelu"),
        ({"projector": None}, "vision is given and projector is not"),
    ):
        with pytest.raises(OptionError, match=match):
            pair(tower, llm, tokenizer, **options)


def test_a_processor_that_does_not_fit_the_tower() -> None:
    from bridge.vlm.views import pil_clip_processor

    wide = pil_clip_processor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    with pytest.raises(OptionError, match=r"CLIPVisionModel does not take pictures of 64x64"):
        tiny_pair(image_processor=wide).answer(picture(), "what?")
