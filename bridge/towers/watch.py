"""Whether a tower is what it was: its version, and its fingerprint, taken anew only if it changed.

A version counts what is seen of a module: parts replaced (a LoRA put on, embeddings resized),
tensors replaced or moved (``.to()``), values changed in place (training), hooks, LoRA layers'
switches and strengths. Looking takes a tenth of a millisecond where a fingerprint takes several.
"""

from __future__ import annotations

import threading
import weakref
from itertools import chain, count
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from bridge.towers.fingerprinting import fingerprint

# What decides how a LoRA layer of peft acts, beside its tensors.
_SWITCHES = ("scaling", "_active_adapter", "_disable_adapters", "merged_adapters")


class Watch:
    """One module under watch. ``version`` is a number that no other state of any module has."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._lock = threading.Lock()
        self._seen: list[Any] | None = None
        # An address is not given to another storage as long as one of these holds it.
        self._storages: list[StorageWeakRef] = []
        self._fingerprint: tuple[int, str] | None = None
        self._version = 0

    @property
    def version(self) -> int:
        """The version of the module as it is now."""
        module = self._module()
        assert module is not None
        with self._lock:
            seen = _looks(module)
            if seen != self._seen:
                self._seen = seen
                tensors = chain(module.parameters(), module.buffers())
                self._storages = [StorageWeakRef(each.untyped_storage()) for each in tensors]
                self._version = next(_versions)
            return self._version

    @property
    def fingerprint(self) -> str:
        """``bridge.towers.fingerprint`` of the module as it is now."""
        version = self.version
        if self._fingerprint is None or self._fingerprint[0] != version:
            module = self._module()
            assert module is not None
            self._fingerprint = version, fingerprint(module)
        return self._fingerprint[1]


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


def is_offloaded(module: Any) -> bool:
    """Whether accelerate or diffusers brings its weights when it runs."""
    # Neither modules() nor hasattr: SDXL's UNet has two thousand parts, and asking a module for
    # what it lacks is slow.
    waiting = [module]
    while waiting:
        own = vars(waiting.pop())
        if "_hf_hook" in own or "_diffusers_hook" in own:
            return True
        waiting += [part for part in own["_modules"].values() if part is not None]
    return False


def only_reads(hook: Any) -> bool:
    """Whether it is one that transformers hangs at the first call, to hand out inner states."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def _looks(module: nn.Module) -> list[Any]:
    """What is compared: classes, storages and versions, without reading a value.

    It runs for each call that is answered from what is kept, and is most of that call's time.
    """
    seen: list[Any] = []
    waiting = [module]
    while waiting:
        part = waiting.pop()
        own = part.__dict__
        seen.append(part.__class__)
        for tensors in (own["_parameters"], own["_buffers"]):
            for tensor in tensors.values() if tensors else ():
                if tensor is None:
                    continue
                if tensor.is_meta or tensor.is_inference():
                    seen.append(object())  # where its values are, and whether they change: unknown
                else:
                    seen.append(tensor._version)
                    seen.append(tensor.untyped_storage()._cdata)
        for hooks in (own["_forward_pre_hooks"], own["_forward_hooks"]):
            if hooks:
                seen += [id(hook) for hook in hooks.values() if not only_reads(hook)]
        if "scaling" in own:
            seen.append(repr([own.get(name) for name in _SWITCHES]))
        if own["_modules"]:
            waiting += [child for child in own["_modules"].values() if child is not None]
    return seen
