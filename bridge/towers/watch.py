"""What a tower is now: its fingerprint, and a version that says whether it is still what it was.

The fingerprint is a cheap, stable name: the first 16 hex digits of a sha256 over the config (sorted
JSON, without the keys that say where it came from) and, for each parameter in order of name, its
name, shape, dtype and 16 values spread evenly over it. It changes with the architecture, with the
precision, with training, and with a LoRA put on or fused in; it does not change with the folder's
name or the device. It samples, so it does not prove equality: an edit of a single weight may escape
it.

A version counts what is seen of a module: parts replaced (a LoRA put on, embeddings resized),
tensors replaced or moved (``.to()``), values changed in place (training), hooks, LoRA layers'
switches and strengths. Looking takes a twentieth of a millisecond where a fingerprint takes several
whole ones, so that a call looks once before a tower runs, and once after.
"""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from itertools import count, groupby
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

# ---------------------------------------------------------------- fingerprint

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


# ---------------------------------------------------------------- version

# What decides how a LoRA layer of peft acts, beside its tensors.
_SWITCHES = ("scaling", "_active_adapter", "_disable_adapters", "merged_adapters")


class Watch:
    """One module under watch.

    Attributes, all as of the last look:
        version: a number that no other state of any module has.
        is_offloaded: whether accelerate or diffusers brings its weights when it runs.
        device, dtype: the module's, for which transformers asks its parameters each time.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._lock = threading.Lock()
        self._seen: list[Any] | None = None
        # An address is not given to another storage as long as one of these holds it.
        self._storages: list[StorageWeakRef] = []
        self._fingerprint: tuple[int, str] | None = None
        self.version = 0
        self.is_offloaded = False
        self.device: torch.device
        self.dtype: torch.dtype

    def look(self) -> int:
        """The version of the module as it is now."""
        module = self._module()
        assert module is not None
        with self._lock:
            seen, self.is_offloaded = _looks(module)
            if seen != self._seen:
                tensors = [*module.parameters(), *module.buffers()]
                # Where values on the meta device are, and whether they change, nobody can see.
                self._seen = None if any(each.is_meta for each in tensors) else seen
                self._storages = [StorageWeakRef(each.untyped_storage()) for each in tensors]
                self.device, self.dtype = _place_of(tensors)
                self.version = next(_versions)
            return self.version

    def fingerprint(self, version: int | None = None) -> str:
        """``bridge.towers.fingerprint`` of the module; ``version``: what a look has just found."""
        version = self.look() if version is None else version
        kept = self._fingerprint
        if kept is None or kept[0] != version:
            module = self._module()
            assert module is not None
            kept = self._fingerprint = version, fingerprint(module)
        return kept[1]


_versions = count(1)
_watches: weakref.WeakKeyDictionary[nn.Module, Watch] = weakref.WeakKeyDictionary()
_watching = threading.Lock()


def watched(module: nn.Module) -> Watch:
    """The watch of a module; there is one as long as the module lives."""
    with _watching:
        found = _watches.get(module)
        if found is None:
            found = _watches[module] = Watch(module)
        return found


def is_repeatable(module: nn.Module) -> bool:
    """Whether the module gives the same again for the same input, so that states can be kept."""
    return not (
        module.training
        or torch.is_inference_mode_enabled()
        or torch.is_autocast_enabled(next(module.parameters()).device.type)
    )


def _place_of(tensors: list[torch.Tensor]) -> tuple[torch.device, torch.dtype]:
    """Device of the first, and dtype of the first that holds numbers with a point."""
    floats = (each.dtype for each in tensors if each.is_floating_point())
    return tensors[0].device, next(floats, tensors[0].dtype)


def only_reads(hook: Any) -> bool:
    """Whether it is one that transformers hangs at the first call, to hand out inner states."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def is_watched(module: nn.Module) -> bool:
    """Whether somebody's hooks hang on a module, who would miss it where it does not run."""
    return any(
        not only_reads(hook)
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


def _looks(module: nn.Module) -> tuple[list[Any], bool]:
    """What is compared: classes, storages and versions, without reading a value; and whether any
    part is offloaded.

    It runs for each call that is answered from what is kept, and is most of that call's time.
    """
    seen: list[Any] = []
    offloaded = False
    waiting = [module]
    while waiting:
        part = waiting.pop()
        own = part.__dict__
        seen.append(part.__class__)
        for tensors in (own["_parameters"], own["_buffers"]):
            if tensors:
                for tensor in tensors.values():
                    if tensor is None:
                        continue
                    try:
                        seen.append(tensor._version)
                    except RuntimeError:  # of inference mode, where changes are not counted
                        seen.append(object())
                    seen.append(tensor.untyped_storage()._cdata)
        for hooks in (own["_forward_pre_hooks"], own["_forward_hooks"]):
            if hooks:
                seen += [id(hook) for hook in hooks.values() if not only_reads(hook)]
        if "_hf_hook" in own or "_diffusers_hook" in own:
            offloaded = True
        if "scaling" in own:
            seen.append(repr([own.get(name) for name in _SWITCHES]))
        if own["_modules"]:
            waiting += [child for child in own["_modules"].values() if child is not None]
    return seen, offloaded
