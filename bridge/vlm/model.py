"""BridgeVLM: a vision tower, a projector and a language model, joined at `<image>`.

    picture -> tower -> states of one layer -> projector -> soft tokens
                                                               |
    chat    -> tokenizer -> ids -> word embeddings -> merge ---+--> language model -> answer

The parts are plain modules and may be swapped one by one. `from_llava` takes them out of a
stock LlavaForConditionalGeneration without copying a parameter, and tests hold the two
equal in logits and in greedy answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bridge.checks import keywords
from bridge.errors import OptionError, UnsupportedModelError
from bridge.images import ImagesInput, load_images
from bridge.vlm.answering import Choice, Normalise, Question, choose, read_question, stream_text
from bridge.vlm.chat import (
    IMAGE_TOKEN,
    Messages,
    Turn,
    checked_max_new_tokens,
    read_messages,
)
from bridge.vlm.chat_writer import ChatWriter
from bridge.vlm.merge_embeddings import LlmInputs, Side, llm_logits, merge_embeddings, pad_rows
from bridge.vlm.projectors import Grid, Projector
from bridge.vlm.validation import (
    check_image_token,
    check_llm,
    check_logits,
    check_soft,
    check_vision,
    check_widths,
    finite_logits,
    numbers_of,
)
from bridge.vlm.views import SQUARE, ImageAspect, Size, Views, view_pixels
from bridge.vlm.vision import SelectFeature, SelectLayer, SoftTokens, image_states, soft_tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


@keywords
@dataclass(frozen=True, eq=False, repr=False)
class BridgeVLM:
    """A vision-language model made of parts.

    A picture argument is one picture, or a list of several for one chat, or None. They stand
    where the questions say `<image>`, or before the first question when none does.

    Args:
        vision, projector: both may be None: a model for text alone.
        llm: a causal language model of transformers.
        select_layer: counted as LLaVA does (see `bridge.vlm.vision`).
        select_feature: which states of the tower are kept: "patch", "cls_patch", "drop_first".
        chat_template: Jinja; None for LLaVA-1.5's layout.
        aspect: what is done with pictures that are not square (see `bridge.vlm.views`).
        cut_at_images: read the texts between pictures one by one, as LLaVA's own code does.

    Raises:
        OptionError, UnsupportedModelError: parts do not fit together.
    """

    vision: nn.Module | None
    projector: Projector | None
    llm: Any
    tokenizer: Any
    image_processor: Any
    image_token_id: int
    image_token: str = IMAGE_TOKEN
    select_layer: SelectLayer = -2
    select_feature: SelectFeature = "patch"
    chat_template: str | None = None
    name: str = "BridgeVLM"
    aspect: ImageAspect = SQUARE
    cut_at_images: bool = False

    def __post_init__(self) -> None:
        check_llm(self.llm, self.name)
        check_vision(self.vision, self.projector, self.select_layer, self.select_feature, self.name)
        if self.vision is not None:
            check_widths(self.vision, self.projector, self.llm, self.select_layer, self.name)
            check_image_token(self.tokenizer, self.image_token, self.image_token_id, self.name)

    def __repr__(self) -> str:
        parts = (type(part).__name__ for part in (self.vision, self.projector, self.llm))
        return f"BridgeVLM({self.name!r}: {' -> '.join(parts)})"

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def context(self) -> int | None:
        """How many positions the language model has, soft tokens included; None for no limit."""
        config = self.llm.config.get_text_config()
        found = getattr(config, "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def count(self, height: int, width: int) -> SoftTokens:
        """The soft tokens of one preprocessed view, and where their number comes from.

        Everything that needs the number asks here. Raises UnsupportedModelError for a model
        of text alone.
        """
        vision, projector = self._eyes
        return soft_tokens_of(vision, projector, self.select_feature, height, width)

    def n_soft_tokens(self, height: int, width: int, picture: Size | None = None) -> int:
        """How many soft tokens one picture makes.

        ``height`` and ``width`` are those of a preprocessed view; ``picture`` is the (height,
        width) of the picture itself, without which one view's tokens are counted.
        """
        a_view = self.count(height, width).count
        return a_view if picture is None else self.aspect.n_soft_tokens(a_view, picture)

    # -- the road, step by step --------------------------------------------------------

    def soft_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) preprocessed pixels to (B, M, D_llm). Raises NumbersError, as all that
        answers does, when they are not finite."""
        counted = self.count(*pixel_values.shape[-2:])
        states = self.image_states(pixel_values)
        if states.shape[1] != counted.states:
            raise UnsupportedModelError(
                f"{self.name}: the tower gave {states.shape[1]} states where {counted.states} "
                f"were counted: {counted}"
            )
        soft = self.project(states, counted.layout)
        if soft.shape[1] != counted.count:
            raise UnsupportedModelError(
                f"{self.name}: the projector gave {soft.shape[1]} soft tokens where "
                f"{counted.count} were counted: {counted}"
            )
        check_soft(soft, self.name)
        return soft

    def image_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels to the (B, N, D_vision) states that the projector takes."""
        vision, _ = self._eyes
        pixels = pixel_values.to(numbers_of(vision, pixel_values))
        return image_states(vision, pixels, self.select_layer, self.select_feature)

    def project(self, states: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        """(B, N, D_vision) states that lie in ``grid`` to (B, M, D_llm) soft tokens."""
        _, projector = self._eyes
        return projector(states.to(numbers_of(projector, states)), grid)

    @cached_property
    def writer(self) -> ChatWriter:
        """How this model writes its chats."""
        return ChatWriter(
            self.tokenizer,
            self.chat_template,
            self.image_token,
            self.image_token_id,
            self.context,
            self.name,
            self.cut_at_images,
        )

    def prompt_text(self, turns: Sequence[Turn], n_images: int = 1) -> str:
        """The chat as text, through the checkpoint's own template where it has one."""
        return self.writer.text(turns, n_images)

    def prompt_ids(self, turns: Sequence[Turn], n_soft: int | Sequence[int]) -> list[int]:
        """Ids of the chat with every image mark repeated, checked against the context.

        ``n_soft`` has the soft tokens of each picture; a number stands for one picture. Raises
        PromptError when no room is left for an answer; the message has the counts.
        """
        return self.writer.ids(turns, [n_soft] if isinstance(n_soft, int) else n_soft)

    @torch.inference_mode()
    def inputs(
        self,
        images: Sequence[ImagesInput],
        chats: Sequence[Sequence[Turn]],
        padding: Side = "left",
    ) -> LlmInputs:
        """A chat and its pictures a row, to what the language model takes, without gradients."""
        if len(images) != len(chats):
            raise OptionError(f"{len(images)} rows of pictures, {len(chats)} chats; give as many")
        rows = zip(images, chats, strict=True)
        return self._inputs([Question(load_images(row), turns) for row, turns in rows], padding)

    def _inputs(self, asked: Sequence[Question], padding: Side = "left") -> LlmInputs:
        views, counts = self.views([picture for each in asked for picture in each.pictures])
        left = iter(counts)
        rows = [
            self.prompt_ids(each.turns, list(islice(left, len(each.pictures)))) for each in asked
        ]
        return self.embed(rows, self.picture_tokens(views), padding)

    def views(self, pictures: Sequence[Image]) -> tuple[Views | None, list[int]]:
        """Preprocessed views of the pictures (None without any), and each one's soft tokens."""
        if not pictures:
            return None, []
        self._eyes  # noqa: B018 (a picture into a text-only model is refused here)
        views = view_pixels(self.image_processor, self.aspect, pictures)
        height, width = views.pixel_values.shape[-2:]
        return views, [self.n_soft_tokens(height, width, picture) for picture in views.sizes]

    def picture_tokens(self, views: Views | None) -> list[torch.Tensor]:
        """The soft tokens (M_i, D_llm) of each picture, its views packed into one row."""
        if views is None:
            return []
        parts = self.soft_tokens(views.pixel_values).split(views.counts)
        return [self.aspect.pack(part, size) for part, size in zip(parts, views.sizes, strict=True)]

    def embed(
        self,
        rows: Sequence[Sequence[int]],
        soft: torch.Tensor | Sequence[torch.Tensor],
        padding: Side = "left",
    ) -> LlmInputs:
        """Rows of ids and the soft tokens of their pictures, in reading order, to one batch.

        Raises PromptError, with both counts, when the soft tokens do not fill the image positions.
        """
        ids, mask = pad_rows(rows, self.pad_id, padding)
        table = self.llm.get_input_embeddings()
        ids, mask = ids.to(self.device), mask.to(self.device)
        made_by = (type(self.vision).__name__, self.select_feature, type(self.projector).__name__)
        return merge_embeddings(table, ids, mask, self.image_token_id, soft, " -> ".join(made_by))

    @torch.inference_mode()
    def logits(
        self,
        images: Sequence[ImagesInput],
        chats: Sequence[Sequence[Turn]],
        padding: Side = "left",
    ) -> torch.Tensor:
        """Next-token logits (B, T, V) at every position of the spliced chats."""
        return self.read(self.inputs(images, chats, padding))

    def read(self, rows: LlmInputs, keep: int = 0) -> torch.Tensor:
        """The logits (B, T, V) of a batch, or of its last ``keep`` positions. Raises NumbersError
        when they are not finite."""
        logits = llm_logits(self.llm, rows, keep)
        check_logits(logits, rows.attention_mask[:, -keep:], self.name)
        return logits

    # -- answers -----------------------------------------------------------------------

    def answer(
        self,
        image: ImagesInput,
        question: str,
        *,
        history: Sequence[Turn] = (),
        max_new_tokens: int = 64,
    ) -> str:
        """The greedy answer to one question.

        Args:
            image: one picture or several, or None.
            question: pictures stand where it says ``<image>``, or before the first question.
            history: earlier ``(question, answer)`` pairs about the same picture, the first first.
            max_new_tokens: 1 to 4096.

        Raises:
            PromptError: a question or history out of form, or longer than the context.
            ImageError: a picture that cannot be read.
            UnsupportedModelError: a picture for a model of text alone.
        """
        return self.answers([image], [question], [history], max_new_tokens=max_new_tokens)[0]

    def answers(
        self,
        images: Sequence[ImagesInput],
        questions: Sequence[str],
        histories: Sequence[Sequence[Turn]] | None = None,
        *,
        max_new_tokens: int = 64,
    ) -> list[str]:
        """Greedy answers to one question a row, in one batch."""
        histories = [()] * len(questions) if histories is None else histories
        if not len(images) == len(questions) == len(histories):
            raise OptionError(
                f"{len(images)} pictures, {len(questions)} questions and {len(histories)} "
                "histories; give as many of each"
            )
        limit = checked_max_new_tokens(max_new_tokens)
        rows = zip(images, questions, histories, strict=True)
        return self.answer_all([read_question(*row) for row in rows], limit)

    def stream(
        self,
        image: ImagesInput,
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
        return self.stream_answer(read_question(image, question, history), limit)

    def chat(
        self, messages: Messages, images: ImagesInput = None, *, max_new_tokens: int = 64
    ) -> str:
        """The greedy answer to the last of ``messages``, which are written as for transformers and
        OpenAI's servers (see `bridge.vlm.chat`).

        Args:
            messages: ``[{"role": "user", "content": "what is this?"}, ...]``; a content is a text,
                or a list of texts and pictures.
            images: one picture or a list, for the places ``{"type": "image"}`` that the messages
                have; without such a place they stand before the first question.
            max_new_tokens: 1 to 4096.

        Raises:
            PromptError: messages out of form, as many pictures as there are no places for.

        It also raises what `answer` raises.
        """
        given = () if images is None else images if isinstance(images, list | tuple) else (images,)
        pictures, question, history = read_messages(messages, given)
        return self.answer(pictures, question, history=history, max_new_tokens=max_new_tokens)

    def save(
        self, folder: str | os.PathLike[str], *, vision: str | None = None, llm: str | None = None
    ) -> Path:
        """Write the whole model to a folder that `bridge.load_vlm` opens. See
        `bridge.vlm.save_vlm`, which documents the options and the errors."""
        from bridge.vlm.save import save_vlm

        return save_vlm(self, folder, vision=vision, llm=llm)

    def choose(
        self,
        image: ImagesInput,
        question: str,
        choices: Sequence[str],
        *,
        history: Sequence[Turn] = (),
        normalise: Normalise = "none",
    ) -> Choice:
        """The likeliest of ``choices`` as the answer to ``question``.

        A choice's log-probability is the sum over its tokens and the end of the answer (the token
        of the chat layout or, where that has none, the tokenizer's end of text); so "cat" has no
        advantage over "cat and dog" for being its beginning.

        Args:
            choices: at least two texts, all different. Equal scores go to the first.
            normalise: divide by the number of "tokens" or of UTF-8 "bytes" of the choice (the
                `acc_norm` of EleutherAI's lm-evaluation-harness); "none" compares sums (its `acc`).

        Raises:
            OptionError: fewer than two choices, empty or repeated ones, an unknown ``normalise``.

        It also raises what `answer` raises.
        """
        return choose(self, read_question(image, question, history), choices, normalise)

    @torch.inference_mode()
    def answer_all(self, asked: Sequence[Question], limit: int) -> list[str]:
        """The greedy answers to questions that were checked, in one batch."""
        if not asked:
            return []
        ids = self._generate(self._inputs(asked), limit)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @torch.inference_mode()
    def stream_answer(self, asked: Question, limit: int) -> Iterator[str]:
        """The pieces of the answer to a question that was checked."""
        rows = self._inputs([asked])
        return stream_text(self.tokenizer, partial(self._generate, rows, limit))

    @property
    def _eyes(self) -> tuple[nn.Module, Projector]:
        """Tower and projector, or UnsupportedModelError."""
        if self.vision is None or self.projector is None:
            raise UnsupportedModelError(
                f"{self.name} is a model of text alone ({type(self.llm).__name__}) and was given "
                "a picture; give it a tower with bridge.vlm.pair"
            )
        return self.vision, self.projector

    @property
    def pad_id(self) -> int:
        """The id that fills up the shorter rows of a batch; it is masked."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    @torch.inference_mode()
    def _generate(self, rows: LlmInputs, max_new_tokens: int, **hooks: Any) -> torch.Tensor:
        """New ids (B, up to max_new_tokens), greedily. Never runs past the context."""
        length = rows.inputs_embeds.shape[1]
        room = max_new_tokens if self.context is None else self.context - length
        return self.llm.generate(
            inputs_embeds=rows.inputs_embeds,
            attention_mask=rows.attention_mask,
            max_new_tokens=min(max_new_tokens, room),
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_id,
            logits_processor=finite_logits(self.name),
            **hooks,
            trust_remote_code=False,
        )
