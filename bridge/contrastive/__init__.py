"""CLIP itself: both towers of one shared space, compared, classified with, measured and trained.

    clip.py           both towers, opened and asked
    embeddings.py     pictures without end into vectors
    classifier.py, templates.py, head.py   what a picture shows, of given names
    measuring.py, eval_data.py   how good it is, on data of the field's benchmarks
    losses.py         InfoNCE, sigmoid, captioning; equal captions, popularity, hard negatives
    distributed.py    vectors and gradients between processes
    grad_cache.py     the gradient of a large batch in the memory of a small one
    patch_masking.py  a picture tower that sees some of a picture's patches while it trains
    train/            from pairs to a trained folder

Names load on first use: `import bridge` needs no torch.
"""

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

if TYPE_CHECKING:
    from bridge.contrastive.classifier import Classifier, TemplateGain, template_gains
    from bridge.contrastive.clip import CLIP
    from bridge.contrastive.embeddings import Embeddings, Unreadable
    from bridge.contrastive.eval_data import EvalData, read_eval_data
    from bridge.contrastive.grad_cache import cached_backward
    from bridge.contrastive.head import Head, fit_head
    from bridge.contrastive.losses import (
        CoCaLoss,
        InfoNCE,
        MemoryBank,
        PooledPairs,
        SigmoidLoss,
        caption_groups,
        clamp_scale_,
        log_popularity,
    )
    from bridge.contrastive.measuring import Evaluation, evaluate
    from bridge.contrastive.patch_masking import masked_patches
    from bridge.contrastive.templates import TEMPLATES
    from bridge.contrastive.train.open_clip_layout import save_open_clip
    from bridge.contrastive.train.options import ClipTrainOptions
    from bridge.contrastive.train.recipe import FurtherLoss, Recipe
    from bridge.contrastive.train.run import ClipTraining, train_clip
    from bridge.contrastive.train.saving import interpolate, save_clip

__getattr__, __dir__, __all__ = lazy_imports(__name__)
