"""`cuda` on a GPU: owners, the context that PyTorch has too, threads, events, graphs. Runs only where there is one."""

import importlib.util
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from in_thread import in_thread

from trtkit import leaks, nvidia, overlap, transfers
from trtkit.engine import BackendError

if problem := nvidia.cuda_problem():
    pytest.skip(f"needs a GPU: {problem}", allow_module_level=True)
pytest.importorskip("pycuda", reason="needs PyCUDA: pip install --editable '.[cuda]'")

from trtkit import cuda

ROOT = Path(__file__).parents[2]
NO_TORCH_GPU = 77


def python(code: str, *, may_lack_torch: bool = False) -> str:
    """Run code in a process of its own, which is where import orders can differ; returns what it printed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300,
                          check=False)
    if may_lack_torch and done.returncode == NO_TORCH_GPU:
        pytest.skip("this PyTorch was built without CUDA, or for another driver")
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    # A context that is torn down twice or too early shows up only here, after the last line of the program.
    assert "PyCUDA" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    return done.stdout


IMPORT_TORCH = f"""
import torch
if not torch.cuda.is_available():
    sys.exit({NO_TORCH_GPU})
tensor = torch.arange(1024, dtype=torch.float32, device="cuda")
"""
IMPORT_CUDA = """
from trtkit import cuda
first = cuda.DeviceBuffer(4096)
"""
BOTH = """
want = np.arange(1024, dtype=np.float32)
got = np.zeros_like(want)
with cuda.primary_context():
    torch.cuda.synchronize()
    cuda.drv.memcpy_dtod(first.ptr, tensor.data_ptr(), 4096)        # from torch's memory into ours, on the device
    cuda.copy_to_host(got, first)
    assert np.array_equal(got, want), got
    cuda.copy_to_device(first, want * 3)
    cuda.drv.memcpy_dtod(tensor.data_ptr(), first.ptr, 4096)        # and back
    assert np.array_equal(tensor.cpu().numpy(), want * 3)
product = (torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum().item()
assert product == 64 ** 3, product
stream = cuda.Stream()
with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):   # torch's kernels on our stream
    doubled = tensor * 2
stream.synchronize()
assert np.array_equal(doubled.cpu().numpy(), want * 6)
stream.close()
first.close()
assert float((tensor + 1).sum()) == float((want * 3 + 1).sum())     # torch still works when we are done
assert cuda.open_bytes() == 0
print("both work")
"""


@pytest.mark.parametrize("order", ["torch first", "cuda first"])
def test_it_shares_its_context_with_torch_in_either_import_order(order):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs PyTorch")
    imports = [IMPORT_TORCH, IMPORT_CUDA] if order == "torch first" else [IMPORT_CUDA, IMPORT_TORCH]
    assert python("import sys\nimport numpy as np\n" + "".join(imports) + BOTH, may_lack_torch=True) == "both work\n"


def test_autoinit_is_refused_with_what_to_do():
    said = python("import pycuda.autoinit\nfrom trtkit import cuda\n"
                  "try:\n    cuda.DeviceBuffer(1)\nexcept Exception as e:\n    print(type(e).__name__, e)\n")
    assert said.startswith("BackendError") and "autoinit" in said and "restart the kernel" in said


def test_buffers_that_nobody_closed_do_not_disturb_the_end_of_the_process():
    python("from trtkit import cuda\na = cuda.DeviceBuffer(1 << 20)\ns, e = cuda.Stream(), cuda.Event()\n"
           "p = cuda.PinnedArray((4,), 'f4')\ne.record(s)\nwith cuda.capture(s) as g:\n"
           "    cuda.copy_to_device(a, p.array, s)\n")


def test_a_second_thread_uses_and_frees_what_the_first_made():
    data = np.arange(256, dtype=np.int32)
    buffer, stream = cuda.DeviceBuffer(data.nbytes), cuda.Stream()
    cuda.copy_to_device(buffer, data)
    got = np.zeros_like(data)

    def work():
        cuda.copy_to_host(got, buffer, stream)
        stream.synchronize()
        buffer.close()
        stream.close()

    before = cuda.open_bytes() - buffer.nbytes
    with warnings.catch_warnings(record=True) as told:      # PyCUDA's way to say that it could not free something
        warnings.simplefilter("always")
        in_thread(work)
    assert np.array_equal(got, data) and cuda.open_bytes() == before
    assert not told, [str(w.message) for w in told]


def test_what_is_dropped_in_a_thread_without_a_context_is_freed():
    held = [cuda.DeviceBuffer(256 << 20), cuda.Stream(), cuda.Event(), cuda.PinnedArray((4,), np.float32)]
    used_mib = leaks.device_used_mib()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        in_thread(held.clear)
    assert not told, [str(w.message) for w in told]
    assert used_mib - leaks.device_used_mib() == pytest.approx(256, abs=64)     # others may use this GPU too


def test_a_thread_has_a_context_inside_the_block_only():
    def allocate():
        cuda.drv.mem_alloc(256).free()

    def work():
        with pytest.raises(cuda.drv.LogicError, match="context"):
            allocate()
        with cuda.primary_context():
            allocate()
            with pytest.raises(KeyError), cuda.primary_context():       # nested, and left by an exception
                raise KeyError
            allocate()
        with pytest.raises(cuda.drv.LogicError, match="context"):
            allocate()
        with pytest.raises(RuntimeError), cuda.primary_context():
            raise RuntimeError
        with pytest.raises(cuda.drv.LogicError, match="context"):
            allocate()

    in_thread(work)


def test_another_device_inside_the_block_is_refused():
    with cuda.primary_context(), pytest.raises(BackendError), cuda.primary_context(1):
        pass


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(BackendError, match=r"99.*CUDA_VISIBLE_DEVICES"), cuda.primary_context(99):
        pass


def captured(stream: cuda.Stream) -> cuda.Graph:
    """A graph with one operation; its buffer must live as long."""
    with cuda.capture(stream) as graph:
        cuda.drv.memset_d8_async(BUFFER.ptr, 1, 16, stream._use())
    return graph


BUFFER = cuda.DeviceBuffer(16)          # of `captured`; closed by the last test's fixture


@pytest.fixture(scope="module", autouse=True)
def _close_buffer():
    yield
    BUFFER.close()


@pytest.fixture
def stream():
    with cuda.Stream() as made:
        yield made


@pytest.fixture
def current():
    """For calls of PyCUDA's own, which do not push a context."""
    with cuda.primary_context():
        yield


USES = {
    "DeviceBuffer.ptr": (lambda: cuda.DeviceBuffer(64), lambda x, s: x.ptr),
    "copy to a buffer": (lambda: cuda.DeviceBuffer(64), lambda x, s: cuda.copy_to_device(x, np.zeros(8))),
    "copy to a buffer, stream": (lambda: cuda.DeviceBuffer(64), lambda x, s: cuda.copy_to_device(x, np.zeros(8), s)),
    "copy from a buffer": (lambda: cuda.DeviceBuffer(64), lambda x, s: cuda.copy_to_host(np.zeros(8), x)),
    "copy from a buffer, stream": (lambda: cuda.DeviceBuffer(64), lambda x, s: cuda.copy_to_host(np.zeros(8), x, s)),
    "PinnedArray.array": (lambda: cuda.PinnedArray((4,), np.float32), lambda x, s: x.array),
    "Stream.handle": (cuda.Stream, lambda x, s: x.handle),
    "Stream.synchronize": (cuda.Stream, lambda x, s: x.synchronize()),
    "Stream.wait": (cuda.Stream, lambda x, s: x.wait(cuda.Event())),
    "wait for an event": (cuda.Event, lambda x, s: s.wait(x)),
    "record on a stream": (cuda.Stream, lambda x, s: cuda.Event().record(x)),
    "copy on a stream": (cuda.Stream, lambda x, s: cuda.copy_to_device(BUFFER, np.zeros(2), x)),
    "Event.record": (cuda.Event, lambda x, s: x.record(s)),
    "Event.synchronize": (cuda.Event, lambda x, s: x.synchronize()),
    "Event.elapsed_ms": (cuda.Event, lambda x, s: x.elapsed_ms(cuda.Event().record(s))),
    "elapsed since": (cuda.Event, lambda x, s: cuda.Event().record(s).elapsed_ms(x)),
    "Graph.launch": (lambda: captured(cuda.Stream()), lambda x, s: x.launch(s)),
    "capture on a stream": (cuda.Stream, lambda x, s: captured(x)),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_owner_refuses_every_use(use, stream):
    make, call = USES[use]
    owner = make()
    owner.close()
    owner.close()                               # a second call does nothing
    with pytest.raises(BackendError, match=f"{type(owner).__name__}.*closed"):
        call(owner, stream)


@pytest.mark.parametrize("make", [cuda.Stream, cuda.Event, lambda: cuda.DeviceBuffer(64),
                                  lambda: cuda.PinnedArray((4,), np.float32)])
def test_a_block_closes_its_owner_also_when_it_raises(make):
    with pytest.raises(KeyError), make() as owner:
        raise KeyError
    with pytest.raises(BackendError, match="closed"):
        owner._use()


@pytest.mark.parametrize("nbytes", [0, -1])
def test_a_buffer_has_at_least_one_byte(nbytes):
    with pytest.raises(ValueError, match=f"got {nbytes}, expected at least 1"):
        cuda.DeviceBuffer(nbytes)


def test_more_memory_than_there_is_names_what_is_free():
    before = cuda.open_bytes()
    with pytest.raises(BackendError, match=r"GPU memory.* of \d+ MiB are free"):
        cuda.DeviceBuffer(1 << 45)              # 32 TiB
    assert cuda.open_bytes() == before
    with cuda.DeviceBuffer(1024):               # the process has not lost its GPU
        pass


@pytest.mark.parametrize("copy", [cuda.copy_to_device, lambda b, a, s=None: cuda.copy_to_host(a, b, s)])
@pytest.mark.parametrize("queued", [False, True])
def test_arrays_that_do_not_fit_are_refused_before_anything_is_copied(copy, queued, stream):
    on = (stream,) if queued else ()
    with cuda.DeviceBuffer(64) as buffer:
        with pytest.raises(ValueError, match=r"got 72 bytes.*64"):
            copy(buffer, np.zeros(9, np.float64), *on)
        with pytest.raises(ValueError, match="not contiguous"):
            copy(buffer, np.zeros((8, 2), np.float32)[:, 0], *on)
        copy(buffer, np.zeros(8, np.float64), *on)
        stream.synchronize()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float32, np.int32, np.int64, np.bool_])
def test_pinned_arrays_round_trip(dtype, stream, rng):
    data = rng.integers(0, 2 if dtype is np.bool_ else 100, (3, 5, 7)).astype(dtype)
    with cuda.PinnedArray(data.shape, dtype) as there, cuda.PinnedArray(data.shape, dtype) as back, \
            cuda.DeviceBuffer(data.nbytes) as buffer:
        assert there.array.shape == data.shape and there.array.dtype == dtype
        there.array[...] = data
        back.array[...] = 0
        cuda.copy_to_device(buffer, there.array, stream)
        cuda.copy_to_host(back.array, buffer, stream)
        stream.synchronize()
        assert np.array_equal(back.array, data)


def test_pageable_arrays_round_trip_and_the_rest_of_the_buffer_stays(stream):
    with cuda.DeviceBuffer(1024) as buffer:
        cuda.copy_to_device(buffer, np.full(1024, 7, np.uint8))
        cuda.copy_to_device(buffer, np.arange(10, dtype=np.uint8), stream)
        cuda.copy_to_device(buffer, np.arange(10, dtype=np.uint8), stream, offset=100)
        got = np.zeros(1024, np.uint8)
        cuda.copy_to_host(got, buffer, stream)
        stream.synchronize()
    assert got[:10].tolist() == got[100:110].tolist() == list(range(10))
    assert (got[10:100] == 7).all() and (got[110:] == 7).all()


def test_events_measure_a_copy_on_the_device(stream):
    nbytes = 64 << 20
    with cuda.DeviceBuffer(nbytes) as buffer, cuda.PinnedArray((nbytes,), np.uint8) as host, \
            cuda.Event() as start, cuda.Event() as end:
        start.record(stream)
        cuda.copy_to_device(buffer, host.array, stream)
        end.record(stream)
        end.synchronize()
        assert end.elapsed_ms(start) > 0


def test_a_stream_waits_for_an_event_of_another(current, stream):
    """32 copies of 16 MiB take the first stream a while; without the wait the second would read zeros."""
    nbytes = 16 << 20
    with cuda.DeviceBuffer(nbytes) as buffer, cuda.PinnedArray((nbytes,), np.uint8) as ones, \
            cuda.PinnedArray((nbytes,), np.uint8) as got, cuda.Stream() as other, cuda.Event() as written:
        ones.array[:] = 0
        cuda.copy_to_device(buffer, ones.array)
        for value in range(1, 33):
            cuda.drv.memset_d8_async(buffer.ptr, value, nbytes, stream._use())
        written.record(stream)
        other.wait(written)
        cuda.copy_to_host(got.array, buffer, other)
        other.synchronize()
        assert (got.array == 32).all()


def test_a_graph_replays_with_new_data_and_equals_plain_enqueues(current, stream, rng):
    n = 1 << 16
    with cuda.PinnedArray((n,), np.float32) as x, cuda.PinnedArray((n,), np.float32) as y, \
            cuda.DeviceBuffer(4 * n) as a, cuda.DeviceBuffer(4 * n) as b:

        def enqueue():
            cuda.copy_to_device(a, x.array, stream)
            cuda.drv.memset_d32_async(b.ptr, 0, n, stream._use())
            cuda.drv.memcpy_dtod_async(b.ptr, a.ptr, 2 * n, stream._use())      # the first half; zeros stay behind it
            cuda.copy_to_host(y.array, b, stream)

        x.array[:], y.array[:] = 1, -1
        with cuda.capture(stream) as graph:
            enqueue()
        stream.synchronize()
        assert (y.array == -1).all()            # captured, not run
        with graph:
            for _ in range(3):
                x.array[:] = rng.normal(size=n)
                enqueue()
                stream.synchronize()
                plain = y.array.copy()
                y.array[:] = -1
                graph.launch(stream)
                stream.synchronize()
                assert np.array_equal(y.array, plain)
                assert np.array_equal(y.array[: n // 2], x.array[: n // 2]) and not y.array[n // 2 :].any()


def test_a_graph_cannot_be_launched_inside_its_own_capture(stream):
    with pytest.raises(BackendError, match=r"Graph.*closed"), cuda.capture(stream) as graph:
        graph.launch(stream)
    stream.synchronize()


def test_what_cannot_be_captured_is_an_error_and_the_stream_lives_on(stream):
    with pytest.raises(BackendError), cuda.capture(stream):
        stream.synchronize()                    # would wait for what does not run
    with pytest.raises(KeyError), cuda.capture(stream):
        raise KeyError
    with cuda.PinnedArray((4,), np.uint8) as x, cuda.PinnedArray((4,), np.uint8) as y, cuda.DeviceBuffer(4) as buffer:
        x.array[:], y.array[:] = 5, 0
        cuda.copy_to_device(buffer, x.array, stream)
        cuda.copy_to_host(y.array, buffer, stream)
        stream.synchronize()
        assert (y.array == 5).all()


def test_open_bytes_counts_what_is_open():
    before = cuda.open_bytes()
    with cuda.DeviceBuffer(1000), cuda.DeviceBuffer(24) as second:
        assert cuda.open_bytes() == before + 1024
        second.close()
        assert cuda.open_bytes() == before + 1000
    assert cuda.open_bytes() == before
    dropped = cuda.DeviceBuffer(512)
    del dropped
    assert cuda.open_bytes() == before


def test_fifty_cycles_do_not_grow_the_devices_memory(stream):
    def cycle(_):
        with cuda.DeviceBuffer(64 << 20) as buffer, cuda.PinnedArray((1 << 20,), np.uint8) as host, \
                cuda.Stream() as own, cuda.Event() as event, cuda.capture(own) as graph:
            cuda.copy_to_device(buffer, host.array, own)
        graph.close()
        for owner in (buffer, host, own, event):
            with pytest.raises(BackendError):
                owner._use()

    growth = leaks.curve(cycle, 50, leaks.device_used_mib)
    assert growth[-1] - growth[5] <= 16, growth             # others may use this GPU too, but not 64 MiB a cycle
    kept = []
    assert leaks.per_step(leaks.curve(lambda _: kept.append(cuda.DeviceBuffer(64 << 20)), 4, leaks.device_used_mib)) \
        == pytest.approx(64, abs=8)                         # the measure does see a leak
    for buffer in kept:
        buffer.close()


def test_nvml_sees_memory_from_outside():
    if leaks.nvml_used_mib() is None:
        pytest.skip("NVML is missing or does not tell")
    kept = []
    growth = leaks.curve(lambda _: kept.append(cuda.DeviceBuffer(256 << 20)), 2, leaks.nvml_used_mib)
    for buffer in kept:
        buffer.close()
    assert growth[-1] == pytest.approx(512, abs=64)


def test_copies_are_measured_both_ways():
    found = transfers.device_copies((4096, 1 << 22), runs=5)
    assert len(found) == 8 and all(c.host_ms > 0 and c.event_ms > 0 for c in found)
    # The event is recorded by the device between two that the host waits for; a clock's step is some 0.5 us.
    assert all(c.event_ms <= c.host_ms + 0.005 for c in found)


class CopyLane:
    """A lane whose computation is a copy within the device."""

    def __init__(self, nbytes: int):
        self.stream = cuda.Stream()
        self.host = cuda.PinnedArray((nbytes,), np.uint8)
        self.a, self.b = cuda.DeviceBuffer(nbytes), cuda.DeviceBuffer(nbytes)

    def upload(self):
        cuda.copy_to_device(self.a, self.host.array, self.stream)

    def launch(self):
        with cuda.primary_context():
            for _ in range(8):
                cuda.drv.memcpy_dtod_async(self.b.ptr, self.a.ptr, self.a.nbytes, self.stream._use())

    def download(self):
        cuda.copy_to_host(self.host.array, self.b, self.stream)

    def close(self):
        self.stream.synchronize()
        for owner in (self.host, self.a, self.b, self.stream):
            owner.close()


def test_a_timeline_keeps_the_order_of_each_stream():
    lanes = [CopyLane(8 << 20), CopyLane(8 << 20)]
    try:
        for used in (lanes[:1], lanes):
            spans = overlap.device_timeline(used, 6, rounds=3)
            assert [s.operation for s in spans] == list(overlap.STEPS) * 6
            assert all(s.end_ms > s.start_ms >= 0 for s in spans)
            for lane in range(len(used)):
                own = [s for s in spans if s.lane == lane]
                assert all(b.start_ms >= a.end_ms - 0.005 for a, b in pairwise(own))
    finally:
        for lane in lanes:
            lane.close()
