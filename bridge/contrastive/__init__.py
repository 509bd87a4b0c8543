"""CLIP itself: both towers of one shared space, compared, classified with and measured."""

from typing import TYPE_CHECKING

from bridge.lazy import lazy_imports

if TYPE_CHECKING:
    from bridge.contrastive.classifier import Classifier, TemplateGain, template_gains
    from bridge.contrastive.clip import CLIP
    from bridge.contrastive.embeddings import Embeddings, Unreadable
    from bridge.contrastive.eval_data import EvalData, read_eval_data
    from bridge.contrastive.head import Head, fit_head
    from bridge.contrastive.measuring import Evaluation, evaluate
    from bridge.contrastive.templates import TEMPLATES

__getattr__, __dir__, __all__ = lazy_imports(__name__)
