"""LLaVA 1.2.2's own code, run as it is under transformers 5.

It pins transformers 4.37, and of that three things are stood in for, since they are otherwise now:
the slow LlamaTokenizer (`Slow`, by its rules over SentencePiece; held to ids that the pinned
environment gave), the image processor on PIL, which CLIPImageProcessor was, and the loop of greedy
search, which hands LLaVA's forward options that it does not take. Conversations and their choice,
cutting at ``<image>``, loading a checkpoint, tower, projector, splicing and forward are LLaVA's.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peers import clone, on_path
from PIL import Image


class Slow:
    """transformers 4.37's LlamaTokenizer with ``legacy``: each text between special tokens is
    SentencePiece's to read, with the space that it puts first."""

    bos_token_id = 1
    special = ("<s>", "</s>", "<unk>")

    def __init__(self, folder: Path) -> None:
        import sentencepiece

        data = (folder / "tokenizer.model").read_bytes()
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=data)

    def __len__(self) -> int:
        return int(self._pieces.get_piece_size())

    def __call__(self, text: str) -> SimpleNamespace:
        ids = [self.bos_token_id]
        for part in re.split(f"({'|'.join(map(re.escape, self.special))})", text):
            if part in self.special:
                ids.append(int(self._pieces.piece_to_id(part)))
            elif part:
                ids += self._pieces.encode(part)
        return SimpleNamespace(input_ids=ids)

    @classmethod
    def from_pretrained(cls, folder: str, **_options: Any) -> Slow:
        return cls(Path(folder))


class _Stop(Exception):
    """LLaVA's command has chosen its conversation; it would want a GPU next."""


@dataclass(frozen=True, eq=False)
class Llava:
    """The peer's modules."""

    conversation: ModuleType
    mm_utils: ModuleType
    builder: ModuleType
    run_llava: ModuleType

    def prompt(self, name: str, turns: list[tuple[str, str]]) -> str:
        """Its prompt of a chat about one picture, in a conversation."""
        made = self.conversation.conv_templates[name].copy()
        for number, (question, answer) in enumerate(turns):
            made.append_message(made.roles[0], question if number else f"<image>\n{question}")
            made.append_message(made.roles[1], answer or None)
        return str(made.get_prompt())

    def chosen(self, path: str) -> str:
        """The conversation that its command takes for a checkpoint."""
        options = SimpleNamespace(model_path=path, model_base=None, query="", conv_mode=None)
        model = SimpleNamespace(config=SimpleNamespace(mm_use_im_start_end=False))
        before = vars(self.run_llava).copy()

        def stop(_options: Any) -> Any:
            raise _Stop

        self.run_llava.disable_torch_init = lambda: None
        self.run_llava.load_pretrained_model = lambda *_names: (None, model, None, 2048)
        self.run_llava.image_parser = stop
        try:
            with contextlib.suppress(_Stop):
                self.run_llava.eval_model(options)
        finally:
            vars(self.run_llava).update(before)
        return str(options.conv_mode)

    def load(self, folder: Path) -> tuple[Slow, Any, Any]:
        """Tokenizer, model in float32, and image processor, by its own loader."""
        name = self.mm_utils.get_model_name_from_path(str(folder))
        tokenizer, model, processor, _ = self.builder.load_pretrained_model(
            str(folder), None, name, device="cpu"
        )
        model = model.float().eval()
        model.get_vision_tower().float()
        return tokenizer, model, processor

    def inputs(
        self, loaded: tuple[Slow, Any, Any], prompt: str, picture: Image.Image
    ) -> dict[str, Any]:
        """What its command gives to `generate`, but in float32."""
        tokenizer, model, processor = loaded
        ids = self.mm_utils.tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
        images = self.mm_utils.process_images([picture], processor, model.config)
        return {
            "input_ids": ids.unsqueeze(0),
            "images": images.float(),
            "image_sizes": [picture.size],
        }

    @torch.inference_mode()
    def logits(self, loaded: tuple[Slow, Any, Any], prompt: str, picture: Image.Image) -> Any:
        return loaded[1](**self.inputs(loaded, prompt, picture)).logits

    @torch.inference_mode()
    def answer(
        self, loaded: tuple[Slow, Any, Any], prompt: str, picture: Image.Image, count: int
    ) -> list[int]:
        """The ids of its greedy answer, to the end of text; by its forward, word for word."""
        given = self.inputs(loaded, prompt, picture)
        told: list[int] = []
        while len(told) < count and told[-1:] != [loaded[1].config.eos_token_id]:
            token = int(loaded[1](**given).logits[0, -1].argmax())
            told.append(token)
            given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([[token]])], dim=1)
        return told


@contextlib.contextmanager
def llava() -> Iterator[Llava]:
    """The peer. Skips (or fails) where its clone is missing."""
    folder = clone("llava")
    with on_path(folder):
        names = ("conversation", "mm_utils", "model.builder", "eval.run_llava")
        peer = Llava(*(importlib.import_module(f"llava.{name}") for name in names))
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        encoder = sys.modules["llava.model.multimodal_encoder.clip_encoder"]
        vars(encoder)["CLIPImageProcessor"] = CLIPImageProcessorPil
        vars(peer.builder)["AutoTokenizer"] = Slow
        yield peer
