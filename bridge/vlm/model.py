"""BridgeVLM: a vision tower, a projector and a language model, joined at `<image>`.

    picture -> tower -> states of one layer -> projector -> soft tokens
                                                               |
    chat    -> tokenizer -> ids -> word embeddings -> splice --+--> language model -> answer

The parts are plain modules and may be swapped one by one. `from_llava` takes them out of a
stock LlavaForConditionalGeneration without copying a parameter, and tests hold the two
equal in logits and in greedy answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bridge.errors import OptionError, PromptError, UnsupportedModelError
from bridge.vlm.aspect import SQUARE, AnyRes, ImageAspect, Size
from bridge.vlm.chat import IMAGE_TOKEN, Turn, chat_messages, chat_text
from bridge.vlm.features import SelectFeature, SelectLayer, image_states, n_image_states
from bridge.vlm.image import ImageInput, load_image
from bridge.vlm.preprocess import Views, view_pixels
from bridge.vlm.projectors import MlpProjector, Projector
from bridge.vlm.question import check_no_special_tokens, checked_max_new_tokens, checked_turns
from bridge.vlm.splice import Spliced, expand_placeholder, left_pad, splice
from bridge.vlm.stream import stream_text

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False, repr=False)
class BridgeVLM:
    """A vision-language model made of parts.

    ``select_layer`` counts as LLaVA does (see `bridge.vlm.features`); ``select_feature`` is
    "patch" (state 0, the class token, dropped) or "cls_patch". ``aspect`` is what is done with
    pictures that are not square (see `bridge.vlm.aspect`).
    """

    vision: nn.Module
    projector: Projector
    llm: Any  # a causal LM of transformers
    tokenizer: Any
    image_processor: Any
    image_token_id: int
    image_token: str = IMAGE_TOKEN
    select_layer: SelectLayer = -2
    select_feature: SelectFeature = "patch"
    chat_template: str | None = None
    name: str = "BridgeVLM"
    aspect: ImageAspect = SQUARE

    def __repr__(self) -> str:
        parts = (type(part).__name__ for part in (self.vision, self.projector, self.llm))
        return f"BridgeVLM({self.name!r}: {' -> '.join(parts)})"

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def context(self) -> int:
        """How many positions the language model has, soft tokens included."""
        return int(self.llm.config.max_position_embeddings)

    def n_soft_tokens(self, height: int, width: int, picture: Size | None = None) -> int:
        """Soft tokens of one picture: the only place where they are counted.

        ``height`` and ``width`` are those of a preprocessed view; ``picture`` is the (height,
        width) of the picture itself, without which one view's tokens are counted.
        """
        states = n_image_states(self.vision, height, width, self.select_feature)
        a_view = self.projector.n_soft_tokens(states)
        return a_view if picture is None else self.aspect.n_soft_tokens(a_view, picture)

    # -- the road, step by step --------------------------------------------------------

    def soft_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) preprocessed pixels to (B, M, D_llm)."""
        dtype = next(self.vision.parameters()).dtype
        pixel_values = pixel_values.to(self.device, dtype)
        states = image_states(self.vision, pixel_values, self.select_layer, self.select_feature)
        soft = self.projector(states)
        counted = self.n_soft_tokens(*pixel_values.shape[-2:])
        if soft.shape[1] != counted:
            raise UnsupportedModelError(
                f"{self.name}: the projector gave {soft.shape[1]} soft tokens where tower, class "
                f"token rule and projector count {counted}"
            )
        return soft

    def picture_tokens(self, views: Views) -> list[torch.Tensor]:
        """The soft tokens (M_i, D_llm) of each picture, its views packed into one row."""
        parts = self.soft_tokens(views.pixel_values).split(views.counts)
        return [self.aspect.pack(part, size) for part, size in zip(parts, views.sizes, strict=True)]

    def prompt_text(self, turns: Sequence[Turn]) -> str:
        """The chat as text, through the checkpoint's own template where it has one."""
        if self.chat_template is None:
            return chat_text(turns, with_answers=False)
        messages = chat_messages(turns)
        # Templates made for text alone take a string as content; then the mark goes into it.
        plain = [{**m, "content": _as_string(m["content"], self.image_token)} for m in messages]
        for form in (messages, plain):
            text = self.tokenizer.apply_chat_template(
                form,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
            if text.count(self.image_token) == 1:
                return str(text)
        raise UnsupportedModelError(
            f"{self.name}: the chat template does not place {self.image_token!r} once a picture"
        )

    def prompt_ids(self, turns: Sequence[Turn], n_soft: int) -> list[int]:
        """Ids of the chat with the image mark repeated, checked against the context.

        Raises PromptError when no room is left for an answer; the message has the counts.
        """
        marks = [*self.tokenizer.all_special_tokens, self.image_token]
        check_no_special_tokens(turns, marks)
        text = self.prompt_text(turns)
        bos = self.tokenizer.bos_token
        # Too long a chat is refused below, so the tokenizer need not warn of it.
        ids = self.tokenizer(
            text,
            add_special_tokens=not (bos and text.removeprefix(self.image_token).startswith(bos)),
            verbose=False,
        )
        expanded = expand_placeholder(ids["input_ids"], self.image_token_id, n_soft)
        if len(expanded) >= self.context:
            hint = (
                "drop earlier turns or ask more briefly" if len(turns) > 1 else "ask more briefly"
            )
            raise PromptError(
                f"the chat takes {len(expanded)} positions ({n_soft} of them the picture) and "
                f"{self.name} has {self.context} in all, the answer included; {hint}"
            )
        return expanded

    def splice(self, images: Sequence[Image], chats: Sequence[Sequence[Turn]]) -> Spliced:
        """One RGB picture and one chat a row, to what the language model takes."""
        views = view_pixels(self.image_processor, self.aspect, images)
        height, width = views.pixel_values.shape[-2:]
        counts = [self.n_soft_tokens(height, width, size) for size in views.sizes]
        rows = [self.prompt_ids(turns, n) for turns, n in zip(chats, counts, strict=True)]
        ids, mask = left_pad(rows, self._pad_id)
        embed = self.llm.get_input_embeddings()
        ids, mask = ids.to(self.device), mask.to(self.device)
        return splice(embed, ids, mask, self.image_token_id, self.picture_tokens(views))

    @torch.inference_mode()
    def logits(self, images: Sequence[ImageInput], chats: Sequence[Sequence[Turn]]) -> torch.Tensor:
        """Next-token logits (B, T, V) at every position of the spliced chats, left-padded."""
        rows = self.splice([load_image(image) for image in images], chats)
        return self.llm(
            inputs_embeds=rows.inputs_embeds,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
        ).logits

    # -- answers -----------------------------------------------------------------------

    def answer(
        self,
        image: ImageInput,
        question: str,
        *,
        history: Sequence[Turn] = (),
        max_new_tokens: int = 64,
    ) -> str:
        """The greedy answer to one question. ``history`` holds earlier (question, answer)s."""
        return self.answers([image], [question], [history], max_new_tokens=max_new_tokens)[0]

    def answers(
        self,
        images: Sequence[ImageInput],
        questions: Sequence[str],
        histories: Sequence[Sequence[Turn]] | None = None,
        *,
        max_new_tokens: int = 64,
    ) -> list[str]:
        """Greedy answers to one question a picture, in one batch."""
        histories = [()] * len(questions) if histories is None else histories
        if not len(images) == len(questions) == len(histories):
            raise OptionError(
                f"{len(images)} pictures, {len(questions)} questions and {len(histories)} "
                "histories; give as many of each"
            )
        if not questions:
            return []
        limit = checked_max_new_tokens(max_new_tokens)
        chats = [checked_turns(q, h) for q, h in zip(questions, histories, strict=True)]
        rows = self.splice_checked(images, chats)
        ids = self._generate(rows, limit)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def stream(
        self,
        image: ImageInput,
        question: str,
        *,
        history: Sequence[Turn] = (),
        max_new_tokens: int = 64,
    ) -> Iterator[str]:
        """Pieces of the answer as they come; joined, they equal `answer`.

        Input is checked and the picture is read at the call, before the first piece is asked
        for. Closing the iterator early stops the model.
        """
        limit = checked_max_new_tokens(max_new_tokens)
        rows = self.splice_checked([image], [checked_turns(question, history)])

        def run(**hooks: Any) -> None:
            self._generate(rows, limit, **hooks)

        return stream_text(self.tokenizer, run)

    @torch.inference_mode()
    def splice_checked(
        self, images: Sequence[ImageInput], chats: Sequence[Sequence[Turn]]
    ) -> Spliced:
        """`splice` for pictures in any form that `load_image` reads, without gradients."""
        return self.splice([load_image(image) for image in images], chats)

    @property
    def _pad_id(self) -> int:
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    @torch.inference_mode()
    def _generate(self, rows: Spliced, max_new_tokens: int, **hooks: Any) -> torch.Tensor:
        """New ids (B, up to max_new_tokens), greedily. Never runs past the context."""
        room = self.context - rows.inputs_embeds.shape[1]
        return self.llm.generate(
            inputs_embeds=rows.inputs_embeds,
            attention_mask=rows.attention_mask,
            max_new_tokens=min(max_new_tokens, room),
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad_id,
            **hooks,
        )


def from_llava(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    *,
    chat_template: str | None = None,
    aspect: ImageAspect | None = None,
    name: str = "LLaVA",
) -> BridgeVLM:
    """The parts of a stock LlavaForConditionalGeneration or LlavaNext..., sharing its parameters.

    ``aspect`` is for LLaVA 1.5's kind, whose config does not say it; LLaVA 1.6's is always
    "anyres" with the config's pinpoints.
    Raises UnsupportedModelError when the tokenizer does not know the model's image token.
    """
    config = model.config
    core = model.model
    image_id = int(config.image_token_id)
    image_token = checked_image_token(tokenizer, image_id, name)
    if config.model_type == "llava_next":
        pinpoints = tuple((int(high), int(wide)) for high, wide in config.image_grid_pinpoints)
        tile = int(config.vision_config.image_size)
        aspect = AnyRes(pinpoints, tile, core.image_newline, int(image_processor.resample))
    layer = config.vision_feature_layer
    stock = core.multi_modal_projector
    whole = config.vision_feature_select_strategy == "full"
    return BridgeVLM(
        vision=core.vision_tower,
        projector=MlpProjector(stock.linear_1, stock.act, stock.linear_2).eval(),
        llm=_causal_lm(model),
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=image_id,
        image_token=image_token,
        select_layer=layer if isinstance(layer, int) else tuple(layer),
        select_feature="cls_patch" if whole else "patch",
        chat_template=chat_template,
        name=name,
        aspect=aspect or SQUARE,
    )


def checked_image_token(tokenizer: Any, image_id: int, name: str) -> str:
    """The text of the image token. Raises UnsupportedModelError unless it is a special token."""
    token = tokenizer.convert_ids_to_tokens(image_id) if image_id < len(tokenizer) else None
    # Of tokens added as special ones, transformers 5 lists only the named among the first.
    added = tokenizer.added_tokens_decoder.get(image_id)
    special = token in tokenizer.all_special_tokens or (added is not None and added.special)
    if token is None or not special:
        raise UnsupportedModelError(
            f"{name}: the config's image token {image_id} is no special token of the tokenizer "
            f"(it is {token!r})"
        )
    return str(token)


def _causal_lm(model: Any) -> Any:
    """The language model of a LLaVA as a causal LM of its own, parameters shared."""
    from transformers import AutoModelForCausalLM

    text_config = model.model.language_model.config
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(text_config)
    setattr(llm, llm.base_model_prefix, model.model.language_model)
    llm.set_output_embeddings(model.lm_head)
    llm.config = text_config
    llm.generation_config = model.generation_config
    return llm.eval()


def _as_string(content: object, image_token: str) -> str:
    """Message parts as one string, the image mark before the text."""
    assert isinstance(content, list)
    make: dict[str, Callable[[dict[str, str]], str]] = {
        "image": lambda part: f"{image_token}\n",
        "text": lambda part: part["text"],
    }
    return "".join(make[part["type"]](part) for part in content)
