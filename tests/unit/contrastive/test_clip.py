"""`bridge.CLIP` on tiny random models of three families, beside transformers' own calls."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from support.drawn_pictures import picture
from support.tiny_folders import KINDS

import bridge
from bridge.contrastive import Embeddings
from bridge.errors import ImageError, OptionError, PromptError, UnknownModelError, WeightsError
from bridge.progress import Progress
from bridge.towers.registry import find_source

TEXTS = ["a cat", "two red apples left of a cat, and a blue background", "", "a dog"]
BOTH = ("clip", "open_clip", "siglip")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    for name in (*BOTH, "t5", "multilingual", "tower"):
        KINDS[name].make(root / name)
    return {name: root / name for name in (*BOTH, "t5", "multilingual", "tower")}


@pytest.fixture(scope="module", params=BOTH)
def clip(request: pytest.FixtureRequest, folders: dict[str, Path]) -> bridge.CLIP:
    return bridge.CLIP(folders[request.param])


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(number).convert("RGB") for number in range(7)]


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- vectors


def test_it_gives_what_transformers_gives(
    folders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    clip = bridge.CLIP(folders["clip"])
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    words = transformers.AutoTokenizer.from_pretrained(folders["clip"])
    ids = words(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        pixels = torch.stack([clip.preprocess(each) for each in pictures])
        whole = model(input_ids=ids.input_ids, pixel_values=pixels)
    texts, images = clip.encode_text(TEXTS), clip.encode_image(pictures)
    assert close(texts, whole.text_embeds) and close(images, whole.image_embeds)
    assert torch.allclose(clip.scores(images, texts), whole.logits_per_image, atol=1e-4)
    odds = clip.probabilities(images, texts)
    assert torch.allclose(odds, whole.logits_per_image.softmax(-1), atol=1e-4)


def test_siglip_judges_each_pair_by_itself(
    folders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    clip = bridge.CLIP(folders["siglip"])
    model = transformers.SiglipModel.from_pretrained(folders["siglip"]).eval()
    with torch.no_grad():
        pixels = torch.stack([clip.preprocess(each) for each in pictures])
        whole = model(input_ids=clip.tokenizer(TEXTS), pixel_values=pixels)
    odds = clip.probabilities(clip.encode_image(pictures), clip.encode_text(TEXTS))
    assert torch.allclose(odds, whole.logits_per_image.sigmoid(), atol=1e-5)


def test_the_short_way_is_the_whole_way(clip: bridge.CLIP, pictures: list[Image.Image]) -> None:
    whole_text = clip.text.encode(TEXTS).pooled
    whole_image = clip.image.encode(pictures).pooled
    assert whole_text is not None and whole_image is not None
    assert close(clip.encode_text(TEXTS, normalize=False), whole_text)
    assert close(clip.encode_image(pictures, normalize=False), whole_image)


def test_batches_tensors_and_single_inputs_give_the_same(
    clip: bridge.CLIP, pictures: list[Image.Image]
) -> None:
    images, texts = clip.encode_image(pictures), clip.encode_text(TEXTS)
    assert close(clip.encode_image(pictures, batch_size=2), images)
    assert close(clip.encode_text(TEXTS, batch_size=1), texts)
    pixels = torch.stack([clip.preprocess(each) for each in pictures])
    assert close(clip.encode_image(pixels), images)
    assert close(clip.encode_text(clip.tokenizer(TEXTS)), texts)
    assert close(clip.encode_image(pictures[0]), images[:1])
    assert close(clip.encode_text(TEXTS[0]), texts[:1])


def test_vectors_have_length_one_and_nowhere_else(
    clip: bridge.CLIP, pictures: list[Image.Image]
) -> None:
    raw = clip.encode_image(pictures, normalize=False)
    images = clip.encode_image(pictures)
    assert torch.allclose(images.norm(dim=-1), torch.ones(len(pictures)))
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(len(pictures)), atol=0.01)
    texts = clip.encode_text(TEXTS, normalize=False)
    assert close(clip.similarity(raw, texts), clip.similarity(images, clip.encode_text(TEXTS)))


def test_without_lengths_of_one_another_query_comes_first(clip: bridge.CLIP) -> None:
    """Of one picture the order of texts is kept when its own length is left as it is; the order of
    pictures for a text, and of texts, is not: a long vector wins over a better fit."""
    made = clip.encode_image([picture(n).convert("RGB") for n in range(12)], normalize=False)
    texts = clip.encode_text(TEXTS, normalize=False)
    long = made * torch.linspace(1, 40, len(made))[:, None]
    order = (long @ texts.T).argsort(0)
    assert not torch.equal(order, clip.similarity(long, texts).argsort(0))
    assert torch.equal(
        clip.similarity(long, texts).argsort(0), clip.similarity(made, texts).argsort(0)
    )


def test_half_precision_is_near_and_vectors_are_float32(
    folders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    exact, half = bridge.CLIP(folders["clip"]), bridge.CLIP(folders["clip"], dtype="bf16")
    for name, given in (("encode_image", pictures), ("encode_text", TEXTS)):
        found, wanted = getattr(half, name)(given), getattr(exact, name)(given)
        assert found.dtype == torch.float32
        assert float((found * wanted).sum(-1).min()) > 0.99


# ---------------------------------------------------------------- how much is computed


@pytest.mark.parametrize("family", ["clip", "open_clip"])
def test_a_causal_tower_runs_to_the_longest_text_alone(
    folders: dict[str, Path], family: str
) -> None:
    clip = bridge.CLIP(folders[family])
    widths: list[int] = []
    text = clip.text.module
    layer = getattr(text, "text_model", text).encoder.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    clip.encode_text(["a cat", "a dog"])
    hook.remove()
    ids = clip.tokenizer(["a cat", "a dog"])
    assert ids.shape[1] == 77
    assert len(widths) == 1 and widths[0] <= 8


def test_hooks_on_the_last_layer_still_see_it(folders: dict[str, Path]) -> None:
    clip = bridge.CLIP(folders["clip"])
    before = clip.encode_image(picture(3))
    seen: list[Any] = []
    vision = clip.image.module
    layer = getattr(vision, "vision_model", vision).encoder.layers[-1]
    hook = layer.register_forward_hook(lambda *_: seen.append(1))
    assert close(clip.encode_image(picture(3)), before) and len(seen) == 1
    hook.remove()


def first_module(clip: bridge.CLIP) -> torch.nn.Module:
    """What each pass of the image tower begins with."""
    vision = clip.image.module
    inner: Any = getattr(vision, "vision_model", vision)
    first: torch.nn.Module = inner.conv1 if hasattr(inner, "conv1") else inner.embeddings
    return first


def test_one_pass_a_batch(clip: bridge.CLIP, pictures: list[Image.Image]) -> None:
    passes: list[int] = []
    hook = first_module(clip).register_forward_pre_hook(lambda *_: passes.append(1))
    clip.encode_image(pictures, batch_size=4)
    hook.remove()
    assert len(passes) == 2  # of four and of three


def test_passes_side_by_side_give_what_one_after_the_other_gives(
    clip: bridge.CLIP, pictures: list[Image.Image]
) -> None:
    """On three cores each batch of two is one thread's, and torch's threads are as before."""
    alone = torch.cat([clip.encode_image(each) for each in pictures])
    before = torch.get_num_threads()
    cores: list[int] = []
    hook = first_module(clip).register_forward_pre_hook(
        lambda *_: cores.append(torch.get_num_threads())
    )
    try:
        torch.set_num_threads(3)
        found = clip.encode_image(pictures, batch_size=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
        hook.remove()
    assert close(found, alone)
    assert cores == [1] * 4


def test_pictures_are_read_as_they_are_needed(clip: bridge.CLIP, tmp_path: Path) -> None:
    """Of a generator without end no more than three batches are ahead, and pictures die young."""
    asked, living = [], []
    most = 0

    def endless() -> Iterator[Image.Image]:
        for number in range(40):
            made = Image.new("RGB", (8, 8), (number, 0, 0))
            asked.append(number)
            living.append(weakref.ref(made))
            yield made
            del made

    def watch(now: Progress) -> None:
        nonlocal most
        most = max(most, sum(each() is not None for each in living))
        assert len(asked) - now.done <= 8

    found = clip.embed_images(endless(), batch_size=4, on_progress=watch)
    assert len(found) == 40 and most <= 12


# ---------------------------------------------------------------- what cannot be read


def test_an_unreadable_picture_among_many_is_listed(clip: bridge.CLIP, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths):
        picture(n, (20, 20)).convert("RGB").save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    paths[4].write_text("no picture")
    told: list[str] = []
    given = [*paths, tmp_path / "none.png"]
    found = clip.embed_images(given, batch_size=2, on_progress=lambda now: told.append(str(now)))
    assert found.places == (0, 1, 3, 5) and found.names == tuple(
        str(paths[n]) for n in (0, 1, 3, 5)
    )
    assert [each.place for each in found.unreadable] == [2, 4, 6]
    assert all(each.name == str(given[each.place]) and each.why for each in found.unreadable)
    assert told[-1] == "pictures: 7 of 7 pictures, 3 unreadable"
    readable = [paths[n] for n in (0, 1, 3, 5)]
    assert close(found.vectors, clip.encode_image(readable))
    with pytest.raises(ImageError, match=r"images\[2\]: .*2\.png"):
        clip.encode_image(paths)


def test_nothing_readable_is_an_error(clip: bridge.CLIP, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="none of the 2 pictures can be read"):
        clip.embed_images([tmp_path / "a.png", tmp_path / "b.png"])
    for door in (clip.embed_images, clip.encode_image):
        with pytest.raises(ImageError, match="images is empty"):
            door([])
    with pytest.raises(ImageError, match="no pixels"):
        clip.encode_image(Image.new("RGB", (0, 5)))


def test_embeddings_come_back_from_their_file(clip: bridge.CLIP, tmp_path: Path) -> None:
    found = clip.embed_images([picture(1), tmp_path / "gone.png", picture(2)])
    found.save(tmp_path / "kept.safetensors")
    again = Embeddings.load(tmp_path / "kept.safetensors")
    assert torch.equal(again.vectors, found.vectors)
    assert (again.places, again.names, again.unreadable) == (
        found.places,
        found.names,
        found.unreadable,
    )
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        Embeddings.load(tmp_path / "bad.safetensors")


# ---------------------------------------------------------------- models


def test_a_tower_of_another_model_scores_in_the_same_space(
    folders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    clip = bridge.CLIP(folders["clip"], text=folders["multilingual"])
    assert clip.text.family == "multilingual_clip" and clip.scoring is not None
    found = clip.similarity(clip.encode_image(pictures), clip.encode_text(["ein Hund"]))
    assert found.shape == (len(pictures), 1)
    whole = clip.text.encode(["ein Hund"]).pooled
    assert whole is not None and close(clip.encode_text("ein Hund", normalize=False), whole)
    live = bridge.CLIP(folders["clip"], text=clip.text, image=clip.image)
    assert live.text is clip.text and live.image is clip.image


def test_a_model_of_one_side_says_so(folders: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match=r"mclip-labse-l14 .*bridge\.CLIP\('clip-l', text="):
        bridge.CLIP("mclip-labse-l14")
    with pytest.raises(OptionError, match="t5-small has no image side"):
        bridge.CLIP("t5-small")
    with pytest.raises(OptionError, match="has no image side"):
        bridge.CLIP(folders["t5"])
    with pytest.raises(OptionError, match=r"blip2-opt-2\.7b has no text side"):
        bridge.CLIP("blip2-opt-2.7b")
    with pytest.raises(OptionError, match="shared space"):
        bridge.CLIP(folders["open_clip"], text=folders["clip"])


def test_names_of_open_clip_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModelError, match="RN50 has no weights 'laion'; it has openai, yfcc"):
        bridge.CLIP("RN50/laion")
    with pytest.raises(bridge.BridgeError, match="laion/CLIP-ViT-B-32-laion2B-s34B-b79K"):
        bridge.CLIP("ViT-B-32/laion2b_s34b_b79k")
    with pytest.raises(bridge.BridgeError, match="'nobody/nothing'"):
        bridge.CLIP("hf-hub:nobody/nothing")
    KINDS["clip"].make(tmp_path / "RN50" / "openai")
    monkeypatch.chdir(tmp_path)
    assert find_source("RN50/openai")[1] == Path("RN50/openai")


def test_a_closed_clip_says_so(folders: dict[str, Path]) -> None:
    with bridge.CLIP(folders["clip"]) as clip:
        module = weakref.ref(clip.image.module)
        assert "width 24" in repr(clip)
    assert "closed" in repr(clip)
    for call in (lambda: clip.encode_text("a cat"), lambda: clip.encode_image(picture(0))):
        with pytest.raises(OptionError, match="closed"):
            call()
    bridge.release()
    assert module() is None


def test_bad_input_is_one_clear_error(clip: bridge.CLIP) -> None:
    with pytest.raises(PromptError, match="texts is None; give one text or several"):
        clip.encode_text(None)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="images is None; give one picture or several"):
        clip.encode_image(None)
    with pytest.raises(PromptError, match="texts is empty"):
        clip.encode_text([])
    with pytest.raises(PromptError, match="list of strings"):
        clip.encode_text([3])  # type: ignore[list-item]
    with pytest.raises(OptionError, match="batch_size is 0"):
        clip.encode_text(TEXTS, batch_size=0)
    with pytest.raises(OptionError, match=r"ids are of shape \(3,\)"):
        clip.encode_text(torch.tensor([1, 2, 3]))
    with pytest.raises(ImageError, match="takes"):
        clip.encode_image(torch.zeros(1, 3, 5, 5))
    with pytest.raises(OptionError, match="wide"):
        clip.similarity(torch.ones(1, 5), clip.encode_text("a cat"))
