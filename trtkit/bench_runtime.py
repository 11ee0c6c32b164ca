"""What the runtime costs besides the network: host time, device memory that stays, builds that are done twice.

Lessons 08 and 14.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit import bench_graphs, bench_rounds, engine
from trtkit.engine import BackendError, BuildConfig

REPOSITORY = Path(__file__).resolve().parent.parent
# Says "ready", waits until it may go, asks for the plan, and tells how often TensorRT was really asked.
ASK_FOR_A_PLAN = """
import json, sys
from pathlib import Path
from trtkit import backend_trt, engine
from trtkit.files import sha256
built, really_build = [], backend_trt.build
def counted(*args):
    built.append(1)
    return really_build(*args)
backend_trt.build = counted
sys.stdout.write("ready\\n"), sys.stdout.flush(), sys.stdin.readline()
plan = engine.build(Path(sys.argv[1]), engine.BuildConfig(optimization_level=1), backend="trt")
with engine.load(plan) as runner:
    sys.stdout.write(json.dumps({"builds": len(built), "plan_sha256": sha256(plan)}) + "\\n")
"""


def overhead(plan: Path, *, rounds: int = 10, turn_s: float = 0.3) -> dict:
    """Host time of `Runner.infer` at batch 1 beyond the copies, and Polygraphy's runner on the same plan, in turn.

    Everything is measured in one run: the whole call by the host's clock; what nobody can avoid (copies of the arrays
    into and out of pinned memory, copies to and from the device, the network) part by part. The difference is what the
    runner itself costs, checks, locks, launches, waiting, less what it overlaps: `runner_trt.PORTIONS`.

    Returns:
        JSON object: "infer", "polygraphy", "stage_copy", "fetch_copy" (`bench_rounds.summary`, host clock), "h2d",
        "compute", "d2h" (device time), "overhead_us" (of the medians), "polygraphy_by_ours".
    """
    from trtkit import cuda

    x = bench_graphs.images(1)
    with cuda.primary_context(), engine.load(plan) as runner, _polygraphy(plan) as theirs:
        feed = {"images": x}
        outputs = runner.infer(feed)
        with ExitStack() as stack:
            contenders = {
                "infer": bench_rounds.host_timed(lambda: runner.infer(feed)),
                "polygraphy": bench_rounds.host_timed(lambda: theirs.infer(feed)),
                **_copies_timed(runner, x, list(outputs.values()), cuda, stack),
                **{part: _device_timed(runner, cuda, i) for i, part in enumerate(("h2d", "compute", "d2h"))},
            }
            times = bench_rounds.interleave(contenders, rounds=rounds, turn_s=turn_s)
        found = {name: bench_rounds.summary(rounds_ms) for name, rounds_ms in times.items()}
    unavoidable = sum(found[part]["p50_ms"] for part in ("stage_copy", "h2d", "compute", "d2h", "fetch_copy"))
    found["overhead_us"] = round(1000 * (found["infer"]["p50_ms"] - unavoidable), 1)
    found["polygraphy_by_ours"] = round(found["polygraphy"]["p50_ms"] / found["infer"]["p50_ms"], 3)
    return found


def _copies_timed(runner, x: np.ndarray, outputs: Sequence[np.ndarray], cuda, stack: ExitStack
                  ) -> dict[str, Callable[[int], list[float]]]:
    """Host time of the copies into and out of pinned memory, each in the middle of a whole inference.

    Repeated alone, such a copy finds the caches as it left them: that of a small detector's outputs took 29 us, and
    within an inference, where the input has just passed through them, it was seen to take 59 (H100).
    """
    enter = stack.enter_context
    source, input_buffer = enter(cuda.PinnedArray(x.shape, x.dtype)), enter(cuda.DeviceBuffer(x.nbytes))
    landed = [(enter(cuda.PinnedArray(y.shape, y.dtype)), enter(cuda.DeviceBuffer(y.nbytes))) for y in outputs]

    def timed(part: str, n: int) -> list[float]:
        times = []
        for _ in range(n):
            begin = time.perf_counter()
            np.copyto(source.array, x)
            staged = time.perf_counter()
            cuda.copy_to_device(input_buffer, source.array, runner.stream)
            runner.launch()
            for pinned, buffer in landed:
                cuda.copy_to_host(pinned.array, buffer, runner.stream)
            runner.stream.synchronize()
            done = time.perf_counter()
            copies = [pinned.array.copy() for pinned, _ in landed]
            fetched = time.perf_counter()
            del copies
            times.append(1000 * {"stage_copy": staged - begin, "fetch_copy": fetched - done}[part])
        return times

    return {part: partial(timed, part) for part in ("stage_copy", "fetch_copy")}


def _device_timed(runner, cuda, part: int) -> Callable[[int], list[float]]:
    """Device time of the upload (0), the network (1) or the download (2) of one inference, alone.

    Behind another run of the network: the GPU is still busy with it when the rest is put on the stream, so no waiting
    for the host is between the events.
    """
    def run(n: int) -> list[float]:
        with cuda.Event() as a, cuda.Event() as b, cuda.Event() as c, cuda.Event() as d:
            times = []
            for _ in range(n):
                runner.launch()
                a.record(runner.stream)
                runner.upload()
                b.record(runner.stream)
                runner.launch()
                c.record(runner.stream)
                runner.download()
                d.record(runner.stream)
                runner.stream.synchronize()
                begin, end = ((a, b), (b, c), (c, d))[part]
                times.append(end.elapsed_ms(begin))
            return times

    return run


def _polygraphy(plan: Path):
    """Polygraphy's runner of a plan.

    Raises:
        BackendError: Polygraphy is not installed.
    """
    try:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    except ImportError as e:
        raise BackendError(f"overhead: Polygraphy cannot be imported ({e}); pip install polygraphy") from e
    # It looks for libcudart.so in LD_LIBRARY_PATH only; PyTorch has brought one along, so say where.
    import torch

    torch.cuda.init()
    maps = Path("/proc/self/maps").read_text().split()
    folders = dict.fromkeys(str(Path(word).parent) for word in maps if "/libcudart.so" in word)
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), *folders])
    return TrtRunner(EngineFromBytes(Path(plan).read_bytes()))


def memory(folder: Path, *, cycles: int = 50, jobs: int = 2) -> dict:
    """Device memory that is gone after many cycles of build, load, infer, close.

    Every cycle has a graph of its own, so each is a real build. `jobs` threads do them at the same time, since
    TensorRT's process starts for seconds; each has done one before the memory is looked at first.

    Returns:
        JSON object: "cycles", "jobs", "builds", "free_before_mib", "free_after_mib", "grown_mib", "open_bytes" (held
        by buffers that nobody closed), "seconds".
    """
    from trtkit import cuda

    config = BuildConfig(optimization_level=1, batch=(1, 1, 4))
    x = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)

    def cycle(seed: int) -> Path:
        graph = small_graph(folder / f"cycle_{seed}.onnx", seed)
        plan = engine.build(graph, config, backend="trt")
        with engine.load(plan) as runner:
            for _ in range(3):
                runner.infer({"images": x})
        graph.unlink()
        return plan

    start = time.perf_counter()
    first_seed = time.time_ns() % 2**31         # of this run alone, else the plans would be in the cache already
    with engine.kept_builder(), ThreadPoolExecutor(jobs) as pool:
        warm = list(pool.map(cycle, range(first_seed, first_seed + jobs)))
        before_mib, _ = cuda.memory_mib()
        plans = list(pool.map(cycle, range(first_seed + jobs, first_seed + jobs + cycles)))
        after_mib, _ = cuda.memory_mib()
    return {
        "cycles": cycles, "jobs": jobs, "builds": len({*plans} - {*warm}), "free_before_mib": before_mib,
        "free_after_mib": after_mib, "grown_mib": before_mib - after_mib, "open_bytes": cuda.open_bytes(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def small_graph(path: Path, seed: int) -> Path:
    """A convolution and a ReLU with weights of that seed; "images" (N, 3, 32, 32) float32 to "y" (N, 8, 32, 32)."""
    weight = np.random.default_rng(seed).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["images", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["c"], ["y"], "relu")]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 32, 32])
               for name, channels in (("images", 3), ("y", 8))]
    graph = helper.make_graph(nodes, "small", tensors[:1], tensors[1:], [numpy_helper.from_array(weight, "w")])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def processes(folder: Path, *, count: int = 8) -> dict:
    """How many builds are done when several processes ask for one plan, which nobody has, at the same moment.

    Returns:
        JSON object: "processes", "builds", "different_plans" (1 where all have loaded the same bytes), "seconds".

    Raises:
        BackendError: a process failed; with the end of what it said.
    """
    graph = small_graph(folder / "asked_by_many.onnx", time.time_ns() % 2**31)
    asking = [subprocess.Popen([sys.executable, "-c", ASK_FOR_A_PLAN, str(graph.resolve())], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "TRTKIT_HEADLESS": "1"}, cwd=REPOSITORY) for _ in range(count)]
    for process in asking:
        process.stdout.readline()               # "ready": all have imported TensorRT, which takes seconds
    start = time.perf_counter()
    for process in asking:
        with suppress(BrokenPipeError):         # it has died; its exit code tells below
            process.stdin.write("go\n")
            process.stdin.flush()
    said = [process.communicate() for process in asking]
    seconds = time.perf_counter() - start
    for process, (_, stderr) in zip(asking, said, strict=True):
        if process.returncode:
            raise BackendError(f"processes: one of {count} ended with exit code {process.returncode}: {stderr[-1000:]}")
    answers = [json.loads(stdout) for stdout, _ in said]
    return {"processes": count, "builds": sum(a["builds"] for a in answers),
            "different_plans": len({a["plan_sha256"] for a in answers}), "seconds": round(seconds, 1)}
