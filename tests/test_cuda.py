"""`cuda` without a GPU, on a fake of PyCUDA: owners, threads, closing, errors. On a GPU: tests/gpu/test_cuda.py."""

import ast
import sys
import warnings
from pathlib import Path

import fake_pycuda
import numpy as np
import pytest
from in_thread import in_thread

import trtkit
from trtkit.engine import BackendError


@pytest.fixture
def gpu(monkeypatch):
    return fake_pycuda.install(monkeypatch)


@pytest.fixture
def cuda(gpu, monkeypatch):
    yield from fake_pycuda.fresh_cuda(monkeypatch)


def test_every_name_that_cuda_takes_from_pycuda_is_one_of_pycudas():
    tree = ast.parse((Path(trtkit.__file__).parent / "cuda.py").read_text())
    used = {n.attr for n in ast.walk(tree)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "drv"}
    assert used and used <= fake_pycuda.NAMES["driver"], used - fake_pycuda.NAMES["driver"]


def test_the_fake_has_no_name_that_pycuda_lacks(gpu):
    driver = {name for name in vars(gpu.driver) if not name.startswith("__")}
    assert driver <= fake_pycuda.NAMES["driver"]
    for name in ("Context", "Device", "DeviceAllocation", "Event", "PagelockedHostAllocation", "Stream"):
        public = {n for n in vars(getattr(gpu.driver, name)) if not n.startswith("_")}
        assert public <= fake_pycuda.NAMES[name], name


def test_bytes_go_there_and_back(cuda, rng):
    data = rng.normal(size=(3, 5)).astype(np.float32)
    with cuda.Stream() as stream, cuda.DeviceBuffer(data.nbytes) as buffer, \
            cuda.PinnedArray(data.shape, np.float32) as pinned:
        pinned.array[...] = data
        cuda.copy_to_device(buffer, pinned.array, stream)
        got = np.zeros_like(data)
        cuda.copy_to_host(got, buffer)
        assert np.array_equal(got, data)


def test_everything_is_freed_at_the_end_of_its_block(cuda, gpu):
    with cuda.primary_context(), cuda.Stream() as stream, cuda.Event() as event, cuda.DeviceBuffer(64) as buffer, \
            cuda.PinnedArray((4,), np.int8):
        event.record(stream)
        with cuda.capture(stream) as graph:
            cuda.copy_to_device(buffer, np.zeros(4, np.uint8), stream)
        assert (gpu.used, gpu.pinned, gpu.streams, gpu.events, cuda.open_bytes()) == (64, 1, 1, 1, 64)
    graph.close()
    assert (gpu.used, gpu.pinned, gpu.streams, gpu.events, gpu.graphs, cuda.open_bytes()) == (0,) * 6


@pytest.mark.parametrize("how", ["close", "drop"])
def test_everything_is_freed_from_a_thread_that_has_no_context(cuda, gpu, how):
    held = [cuda.DeviceBuffer(64), cuda.Stream(), cuda.Event(), cuda.PinnedArray((4,), np.int8)]

    def work():
        while held:
            owner = held.pop()
            if how == "close":
                owner.close()
            del owner

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        in_thread(work)
    assert not told, [str(w.message) for w in told]
    assert (gpu.used, gpu.pinned, gpu.streams, gpu.events) == (0, 0, 0, 0)


def test_a_thread_has_a_context_inside_the_block_only(cuda, gpu):
    def work():
        with pytest.raises(gpu.driver.LogicError, match="context"):
            gpu.driver.mem_alloc(8)
        with cuda.primary_context():
            with pytest.raises(KeyError), cuda.primary_context():
                raise KeyError
            gpu.driver.mem_alloc(8).free()
        assert not gpu.stack()
        with pytest.raises(KeyError), cuda.primary_context():
            raise KeyError
        assert not gpu.stack()

    in_thread(work)


@pytest.mark.parametrize("device", [-1, 2])
def test_a_device_that_is_not_there_is_named(cuda, device):
    with pytest.raises(BackendError, match=f"device: got {device}.*CUDA_VISIBLE_DEVICES"), \
            cuda.primary_context(device):
        pass


def test_another_device_inside_the_block_is_refused(cuda):
    with cuda.primary_context(0), pytest.raises(BackendError), cuda.primary_context(1):
        pass


@pytest.mark.parametrize(("error", "says"), [("MemoryError", "GPU memory: full; a context needs"),
                                             ("LogicError", "CUDA: full; see trtkit doctor")])
def test_a_context_that_cannot_be_made_is_named(cuda, gpu, monkeypatch, error, says):
    def fail(device):
        raise getattr(gpu.driver, error)("full")

    monkeypatch.setattr(gpu.driver.Device, "retain_primary_context", fail)
    with pytest.raises(BackendError, match=says), cuda.primary_context():
        pass
    monkeypatch.undo()
    with cuda.primary_context():
        assert len(gpu.stack()) == 1


def test_autoinit_is_refused(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.autoinit", sys)
    with pytest.raises(BackendError, match=r"autoinit.*restart the kernel"):
        cuda.DeviceBuffer(1)


USES = {
    "DeviceBuffer": lambda c, x: [lambda: x.ptr, lambda: c.copy_to_device(x, np.zeros(2)),
                                  lambda: c.copy_to_host(np.zeros(2), x)],
    "PinnedArray": lambda c, x: [lambda: x.array],
    "Stream": lambda c, x: [lambda: x.handle, x.synchronize, lambda: x.wait(c.Event()),
                            lambda: c.Event().record(x),
                            lambda: c.copy_to_device(c.DeviceBuffer(16), np.zeros(2), x)],
    "Event": lambda c, x: [x.synchronize, lambda: x.record(c.Stream()), lambda: c.Stream().wait(x),
                           lambda: x.elapsed_ms(c.Event().record(c.Stream())),
                           lambda: c.Event().record(c.Stream()).elapsed_ms(x)],
}


@pytest.mark.parametrize("name", USES)
def test_a_closed_owner_refuses_every_use(cuda, name):
    args = {"DeviceBuffer": (64,), "PinnedArray": ((4,), np.float32)}.get(name, ())
    owner = getattr(cuda, name)(*args)
    owner.close()
    owner.close()                               # a second call does nothing
    for use in USES[name](cuda, owner):
        with pytest.raises(BackendError, match=f"{name}: got a closed one"):
            use()


@pytest.mark.parametrize("queued", [False, True])
def test_an_offset_counts_bytes_and_the_rest_stays(cuda, queued):
    with cuda.DeviceBuffer(16) as buffer, cuda.Stream() as stream:
        cuda.copy_to_device(buffer, np.full(4, 7, np.int32))
        cuda.copy_to_device(buffer, np.full(2, 9, np.int32), stream if queued else None, offset=4)
        got = np.zeros(4, np.int32)
        cuda.copy_to_host(got, buffer, stream)
        stream.synchronize()
    assert got.tolist() == [7, 9, 9, 7]


def test_what_does_not_fit_is_refused_before_anything_is_copied(cuda, gpu):
    with cuda.DeviceBuffer(64) as buffer:
        for copy in (cuda.copy_to_device, lambda b, a: cuda.copy_to_host(a, b)):
            with pytest.raises(ValueError, match=r"got 72 bytes.*64"):
                copy(buffer, np.zeros(9))
            with pytest.raises(ValueError, match="not contiguous"):
                copy(buffer, np.zeros((4, 2), np.float32)[:, 0])
        for offset in (1, -1):
            with pytest.raises(ValueError, match=f"64 bytes at offset {offset}, expected to end within the .* 64"):
                cuda.copy_to_device(buffer, np.ones(8), offset=offset)
        got = np.ones(8)
        cuda.copy_to_host(got, buffer)
        assert not got.any()
    with pytest.raises(ValueError, match="got 0, expected at least 1"):
        cuda.DeviceBuffer(0)
    with pytest.raises(BackendError, match=r"GPU memory.*1024 of 1024 MiB are free"):
        cuda.DeviceBuffer(fake_pycuda.TOTAL + 1)
    assert gpu.used == 0 and cuda.open_bytes() == 0


def test_a_graph_replays_with_new_data(cuda, gpu):
    with cuda.Stream() as stream, cuda.DeviceBuffer(4) as buffer:
        x, y = np.full(4, 1, np.uint8), np.zeros(4, np.uint8)
        with cuda.capture(stream) as graph:
            cuda.copy_to_device(buffer, x, stream)
            cuda.copy_to_host(y, buffer, stream)
        assert not y.any()                      # captured, not run
        for value in (5, 6):
            x[:] = value
            graph.launch(stream)
            assert (y == value).all()
        graph.close()
        with pytest.raises(BackendError, match="Graph: got a closed one"):
            graph.launch(stream)
    assert gpu.graphs == 0


def test_a_block_that_raises_ends_the_capture(cuda, gpu):
    with cuda.Stream() as stream:
        with pytest.raises(KeyError), cuda.capture(stream):
            raise KeyError
        stream.synchronize()                    # would raise while it captures
    assert gpu.graphs == 0


def test_an_error_of_cuda_is_named_and_says_what_to_do(cuda):
    with cuda.Stream() as stream, cuda.Event() as a, cuda.Event() as b:
        a.record(stream)
        with pytest.raises(BackendError, match="CUDA: cuEventElapsedTime failed"):
            a.elapsed_ms(b)                     # never recorded


def test_what_is_left_open_is_closed_at_the_end_of_the_process(cuda, gpu):
    held = [cuda.DeviceBuffer(64), cuda.Stream()]
    cuda._close_all()
    assert (gpu.used, gpu.streams) == (0, 0)
    with pytest.raises(BackendError, match="closed"):
        held[0].ptr  # noqa: B018, the property raises


def test_a_copy_without_a_stream_has_arrived_when_it_returns(cuda, gpu):
    """The driver may return as soon as it has read a small pageable array."""
    with cuda.DeviceBuffer(64) as buffer, cuda.Stream() as stream:
        cuda.copy_to_device(buffer, np.zeros(4), stream)
        assert gpu.settled == 0             # a queued one waits for nothing
        cuda.copy_to_device(buffer, np.zeros(4))
        assert gpu.settled == 1
