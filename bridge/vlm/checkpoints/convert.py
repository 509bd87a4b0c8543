"""`bridge convert`: LLaVA checkpoints from the original layout to transformers' and back.

Tensors pass one by one and bit for bit under their other name; nothing is cast and no model is
built. The one thing made anew, on the way to transformers, is the row of the embeddings that its
`<image>` token needs; it is the mean of the others (as LLaVA itself starts new tokens), so that
it can never be the likeliest answer, and it is taken off again on the way back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from bridge.checks import keywords
from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.files import check_output_file, home_path, read_json, whole_folder
from bridge.store import resolve
from bridge.towers import reading
from bridge.towers.image_processor import processor_kind, processor_settings
from bridge.vlm.chat import CHAT_TEMPLATE
from bridge.vlm.checkpoints.llava_layout import (
    ADDED_ROWS,
    CONVERSATION,
    EMBEDDINGS,
    LLAVA_ENTRIES,
    NEWLINE,
    NOTED_TEMPLATE,
    is_computed,
    is_original,
    llava_entries,
    to_hf,
    to_hf_config,
    to_llava,
    to_llava_config,
)
from bridge.vlm.checkpoints.original import (
    TOWER_FOLDER,
    OriginalCheckpoint,
    model_files,
    open_original,
    read_file,
    refuse_lora,
)
from bridge.vlm.checkpoints.tokenizer import (
    chat_template_of,
    image_mark,
    tokenizer_with_image,
    write_for_hf,
    write_for_llava,
)
from bridge.vlm.conversations import ConversationName, checked_conversation

Tensors = Iterator[tuple[str, torch.Tensor]]

Layout = Literal["hf", "llava"]
Progress = Callable[[int], None]


@keywords
def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Layout,
    allow_pickle: bool = False,
    base: str | os.PathLike[str] | None = None,
    vision_tower: str | None = None,
    conversation: ConversationName | None = None,
    on_tensor: Progress | None = None,
) -> Path:
    """Write ``source`` to the new folder ``out`` in the other layout, and give its path.

    Args:
        source: a folder, embedded name or hub id.
        to: "hf" (`LlavaForConditionalGeneration`, for anyres `LlavaNext...`) or "llava" (the
            original layout).
        allow_pickle: read ``.bin`` files, tensors only; a hub's are not fetched.
        base: the language model of a LLaVA folder that has only a projector.
        vision_tower: what `mm_vision_tower` shall say when going to "llava". LLaVA's own code
            wants the CLIP the tower came from (openai/clip-vit-large-patch14-336); bridge needs
            nothing, as the tower's tensors and settings are in ``out`` either way.
        conversation: what the model is asked in, by LLaVA's name for it (see
            `bridge.vlm.CONVERSATIONS`); without it, what LLaVA takes for the checkpoint's name.
            Going to "hf", it becomes the chat template.
        on_tensor: called with the number of tensors done, after each.

    The folder appears under its name when it is whole, and not at all if anything fails. Raises
    OptionError (``out`` exists or cannot be, ``source`` has that layout already),
    UnsupportedModelError (what the other layout cannot say), WeightsError.
    """
    if to not in ("hf", "llava"):
        raise OptionError(f"to is {to!r}; give 'hf' or 'llava'")
    if conversation is not None:
        checked_conversation(conversation)
    target = _checked_target(home_path(out))
    folder = resolve(source).absolute()
    claim = f"{folder} cannot be converted"
    with reading(claim):
        _check_direction(folder, to)
    with whole_folder(target) as part:
        with reading(claim):
            if to == "hf":
                original = open_original(folder, allow_pickle=allow_pickle, base=base)
                chosen = conversation or original.conversation(os.fspath(source))
                tensors = _to_hf(original, part, chosen)
            else:
                tensors = _to_llava(folder, part, vision_tower, conversation)
        _write_tensors(_read(tensors, claim), part, folder, on_tensor)
        if target.exists():
            raise OptionError(f"output {str(target)!r} has come to be meanwhile; nothing written")
    return target


def _read(tensors: Tensors, claim: str) -> Tensors:
    """The tensors, within the wall for what is read; who writes them is outside of it."""
    while True:
        with reading(claim):
            found = next(tensors, None)
        if found is None:
            return
        yield found


def _to_hf(
    source: OriginalCheckpoint, part: Path, conversation: ConversationName | None
) -> Tensors:
    """Writes all but the tensors, and gives those by their other names."""
    tokenizer = tokenizer_with_image(source.llm, source.settings.llm)
    image_id = int(tokenizer.convert_tokens_to_ids("<image>"))
    added = max(0, image_id + 1 - int(source.settings.text["vocab_size"]))
    config = to_hf_config(source.settings, source.vision, image_id, added)
    config[LLAVA_ENTRIES] = llava_entries(source.config)
    if conversation is not None:
        config[CONVERSATION] = conversation
    _write_json(part / "config.json", config)
    tokenizer.chat_template = source.chat_template(conversation, image_mark(tokenizer))
    write_for_hf(tokenizer, source.llm, part)
    processor = _processor_config(source.preprocessor(), config, source.settings.aspect)
    _write_json(part / "processor_config.json", processor)

    def renamed() -> Tensors:
        for name, tensor in source.tensors():
            if name == NEWLINE and source.settings.aspect != "anyres":
                continue  # transformers' 1.5 has no place for it, nor LLaVA a use
            grown = _with_rows(tensor, added) if name in EMBEDDINGS else tensor
            yield _other_name(to_hf, name, source.folder), grown

    return renamed()


def _to_llava(
    folder: Path, part: Path, vision_tower: str | None, conversation: ConversationName | None
) -> Tensors:
    """As `_to_hf`."""
    from transformers import AutoConfig

    refuse_lora(folder)
    raw = read_json(folder / "config.json")
    settings = processor_settings(folder)
    padded = processor_kind(settings) == "LlavaImageProcessor" and bool(settings.get("do_pad"))
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    aspect = "pad" if padded else "square"
    named = vision_tower or TOWER_FOLDER
    flat = to_llava_config(config, raw, aspect, named, folder)
    noted = conversation or raw.get(CONVERSATION)
    if noted is not None:
        flat[CONVERSATION] = noted
    else:
        flat[NOTED_TEMPLATE] = chat_template_of(folder) or CHAT_TEMPLATE
    _write_json(part / "config.json", flat)
    added = int(raw.get(ADDED_ROWS, 0))
    write_for_llava(folder, part, image_was_added=added > 0)
    vision = {**config.vision_config.to_dict(), "architectures": ["CLIPVisionModel"]}
    (part / TOWER_FOLDER).mkdir()
    _write_json(part / TOWER_FOLDER / "config.json", vision)
    _write_json(part / TOWER_FOLDER / "preprocessor_config.json", _clip_settings(settings))

    def renamed() -> Tensors:
        for file in model_files(folder):
            for name, tensor in read_file(file):
                if is_computed(name):
                    continue
                other = _other_name(to_llava, name, folder)
                cut = tensor[: len(tensor) - added] if other in EMBEDDINGS else tensor
                yield other, cut

    return renamed()


def _write_tensors(tensors: Tensors, part: Path, source: Path, on_tensor: Progress | None) -> None:
    writer, done = ShardWriter(part), 0
    for name, tensor in tensors:
        writer.add(name, tensor)
        done += 1
        if on_tensor is not None:
            on_tensor(done)
    if not done:
        raise WeightsError(f"{source} has no tensors in safetensors files to convert")
    writer.close()


def _other_name(mapping: Callable[[str], str], name: str, folder: Path) -> str:
    try:
        return mapping(name)
    except KeyError:
        raise UnsupportedModelError(
            f"{folder}: the tensor {name!r} has no place in the other layout"
        ) from None


def _with_rows(table: torch.Tensor, count: int) -> torch.Tensor:
    if count == 0:
        return table
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(count, -1)])


def _processor_config(clip: dict[str, Any], config: dict[str, Any], aspect: str) -> dict[str, Any]:
    """processor_config.json of transformers: the tower's own processor, with LLaVA's aspect."""
    settings = _clip_settings(clip)
    if aspect == "anyres":
        settings["image_processor_type"] = "LlavaNextImageProcessor"
        settings["image_grid_pinpoints"] = config["image_grid_pinpoints"]
        settings["do_pad"] = True
    elif aspect == "pad":
        settings["image_processor_type"] = "LlavaImageProcessor"
        settings["do_pad"] = True
    return {
        "processor_class": "LlavaNextProcessor" if aspect == "anyres" else "LlavaProcessor",
        "image_processor": settings,
        "image_token": "<image>",
        "num_additional_image_tokens": 1,  # the class token, which every CLIP has
        "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }


def _clip_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """A processor's settings as those of a plain CLIPImageProcessor."""
    dropped = ("do_pad", "pad_size", "image_grid_pinpoints", "feature_extractor_type")
    kept = {key: value for key, value in settings.items() if key not in dropped}
    return {**kept, "image_processor_type": "CLIPImageProcessor"}


def _checked_target(target: Path) -> Path:
    if os.path.lexists(target):
        raise OptionError(f"output {str(target)!r} is there already; give a new folder name")
    check_output_file(target)
    return target.absolute()


def _check_direction(folder: Path, to: str) -> None:
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{folder} has no config.json; give a LLaVA checkpoint folder")
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    layout = "llava" if is_original(config) else "hf" if kind in ("llava", "llava_next") else None
    if layout is None:
        raise UnsupportedModelError(
            f"{folder} is a {kind!r} checkpoint; convert takes LLaVA's, original or transformers'"
        )
    if layout == to:
        raise OptionError(f"{folder} has the layout {to!r} already; there is nothing to convert")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


SHARD_BYTES = 4_000_000_000


class ShardWriter:
    """Tensors to `model.safetensors`, or to numbered shards with an index where they are many.

    Only one shard is in memory at a time, so a model larger than the memory can be converted.
    The folder must be new: files get their final names when `close` knows how many there are.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.limit:
            self._flush()
        # safetensors refuses views of one storage, which pickled checkpoints have.
        self._pending[name] = tensor.clone().contiguous()
        self._pending_bytes += size
        self._total += size

    def close(self) -> None:
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).replace(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._part(number).replace(self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _part(self, number: int) -> Path:
        return self.folder / f"shard-{number}.part"

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if self._pending:
            save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0
