"""CoCa's captions: the decoder against plain torch, the search against going through all texts.

1e-5 of the largest entry in fp32, as the towers (test_towers_open_clip.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.comparisons import relative
from support.reference_open_clip import OpenClip, QuickGELU
from support.tiny_coca import TOKENIZER, write_coca
from torch import Tensor, nn

from bridge.errors import ImageError, OptionError, UnsupportedModelError, WeightsError
from bridge.towers import Captioner, Layer, open_captioner, open_clip_config, open_text_tower
from bridge.towers.captioner import beam_search

TOLERANCE = 1e-5
START, END = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coca")


@pytest.fixture(scope="module")
def reference(folder: Path) -> OpenClip:
    return write_coca(folder)


@pytest.fixture(scope="module")
def coca(folder: Path, reference: OpenClip) -> Captioner:
    return open_captioner(folder, device="cpu")


def pixels(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def sequences(length: int) -> Tensor:
    """Two texts; the second has id 0, which pads, as a word in its middle."""
    ids = torch.randint(1, START, (2, length), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = START
    ids[1, 2] = 0
    return ids


# ---------------------------------------------------------------- the decoder


@pytest.mark.parametrize("act", [nn.GELU, QuickGELU])
def test_logits_are_the_references(tmp_path: Path, act: type[nn.Module]) -> None:
    reference = write_coca(tmp_path, act)
    coca = open_captioner(tmp_path, device="cpu")
    for length in (1, 5, 76):
        ids = sequences(max(length, 3))[:, :length]
        with torch.no_grad():
            want = reference.next_tokens(ids, pixels())
        found = coca.logits(coca.picture_tokens(pixels()), ids)
        assert found.shape == (2, length, len(TOKENIZER))
        assert relative(found, want) <= TOLERANCE


def test_a_token_sees_neither_later_ones_nor_another_picture(coca: Captioner) -> None:
    ids, picture = sequences(6), coca.picture_tokens(pixels())
    assert picture.shape == (2, 8, 48)
    before = coca.logits(picture, ids)
    later = ids.clone()
    later[:, 4:] = 7
    assert torch.equal(coca.logits(picture, later)[:, :4], before[:, :4])
    other = coca.logits(coca.picture_tokens(pixels(3)), ids)
    assert relative(other, before) > 0.01


def test_the_text_towers_words_do_not_see_padding(folder: Path, reference: OpenClip) -> None:
    """The place after an id of padding is hidden, in open_clip 3: id 0 is a word too."""
    tower = open_text_tower(folder, device="cpu")
    batch = tower.tokenize(["a cat", "two dog, apple"])
    batch.ids[:, 2] = 0
    with torch.no_grad():
        states, pooled = reference.text(batch.ids)
    found = tower.encode(batch, (Layer(-1, norm=False),))
    assert relative(found.hidden[0], states[-1]) <= TOLERANCE
    assert found.pooled is not None and relative(found.pooled, pooled) <= TOLERANCE


def test_half_precision(folder: Path, coca: Captioner) -> None:
    half = open_captioner(folder, device="cpu", dtype="bfloat16")
    found = half.logits(half.picture_tokens(pixels()), sequences(5))
    assert found.dtype == torch.bfloat16
    want = coca.logits(coca.picture_tokens(pixels()), sequences(5))
    assert relative(found.float(), want) < 0.1


def test_the_checkpoint_is_read_once(
    folder: Path, coca: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plain = [], open_clip_config.read_state

    def counted(*asked: Any) -> dict[str, Tensor]:
        read.append(asked)
        return plain(*asked)

    monkeypatch.setattr(open_clip_config, "read_state", counted)
    again = open_captioner(folder, device="cpu")
    assert len(read) == 1
    assert torch.equal(again.picture_tokens(pixels()), coca.picture_tokens(pixels()))


# ---------------------------------------------------------------- captions


@torch.no_grad()
def test_one_beam_takes_the_likeliest_token(coca: Captioner, reference: OpenClip) -> None:
    found = coca.caption(pixels(), num_beams=1, min_new_tokens=0, max_new_tokens=7)
    for row, caption in enumerate(found):
        ids = [START]
        for _ in range(7):
            logits = reference.next_tokens(torch.tensor([ids]), pixels()[row : row + 1])
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == END:
                break
        assert caption == TOKENIZER.decode(ids, skip_special_tokens=True).strip()


@torch.no_grad()
def test_pictures_are_captioned(coca: Captioner) -> None:
    pictures = [Image.new("RGB", (40, 60), colour) for colour in ("red", "blue")]
    found = coca.caption(pictures, num_beams=2, max_new_tokens=6)
    assert len(found) == 2 and all(isinstance(each, str) for each in found)
    assert coca.caption(pictures[1], num_beams=2, max_new_tokens=6) == found[1:]


def markov(seed: int, words: int = 7) -> Any:
    """A made-up language: the next token depends on the last and on the length."""
    table = torch.randn(5, words, words, generator=torch.Generator().manual_seed(seed))

    def next_tokens(ids: Tensor) -> Tensor:
        return (2 * table[ids.shape[1] - 1][ids[:, -1]]).log_softmax(-1)

    return next_tokens


def best_of_all(next_tokens: Any, start: int, end: int, least: int, most: int) -> list[int]:
    """Every text there is, scored one by one."""
    texts: list[tuple[float, list[int]]] = []

    def go_on(ids: list[int], score: float) -> None:
        if len(ids) - 1 == most:
            texts.append((score / most, ids[1:]))
            return
        for token, value in enumerate(next_tokens(torch.tensor([ids]))[0].tolist()):
            if token != end:
                go_on([*ids, token], score + value)
            elif len(ids) > least:
                texts.append(((score + value) / len(ids), ids[1:]))

    go_on([start], 0.0)
    return max(texts)[1]


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_beams_enough_find_the_best_text_of_all(seed: int, least: int) -> None:
    language = markov(seed)
    found = beam_search(language, 0, 1, beams=400, least=least, most=3, device=CPU)
    assert found == best_of_all(language, 0, 1, least, 3)
    assert len(found) >= least


def test_a_text_ends_when_it_may() -> None:
    def ends(ids: Tensor) -> Tensor:
        return torch.tensor([[-3.0, -0.01, -4.0, -5.0]]).repeat(len(ids), 1)

    for beams in (1, 3):
        assert beam_search(ends, 0, 1, beams=beams, least=0, most=9, device=CPU) == []
    assert beam_search(ends, 0, 1, beams=1, least=4, most=9, device=CPU) == [0] * 4


def test_the_models_own_table_stays_as_it_is() -> None:
    table = torch.tensor([[-3.0, -0.01, -4.0, -5.0]])
    assert beam_search(lambda ids: table, 0, 1, beams=1, least=2, most=9, device=CPU) == [0, 0]
    assert table[0, 1] == torch.tensor(-0.01)


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_beams", 0), ("num_beams", 2.5), ("max_new_tokens", 76), ("max_new_tokens", 0),
     ("min_new_tokens", 31), ("min_new_tokens", True)],
)  # fmt: skip
def test_numbers_out_of_range(coca: Captioner, option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=option):
        coca.caption(pixels(), **{option: value})


def test_no_pictures(coca: Captioner) -> None:
    with pytest.raises(ImageError):
        coca.caption([])


@pytest.mark.models
def test_models_without_captions(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"emoji-1 \(clip\) writes no captions"):
        open_captioner("emoji-1", device="cpu")
    write_coca(tmp_path, decoder=False)
    with pytest.raises(UnsupportedModelError, match="no text_decoder"):
        open_captioner(tmp_path, device="cpu")


def test_a_damaged_decoder(tmp_path: Path) -> None:
    write_coca(tmp_path)
    path = tmp_path / "open_clip_model.safetensors"
    state = load_file(path)
    for broken in (
        {k: t for k, t in state.items() if k != "text_decoder.cross_attn.1.ln_1_kv.bias"},
        {k: t for k, t in state.items() if k != "text_decoder.text_projection"},
        {**state, "text_decoder.ln_final.weight": torch.ones(3)},
        {**state, "text_decoder.resblocks.0.ls_1.gamma": torch.ones(48)},
    ):
        save_file(broken, path)
        with pytest.raises(WeightsError, match="caption decoder"):
            open_captioner(tmp_path, device="cpu")
