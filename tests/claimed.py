"""Tensors that claim to be on an accelerator while their numbers lie in main memory: what can be known of a device without one.

    with claimed("cuda") as device:      # or "mps"
        x = torch.ones(3).to(device.name)

A wrapped tensor answers ``cuda:0`` (``mps:0``) when it is asked for its device; every operator goes through `_Device.run`, which
computes it on the CPU and wraps what comes out. It raises where a real device would (tensors of two devices in one operator;
``numpy()``; on MPS float64, an operator without a kernel, the clip scale that its fused Adam does not read, an asynchronous copy),
counts where the host would wait (`waits`: reading a value, ``nonzero``, boolean indexing, copies to and fro), and keeps books on
the bytes that live tensors hold (`live`, `peak`).

What it cannot see: whether a kernel computes the right numbers, how fast it is, its own work space and the allocator's
fragments, what streams and events order, waits inside of kernels (of a library, or for memory), and code that asks the real CUDA.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

READS = (
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
)
READS += ("repeat_interleave",)  # reaches us only where the counts are a tensor
"""Operators whose result or its size the host has to know."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
_current: _Device | None = None


class Claimed(Tensor):
    """A tensor with `inner` on the CPU that says it is on the device."""

    inner: Tensor
    owner: _Device

    @staticmethod
    def __new__(cls, inner: Tensor, owner: _Device) -> Claimed:
        made: Claimed = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )
        made.inner, made.owner = inner, owner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.owner.name

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.owner.kind == "cuda"

    def cpu(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        self.owner.waited("to the host")
        return self.inner.detach().clone()

    def tolist(self) -> Any:
        self.owner.waited("tolist")
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise TypeError(f"numpy() of a tensor on {self.owner.name}, at {where()}")

    def double(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return self.to(torch.float64)

    def to(self, *given: Any, **named: Any) -> Tensor:  # type: ignore[override]
        device, dtype, copy = named.get("device"), named.get("dtype"), named.get("copy", False)
        for value in given:
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                device = value
        found: Tensor = self
        if dtype is not None and dtype != self.dtype:
            found = torch.ops.aten._to_copy(self, dtype=dtype)
        if device is not None and not self.owner.is_here(device):
            self.owner.waited("to the host")
            return found.inner.detach().clone()  # type: ignore[attr-defined]
        return found.clone() if copy and found is self else found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Claimed({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _current is not None, "a claimed tensor outlived its device"
        return _current.run(func, args, kwargs or {})


def where() -> str:
    """The innermost line of the program's own."""
    for frame in reversed(traceback.extract_stack()):
        if "/circuits/" in frame.filename:
            return f"{frame.filename.rsplit('/circuits/', 1)[1]}:{frame.lineno}"
    return "?"


@functools.cache
def without_kernel() -> frozenset[str]:
    """Operators that torch has no MPS kernel of, by its own table."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    table = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    entries = {entry["func"].split("(")[0]: entry for entry in table}

    def there(name: str) -> bool:
        entry = entries[name]
        if (delegate := entry.get("structured_delegate")) is not None:
            return there(delegate)
        keys = ", ".join(entry.get("dispatch", {"Composite": ""}))
        return "MPS" in keys or "Composite" in keys

    return frozenset(name for name in entries if not there(name))


class _Device(TorchDispatchMode):
    """The claimed device, and what is known of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.name = kind, torch.device(kind, 0)
        self.waits: Counter[str] = Counter()
        """Waits of the host: ``what at file:line``."""
        self.live = self.peak = 0
        self.pinned: dict[int, int] = {}  # page-locked memory: address and bytes
        self._held: set[int] = set()

    def is_here(self, device: Any) -> bool:
        return device is not None and torch.device(device).type == self.kind

    def waited(self, what: str) -> None:
        self.waits[f"{what} at {where()}"] += 1

    def lock(self, address: int, nbytes: int) -> None:
        self.pinned[address] = nbytes

    def is_pinned(self, tensor: Tensor) -> bool:
        at = tensor.data_ptr()
        return any(start <= at < start + nbytes for start, nbytes in self.pinned.items())

    def wrap(self, inner: Tensor) -> Claimed:
        storage = inner.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.live += nbytes
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, nbytes)
        return Claimed(inner, self)

    def _freed(self, key: int, nbytes: int) -> None:
        self._held.discard(key)
        self.live -= nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operator."""
        name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
        mine = [x for x in leaves if isinstance(x, Claimed)]
        others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Claimed)]
        if name == "to":  # under inference mode it comes whole: its parts are looked at
            with self:
                return func.decompose(*args, **kwargs)
        if name == "copy_":
            return self._copied_into(func, *args, **kwargs)
        if name == "_to_copy":
            return self._copied(func, args[0], **kwargs)
        here = bool(mine) or self.is_here(kwargs.get("device"))
        if not here:
            return func(*args, **kwargs)
        self._refuse(func, name, args, kwargs, others if mine else [])
        if name in READS:
            self.waited(name)
        if name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.waited("boolean index")
        named = {**kwargs, "device": torch.device("cpu")} if self.is_here(kwargs.get("device")) else kwargs
        known = {id(x.inner): x for x in mine}
        found = func(*tree_map(_inner, args), **tree_map(_inner, named))

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return known[id(x)] if id(x) in known else self.wrap(x)

        return tree_map(wrapped, found)

    def _refuse(self, func: Any, name: str, args: Any, kwargs: Any, others: list[Tensor]) -> None:
        """What a real device would not do."""
        wide = [x for x in others if x.dim() > 0]
        if wide and name in INDEXING:
            self.waited("index on the host")
        elif wide:
            shapes = " ".join(str(tuple(x.shape)) for x in wide)
            raise RuntimeError(f"{name}: tensors on {self.name} and on cpu {shapes}, at {where()}")
        if self.kind != "mps":
            return
        full = func._schema.name.removeprefix("aten::") + (
            f".{func._overloadname}" if func._overloadname != "default" else ""
        )
        if full in without_kernel() and not full.endswith("_for_cpu"):
            raise NotImplementedError(f"{full} has no MPS kernel, at {where()}")
        if kwargs.get("dtype") is torch.float64:
            raise TypeError(f"{name}: MPS has no float64, at {where()}")
        if name.startswith("_fused_adam") and kwargs.get("grad_scale") is not None:
            raise RuntimeError(f"MPS's fused Adam does not read grad_scale, at {where()}")

    def _copied_into(self, func: Any, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(to, Claimed) != isinstance(source, Claimed):
            self._crossing(source, non_blocking)
        func(_inner(to), _inner(source))
        return to

    def _copied(self, func: Any, source: Tensor, **named: Any) -> Tensor:
        device, non_blocking = named.pop("device", None), named.pop("non_blocking", False)
        to_us = isinstance(source, Claimed) if device is None else self.is_here(device)
        if to_us and self.kind == "mps" and named.get("dtype", source.dtype) is torch.float64:
            raise TypeError(f"MPS has no float64, at {where()}")
        if to_us != isinstance(source, Claimed):
            self._crossing(source, non_blocking)
        found = func(_inner(source), **named)
        if found is _inner(source):
            found = found.clone()
        return self.wrap(found) if to_us else found

    def _crossing(self, source: Tensor, non_blocking: bool) -> None:
        if isinstance(source, Claimed):
            self.waited("to the host")
        elif not non_blocking:
            self.waited("from the host")
        elif self.kind == "mps":
            raise RuntimeError(f"an asynchronous copy of memory that may be filled anew, at {where()}")
        elif not self.is_pinned(source):
            self.waited("from ordinary memory")


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Claimed) else x


class _Runtime:
    """What the program asks CUDA's own library for."""

    def __init__(self, device: _Device) -> None:
        self._device = device

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        self._device.lock(address, nbytes)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self._device.pinned[address]
        return 0


class _Event:
    def synchronize(self) -> None:
        """Nothing is under way here."""


def _is_pinned(tensor: Tensor, device: _Device) -> bool:
    return device.is_pinned(tensor)


def _pin(tensor: Tensor, device: _Device) -> Tensor:
    copy = tensor.clone()
    if copy.nbytes:
        device.lock(copy.data_ptr(), copy.nbytes)
        weakref.finalize(copy.untyped_storage(), device.pinned.pop, copy.data_ptr(), None)
    return copy


@contextlib.contextmanager
def claimed(kind: str) -> Iterator[_Device]:
    """A device of this kind, for a while. One at a time."""
    global _current
    device = _Device(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "current_stream", lambda _=None: SimpleNamespace(record_event=_Event))
        patch.setattr(torch.cuda, "cudart", lambda: _Runtime(device))
        patch.setattr(Tensor, "pin_memory", partialmethod(_pin, device))
        patch.setattr(Tensor, "is_pinned", partialmethod(_is_pinned, device))
        _current = device
        overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(
            True
        )  # a module's tensors are replaced, not filled anew
        try:
            with device:
                yield device
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
            _current = None
