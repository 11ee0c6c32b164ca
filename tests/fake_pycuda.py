"""PyCUDA without a GPU: the names of its driver module, device memory made of bytearrays, contexts as it keeps them.

The names were listed from PyCUDA 2026.1's compiled `_driver` module; how it treats contexts is in its src/cpp/cuda.hpp:
every thread has a stack of contexts, and what is freed without its context being current is freed only in the thread
that retained the context; anywhere else PyCUDA warns and leaks it. Streams run at once, or record while capturing.
"""

import importlib
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import trtkit

_LISTED = {
    "driver": """Context Device DeviceAllocation Error Event LaunchError LogicError MemoryError
        PagelockedHostAllocation RuntimeError Stream init mem_alloc mem_get_info memcpy_dtod memcpy_dtod_async
        memcpy_dtoh memcpy_dtoh_async memcpy_htod memcpy_htod_async memset_d8 memset_d8_async memset_d32
        memset_d32_async pagelocked_empty register_host_memory host_alloc_flags event_flags ctx_flags device_attribute
        get_version get_driver_version mem_get_address_range""",
    "Context": """attach detach disable_peer_access enable_peer_access get_api_version get_cache_config get_current
        get_device get_limit get_shared_config handle pop push set_cache_config set_limit set_shared_config
        synchronize""",
    "Device": """can_access_peer compute_capability count get_attribute make_context name pci_bus_id
        retain_primary_context total_memory""",
    "DeviceAllocation": "as_buffer free",
    "Event": "from_ipc_handle ipc_handle query record synchronize time_since time_till",
    "PagelockedHostAllocation": "free get_device_pointer get_flags",
    "Stream": "handle is_done synchronize wait_for_event",
}
NAMES = {owner: frozenset(names.split()) for owner, names in _LISTED.items()}
TOTAL = 1 << 30                 # device memory, bytes


class Gpu:
    """A device, the `pycuda.driver` that drives it, and the `cuda.bindings.driver` that makes graphs on it."""

    def __init__(self):
        self.memory: dict[int, bytearray] = {}          # by address
        self.pinned = self.streams = self.events = self.graphs = 0
        self.clock_ms, self.next_address = 0.0, 0x7F00_0000_0000
        self.stacks = threading.local()
        self.settled = 0                # how often somebody waited for the whole context
        self.driver, self.bindings = _driver(self), _bindings(self)

    @property
    def used(self) -> int:
        return sum(map(len, self.memory.values()))

    def stack(self) -> list:
        if not hasattr(self.stacks, "value"):
            self.stacks.value = []
        return self.stacks.value

    def at(self, address: int, nbytes: int) -> memoryview:
        """Device memory from an address on; only inside one allocation."""
        for start, block in self.memory.items():
            if start <= address and address + nbytes <= start + len(block):
                return memoryview(block)[address - start : address - start + nbytes]
        raise self.driver.LogicError("cuMemcpy failed: invalid argument")

    def run(self, stream, operation) -> None:
        self.clock_ms += 0.25
        if stream is not None and stream.captured is not None:
            stream.captured.append(operation)
        else:
            operation()


def install(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Put it in the place of the real ones, for one test."""
    gpu = Gpu()
    package = ModuleType("pycuda")
    package.__path__, package.driver = [], gpu.driver
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    cuda.__path__ = bindings.__path__ = []
    cuda.bindings, bindings.driver = bindings, gpu.bindings
    for name, module in (("pycuda", package), ("pycuda.driver", gpu.driver), ("cuda", cuda),
                         ("cuda.bindings", bindings), ("cuda.bindings.driver", gpu.bindings)):
        module.__spec__ = ModuleSpec(name, None)        # `importlib.util.find_spec` wants one
        monkeypatch.setitem(sys.modules, name, module)
    return gpu


def fresh_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`trtkit.cuda`, imported anew so that it takes the fake; for a fixture, which closes what it still holds."""
    monkeypatch.delitem(sys.modules, "trtkit.cuda", raising=False)
    monkeypatch.delattr(trtkit, "cuda", raising=False)
    module = importlib.import_module("trtkit.cuda")
    yield module
    module._close_all()
    vars(trtkit).pop("cuda", None)


def _driver(gpu: Gpu) -> ModuleType:
    drv = ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    def need(call: str) -> None:
        if not gpu.stack():
            raise LogicError(f"{call} failed: invalid device context")

    class Context:
        def __init__(self):
            self._thread = threading.get_ident()

        def push(self):
            gpu.stack().append(self)

        @staticmethod
        def pop():
            if not gpu.stack():
                raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
            gpu.stack().pop()

        @staticmethod
        def synchronize():
            gpu.settled += 1

    class Device:
        def __init__(self, index):
            self._index = index

        @staticmethod
        def count():
            return 2

        def name(self):
            return f"Fake GPU {self._index}"

        def compute_capability(self):
            return 9, 0

        def retain_primary_context(self):
            return Context()

    class Dependent:
        """What belongs to a context; freed like src/cpp/cuda.hpp's scoped_context_activation does."""

        def __init__(self, call):
            need(call)
            self._context = gpu.stack()[-1]

        def _gone(self) -> None:
            raise NotImplementedError

        def free(self):
            if self._context is None:
                raise LogicError(f"{type(self).__name__}::free failed: invalid resource handle")
            context, self._context = self._context, None
            if context in gpu.stack() or threading.get_ident() == context._thread:
                self._gone()
            else:
                warnings.warn(f"{type(self).__name__} in out-of-thread context could not be cleaned up", stacklevel=2)

        def __del__(self):
            if getattr(self, "_context", None) is not None:
                self.free()

    class DeviceAllocation(Dependent):
        def __init__(self, nbytes):
            super().__init__("cuMemAlloc")
            if nbytes > TOTAL - gpu.used:
                self._context = None
                raise MemoryError("cuMemAlloc failed: out of memory")
            gpu.next_address += 1 << 32
            self._address = gpu.next_address
            gpu.memory[self._address] = bytearray(nbytes)

        def __int__(self):
            return self._address

        __index__ = __int__

        def _gone(self):
            del gpu.memory[self._address]

    class PagelockedHostAllocation(Dependent):
        def __init__(self, nbytes):
            super().__init__("cuMemHostAlloc")
            self._bytes = bytearray(nbytes)
            gpu.pinned += 1

        def _gone(self):
            gpu.pinned -= 1

    class Pinned(np.ndarray):
        """`base` is the allocation, as in PyCUDA; NumPy itself would put the bytearray there."""

        base = property(lambda self: self._allocation)

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        allocation = PagelockedHostAllocation(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        array = np.frombuffer(allocation._bytes, dtype).reshape(shape).view(Pinned)
        array._allocation = allocation
        return array

    class Stream(Dependent):
        def __init__(self, flags=0):
            super().__init__("cuStreamCreate")
            self.captured, self.waited_for = None, []
            gpu.streams += 1
            STREAMS[id(self)] = self

        handle = property(id)

        def synchronize(self):
            need("cuStreamSynchronize")
            if self.captured is not None:
                raise LogicError("cuStreamSynchronize failed: operation not permitted when stream is capturing")

        def wait_for_event(self, event):
            need("cuStreamWaitEvent")
            self.waited_for.append(event)

        def _gone(self):
            gpu.streams -= 1

    class Event(Dependent):
        def __init__(self, flags=0):
            super().__init__("cuEventCreate")
            self._ms = None
            gpu.events += 1

        def record(self, stream=None):
            need("cuEventRecord")
            self._ms = gpu.clock_ms
            return self

        def synchronize(self):
            need("cuEventSynchronize")

        def time_since(self, other):
            need("cuEventElapsedTime")
            if self._ms is None or other._ms is None:
                raise LogicError("cuEventElapsedTime failed: invalid resource handle")
            return self._ms - other._ms

        def _gone(self):
            gpu.events -= 1

    STREAMS = weakref.WeakValueDictionary()
    gpu.stream_of = STREAMS.__getitem__

    def copier(name: str, move):
        def copy(dest, src, *rest):
            need(f"cu{name}")
            gpu.run(rest[-1] if rest and isinstance(rest[-1], Stream) else None, lambda: move(dest, src, *rest))
        return copy

    def htod(dest, src, *_):
        gpu.at(int(dest), src.nbytes)[:] = src.tobytes()

    def dtoh(dest, src, *_):
        if not dest.flags.writeable:
            raise ValueError("buffer source array is read-only")
        dest.reshape(-1).view(np.uint8)[:] = np.frombuffer(gpu.at(int(src), dest.nbytes), np.uint8)

    def mem_get_info():
        need("cuMemGetInfo")
        return TOTAL - gpu.used, TOTAL

    made = {
        "Error": Error, "MemoryError": MemoryError, "LogicError": LogicError, "Context": Context, "Device": Device,
        "DeviceAllocation": DeviceAllocation, "PagelockedHostAllocation": PagelockedHostAllocation, "Stream": Stream,
        "Event": Event, "init": lambda flags=0: None, "mem_alloc": DeviceAllocation, "mem_get_info": mem_get_info,
        "pagelocked_empty": pagelocked_empty, "memcpy_htod": copier("MemcpyHtoD", htod),
        "memcpy_dtoh": copier("MemcpyDtoH", dtoh), "memcpy_htod_async": copier("MemcpyHtoDAsync", htod),
        "memcpy_dtoh_async": copier("MemcpyDtoHAsync", dtoh),
    }
    vars(drv).update(made)
    return drv


def _bindings(gpu: Gpu) -> ModuleType:
    """The part of `cuda.bindings.driver` that graphs need; every function returns (error, value ...)."""
    cu = ModuleType("cuda.bindings.driver")
    cu.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def begin(handle, mode):
        gpu.stream_of(handle).captured = []
        return (0,)

    def end(handle):
        stream = gpu.stream_of(handle)
        operations, stream.captured = stream.captured, None
        gpu.graphs += 1
        return 0, SimpleNamespace(operations=operations)

    def instantiate(graph, flags):
        gpu.graphs += 1
        return 0, SimpleNamespace(operations=list(graph.operations))

    def destroy(graph):
        gpu.graphs -= 1
        return (0,)

    def launch(graph, handle):
        for operation in graph.operations:
            operation()
        return (0,)

    cu.cuStreamBeginCapture, cu.cuStreamEndCapture, cu.cuGraphInstantiate = begin, end, instantiate
    cu.cuGraphDestroy = cu.cuGraphExecDestroy = destroy
    cu.cuGraphLaunch = launch
    cu.cuGetErrorString = lambda error: (0, b"fake error")
    return cu
