"""The towers: two text towers and one image tower, trained by InfoNCE with `bridge.train_clip`.

``emoji-clip`` is a CLIPModel (Radford et al. 2021): text tower 1 with quick-GELU beside the
image tower, trained together. While it trains, linear heads on the image tower's penultimate
patch states also name what stands in each patch (the scene's truth is known); that is the
layer a VLM reads, and the dense task teaches it far sooner than the contrastive one does.
The heads are dropped afterwards.

``emoji-clip-2`` is tower 2 (wider, plain GELU, its own projection), trained against the
locked image tower (LiT, Zhai et al. 2022). Then the text towers are final, so that the painter
can start, and the image tower alone goes on, against both of them.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import bridge
from bridge.contrastive import InfoNCE, PooledPairs
from bridge.contrastive.train import recipe as training
from bridge.files import whole, write_whole
from bridge.towers.tensors import read_tensors
from bridge.training.run_state import CHECKPOINT
from bridge.vlm.views import pil_clip_processor
from emoji_world.art import Sprites
from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.render import render_scene
from emoji_world.scenes import SIZES, STYLES, TINTS, Scene
from emoji_world.train.data import (
    PATCH,
    PatchTruth,
    patch_truth,
    pixels,
    rendered,
    scene_batch,
    scene_rng,
)
from emoji_world.train.loop import Recipe, plain_attention
from emoji_world.train.prefetch import ON_CPU, Setup, prefetch
from emoji_world.train.tokenizer import CONTEXT
from emoji_world.train.vae import as_drawn

BATCH = 96
HEADS = "heads.safetensors"


def _text_config(tokenizer: CLIPTokenizer, width: int, act: str, projection: int) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 32,
        "hidden_act": act,
        "max_position_embeddings": CONTEXT,
        "projection_dim": projection,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build(tokenizer: CLIPTokenizer, *, second: bool = False) -> CLIPModel:
    """An untrained CLIPModel: tower 1 with the image tower, or (``second``) tower 2 with it."""
    projection = 256 if second else 192
    width, act = (224, "gelu") if second else (192, "quick_gelu")
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "hidden_act": "quick_gelu",
        "image_size": 128,
        "patch_size": PATCH,
        "projection_dim": projection,
    }
    text = _text_config(tokenizer, width, act, projection)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))


class DenseHeads(nn.Module):
    """Linear read-outs of each patch state: concept (or ground), tint, size, style."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, dtype=torch.float32)
        self.concept = nn.Linear(width, len(CONCEPTS) + 1, dtype=torch.float32)
        self.tint = nn.Linear(width, len(TINTS) + 1, dtype=torch.float32)
        self.size = nn.Linear(width, len(SIZES), dtype=torch.float32)
        self.style = nn.Linear(width, len(STYLES), dtype=torch.float32)

    def forward(
        self, patches: torch.Tensor, truth: PatchTruth
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted loss of patch states (B, patches, D), and figures to log.

        The concept weighs most: four patches in five are ground, where it is soon learnt.
        """
        states = self.norm(patches)
        losses = {
            name: F.cross_entropy(
                getattr(self, name)(states).flatten(0, 1).float(), getattr(truth, name).flatten()
            )
            for name in ("concept", "tint", "size", "style")
        }
        total = 3 * losses["concept"] + 0.5 * losses["tint"]
        total = total + 0.3 * (losses["size"] + losses["style"])
        return total, {name: losses[name].item() for name in ("concept", "tint")}


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    """Ids padded to the longest text only: the towers are causal and pool at EOS, so what
    follows it cannot matter."""
    return tokenizer(
        texts, padding="longest", truncation=True, max_length=CONTEXT, return_tensors="pt"
    )


@dataclass(frozen=True)
class Settings:
    """How a CLIP is trained, as options of `bridge.train_clip`.

    Attributes:
        steps: how many.
        batch: pairs of a step.
        workers: threads that draw the next pictures.
        lr: the highest rate.
        precision: what accelerate calls it.
    """

    steps: int
    batch: int = BATCH
    workers: int = 2
    lr: float = 1.2e-3
    precision: Literal["bf16", "no"] = "bf16"


def optimizer(parameters: Mapping[str, nn.Parameter], lr: float) -> torch.optim.AdamW:
    """As `loop.Run` makes it: every weight decays, gains and biases too."""
    return torch.optim.AdamW(
        parameters.values(), lr=lr, betas=(0.9, 0.99), weight_decay=0.05, fused=True
    )


def schedule(step: int, steps: int) -> float:
    """A warm-up of 200 steps whose first has a rate, and a cosine to a twentieth over the run."""
    return min(1.0, (step + 1) / 200) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))


class DenseLoss(training.FurtherLoss):
    """`DenseHeads` on the image tower's penultimate patch states."""

    layers = (-2,)

    def __init__(self, heads: DenseHeads) -> None:
        super().__init__()
        self.heads = heads

    def target(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        return vars(patch_truth([row["scene"] for row in rows]))

    def forward(
        self, patches: tuple[torch.Tensor, ...], target: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        loss: torch.Tensor = self.heads(patches[0], PatchTruth(**target))[0]
        return loss


def rows(seed: int, step: int, batch: int, sprites: Sprites) -> list[dict[str, Any]]:
    """A step's rows: scenes that no other step has, drawn, with a caption each."""
    rng = scene_rng(seed, step)
    scenes = scene_batch(rng, batch)
    texts = [caption(scene, rng) for scene in scenes]
    drawn = [Image.fromarray(render_scene(scene, sprites)) for scene in scenes]
    return [
        {"image": image, "text": text, "scene": scene}
        for image, text, scene in zip(drawn, texts, scenes, strict=True)
    ]


def train(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    sprites: Sprites,
    folder: Path,
    settings: Settings,
    device: torch.device = ON_CPU.device,
) -> CLIPModel:
    """Tower 1 and the image tower from the weights they have; the averaged heads stay in
    ``folder`` too."""
    heads = DenseHeads(model.config.vision_config.hidden_size)
    was_done = _is_done(folder)
    trained = _trained(
        model, tokenizer, folder, settings, device,
        data=partial(rows, 21, batch=settings.batch, sprites=sprites),
        recipe=training.Recipe(
            optimizer=partial(optimizer, lr=settings.lr),
            schedule=schedule,
            further=DenseLoss(heads),
        ),
    )  # fmt: skip
    if not was_done:
        _save({name: each.cpu() for name, each in heads.state_dict().items()}, folder / HEADS)
    return trained


def train_second(
    model: CLIPModel,
    first: CLIPModel,
    tokenizer: CLIPTokenizer,
    sprites: Sprites,
    folder: Path,
    settings: Settings,
    device: torch.device = ON_CPU.device,
) -> CLIPModel:
    """Tower 2 against the image tower of ``first``, locked and copied into ``model``; its own
    projection of pictures is learnt."""
    model.vision_model.load_state_dict(first.vision_model.state_dict())

    def chosen(name: str) -> bool:
        return name.startswith(("text.", "image.visual_projection."))

    return _trained(
        model, tokenizer, folder, settings, device, mode="lit",
        data=partial(rows, 22, batch=settings.batch, sprites=sprites),
        recipe=training.Recipe(
            optimizer=partial(optimizer, lr=settings.lr), schedule=schedule, trained=chosen
        ),
    )  # fmt: skip


def _trained(
    model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path, settings: Settings,
    device: torch.device, **told: Any,
) -> CLIPModel:  # fmt: skip
    """By `bridge.train_clip`, to averaged weights. A run that was stopped goes on; one that came to
    its end is read."""
    if not _is_done(folder):
        with tempfile.TemporaryDirectory() as start:
            model.save_pretrained(start)
            tokenizer.save_pretrained(start)
            image_processor().save_pretrained(start)
            clip = bridge.CLIP(start, device=device, dtype="float32")
        for tower in (clip.text, clip.image):
            plain_attention(tower.module)
        bridge.train_clip(
            clip,
            output=folder,
            steps=settings.steps,
            batch_size=settings.batch,
            ema=0.998,
            mixed_precision=settings.precision,
            workers=settings.workers,
            **told,
        )
    trained: CLIPModel = CLIPModel.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return trained.eval()


def _is_done(folder: Path) -> bool:
    return (folder / "config.json").exists() and not (folder / CHECKPOINT).exists()


# ---------------------------------------------------------------- the image tower alone


@dataclass(frozen=True)
class Pairs:
    """Scenes on the CPU: pictures uint8 (B, 128, 128, 3), token ids and mask of their captions
    (B, T) and the patches' truth."""

    pictures: torch.Tensor
    tokens: dict[str, torch.Tensor]
    truth: PatchTruth

    def to(self, device: torch.device) -> Pairs:
        """The same on ``device``, the pictures as the towers read them, (B, 3, 128, 128)."""
        return Pairs(
            pixels(self.pictures.to(device)),
            {name: column.to(device) for name, column in self.tokens.items()},
            self.truth.to(device),
        )


def pairs(
    scenes: list[Scene], rng: random.Random, tokenizer: CLIPTokenizer, sprites: Sprites
) -> Pairs:
    """The scenes with a caption each."""
    texts = tokenise(tokenizer, [caption(scene, rng) for scene in scenes])
    return Pairs(rendered(scenes, sprites), dict(texts), patch_truth(scenes))


def info_nce(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """`InfoNCE`, and the share of images whose own text is nearest."""
    with torch.no_grad():
        cosines = F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        own = torch.arange(len(cosines), device=cosines.device, dtype=torch.long)
        right = (cosines.argmax(1) == own).float().mean().item()
    return InfoNCE()(PooledPairs(image, text), scale), right


def recipe_vision(
    models: tuple[CLIPModel, CLIPModel],
    heads: DenseHeads,
    tokenizer: CLIPTokenizer,
    sprites: Sprites,
    vae: AutoencoderTiny,
    setup: Setup = ON_CPU,
) -> Recipe:
    """The image tower and its projections go on training; both text towers are locked.

    Two CLIPs that share an image tower are trained at once here, which `bridge.train_clip`, of one
    CLIP, does not do; so this is a recipe of `loop.Run`.

    Some pictures it sees as ``vae`` gives them back, since it is asked about drawn ones too.
    """
    device = setup.device
    vae.to(device).requires_grad_(False)
    first, second = models
    second.vision_model = first.vision_model
    for model in models:
        plain_attention(model.to(device))
        model.text_model.requires_grad_(False)
        model.text_projection.requires_grad_(False)
    heads.to(device)
    trained = nn.ModuleDict({"first": first, "second": second, "heads": heads})

    def make(step: int) -> Pairs:
        rng = scene_rng(23, step)
        # Half of the scenes show three or four kinds of things: more to name a picture.
        half = BATCH * setup.times // 2
        scenes = scene_batch(rng, half) + scene_batch(rng, half, kind="list")
        return pairs(scenes, rng, tokenizer, sprites)

    batches = prefetch(make, setup.workers)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = batches(step).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            shown = as_drawn(vae, batch.pictures)
            seen = first.vision_model(pixel_values=shown, output_hidden_states=True)
            dense, seen_right = heads(seen.hidden_states[-2][:, 1:], batch.truth)
            image = [model.visual_projection(seen.pooler_output) for model in models]
            with torch.no_grad():
                text = [
                    m.text_projection(m.text_model(**batch.tokens).pooler_output) for m in models
                ]
        both = [info_nce(i, t, m.logit_scale) for i, t, m in zip(image, text, models, strict=True)]
        figures = {"nce": both[0][0].item(), "nce_2": both[1][0].item(), "r1": both[0][1]}
        return both[0][0] + both[1][0] + dense, figures | seen_right

    return Recipe("vision", trained, loss, lr=1e-3, weight_decay=0.05, warmup=100, ema=0.998)


def trained_heads(run_folder: Path, width: int) -> DenseHeads:
    """The dense heads that the ``clip`` run left, averaged; new ones where that run's folder is
    gone, since a linear layer is soon learnt again."""
    heads = DenseHeads(width)
    if (run_folder / HEADS).exists():
        heads.load_state_dict(dict(read_tensors(run_folder / HEADS)))
    return heads


def export(model: CLIPModel, tokenizer: CLIPTokenizer, weights: Path, *, second: bool) -> None:
    """Write the text tower into emoji-xl and the CLIPModel into its folder, in half precision.

    The text tower's file exists once: the CLIPModel's index points at it. Keys follow the
    published checkpoints (``text_model.…``), which every transformers release reads. Tower 2
    shares the image tower's file with emoji-clip as well, since it was trained on it.
    """
    xl, number = weights / "emoji-xl", "_2" if second else ""
    folder = weights / ("emoji-clip-2" if second else "emoji-clip")
    for target in (folder, xl / f"text_encoder{number}"):
        target.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    text = {k: v for k, v in state.items() if k.startswith("text_model.")}
    if second:
        text["text_projection.weight"] = state["text_projection.weight"]
    vision = {k: v for k, v in state.items() if k.startswith("vision_model.")}
    rest = {k: v for k, v in state.items() if k not in text and k not in vision}

    files = {f"../emoji-xl/text_encoder{number}/model.safetensors": text, "head.safetensors": rest}
    files["../emoji-clip/vision.safetensors" if second else "vision.safetensors"] = vision
    for name, tensors in files.items():
        if not (second and tensors is vision):
            _save(tensors, folder / name)
    index = {
        "metadata": {"total_size": sum(v.numel() * 2 for v in state.values())},
        "weight_map": {key: name for name, tensors in files.items() for key in sorted(tensors)},
    }
    text_of_index = json.dumps(index, separators=(",", ":")) + "\n"
    write_whole(folder / "model.safetensors.index.json", text_of_index.encode())

    config = model.config
    config.dtype = torch.float16
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    config.text_config.architectures = [
        "CLIPTextModelWithProjection" if second else "CLIPTextModel"
    ]
    # Half is what is stored; diffusers reads the UNet beside it in fp32 unless told otherwise.
    config.text_config.dtype = torch.float32
    config.text_config.save_pretrained(xl / f"text_encoder{number}")
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)


def image_processor() -> Any:
    """Pixels as the image tower was trained on them: 128 × 128 in [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return pil_clip_processor(
        size={"shortest_edge": 128},
        crop_size={"height": 128, "width": 128},
        image_mean=half,
        image_std=half,
    )


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with whole(path.resolve()) as part:
        save_file(tensors, part, metadata={"format": "pt"})
