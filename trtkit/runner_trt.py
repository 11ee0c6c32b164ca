"""A TensorRT engine with its buffers, stream and CUDA graph: one object that owns them all. Lesson 08.

`infer` copies the feed into pinned memory and from there to the device, in `PORTIONS`, so that one travels while the
CPU copies the next; then come the network and the copy back, all on one stream. The parts are methods of their own,
`stage`, `upload`, `launch`, `download`, `fetch`, for measuring: there an input is copied whole.
Device and pinned memory are allocated once, for the largest shape of the profile.

The network's hundred small kernels take the CPU longer to launch than the GPU to run. So from the second run of a shape
on the network and the copy back are replayed as one CUDA graph (and the network alone as another, by `launch`). The
copy to the device stays outside, since it begins while the CPU still stages; its end runs while the CPU starts the
graph. TensorRT writes the shapes into the context's own memory, so a captured graph holds for the last shape only.
Source: TensorRT developer guide, "CUDA Graphs", "Working with Dynamic Shapes".
"""

import atexit
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import tensorrt as trt

from trtkit import cuda
from trtkit.engine import BackendError, TensorSpec, check_feed
from trtkit.trt_plan import Log, deserialize, inspect

DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
          "UINT8": np.uint8, "BOOL": np.bool_}
# Of an input, as `infer` hands it over. The device fetches about four times as fast as the CPU fills pinned memory
# (H100: an image in 46 us and 182 us), so a portion has arrived when the next, a quarter of it, is ready. That saved 12
# of 774 us there, in the median of one run; equal portions saved nothing, since each is a call of its own.
PORTIONS = (16, 4, 1)
SMALLEST = 1 << 20              # bytes of an input that is handed over in portions; the gain was measured at 2 MB

_open: "weakref.WeakSet[TrtRunner]" = weakref.WeakSet()


def _alone(method):
    """For what may be called from outside: an execution context is not thread-safe, and neither are our buffers."""
    @wraps(method)
    def guarded(self, *args, **kwargs):
        if not self._busy.acquire(blocking=False):
            raise BackendError("runner: got a call while another thread is in one, expected one thread at a time; give "
                               "each thread a runner of its own with engine.load(plan)")
        try:
            if self._closed:
                raise BackendError("runner: got a closed one, expected an open one; call engine.load again")
            with cuda.primary_context():
                return method(self, *args, **kwargs)
        finally:
            self._busy.release()

    return guarded


class TrtRunner:
    """An engine that can run; see `engine.Runner`.

    `stream` is what everything runs on, `use_graph` whether CUDA graphs may be replayed. Methods may be called
    from any thread, but from one at a time.
    """

    def __init__(self, plan: Path, output_order: Sequence[str] = ()):
        """`output_order` are names of outputs; those that it lacks come last, in the engine's order."""
        self.use_graph = True
        self._busy = threading.RLock()
        self._owned: list[cuda.Stream | cuda.DeviceBuffer | cuda.PinnedArray] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._warm = False                              # the present shapes have run once
        self._graphs: dict[str, cuda.Graph] = {}        # by name of the method that each replays
        self._closed = False
        with cuda.primary_context():
            try:
                self._log = Log()
                self._runtime, self._engine = deserialize(plan, self._log)
                self._context = self._engine.create_execution_context()
                if self._context is None:
                    raise BackendError(f"{Path(plan).name}: no memory for its activations: {self._log.said()}; build "
                                       "it for a smaller batch, or close other runners")
                self.stream = self._own(cuda.Stream())
                self.inputs = self._specs(trt.TensorIOMode.INPUT)
                specs = self._specs(trt.TensorIOMode.OUTPUT)
                self.outputs = {n: specs[n] for n in dict.fromkeys((*output_order, *specs)) if n in specs}
                self._allocate()
            except BaseException:
                self.close()
                raise
        self.label = f"tensorrt {trt.__version__} · {cuda.device_name()}"
        _open.add(self)

    def _own(self, owner):
        self._owned.append(owner)
        return owner

    def _specs(self, mode) -> dict[str, TensorSpec]:
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        specs = {}
        for name in names:
            if engine.get_tensor_mode(name) != mode:
                continue
            dtype = engine.get_tensor_dtype(name)
            if dtype.name not in DTYPES:
                raise BackendError(f"{name}: got {dtype.name}, expected one of {sorted(DTYPES)}, which NumPy has; cast "
                                   "it in the graph")
            shape = tuple(engine.get_tensor_shape(name))
            open_names = ("batch" if i == 0 else f"{name}_{i}" for i in range(len(shape)))
            specs[name] = TensorSpec(tuple(d if d >= 0 else n for d, n in zip(shape, open_names, strict=True)),
                                     np.dtype(DTYPES[dtype.name]))
        return specs

    def _allocate(self) -> None:
        """Memory for the largest shapes, and their addresses, which never change."""
        self._range = {n: tuple(map(tuple, self._engine.get_tensor_profile_shape(n, 0))) for n in self.inputs}
        largest = self._set_shapes({n: three[2] for n, three in self._range.items()})
        self._device, self._pinned = {}, {}
        for name, spec in {**self.inputs, **self.outputs}.items():
            nbytes = max(1, int(np.prod(largest[name])) * spec.dtype.itemsize)
            self._device[name] = self._own(cuda.DeviceBuffer(nbytes))
            self._pinned[name] = self._own(cuda.PinnedArray((nbytes,), np.uint8))
            self._context.set_tensor_address(name, self._device[name].ptr)
        self._set_shapes({n: three[1] for n, three in self._range.items()})

    def _set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Tell the context the shapes of the inputs; returns those of all tensors."""
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(f"{name}: TensorRT refused shape {shape}: {self._log.said()}")
        if open_inputs := self._context.infer_shapes():
            raise BackendError(f"shapes: TensorRT lacks those of {open_inputs}: {self._log.said()}")
        self._shapes = {n: tuple(self._context.get_tensor_shape(n)) for n in (*self.inputs, *self.outputs)}
        if unknown := [n for n, shape in self._shapes.items() if -1 in shape]:
            raise BackendError(f"{unknown[0]}: its shape depends on the data, so its buffer's size is not known; leave "
                               "the operator (NonZero, NMS) out of the graph and run it on the host")
        self._drop_graph()
        if hasattr(self, "_pinned"):
            self._views = {n: self._view(n) for n in self._shapes}
            self._portions = {n: _portions(self._views[n]) for n in self.inputs}
        return self._shapes

    def _view(self, name: str) -> np.ndarray:
        """The front of a tensor's pinned memory, in its present shape."""
        spec, shape = {**self.inputs, **self.outputs}[name], self._shapes[name]
        nbytes = int(np.prod(shape)) * spec.dtype.itemsize
        return self._pinned[name].array[:nbytes].view(spec.dtype).reshape(shape)

    def _drop_graph(self) -> None:
        self._warm = False
        while self._graphs:
            self._graphs.popitem()[1].close()

    @_alone
    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; see `engine.Runner.infer`. Arrays must be contiguous and inside the profile."""
        self._prepare(feed)
        for name, portions in self._portions.items():
            source = feed[name].reshape(-1)
            for part, pinned, offset in portions:
                np.copyto(pinned, source[part])
                cuda.copy_to_device(self._device[name], pinned, self.stream, offset=offset)
        self._run(self._enqueue_and_download)
        self.stream.synchronize()
        return self._fetch()

    @_alone
    def stage(self, feed: dict[str, np.ndarray]) -> None:
        """Check a feed and copy it into pinned memory; nothing reaches the device.

        Raises:
            ValueError: wrong names, type, dtype, shape, not contiguous, or outside the profile.
        """
        self._prepare(feed)
        for name in self.inputs:
            np.copyto(self._views[name], feed[name])

    def _prepare(self, feed: dict[str, np.ndarray]) -> None:
        self._check(feed)
        if any(feed[n].shape != self._shapes[n] for n in self.inputs):
            self.stream.synchronize()               # what runs still reads the old shapes' memory
            self._set_shapes({n: feed[n].shape for n in self.inputs})

    def _check(self, feed: dict[str, np.ndarray]) -> None:
        check_feed(feed, self.inputs)
        for name, x in feed.items():
            if x.shape != self._shapes[name]:       # else it was in the range before
                low, _, high = self._range[name]
                if x.ndim != len(low) or not all(a <= d <= b for a, d, b in zip(low, x.shape, high, strict=True)):
                    raise ValueError(f"{name}: got shape {x.shape}, expected {low} to {high}, for which the engine was "
                                     "built; see BuildConfig.batch")
            if not x.flags.c_contiguous:
                raise ValueError(f"{name}: got an array that is not contiguous, expected C order; use "
                                 "np.ascontiguousarray(x)")

    @_alone
    def upload(self) -> None:
        """Start the copy of the staged inputs to the device."""
        for name in self.inputs:
            cuda.copy_to_device(self._device[name], self._views[name], self.stream)

    @_alone
    def launch(self) -> None:
        """Start the network; the second time in a shape captures a CUDA graph, and later ones replay it."""
        self._run(self._enqueue)

    def _run(self, work: Callable[[], None]) -> None:
        """Do one of this object's methods, or replay what it puts on the stream."""
        if not (self.use_graph and self._warm):
            work()
            self._warm = True
            return
        if work.__name__ not in self._graphs:
            with cuda.capture(self.stream) as graph:
                work()
            self._graphs[work.__name__] = graph
        self._graphs[work.__name__].launch(self.stream)

    def _enqueue_and_download(self) -> None:
        self._enqueue()
        self._download()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self.stream.handle):
            raise BackendError(f"TensorRT refused to run: {self._log.said()}")

    @_alone
    def download(self) -> None:
        """Start the copy of the outputs back to pinned memory."""
        self._download()

    def _download(self) -> None:
        for name in self.outputs:
            cuda.copy_to_host(self._views[name], self._device[name], self.stream)

    @_alone
    def fetch(self) -> dict[str, np.ndarray]:
        """Copies of the outputs; only after `stream.synchronize()`."""
        return self._fetch()

    def _fetch(self) -> dict[str, np.ndarray]:
        return {name: self._views[name].copy() for name in self.outputs}

    @_alone
    def layers(self) -> list[dict]:
        """What TensorRT's inspector tells about each layer; see `trtkit.inspector`."""
        return inspect(self._engine, self._context)

    @_alone
    def layer_times(self, runs: int = 10) -> list[list[tuple[str, float]]]:
        """Time of each layer, in a run of its own kind: layers one after the other, each waited for, no CUDA graph.

        Args:
            runs: at least 1.

        Returns:
            Per run, (name, ms) of each layer in the order they run. Their sum exceeds the time of a normal run.

        Raises:
            BackendError: TensorRT tells no times.
        """
        if runs < 1:
            raise ValueError(f"runs: got {runs}, expected at least 1")
        self.stream.synchronize()
        # A context of its own: a profiler that was attached once slows down every later run.
        context = self._engine.create_execution_context()
        if context is None:
            raise BackendError(f"no memory for a second context: {self._log.said()}")
        if context.active_optimization_profile < 0:
            context.set_optimization_profile_async(0, self.stream.handle)
            self.stream.synchronize()
        profiler = context.profiler = _LayerTimes()
        for name in self.inputs:
            context.set_input_shape(name, self._shapes[name])
        for name, buffer in self._device.items():
            context.set_tensor_address(name, buffer.ptr)
        measured = []
        for _ in range(runs + 1):                       # the first one warms up
            profiler.times = []
            if not context.execute_async_v3(self.stream.handle):
                raise BackendError(f"TensorRT refused to run: {self._log.said()}")
            self.stream.synchronize()
            measured.append(profiler.times)
        if not profiler.times:
            raise BackendError("layers: TensorRT told no times, as 8.6 does for an engine with streams beside the main "
                               "one, expected one per layer; build with BuildConfig(aux_streams=0)")
        return measured[1:]

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if getattr(self, "_closed", True):
            return
        with self._busy, cuda.primary_context():        # another thread's call comes to its end first
            self._drop_graph()
            self._closed = True
            # In this order: a runtime must outlive its engines, an engine its contexts.
            self._context = self._engine = self._runtime = None
            for owner in reversed(self._owned):
                owner.close()

    def __del__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def _portions(pinned: np.ndarray) -> list[tuple[slice, np.ndarray, int]]:
    """Where `PORTIONS` of an input lie: among its elements, in pinned memory, and their offsets in bytes."""
    flat = pinned.reshape(-1)
    shares = list(accumulate(PORTIONS if pinned.nbytes >= SMALLEST else (1,), initial=0))
    borders = [flat.size * share // shares[-1] for share in shares]
    return [(slice(begin, end), flat[begin:end], begin * flat.itemsize) for begin, end in pairwise(borders)]


class _LayerTimes(trt.IProfiler):
    """Collects what TensorRT reports."""

    def __init__(self):
        trt.IProfiler.__init__(self)
        self.times: list[tuple[str, float]] = []

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT after each layer."""
        self.times.append((layer_name, ms))


@atexit.register
def _close_all() -> None:
    """Before `cuda` gives the context back, whose memory engines still hold."""
    for runner in list(_open):
        runner.close()
