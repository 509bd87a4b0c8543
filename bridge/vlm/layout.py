"""How a small LLaVA folder is laid out: its tokenizer, its processor, its training examples.

Used by the training recipe and by the tests; answering reads the saved folder and
shares `bridge.vlm.chat` with it, so the text seen in training and in use is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bridge.vlm.chat import CHAT_TEMPLATE, IMAGE_TOKEN, Turn, chat_messages, chat_text
from bridge.vlm.train.batches import IGNORE_LABEL

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

__all__ = [
    "CHAT_TEMPLATE",
    "IGNORE_LABEL",
    "IMAGE_TOKEN",
    "SPECIAL_TOKENS",
    "build_processor",
    "build_tokenizer",
    "chat_messages",
    "chat_text",
    "training_example",
]

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN)


def build_tokenizer(
    corpus: Iterable[str], vocab_size: int, *, context: int = 512
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on ``corpus`` (best: texts of `chat_text`).

    Ids 0-4 are ``<unk> <s> </s> <pad> <image>``; the 256 bytes follow, so any text can be
    encoded and no ``<unk>`` is ever produced. ``<s>`` is put before every text encoded with
    special tokens. Raises ValueError when ``vocab_size`` cannot hold the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is below {least} (specials and bytes)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    # Special tokens are set apart before the merges are learnt, as they are in use.
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    pieces = (piece for text in corpus for piece in special.split(text) if piece)
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A $B",
        special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, image_size: int, patch_size: int
) -> LlavaProcessor:
    """A stock LlavaProcessor for square pictures of ``image_size``, mean and deviation 0.5.

    A picture of another shape is squeezed to the square rather than cropped: a question
    about what lies at the left edge must see the left edge. The tower has a class token,
    which the "default" strategy drops, so (image_size / patch_size)^2 soft tokens remain.
    """
    from transformers import LlavaProcessor

    from bridge.vlm.views import pil_clip_processor

    square = {"height": image_size, "width": image_size}
    image_processor = pil_clip_processor(
        do_resize=True,
        size=square,
        do_center_crop=False,
        crop_size=square,
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def training_example(
    tokenizer: Any, turns: Sequence[Turn], n_soft_tokens: int
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation, the ``<image>`` token already repeated.

    Labels are the ids where an answer (its closing ``</s>`` included) is to be learnt, and
    IGNORE_LABEL elsewhere: on the beginning token, the soft tokens and the questions.
    The ids are those of ``chat_text(turns, with_answers=True)``, and every prompt that
    answering will ever see is a prefix of them.
    """
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    ids: list[int] = []
    labels: list[int] = []
    for last in range(1, len(turns) + 1):
        asked = tokenizer(chat_text(turns[:last], with_answers=False))["input_ids"]
        told = tokenizer(chat_text(turns[:last], with_answers=True))["input_ids"]
        if told[: len(asked)] != asked:
            raise ValueError("the tokenizer merges a question with its answer; cannot label it")
        labels += [IGNORE_LABEL] * (len(asked) - len(ids)) + told[len(asked) :]
        ids = told
    at = ids.index(image_id)
    ids = ids[:at] + [image_id] * n_soft_tokens + ids[at + 1 :]
    labels = labels[:at] + [IGNORE_LABEL] * n_soft_tokens + labels[at + 1 :]
    return ids, labels
