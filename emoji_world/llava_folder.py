"""How a small LLaVA folder is laid out: its tokenizer, its processor, its training examples.

The examples are those of `bridge.vlm`, so the text seen in training and in use is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bridge.vlm.chat import CHAT_TEMPLATE, IMAGE_TOKEN, Turn
from bridge.vlm.chat_writer import ChatWriter
from bridge.vlm.train.batches import encode
from bridge.vlm.train.data import Picture, Row
from bridge.vlm.views import pil_clip_processor
from emoji_world.scenes import CANVAS

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

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
    """Token ids and labels of one conversation about one picture, as `bridge.vlm` labels them."""
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    writer = ChatWriter(tokenizer, None, IMAGE_TOKEN, image_id, None, "the small LLaVA")
    return chat_encoder(writer, n_soft_tokens)(turns)


def chat_encoder(
    writer: ChatWriter, n_soft_tokens: int
) -> Callable[[Sequence[Turn]], tuple[list[int], list[int]]]:
    """From a chat about one scene to ids and labels, as answering writes it."""
    # Without a limit of its own: scenes are short, and the writer is then not copied each time.
    unbounded = replace(writer, context=None)

    def no_picture() -> Any:
        raise AssertionError("the states come from the recipe")

    shown = (Picture("scene", (CANVAS, CANVAS), no_picture),)

    def encoded(turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        found = encode(unbounded, Row(shown, tuple(turns), "scene"), [n_soft_tokens], None)
        return list(found.ids), list(found.labels)

    return encoded
