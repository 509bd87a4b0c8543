"""What is trained: which parameters, in which precision, and the towers' pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bridge.contrastive.clip import CLIP
from bridge.contrastive.losses import CLIP_START
from bridge.contrastive.train.open_clip_layout import came_in_layout, check_layout
from bridge.contrastive.train.options import ClipTrainOptions
from bridge.contrastive.train.recipe import NO_RECIPE, FurtherLoss, Recipe
from bridge.errors import UnsupportedModelError
from bridge.runtime import building
from bridge.towers.captioner import CoCaDecoder
from bridge.towers.families import IMAGE_FAMILIES, TEXT_FAMILIES
from bridge.towers.open_clip import picture_tokens
from bridge.towers.states import ImageStates, Layer
from bridge.towers.tower import ImageTower, TextTower
from bridge.training.lora import put_lora, take_lora

# Classes of towers, text and image side, that one model of transformers holds.
_PAIRS = {
    "CLIPTextModelWithProjection": "CLIPVisionModelWithProjection",
    "SiglipTextModel": "SiglipVisionModel",
    "Siglip2TextModel": "Siglip2VisionModel",
}
_SIGLIP_START, _SIGLIP_BIAS = math.log(10.0), -10.0
# The last linear layers into the shared space, by the end of their names.
_HEADS = ("text_projection", "visual_projection", "head", "proj")


class Trainee(nn.Module):
    """Both towers of a CLIP with its temperature, a bias where pairs are judged alone, a further
    loss where a recipe has one, and the decoder of a CoCa that learns to caption."""

    def __init__(
        self,
        clip: CLIP,
        sigmoid: bool,
        further: FurtherLoss | None = None,
        decoder: CoCaDecoder | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self._towers = (clip.text, clip.image)
        self.text, self.image = clip.text.module, clip.image.module
        self.further = further
        scoring = clip.scoring
        same = scoring is not None and scoring.sigmoid == sigmoid
        scale = math.log(scoring.scale) if scoring is not None and same else None
        bias = scoring.bias if scoring is not None and same else None
        start = _SIGLIP_START if sigmoid else CLIP_START
        self.logit_scale = _scalar(start if scale is None else scale, clip.device)
        self.logit_bias = (
            _scalar(_SIGLIP_BIAS if bias is None else bias, clip.device) if sigmoid else None
        )

    def encode_image(self, pixels: Any) -> Tensor:
        """Pooled states ``(B, P)``, with a gradient."""
        return pooled_image(self._towers[1], pixels)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled states ``(B, P)``, with a gradient."""
        return pooled_text(self._towers[0], ids, mask)

    def look(self, pixels: Any, layers: Sequence[int]) -> ImageStates:
        """Pooled states and those of some layers, with a gradient."""
        family = IMAGE_FAMILIES[self._towers[1].family]
        return family.encode(self.image, pixels, layers)

    def caption(self, pixels: Any, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled states of pictures and texts, and the decoder's logits ``(B, T - 1, V)`` of what
        follows each token but the last, with a gradient; one pass of each side, as open_clip's
        CoCa takes it."""
        assert self.decoder is not None
        image, tokens = picture_tokens(self.image, pixels)
        states, text = self.text(ids)
        return image, text, self.decoder(tokens, states[-1][:, : ids.shape[1] - 1])


def pooled_text(tower: TextTower, ids: Tensor, mask: Tensor) -> Tensor:
    """As `TextTower.pool`, with a gradient; the short way drops no attention weights."""
    family = TEXT_FAMILIES[tower.family]
    if family.pool is not None and not _drops_attention(tower.module):
        return family.pool(tower.module, ids, mask)
    found = family.encode(tower.module, ids, (Layer(),), mask, False).pooled
    assert found is not None
    return found


def pooled_image(tower: ImageTower, pixels: Any) -> Tensor:
    """As `ImageTower.pool`, with a gradient."""
    family = IMAGE_FAMILIES[tower.family]
    if family.pool is not None and not _drops_attention(tower.module):
        return family.pool(tower.module, pixels)
    found = family.encode(tower.module, pixels, (-1,)).pooled
    assert found is not None
    return found


def check_trainable(clip: CLIP) -> None:
    """Refuse towers whose result could not be saved. Raises UnsupportedModelError."""
    if came_in_layout(clip):
        check_layout(clip)
        return
    kinds = [type(tower.module).__name__ for tower in (clip.text, clip.image)]
    if _PAIRS.get(kinds[0]) != kinds[1]:
        raise UnsupportedModelError(
            f"{clip.name} is a {kinds[0]} and a {kinds[1]}, which no model of transformers holds "
            "together, so what is trained could not be saved; train a CLIP, SigLIP or SigLIP 2, or "
            "a folder of open_clip's"
        )


@contextmanager
def trained_parts(
    trainee: Trainee, options: ClipTrainOptions, recipe: Recipe = NO_RECIPE
) -> Iterator[None]:
    """Within the block, what the mode or the recipe trains is in fp32, wants gradients and has its
    LoRA.

    Afterwards dtypes and flags are as they were, and the LoRA is in the weights; it is dropped if
    the block failed.
    """
    before = [(p, p.dtype) for p in trainee.parameters()]
    merge = False
    try:
        trainee.requires_grad_(False)
        _choose(trainee, options)
        _choose_by(trainee, recipe)
        _in_fp32(trainee, options)
        trainee.eval()
        yield
        merge = True
    finally:
        for module in (trainee.text, trainee.image):
            take_lora(module, merge=merge)
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)
            parameter.grad = None
            parameter.requires_grad_(False)
        trainee.eval()


def set_mode(trainee: Trainee, options: ClipTrainOptions, *, training: bool) -> None:
    """Dropout, where a model has any, in towers that are trained and not in locked ones."""
    trainee.eval()
    if training and options.mode != "probe":
        trainee.text.train()
        if options.mode != "lit":
            trainee.image.train()
        for part in (trainee.further, trainee.decoder):
            if part is not None:
                part.train()


def _choose(trainee: Trainee, options: ClipTrainOptions) -> None:
    trainee.logit_scale.requires_grad_(True)
    if trainee.logit_bias is not None:
        trainee.logit_bias.requires_grad_(True)
    if options.mode in ("full", "scratch"):
        trainee.requires_grad_(True)
        if options.mode == "scratch":
            begin_anew(trainee, options.seed)
    elif options.mode == "lit":
        trainee.text.requires_grad_(True)
        if trainee.decoder is not None:
            trainee.decoder.requires_grad_(True)
    elif options.mode == "probe":
        for module in (trainee.text, trainee.image):
            heads = [getattr(module, head) for head in _HEADS if hasattr(module, head)]
            if not heads:
                raise _untrained(module, "last linear layer", "probe")
            for head in heads:
                head.requires_grad_(True)
    elif options.mode == "lora":
        for number, module in enumerate((trainee.text, trainee.image)):
            # What lies in the layers only: an attention pooler reads its weights past its modules.
            names = [
                name
                for name, part in module.named_modules()
                if isinstance(part, nn.Linear)
                and (".layers." in f".{name}" or "resblocks." in name)
            ]
            if not names:
                raise _untrained(module, "linear layer in blocks", "lora")
            put_lora(module, names, options.rank, options.alpha, options.seed + number)


def _untrained(module: nn.Module, part: str, mode: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a {type(module).__name__} has no {part} that is known here, so mode={mode!r} would train "
        "the other tower alone; give mode='full', or 'lit' to lock the image tower"
    )


def _in_fp32(trainee: Trainee, options: ClipTrainOptions) -> None:
    """All of a tower in which something is trained: a layer in fp32 takes no half precision from
    one that is locked. A LoRA does, so what is below it stays as it is."""
    for part in trainee.children():
        own = list(part.parameters())
        some = [p for p in own if p.requires_grad]
        for parameter in some if options.mode == "lora" or not some else own:
            parameter.data = parameter.data.float()


def _choose_by(trainee: Trainee, recipe: Recipe) -> None:
    for name, parameter in trainee.named_parameters():
        if recipe.trained is not None and name.startswith(("text.", "image.")):
            parameter.requires_grad_(recipe.trained(name))
    if trainee.further is not None:
        trainee.further.requires_grad_(True)


@torch.no_grad()
def begin_anew(trainee: Trainee, seed: int) -> None:
    """Random weights in the place of all, as transformers makes them for a new model, and the
    temperature that training starts from."""
    with building(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in (trainee.text, trainee.image):
            fresh = type(module)(module.config)
            module.load_state_dict(fresh.state_dict())
    sigmoid = trainee.logit_bias is not None
    trainee.logit_scale.fill_(_SIGLIP_START if sigmoid else CLIP_START)
    if trainee.logit_bias is not None:
        trainee.logit_bias.fill_(_SIGLIP_BIAS)


def _scalar(value: float, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float32, device=device))


def _drops_attention(module: Any) -> bool:
    return module.training and getattr(module.config, "attention_dropout", 0.0) > 0
