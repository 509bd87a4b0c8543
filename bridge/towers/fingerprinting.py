"""A cheap, stable name for a tower as it is now.

The fingerprint is the first 16 hex digits of a sha256 over the config (sorted JSON, without the
keys that say where it came from) and, for each parameter in order of name, its name, shape,
dtype and 16 values spread evenly over it. It changes with the architecture, with the precision,
with training, and with a LoRA put on or fused in; it does not change with the folder's name or
the device. It samples, so it does not prove equality: an edit of a single weight may escape it.
"""

from __future__ import annotations

import hashlib
import json
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch

_SAMPLES = 16
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # others may keep their values packed
# Keys that differ between two loadings of one tower. diffusers lists the arguments that were left
# out in another order in each process.
_PROVENANCE = {
    "_name_or_path",
    "transformers_version",
    "_diffusers_version",
    "_use_default_values",
    "dtype",
    "torch_dtype",
    "architectures",
}


@torch.no_grad()
def fingerprint(module: Any, dtype: torch.dtype | None = None) -> str:
    """The fingerprint of a transformers or diffusers module.

    Args:
        module: the module. Parameters that accelerate has offloaded are read where it keeps them;
            others on the meta device count by name and shape only.
        dtype: as if the module were cast to it; None for its own.

    Returns:
        16 hex digits.
    """
    told = [json.dumps(lasting_config(module), sort_keys=True, default=str)]
    samples: list[torch.Tensor] = []
    for name, parameter in sorted(module.named_parameters()):
        told.append(f"{name}{tuple(parameter.shape)}{dtype or parameter.dtype}")
        values = _kept(module, name) if parameter.is_meta else parameter
        if values is not None and parameter.numel():
            samples.append(_spread(values))
    digest = hashlib.sha256("".join(told).encode())
    # One operation and one transfer for all of a kind: on a GPU hundreds of small ones would take
    # longer than the tower itself.
    for kind, some in groupby(samples, attrgetter("dtype", "device")):
        joined = torch.cat(list(some)).to(dtype or kind[0])
        digest.update(joined.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(module: Any, name: str) -> torch.Tensor | None:
    """An offloaded parameter, out of the hook that brings it when its module runs."""
    owner, _, own_name = name.rpartition(".")
    hook = getattr(module.get_submodule(owner), "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            kept: torch.Tensor = weights[own_name]
            return kept
    return None


def lasting_config(part: Any) -> dict[str, Any]:
    """The config of a module or scheduler, the same for each loading of it."""
    stored = part.config
    items = (stored.to_dict() if hasattr(stored, "to_dict") else dict(stored)).items()
    return {k: v for k, v in items if k not in _PROVENANCE}


def _spread(parameter: torch.Tensor) -> torch.Tensor:
    """Up to 16 of its values."""
    length = parameter.numel()
    step = max(1, length // _SAMPLES)
    if type(parameter) in _PLAIN and parameter.is_contiguous():
        # The same by one operation instead of three, for towers have hundreds of parameters.
        return parameter.as_strided((min(_SAMPLES, -(-length // step)),), (step,))
    return parameter.detach().reshape(-1)[::step][:_SAMPLES]
