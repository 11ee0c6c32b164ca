"""Which layer takes the time, and which more than it must? The backends' own profilers as a table. Lesson 09.

TensorRT reports each layer to an IProfiler, ONNX Runtime writes each node into a trace. Both cost time themselves: the
sum over the layers is more than one inference takes, and a layer below a few microseconds is mostly the profiler's.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from trtkit.costs import Cost
from trtkit.devices import Device
from trtkit.engine import Runner
from trtkit.percentiles import percentile
from trtkit.roofline import attainable_ms


def layer_times(runner: Runner, feed: dict[str, np.ndarray], runs: int = 20) -> pd.DataFrame:
    """Time of each layer of an engine.

    Args:
        runner: any backend's.
        feed: of `runner.infer`.
        runs: their median counts.

    Returns:
        One row per layer, in the order of execution: "layer" (name), "ms" (median over the runs), "share" (of the
        sum, 0 to 1). Layers of one name count as one.

    Raises:
        ValueError: no run; and whatever `runner.infer` says about the feed.
    """
    if runs < 1:
        raise ValueError(f"runs: got {runs}, expected at least 1")
    if hasattr(runner, "launch"):
        runner.infer(feed)                              # its inputs stay on the device, and its shapes are set
        per_run = runner.layer_times(runs)
    else:
        per_run = runner.layer_times(feed, runs)
    return table(per_run)


def table(per_run: list[list[tuple[str, float]]]) -> pd.DataFrame:
    """The same from (name, ms) pairs, one list per run."""
    ms: dict[str, list[float]] = {}
    for run in per_run:
        total: dict[str, float] = {}
        for name, time_ms in run:
            total[name] = total.get(name, 0.0) + time_ms
        for name, time_ms in total.items():
            ms.setdefault(name, []).append(time_ms)
    frame = pd.DataFrame({"layer": list(ms), "ms": [percentile(times, 50) for times in ms.values()]})
    return frame.assign(share=frame["ms"] / frame["ms"].sum())


def against_roofline(
    times: pd.DataFrame, costs: Mapping[str, Cost], device: Device, precision: str = "fp32"
) -> pd.DataFrame:
    """Measured times of layers beside the least that the device needs for them.

    Args:
        times: of `layer_times`.
        costs: of `costs.by_layer`; layers without a cost (copies, reformats) are left out.
        device: its limits.
        precision: of `device.peak_tflops`.

    Returns:
        `times` with the columns "macs" (multiply-adds), "intensity" (operations per byte), "least_ms" (roofline) and
        "tflops" (10^12 operations a second that were reached).
    """
    known = times[times["layer"].isin(list(costs))]
    found = [costs[layer] for layer in known["layer"]]
    macs, ms = np.array([cost.macs for cost in found], np.float64), known["ms"].to_numpy()
    return known.assign(
        macs=macs,
        intensity=[cost.intensity for cost in found],
        least_ms=[attainable_ms(cost.macs, cost.bytes_moved, device, precision) for cost in found],
        tflops=np.divide(2 * macs, ms * 1e9, out=np.zeros_like(macs), where=ms > 0),     # a NoOp may take 0 ms
    )
