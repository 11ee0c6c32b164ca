"""Who owns the buffer? Device and pinned host memory, streams, events and CUDA graphs, with PyCUDA. Lesson 08.

Everything here lives in the device's *primary* context, the one that PyTorch, TensorRT and the CUDA runtime share.
`pycuda.autoinit` makes a context of its own; tensors of the one are then invalid handles in the other, so it is
refused. A thread has no context until it pushes one: wrap what it does in `with primary_context():`.

Whatever is allocated has one owner, an object with `close()` that also closes at the end of a `with` block. Any use
after that raises. Source: CUDA driver API, "Primary Context Management", "Stream Management", "Graph Management".
"""

import atexit
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pycuda.driver as drv

from trtkit.engine import BackendError

MIB = 1 << 20
NON_BLOCKING = 1                # CU_STREAM_NON_BLOCKING: no waiting for what others put on the default stream
STICKY = ("illegal address", "illegal memory access", "misaligned", "illegal instruction", "launch failed", "assert")

_contexts: dict[int, "drv.Context"] = {}
_depth = threading.local()      # how often this thread has entered `primary_context`
_open: "weakref.WeakSet[_Owner]" = weakref.WeakSet()


class primary_context:
    """Make the primary context of a device current on this thread for the block; blocks may be nested.

    A class, since an inference enters four of them, and a generator's block costs the CPU four times as much.

    Raises:
        BackendError: no such device, no driver, `pycuda.autoinit` was imported, or CUDA failed inside the block.
    """

    __slots__ = ("device",)

    def __init__(self, device: int = 0):
        self.device = device

    def __enter__(self) -> None:
        depth = getattr(_depth, "value", 0)
        if not depth:
            try:
                _retain(self.device).push()
            except drv.Error as e:
                raise _named(e) from e
            _depth.device = self.device
        elif self.device != _depth.device:      # pushed already: a push costs more than the copy of a small tensor
            raise BackendError(f"device: got {self.device} inside a block of device {_depth.device}, expected the "
                               "same; leave that block first")
        _depth.value = depth + 1

    def __exit__(self, kind, error, traceback) -> None:
        _depth.value -= 1
        if _depth.value:
            return
        try:
            if isinstance(error, drv.Error):
                raise _named(error) from error      # before the pop: it asks the context how much memory is free
        finally:
            drv.Context.pop()


def _retain(device: int) -> "drv.Context":
    if "pycuda.autoinit" in sys.modules:
        raise BackendError("context: got pycuda.autoinit, expected the primary context, which PyTorch and TensorRT "
                           "share; restart the kernel and drop `import pycuda.autoinit`")
    if device not in _contexts:
        drv.init()
        if not 0 <= device < drv.Device.count():
            raise BackendError(f"device: got {device}, expected one of the {drv.Device.count()} that CUDA shows; see "
                               "CUDA_VISIBLE_DEVICES")
        _contexts[device] = drv.Device(device).retain_primary_context()
    return _contexts[device]


def _named(error: "drv.Error") -> BackendError:
    if isinstance(error, drv.MemoryError):
        return BackendError(f"GPU memory: {error}; {_room()}. Close runners and buffers that are not used, take a "
                            "smaller batch, or restart other notebooks' kernels")
    fix = "the process has lost its GPU: restart the kernel" if any(s in str(error) for s in STICKY) else (
        "is the primary context current? Wrap the call in `with cuda.primary_context():`"
        if "context" in str(error) else "see trtkit doctor")
    return BackendError(f"CUDA: {error}; {fix}")


def _room() -> str:
    try:
        free, total = (n // MIB for n in drv.mem_get_info())
    except drv.Error:                       # not even the context fitted, and without one nobody tells
        return "a context needs some hundred MiB, see nvidia-smi"
    return f"{free} of {total} MiB are free"


class _Owner:
    """What every owner of a resource shares: it closes once, also at the end of a block or of the process."""

    _held = None

    def _own(self, held) -> None:
        self._held = held
        _open.add(self)

    def _use(self):
        if self._held is None:
            raise BackendError(f"{type(self).__name__}: got a closed one, expected an open one; it was freed by "
                               "close() or at the end of its with block")
        return self._held

    def close(self) -> None:
        """Free it; a second call does nothing."""
        held, self._held = self._held, None
        if held is not None:
            with primary_context():
                self._free(held)
                held = None     # PyCUDA destroys streams and events with their last reference, and needs the context

    def _free(self, held) -> None:
        """For those that are not freed by dropping them."""

    def __del__(self):
        self.close()            # dropped without close(), perhaps in a thread without a context

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


class Stream(_Owner):
    """A queue of operations that the device runs in order. Does not wait for the default stream."""

    def __init__(self):
        with primary_context():
            self._own(drv.Stream(NON_BLOCKING))

    @property
    def handle(self) -> int:
        """The CUstream as a number, for TensorRT and `torch.cuda.ExternalStream`."""
        return self._use().handle

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        with primary_context():
            self._use().synchronize()

    def wait(self, event: "Event") -> None:
        """What comes on this stream from now on starts after the event, on whichever stream that was recorded."""
        with primary_context():
            self._use().wait_for_event(event._use())


class Event(_Owner):
    """A mark on a stream; two of them measure what the device did in between, to about 0.5 us."""

    def __init__(self):
        with primary_context():
            self._own(drv.Event())

    def record(self, stream: Stream) -> "Event":
        """Put the mark behind everything on the stream so far."""
        with primary_context():
            self._use().record(stream._use())
        return self

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""
        with primary_context():
            self._use().synchronize()

    def elapsed_ms(self, since: "Event") -> float:
        """Milliseconds from `since` to this event; both must have been passed."""
        with primary_context():
            return self._use().time_since(since._use())


class DeviceBuffer(_Owner):
    """`nbytes` bytes of device memory, at least 1."""

    def __init__(self, nbytes: int):
        if nbytes < 1:
            raise ValueError(f"nbytes: got {nbytes}, expected at least 1")
        self.nbytes = int(nbytes)
        with primary_context():
            self._own(drv.mem_alloc(self.nbytes))

    @property
    def ptr(self) -> int:
        """Device address, for `set_tensor_address`."""
        return int(self._use())

    def _free(self, held) -> None:
        held.free()


class PinnedArray(_Owner):
    """Page-locked host memory: the device copies from and to it by itself, while the CPU does other things.

    `shape` and `dtype` are NumPy's. After `close()`, views of `array` that are still around point to freed memory, so
    hand out copies.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype | type):
        with primary_context():
            self._own(drv.pagelocked_empty(shape, np.dtype(dtype)))

    @property
    def array(self) -> np.ndarray:
        """The memory as an array."""
        return self._use()

    def _free(self, held) -> None:
        held.base.free()


def copy_to_device(buffer: DeviceBuffer, array: np.ndarray, stream: Stream | None = None, *, offset: int = 0) -> None:
    """Copy a host array into a device buffer.

    Args:
        array: C-contiguous; pinned if the copy shall run by itself.
        offset: bytes from the front of the buffer.
        stream: copies in the stream's order. From and to pinned memory the call returns at once, and the array must
            stay as it is until then; with any other memory the driver may wait. Without a stream, the call returns when
            the copy is done.

    Raises:
        ValueError: the array is not contiguous or larger than the buffer behind the offset.
    """
    _check_copy(buffer, array, offset)
    with primary_context():
        if stream is None:
            # Less than 64 kB of pageable memory may still be on its way then, and no stream of ours waits for it.
            drv.memcpy_htod(buffer.ptr + offset, array)
            drv.Context.synchronize()
        else:
            drv.memcpy_htod_async(buffer.ptr + offset, array, stream._use())


def copy_to_host(array: np.ndarray, buffer: DeviceBuffer, stream: Stream | None = None) -> None:
    """Fill a host array from the front of a device buffer; see `copy_to_device`."""
    _check_copy(buffer, array)
    with primary_context():
        if stream is None:
            drv.memcpy_dtoh(array, buffer.ptr)
        else:
            drv.memcpy_dtoh_async(array, buffer.ptr, stream._use())


def _check_copy(buffer: DeviceBuffer, array: np.ndarray, offset: int = 0) -> None:
    if not array.flags.c_contiguous:
        raise ValueError("array: got one that is not contiguous, expected C order; use np.ascontiguousarray")
    if not 0 <= offset <= buffer.nbytes - array.nbytes:
        raise ValueError(f"array: got {array.nbytes} bytes at offset {offset}, expected to end within the buffer's "
                         f"{buffer.nbytes}")


class Graph(_Owner):
    """Operations that were captured from a stream, launched again with one call. Made by `capture`."""

    def launch(self, stream: Stream) -> None:
        """Run all of them, in order, with the addresses and shapes that they were captured with."""
        with primary_context():
            _checked(_driver().cuGraphLaunch(self._use(), stream.handle))

    def _free(self, held) -> None:
        _checked(_driver().cuGraphExecDestroy(held))


@contextmanager
def capture(stream: Stream) -> Iterator[Graph]:
    """Record what the block puts on the stream, without running it.

    The first run of a shape allocates and compiles, which cannot be captured: run it once before. Look at what an
    enqueue returned: one that was refused leaves an empty graph, which replays happily and computes nothing.

    Yields:
        The graph; it can be launched after the block.

    Raises:
        BackendError: cuda-bindings is missing, or CUDA cannot capture an operation.
    """
    cu, graph = _driver(), Graph()
    with primary_context():
        _checked(cu.cuStreamBeginCapture(stream.handle, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        try:
            yield graph
        except BaseException:
            error, half = cu.cuStreamEndCapture(stream.handle)      # else the stream stays in capture mode for good
            if not error and half:
                cu.cuGraphDestroy(half)
            raise
        captured = _checked(cu.cuStreamEndCapture(stream.handle))
        try:
            graph._own(_checked(cu.cuGraphInstantiate(captured, 0)))
        finally:
            _checked(cu.cuGraphDestroy(captured))


@cache
def _driver():
    """PyCUDA has no graphs; NVIDIA's own bindings do, and work on the same handles."""
    try:
        from cuda.bindings import driver
    except ImportError as e:
        raise BackendError(f"CUDA graphs need cuda-bindings ({e}); pip install cuda-bindings") from e
    return driver


def _checked(result: tuple):
    """Unpack what a function of cuda-bindings returned: (error, value ...)."""
    error, *values = result
    if error:
        name = _driver().cuGetErrorString(error)[1].decode()
        raise BackendError(f"CUDA graph: {name}; run the shape once before capturing it, and capture nothing that "
                           "allocates, copies to pageable memory or waits")
    return values[0] if values else None


def memory_mib() -> tuple[int, int]:
    """Free and total memory of the device, MiB."""
    with primary_context():
        free, total = drv.mem_get_info()
    return free // MIB, total // MIB


def open_bytes() -> int:
    """Bytes in the `DeviceBuffer`s of this process that nobody has closed."""
    return sum(owner.nbytes for owner in _open if isinstance(owner, DeviceBuffer) and owner._held is not None)


def device_name(device: int = 0) -> str:
    """For example "NVIDIA H100 80GB HBM3"."""
    with primary_context(device):
        return drv.Device(device).name()


def compute_capability(device: int = 0) -> str:
    """For example "90" for an H100."""
    with primary_context(device):
        major, minor = drv.Device(device).compute_capability()
    return f"{major}{minor}"


@atexit.register
def _close_all() -> None:
    """Before Python tears modules down: memory freed after its context is an error, and a runner holds TensorRT's."""
    for owner in list(_open):
        owner.close()
    _contexts.clear()
