"""Importing this names the operators that torchvision's wheel asks torch for.

open_clip imports torchvision, and transformers does where its wheel is found; the CPU build of
torch beside it does not register these. The names are enough: nobody calls them.
"""

from __future__ import annotations

import torch

# Kept: the names go when the library does.
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    if not hasattr(torch.ops.torchvision, _schema.partition("(")[0]):
        LIBRARY.define(_schema)
