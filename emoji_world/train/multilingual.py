"""The multilingual text tower: taught to land where tower 1 does, whatever the language.

Teacher learning as in Carlsson et al. 2022, "Cross-lingual and Multilingual CLIP" (after Reimers
and Gurevych 2020): the teacher, tower 1, reads an English caption, the student the same said in a
language drawn at random, and their pooled states should agree. The student's layout is M-CLIP's
too, an XLM-RoBERTa whose mean state goes through a linear map, far smaller; so
`bridge.towers.mean_pooled` reads it, and tower 1's image side judges it. Beside the cosine
there is InfoNCE against the batch's other captions, which spreads near neighbours apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as tokenizer_trainers
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from bridge.files import whole, write_whole
from bridge.lab.variants.vocabulary import LANGUAGES, names_in, words_in
from bridge.towers import Layer, mean_pooled
from bridge.towers.mean_pooled import Pooled
from emoji_world.caption_meaning import held_out_caption, pair_captions
from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import draw_scene
from emoji_world.train.clip import info_nce, tokenise
from emoji_world.train.data import scene_batch, scene_rng
from emoji_world.train.loop import Recipe, plain_attention

NAME = "emoji-multilingual"
BATCH = 192
VOCAB_SIZE = 4000
CONTEXT = 64
ENGLISH = 0.125  # of the captions; the other languages share the rest
_COSINE = 5.0  # its weight beside InfoNCE's
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # XLM-RoBERTa's ids, of which padding's is 1
_HEADS, _WIDTH, _MLP, _LAYERS = 3, 96, 192, 3


# ---------------------------------------------------------------- words


def corpus(captions: int = 400) -> Iterator[str]:
    """Captions of every language, and every name and word by itself often enough to be whole."""
    rng = random.Random(51)
    for language in LANGUAGES:
        words = words_in(language)
        forms = [*words.colours.values(), *words.sizes.values(), *words.counts.values()]
        forms += [words.conjunction, words.picture, words.left, words.right, words.top]
        forms.append(words.bottom)
        for _ in range(4):
            yield from names_in(language)
            yield from (form for some in forms for form in some)
        for _ in range(captions):
            scene = draw_scene(rng)
            yield pair_captions(scene, language, rng)[0]
            yield held_out_caption(scene, language, rng)
    for _ in range(2 * captions):
        scene = draw_scene(rng)
        yield caption(scene, rng, relation=True, style=True)
        yield caption(scene, rng, held_out=True)
    for concept in CONCEPTS:
        yield from 4 * (concept.name, concept.one, concept.many)


def build_tokenizer(texts: Iterable[str], size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A BPE tokenizer over characters, in lower case, with XLM-RoBERTa's marks.

    Every character of ``texts`` is a token, so none of their words is unknown; half of the
    vocabulary is the characters of Chinese, Japanese and Korean names. (Over bytes the same words
    would take twice the tokens.)
    """
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    made.decoder = decoders.Metaspace()
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        max_token_length=16,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(mark, made.token_to_id(mark)) for mark in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The vocabulary of all languages; that of ``folder`` if it has one, since a tower that goes
    on training must keep its ids, else a new one, written there."""
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    words = build_tokenizer(corpus())
    words.save_pretrained(folder)
    return words


# ---------------------------------------------------------------- the tower


def build(words: PreTrainedTokenizerFast, pooled: int) -> Pooled:
    """An untrained student whose pooled state is ``pooled`` wide, the teacher's width."""
    config = XLMRobertaConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        intermediate_size=_MLP,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        max_position_embeddings=CONTEXT + words.pad_token_id + 1,
        type_vocab_size=1,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        hidden_dropout_prob=0.0,  # so small a tower has no strength to spare
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
    )
    encoder = XLMRobertaModel(config, add_pooling_layer=False)
    return Pooled(encoder, torch.nn.Linear(_WIDTH, pooled, dtype=torch.float32))


def load(folder: Path, words: PreTrainedTokenizerFast, pooled: int) -> Pooled:
    """The student of a folder, to go on training. Raises WeightsError."""
    student = build(words, pooled)
    stored = mean_pooled.load_multilingual(folder, torch.float32, torch.device("cpu")).module
    student.load_state_dict(stored.state_dict())
    return student


def pooled_states(
    student: Pooled, words: PreTrainedTokenizerFast, texts: list[str]
) -> torch.Tensor:
    """The student's pooled states ``(B, P)``, by the pass that reads it in use."""
    batch = words(
        texts, padding="longest", truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    states = mean_pooled.encode_text(
        student, batch["input_ids"], (Layer(),), batch["attention_mask"]
    )
    assert states.pooled is not None
    return states.pooled


# ---------------------------------------------------------------- teaching it


def draw_language(rng: random.Random) -> str:
    """English now and then, else any other with equal chance."""
    return "en" if rng.random() < ENGLISH else rng.choice(LANGUAGES)


def pairs(step: int, size: int) -> tuple[list[str], list[str]]:
    """Captions of a step's training scenes in random languages, and the English ones."""
    rng = scene_rng(61, step)
    made = [pair_captions(s, draw_language(rng), rng) for s in scene_batch(rng, size)]
    return [foreign for foreign, _ in made], [english for _, english in made]


def recipe(
    student: Pooled,
    words: PreTrainedTokenizerFast,
    teacher: CLIPModel,
    teacher_words: CLIPTokenizer,
) -> Recipe:
    """The student learns; the teacher's text side is read and stays as it is."""
    teacher.requires_grad_(False).eval()
    plain_attention(teacher)
    plain_attention(student.encoder)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        foreign, english = pairs(step, BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                read = teacher.text_model(**tokenise(teacher_words, english))
                wanted = teacher.text_projection(read.pooler_output)
            found = pooled_states(student, words, foreign)
        cosine = F.cosine_similarity(found.float(), wanted.float(), dim=-1).mean()
        contrastive, right = info_nce(found, wanted, teacher.logit_scale)
        figures = {"cosine": cosine.item(), "nce": contrastive.item(), "r1": right}
        return _COSINE * (1 - cosine) + contrastive, figures

    return Recipe("multilingual", student, loss, lr=2e-3, weight_decay=0.02, warmup=200, ema=0.998)


def export(student: Pooled, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the student in M-CLIP's layout, in half precision, with its tokenizer."""
    config = student.config
    state = {f"transformer.{k}": v for k, v in student.encoder.state_dict().items()}
    state |= {f"LinearTransformation.{k}": v for k, v in student.head.state_dict().items()}
    told = {
        "architectures": ["MultilingualCLIP"],
        "dtype": "float16",
        "modelBase": "xlm-roberta",
        "model_type": "M-CLIP",
        "numDims": len(state["LinearTransformation.weight"]),
        "num_attention_heads": config.num_attention_heads,
        "transformerDimensions": config.hidden_size,
    }
    words.save_pretrained(folder)
    write_whole(folder / "config.json", (json.dumps(told, indent=2) + "\n").encode())
    with whole(folder / "model.safetensors") as part:
        half = {k: v.detach().half().contiguous() for k, v in state.items()}
        save_file(half, part, metadata={"format": "pt"})
