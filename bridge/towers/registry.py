"""The table of towers by the names that people know them by, and the way from a name to a folder.

Nothing here imports torch before a name of the hub is opened.

Sources, beside the checkpoints' own configs: open_clip's ``pretrained.py`` and model configs; the
READMEs of FreddeFrallan/Multilingual-CLIP and beichenzbc/Long-CLIP; the hub's pages for licences
and for which files a repository has. FLIP's authors publish for JAX alone, so there is no row for
them; a copy of their ViT-L/16 in open_clip's layout is opened as a folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bridge.checks import nearest
from bridge.embedded import CATALOGUE, EMBEDDED, EMBEDDED_TOWERS, weights_file
from bridge.errors import UnknownModelError, WeightsError
from bridge.files import home_path, read_json
from bridge.hub import DEFAULT_PATTERNS
from bridge.manifest import embedded_state
from bridge.store import resolve


@dataclass(frozen=True)
class TowerRow:
    """One row of the table.

    Attributes:
        name: the short name.
        family: a name of ``TEXT_FAMILIES`` or ``IMAGE_FAMILIES``.
        source: hub id, or an embedded model's name.
        text_width, pooled_width, context, layers: of the text side; 0 where there is none.
        image_width, patch, image_size: of the image side; 0 where there is none.
        licence: of the weights, as their page says.
        notes: what to know before using it.
        files: its weights, where they are not those of a stock layout.
        pickle: whether its weights are published as a pickle alone, which is not fetched.
        tokenizer: where its tokenizer is, if not beside the weights.
        partner: the tower whose other side it shares a space with; "" for one with two sides.
    """

    name: str
    family: str
    source: str
    text_width: int
    pooled_width: int
    context: int
    layers: int
    image_width: int
    patch: int
    image_size: int
    licence: str
    notes: str = ""
    files: tuple[str, ...] = ()
    pickle: bool = False
    tokenizer: str = ""
    partner: str = ""

    def at_hand(self) -> bool:
        """Whether it opens without a network: it is embedded, or in the hub's local cache."""
        if self.source in EMBEDDED:
            return embedded_state(self.source) == "ready"
        from huggingface_hub import try_to_load_from_cache

        names = self.files or ("model.safetensors", "model.safetensors.index.json")
        return any(isinstance(try_to_load_from_cache(self.source, name), str) for name in names)


def _embedded_row(told: dict[str, Any]) -> TowerRow:
    """A row of the embedded towers' file. Raises WeightsError."""
    try:
        return TowerRow(**told)
    except TypeError as error:
        raise WeightsError(f"{weights_file(CATALOGUE)}: a tower does not fit ({error})") from error


_TEXTS = ("*.json", "*.txt", "*.model")
_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model")
_COLUMNS = ("name", "family", "text", "pooled", "context", "layers", "image", "offline", "source")
_HUB_PREFIX = "hf-hub:"
_L = "openai/clip-vit-large-patch14"
_BIN = "published as a pickle"
_OPEN = "open_clip_model.safetensors"
_COPY = "OpenAI's, in open_clip's layout"

# fmt: off
ROWS: tuple[TowerRow, ...] = (
    *map(_embedded_row, EMBEDDED_TOWERS),
    # name, family, source, text: width, pooled, context, layers; image: width, patch, side; licence
    # OpenAI CLIP; where OpenAI's own repository has pickles alone, timm's copy of it
    TowerRow("clip-b32", "open_clip", "timm/vit_base_patch32_clip_224.openai",
             512, 512, 77, 12, 768, 32, 224, "MIT", _COPY, files=(_OPEN,)),
    TowerRow("clip-b16", "open_clip", "timm/vit_base_patch16_clip_224.openai",
             512, 512, 77, 12, 768, 16, 224, "MIT", _COPY, files=(_OPEN,)),
    TowerRow("clip-l", "clip", _L, 768, 768, 77, 12, 1024, 14, 224, "MIT",
             "text tower of SD 1, one of SDXL's, SD 3's and FLUX's"),
    TowerRow("clip-l-336", "open_clip", "timm/vit_large_patch14_clip_336.openai",
             768, 768, 77, 12, 1024, 14, 336, "MIT", f"image tower of LLaVA 1.5; {_COPY}",
             files=(_OPEN,)),
    # OpenCLIP; the names are those of open_clip's pretrained.py
    TowerRow("openclip-b32", "clip", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
             512, 512, 77, 12, 768, 32, 224, "MIT"),
    TowerRow("openclip-l", "clip", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
             768, 768, 77, 12, 1024, 14, 224, "MIT"),
    TowerRow("openclip-h", "clip", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
             1024, 1024, 77, 24, 1280, 14, 224, "MIT", "text tower of SD 2 (penultimate layer)"),
    TowerRow("openclip-g", "clip", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
             1024, 1024, 77, 24, 1408, 14, 224, "MIT"),
    TowerRow("openclip-bigg", "clip", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
             1280, 1280, 77, 32, 1664, 14, 224, "MIT", "the second text tower of SDXL"),
    TowerRow("openclip-xlmr-b32", "open_clip_hf",
             "laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
             768, 512, 77, 12, 768, 32, 224, "MIT", f"multilingual; {_BIN}", pickle=True),
    TowerRow("openclip-xlmr-h", "open_clip_hf",
             "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k",
             1024, 1024, 77, 24, 1280, 14, 224, "MIT", f"multilingual; {_BIN}", pickle=True),
    # SigLIP and SigLIP 2
    TowerRow("siglip-b", "siglip", "google/siglip-base-patch16-224",
             768, 768, 64, 12, 768, 16, 224, "Apache-2.0"),
    TowerRow("siglip-l", "siglip", "google/siglip-large-patch16-256",
             1024, 1024, 64, 24, 1024, 16, 256, "Apache-2.0"),
    TowerRow("siglip-so400m", "siglip", "google/siglip-so400m-patch14-384",
             1152, 1152, 64, 27, 1152, 14, 384, "Apache-2.0"),
    TowerRow("siglip2-b", "siglip", "google/siglip2-base-patch16-224",
             768, 768, 64, 12, 768, 16, 224, "Apache-2.0", "multilingual"),
    TowerRow("siglip2-l", "siglip", "google/siglip2-large-patch16-256",
             1024, 1024, 64, 24, 1024, 16, 256, "Apache-2.0", "multilingual"),
    TowerRow("siglip2-so400m", "siglip", "google/siglip2-so400m-patch14-384",
             1152, 1152, 64, 27, 1152, 14, 384, "Apache-2.0", "multilingual"),
    TowerRow("siglip2-b-naflex", "siglip", "google/siglip2-base-patch16-naflex",
             768, 768, 64, 12, 768, 16, 256, "Apache-2.0", "multilingual; pictures of any shape"),
    # others with two sides
    TowerRow("align-b", "align", "kakaobrain/align-base",
             768, 640, 64, 12, 640, 32, 289, "see its page"),
    TowerRow("coca-l", "coca", "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k",
             768, 768, 76, 12, 1024, 14, 224, "MIT", "attention-pooled pictures; writes captions",
             files=("open_clip_pytorch_model.safetensors",), tokenizer=_L),
    TowerRow("blip2-itm", "blip2", "Salesforce/blip2-itm-vit-g",
             768, 256, 512, 12, 768, 14, 224, "MIT", "pictures are 32 query tokens"),
    TowerRow("blip2-opt-2.7b", "blip2", "Salesforce/blip2-opt-2.7b",
             0, 0, 0, 0, 768, 14, 224, "MIT", "32 query tokens; no space shared with texts"),
    TowerRow("longclip-b", "open_clip", "BeichenZhang/LongCLIP-B",
             512, 512, 248, 12, 768, 16, 224, "Apache-2.0", f"long texts; {_BIN}", pickle=True,
             tokenizer=_L),
    TowerRow("longclip-l", "clip", "zer0int/LongCLIP-L-Diffusers",
             768, 768, 248, 12, 1024, 14, 224, "MIT",
             "long texts; BeichenZhang/LongCLIP-L converted"),
    TowerRow("bioclip", "open_clip", "imageomics/bioclip",
             512, 512, 77, 12, 768, 16, 224, "MIT", f"species; {_BIN}", pickle=True),
    TowerRow("bioclip-2", "open_clip", "imageomics/bioclip-2",
             768, 768, 77, 12, 1024, 14, 224, "MIT", "species",
             files=(_OPEN,)),
    TowerRow("pubmedclip", "clip", "flaviagiammarino/pubmed-clip-vit-base-patch32",
             512, 512, 77, 12, 768, 32, 224, "MIT", "radiology"),
    # text alone
    TowerRow("mclip-xlmr-l14", "multilingual_clip", "M-CLIP/XLM-Roberta-Large-Vit-L-14",
             1024, 768, 512, 24, 0, 0, 0, "MIT", f"pooled only, scored with clip-l; {_BIN}",
             pickle=True, partner="clip-l"),
    TowerRow("mclip-labse-l14", "multilingual_clip", "M-CLIP/LABSE-Vit-L-14",
             768, 768, 512, 12, 0, 0, 0, "MIT", f"pooled only, scored with clip-l; {_BIN}",
             pickle=True, partner="clip-l"),
    TowerRow("t5-small", "t5", "google-t5/t5-small", 512, 0, 512, 6, 0, 0, 0, "Apache-2.0"),
    TowerRow("t5-base", "t5", "google-t5/t5-base", 768, 0, 512, 12, 0, 0, 0, "Apache-2.0"),
    TowerRow("t5-large", "t5", "google-t5/t5-large", 1024, 0, 512, 24, 0, 0, 0, "Apache-2.0"),
    TowerRow("flan-t5-base", "t5", "google/flan-t5-base", 768, 0, 512, 12, 0, 0, 0, "Apache-2.0"),
    TowerRow("flan-t5-large", "t5", "google/flan-t5-large",
             1024, 0, 512, 24, 0, 0, 0, "Apache-2.0"),
    TowerRow("flan-t5-xl", "t5", "google/flan-t5-xl", 2048, 0, 512, 24, 0, 0, 0, "Apache-2.0"),
    TowerRow("gemma-3-270m", "language_model", "google/gemma-3-270m",
             640, 0, 32768, 18, 0, 0, 0, "Gemma", "asks for an agreement on its page"),
    TowerRow("qwen3-0.6b", "language_model", "Qwen/Qwen3-0.6B",
             1024, 0, 40960, 28, 0, 0, 0, "Apache-2.0"),
    TowerRow("llama-3.2-1b", "language_model", "meta-llama/Llama-3.2-1B",
             2048, 0, 131072, 16, 0, 0, 0, "Llama 3.2", "asks for an agreement on its page"),
)
# fmt: on


def find_row(name: str) -> TowerRow | None:
    """The row of a short name, or None."""
    return next((row for row in ROWS if row.name == name), None)


def towers() -> list[dict[str, Any]]:
    """The table, a dictionary a row, with ``at_hand``: whether it opens without a network."""
    return [{**asdict(row), "at_hand": row.at_hand()} for row in ROWS]


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a row of `towers()`, in columns under a head: widths of states, context in tokens,
    ``image`` as width/patch@side."""
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    wide = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    return ["  ".join(map(str.ljust, line, wide)).rstrip() for line in cells]


def markdown_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same as a Markdown table, with licence and notes."""
    heads = (*_COLUMNS, "licence", "notes")
    lines = [heads, ("---",) * len(heads)]
    lines += [(*_cells(row), row["licence"], row["notes"]) for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (row["text_width"], row["pooled_width"], row["context"], row["layers"])
    image = f"{row['image_width']}/{row['patch']}@{row['image_size']}" if row["patch"] else "-"
    offline = "yes" if row["at_hand"] else "no"
    counts = (str(number) if number else "-" for number in numbers)
    return (row["name"], row["family"], *counts, image, offline, row["source"])


def find_source(source: str | Path) -> tuple[str, Path, str | None, Path | None]:
    """From a short name, hub id or folder to a local folder; what is missing is fetched.

    open_clip's names with their tag, ``ViT-B-32/laion2b_s34b_b79k``, and its ``hf-hub:owner/name``
    are hub ids too.

    Returns:
        The tower's name, its folder, its family where the table says it, and the folder of its
        tokenizer where that is another.

    Raises:
        UnknownModelError: no such name or folder; the message has the nearest names.
        HubError: the hub cannot be reached.
        WeightsError: weights that are published as a pickle alone.
    """
    source = _on_the_hub(source)
    row = find_row(source) if isinstance(source, str) else None
    if row is not None:
        words = find_tokenizer(row.tokenizer) if row.tokenizer else None
        return row.name, _folder_of(row), row.family, words
    try:
        return str(source), _fetched(source), None, None
    except UnknownModelError as error:
        near = nearest(str(source).lower(), [each.name for each in ROWS])
        if not near:
            raise UnknownModelError(f"{error} Towers by name: `bridge towers`.") from error
        raise UnknownModelError(
            f"No tower {str(source)!r}: did you mean {near}? All names: `bridge towers`; or give "
            "a folder or a hub id such as 'owner/name'."
        ) from error


@cache
def open_clip_names() -> dict[str, dict[str, str]]:
    """Model name -> pretrained tag -> hub id, as open_clip 3.3.0 has them."""
    return read_json(Path(__file__).with_name("open_clip_names.json"))


def _on_the_hub(source: str | Path) -> str | Path:
    """The hub id of open_clip's ``MODEL/TAG`` or ``hf-hub:owner/name``; others as they are.

    Raises UnknownModelError for a model of open_clip's with another tag, naming those it has.
    """
    if not isinstance(source, str) or os.path.isdir(home_path(source)):
        return source
    model, _, tag = source.removeprefix(_HUB_PREFIX).partition("/")
    tags = open_clip_names().get(model)
    if tags is None:
        return source.removeprefix(_HUB_PREFIX)
    if tag not in tags:
        raise UnknownModelError(
            f"open_clip's {model} has no weights {tag!r}; it has {', '.join(tags)}: give one as "
            f"'{model}/{next(iter(tags))}'"
        )
    return tags[tag]


def _fetched(source: str | Path) -> Path:
    """The folder, with open_clip's weights if it is a hub's repository in that layout."""
    from bridge.towers.open_clip_config import has_layout

    folder = resolve(source)
    if os.path.isdir(os.path.expanduser(source)) or not has_layout(folder):
        return folder
    return resolve(source, allow_patterns=(*DEFAULT_PATTERNS, "open_clip_*.safetensors"))


def find_tokenizer(source: str | Path) -> Path:
    """The folder of a tokenizer; of a hub's repository nothing else is fetched."""
    return resolve(source, allow_patterns=None if source in EMBEDDED else _TOKENIZER)


def _folder_of(row: TowerRow) -> Path:
    if row.pickle:
        raise WeightsError(
            f"{row.name} is published as a pickle only, which bridge does not fetch by itself: "
            f"`hf download {row.source} --local-dir FOLDER`, then open FOLDER with "
            f"family={row.family!r}, allow_pickle=True (tensors only are read)"
        )
    return resolve(row.source, allow_patterns=_patterns(row))


def _patterns(row: TowerRow) -> tuple[str, ...] | None:
    """What is fetched of a row's repository. One with files of its own may have a
    ``model.safetensors`` beside them that is read by none of the families (timm's image model)."""
    if row.source in EMBEDDED:
        return None
    return (*_TEXTS, *row.files) if row.files else DEFAULT_PATTERNS
