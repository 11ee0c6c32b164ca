"""Records what lesson 08 shows where there is no GPU. Run on a GPU machine, in two minutes or so:

    python -c "from pathlib import Path; from trtkit import record_08; record_08.record(Path('h100_lesson08.json'))"

Each part is written as soon as it is measured, so an interrupted run keeps what it has.
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from trtkit import clocks, data, engine, launches, leaks, nvidia, overlap, recorded, transfers, weights

COMMAND = ("python -c \"from pathlib import Path; from trtkit import record_08; "
           "record_08.record(Path('h100_lesson08.json'))\"")
BATCH = 8                       # of the timelines: copies of that size are worth hiding
CONFIG = engine.BuildConfig(batch=(1, 1, BATCH), optimization_level=1)     # lessons 07 and 09 take the same plan
LEAK_MIB, LEAK_STEPS = 64, 12


def record(out: Path) -> None:
    """Measure everything and write it.

    Args:
        out: JSON file; its parts are "provenance", "copies" (`transfers.Copy`, with "gb_per_s"), "pcie", "leak",
            "thread", "by_hand", "timeline" (`overlap.Span`), "launch", "shapes" and "runner", the label.

    Raises:
        BackendError: no TensorRT, or it refuses.
    """
    body = {"provenance": recorded.provenance(COMMAND)}

    def add(name: str, part: object) -> None:
        body[name] = _rounded(part)
        recorded.write(Path(out), body)

    add("copies", [{**asdict(c), "gb_per_s": c.gb_per_s} for c in transfers.device_copies()])
    add("pcie", transfers.pcie_link())
    add("leak", leak_curves())
    add("thread", thread_without_context())
    plan = detector_plan()
    add("by_hand", by_hand(plan, np.full((1, 3, 416, 416), 0.5, np.float32)))
    with engine.load(plan) as one, engine.load(plan) as two:
        add("timeline", timelines(one, two))
        add("launch", {f"batch_{n}": launch(one, n) for n in (1, BATCH)})
    with engine.load(plan) as fresh:
        add("shapes", first_calls(fresh, [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1]))
    clock = clocks.read(nvidia.nvml_module())                           # right after work, not of an idle GPU
    body["provenance"] |= {"sm_clock_mhz": clock.sm_mhz, "max_sm_clock_mhz": clock.max_sm_mhz}
    add("runner", one.label)


def detector_plan() -> Path:
    """The quarter-width detector, FP32, for batches of 1 to 8; built at level 1, which takes half a minute."""
    with TemporaryDirectory() as folder:
        trained = data.dataset_file("weights/yolov3_w025.safetensors")
        graph = weights.to_graph(trained, Path(folder) / "yolov3_w025_fp32.onnx")
        return engine.build(graph, CONFIG, backend="trt")


def feed_of(batch: int) -> dict[str, np.ndarray]:
    """Grey images: what they show does not matter to a clock."""
    return {"images": np.full((batch, 3, 416, 416), 0.5, np.float32)}


def timelines(one: engine.Runner, two: engine.Runner, *, batch: int = BATCH, chunks: int = 8) -> dict:
    """The same chunks through one stream and through two; see `overlap.device_timeline`."""
    for runner in (one, two):
        runner.infer(feed_of(batch))                    # stages the input, and captures the graph of this shape
    return {
        "batch": batch,
        **{name: [asdict(s) for s in overlap.device_timeline(lanes, chunks)]
           for name, lanes in (("one_stream", [one]), ("two_streams", [one, two]))},
    }


def launch(runner: engine.Runner, batch: int) -> dict:
    """See `launches.launch_cost`."""
    runner.infer(feed_of(batch))
    return launches.launch_cost(runner)


def first_calls(runner: engine.Runner, batches: list[int]) -> list[dict]:
    """Time of each call of `infer`, on a runner that has not seen these shapes yet."""
    found = []
    for batch in batches:
        feed = feed_of(batch)
        begun = time.perf_counter()
        runner.infer(feed)
        found.append({"batch": batch, "ms": (time.perf_counter() - begun) * 1e3})
    return found


def leak_curves() -> dict:
    """Growth of device memory over steps that allocate, as CUDA and as NVML count it, MiB.

    "kept": each buffer goes to a list. "dropped": nobody keeps it, nobody closes it. "closed": its block ends.
    """
    from trtkit import cuda

    kept: list = []

    def keep(_: int) -> None:
        kept.append(cuda.DeviceBuffer(LEAK_MIB * leaks.MIB))

    def drop(_: int) -> None:
        cuda.DeviceBuffer(LEAK_MIB * leaks.MIB)

    def close(_: int) -> None:
        with cuda.DeviceBuffer(LEAK_MIB * leaks.MIB):
            pass

    def grown(step: Callable[[int], None], probe: Callable[[], float]) -> list[float]:
        growth = leaks.curve(step, LEAK_STEPS, probe)
        while kept:
            kept.pop().close()
        return growth

    steps = {"kept": keep, "dropped": drop, "closed": close}
    with cuda.primary_context():
        probes = {"cuda": leaks.device_used_mib}
        if leaks.nvml_used_mib() is not None:
            probes["nvml"] = leaks.nvml_used_mib
        curves = {name: {who: grown(step, probe) for who, probe in probes.items()} for name, step in steps.items()}
        return {"mib_per_step": LEAK_MIB, **curves, "open_mib_after": cuda.open_bytes() / leaks.MIB}


def thread_without_context() -> dict[str, str]:
    """What PyCUDA says in a second thread, before the primary context is pushed there and after."""
    from trtkit import cuda

    said = {}

    def allocate(name: str) -> None:
        try:
            cuda.drv.mem_alloc(4096).free()
            said[name] = ""
        except cuda.drv.Error as e:
            said[name] = str(e)

    def work() -> None:
        allocate("without")
        with cuda.primary_context():
            allocate("with")

    with cuda.primary_context():                # the first thread has one, which does not help the second
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return said


def by_hand(plan: Path, x: np.ndarray) -> dict:
    """Run an engine without `TrtRunner`: an address for each tensor, one enqueue. And once with an address missing.

    Returns:
        "tensors": name, shape, dtype, bytes and address of each; "max_abs_diff" to the runner's outputs;
        "enqueued": whether TensorRT took the work, with the last address missing and with all; "said": its reasons.
    """
    from trtkit import cuda, trt_plan

    with engine.load(plan) as runner:
        expected = runner.infer({"images": x})
    log, host = trt_plan.Log(), {"images": x, **{name: np.empty_like(y) for name, y in expected.items()}}
    with cuda.primary_context(), cuda.Stream() as stream, ExitStack() as stack:
        buffers = {name: stack.enter_context(cuda.DeviceBuffer(array.nbytes)) for name, array in host.items()}
        runtime, loaded = trt_plan.deserialize(plan, log)
        context = loaded.create_execution_context()
        context.set_input_shape("images", x.shape)
        cuda.copy_to_device(buffers["images"], x, stream)
        *most, last = buffers
        for name in most:
            context.set_tensor_address(name, buffers[name].ptr)
        warnings = len(log.messages)
        refused = context.execute_async_v3(stream.handle)       # the last tensor has no address yet
        context.set_tensor_address(last, buffers[last].ptr)
        enqueued = context.execute_async_v3(stream.handle)
        for name in expected:
            cuda.copy_to_host(host[name], buffers[name], stream)
        stream.synchronize()
        rows = [{"tensor": name, "shape": list(a.shape), "dtype": str(a.dtype), "bytes": a.nbytes,
                 "address": f"{buffers[name].ptr:#x}"} for name, a in host.items()]
        del context, loaded, runtime            # in this order: a runtime must outlive its engines
    return {
        "tensors": rows,
        "max_abs_diff": max(float(np.abs(host[name] - y).max()) for name, y in expected.items()),
        "enqueued": {"one address missing": bool(refused), "all addresses": bool(enqueued)},
        "said": log.messages[warnings:],
    }


def _rounded(part: object) -> object:
    """Four digits after the point: a tenth of a microsecond where the unit is ms."""
    if isinstance(part, float):
        return round(part, 4)
    if isinstance(part, dict):
        return {key: _rounded(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_rounded(value) for value in part]
    return part


def copies(body: dict) -> list[transfers.Copy]:
    """The copies of a recorded file, as `transfers.device_copies` returned them."""
    return [transfers.Copy(**{k: v for k, v in c.items() if k != "gb_per_s"}) for c in body["copies"]]


def spans(timeline: list[dict]) -> list[overlap.Span]:
    """One timeline of a recorded file, as `overlap.device_timeline` returned it."""
    return [overlap.Span(**s) for s in timeline]
