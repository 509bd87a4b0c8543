"""stable-diffusion-webui's own prompt parser and text conditioning, run as they are.

Its modules reach through ``modules.shared`` for the options of the page and through
``modules.sd_hijack`` for the one loaded model. Those two are given here; everything that reads or
weighs a prompt is the peer's own file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peers import clone, missing, on_path
from transformers import CLIPTokenizer


def _module(name: str, **values: Any) -> ModuleType:
    made = types.ModuleType(name)
    vars(made).update(values)
    sys.modules[name] = made
    return made


@dataclass(frozen=True, eq=False)
class Webui:
    """The peer: its modules, and the options that its settings page holds."""

    prompt_parser: ModuleType
    sd_hijack_clip: ModuleType
    sd_hijack_open_clip: ModuleType
    textual_inversion: ModuleType
    extra_networks: ModuleType
    opts: SimpleNamespace
    hijack: SimpleNamespace

    def clip(self, tokenizer: CLIPTokenizer, tower: torch.nn.Module) -> Any:
        """Its embedder of SD 1.x over a transformers tower."""
        wrapped = SimpleNamespace(tokenizer=tokenizer, transformer=_Text(tower))
        return self.sd_hijack_clip.FrozenCLIPEmbedderWithCustomWords(wrapped, self.hijack)

    def clip_of_sdxl(self, tokenizer: CLIPTokenizer, tower: torch.nn.Module) -> Any:
        """Its embedder of SDXL's first tower."""
        wrapped = SimpleNamespace(
            tokenizer=tokenizer, transformer=_Text(tower), layer="hidden", layer_idx=11
        )
        wrapped.layer_idx = tower.config.num_hidden_layers - 1
        made = self.sd_hijack_clip.FrozenCLIPEmbedderForSDXLWithCustomWords
        return made(wrapped, self.hijack)

    def open_clip_of_sdxl(self, tower: torch.nn.Module) -> Any:
        """Its embedder of SDXL's second tower (sgm's FrozenOpenCLIPEmbedder2 is `_Bigg`)."""
        return self.sd_hijack_open_clip.FrozenOpenCLIPEmbedder2WithCustomWords(
            _Bigg(tower), self.hijack
        )


class OldTokenizer:
    """The webui's tokenizer of SD 1 and SDXL's first tower: that of transformers 4.30.2.

    It runs in the environment that ``make parity`` puts beside its own. Skips (or fails) without.
    """

    def __init__(self, folder: Path) -> None:
        python = Path(sys.prefix) / "webui" / "bin" / "python"
        if not python.is_file():
            missing(f"{python} is not there; make parity makes it")
        script = Path(__file__).with_name("old_clip_tokenizer.py")
        self._process = subprocess.Popen(
            [python, script, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={},
        )
        names = CLIPTokenizer.from_pretrained(folder)
        self.get_vocab = names.get_vocab
        self.bos_token_id, self.eos_token_id = names.bos_token_id, names.eos_token_id

    def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        return {"input_ids": json.loads(self._process.stdout.readline())}

    def close(self) -> None:
        self._process.communicate()


class _Text(torch.nn.Module):
    """A tower as transformers 4 had it, with its ``text_model`` inside."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.text_model = getattr(tower, "text_model", tower)

    def forward(self, input_ids: torch.Tensor, output_hidden_states: Any) -> Any:
        return self.tower(input_ids=input_ids, output_hidden_states=bool(output_hidden_states))


class _Bigg:
    """What sgm's embedder gives: the states before the last layer, and the pooled projection."""

    layer = "penultimate"
    legacy = False
    return_pooled = True
    is_trainable = False
    input_key = "txt"

    def __init__(self, tower: torch.nn.Module) -> None:
        self._tower = tower

    def encode_with_transformer(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        given = self._tower(input_ids=tokens, output_hidden_states=True)
        last = given.last_hidden_state
        # open_clip pools at the highest id, the first of them.
        at = tokens.argmax(dim=-1)
        pooled = last[torch.arange(len(tokens)), at] @ self._tower.text_projection.weight.T
        return {"penultimate": given.hidden_states[-2], "last": last, "pooled": pooled}


def _fresh(prefix: str) -> None:
    for name in [each for each in sys.modules if each == prefix or each.startswith(f"{prefix}.")]:
        del sys.modules[name]


def load_webui(tokenizer: CLIPTokenizer) -> Webui:
    """Import the peer. Skips (or fails) where its clone is missing.

    Args:
        tokenizer: the tokenizer whose vocabulary open_clip's has, for the second tower.
    """
    folder: Path = clone("webui")
    _fresh("modules")
    opts = SimpleNamespace(
        emphasis="Original",
        use_old_emphasis_implementation=False,
        comma_padding_backtrack=20,
        CLIP_stop_at_last_layers=1,
        textual_inversion_add_hashes_to_infotext=True,
        sdxl_clip_l_skip=False,
    )
    hijack = SimpleNamespace(fixes=None, extra_generation_params={}, embedding_db=None)
    with on_path(folder):
        import modules  # the peer's package

        devices = SimpleNamespace(
            device=torch.device("cpu"), torch_npu_set_device=lambda: None, dtype=torch.float32
        )
        shared = _module("modules.shared", opts=opts, cmd_opts=SimpleNamespace())
        modules.shared = shared
        modules.devices = _module("modules.devices", **vars(devices))
        modules.sd_hijack = _module("modules.sd_hijack", model_hijack=hijack)
        for name in ("sd_models", "images", "sd_samplers", "sd_hijack_checkpoint", "hashes"):
            setattr(modules, name, _module(f"modules.{name}"))
        modules.errors = _module("modules.errors", display=lambda *a, **k: None)
        from modules import prompt_parser, sd_emphasis, sd_hijack_clip  # noqa: F401

        # The second tower's tokenizer: open_clip's own class where it is installed, with the
        # vocabulary of the test's towers.
        _fresh("open_clip")
        simple = SimpleNamespace(
            encoder=_open_clip_names(tokenizer),
            encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        before = {n: sys.modules.pop(n) for n in list(sys.modules) if n.startswith("open_clip")}
        package = _module("open_clip")
        package.tokenizer = _module("open_clip.tokenizer", _tokenizer=simple)
        from modules import sd_hijack_open_clip

        _fresh("open_clip")
        sys.modules.update(before)
        for name in ("dataset", "learn_schedule", "image_embedding", "saving_settings"):
            _module(f"modules.textual_inversion.{name}", **_NAMES.get(name, {}))
        from modules import extra_networks
        from modules.textual_inversion import textual_inversion
    hijack.embedding_db = textual_inversion.EmbeddingDatabase()
    found = Webui(
        prompt_parser,
        sd_hijack_clip,
        sd_hijack_open_clip,
        textual_inversion,
        extra_networks,
        opts,
        hijack,
    )
    _fresh("modules")
    return found


_NAMES: dict[str, dict[str, Any]] = {
    "learn_schedule": {"LearnRateScheduler": None},
    "image_embedding": dict.fromkeys(
        (
            "embedding_to_b64",
            "embedding_from_b64",
            "insert_image_data_embed",
            "extract_image_data_embed",
            "caption_image_overlay",
        )
    ),
    "saving_settings": {"save_settings_to_file": None},
}


def _open_clip_names(tokenizer: CLIPTokenizer) -> dict[str, int]:
    names = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
    return {names.get(piece, piece): number for piece, number in tokenizer.get_vocab().items()}
