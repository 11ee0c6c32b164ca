"""Lesson 04's measurements on a GPU, to be shown where there is none. Lesson 04.

    python -c "from trtkit import record_04; record_04.record('datasets/results/h100_lesson04.json')"

staircase   one convolution of C -> C channels for many C: latency falls in steps, not with every channel
pruned      YOLOv3 of full width, whole and with 20 % and 50 % fewer parameters
sparse      the same network with 2:4 weights, beside the whole one: do zeros pay?
Builds take minutes, so the file is written after each step, and a step that fails leaves the others alone;
`record(out, ["sparse_b32"])` does one of them again.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from trtkit import bench_graphs, cache, engine, half, inspector, qdq, record_steps, recorded, staircase
from trtkit import weights as weights_module
from trtkit.calib import Range
from trtkit.engine import BuildConfig
from trtkit.layer_times import layer_times

COMMAND = "python -c \"from trtkit import record_04; record_04.record('datasets/results/h100_lesson04.json')\""
FILE = "h100_lesson04.json"
NOT_RECORDED = f"not recorded yet; on a machine with TensorRT: {COMMAND}"
REMOVED = {"dense": 0.0, "pruned 20 %": 0.2, "pruned 50 %": 0.5}       # of the parameters
ROUND_TO = 32                       # channels that an INT8 kernel of TensorRT computes at once
PRECISIONS = ("fp16", "int8")
SPARSE_KERNEL = re.compile(r"sparse|sptensor", re.IGNORECASE)
CHARACTERS = 300                    # of a message


def record(
    out: Path, steps: Sequence[str] = (), *, level: int = 2, jobs: int = 2, work: Path | None = None
) -> None:
    """Measure on this machine's GPU and write the file that lesson 04 shows elsewhere.

    Args:
        out: of the JSON file; what it holds of other steps stays.
        steps: of `STEPS`; all of them if empty.
        level: of the builds, see `BuildConfig.optimization_level`; at 2 one of a full-width network takes two minutes.
        jobs: builds at once, each of which keeps one core busy; see `bench_steps.Settings`.
        work: folder for graphs and random weights, kept for the next call; None takes one that is removed.

    Raises:
        ValueError: an unknown step.
        BackendError: no TensorRT or no GPU; or a step failed, after the others were done.
    """
    record_steps.check(steps, STEPS)
    with tempfile.TemporaryDirectory(prefix="trtkit-") as removed, engine.kept_builder():
        folder = Path(work or removed)
        folder.mkdir(parents=True, exist_ok=True)
        record_steps.run(out, steps or STEPS, lambda step: STEPS[step](folder, level, jobs),
                         lambda: {"provenance": recorded.provenance(COMMAND)})


recorded_step = partial(recorded.step, FILE)        # (step of `STEPS`, folder)


def sparse_layers(layers: Sequence[Mapping]) -> list[str]:
    """Names of the layers whose kernel skips the zeros of 2:4 weights, by the name of their tactic.

    Args:
        layers: the inspector's JSON of each layer, of an engine built with `BuildConfig(detailed=True)`.
    """
    return [str(layer["Name"]) for layer in layers if SPARSE_KERNEL.search(str(layer.get("TacticName") or ""))]


def eligible_layers(layers: Sequence[Mapping]) -> list[str]:
    """Names of the layers whose weights the builder found to be 2:4, whatever kernel it chose; `layers` as above."""
    return [str(layer["Name"]) for layer in layers if layer.get("HasSparseWeights")]


def write_weights(kind: str, folder: Path) -> Path:
    """Weights of YOLOv3 of full width with random numbers, whole, pruned or 2:4: drawn once and kept in `folder`.

    Args:
        kind: of `REMOVED`, or "2:4".
        folder: where.
    """
    whole = bench_graphs.weights_file(1.0, folder)
    path = Path(folder) / f"w1_{re.sub('[^0-9a-z]', '', kind)}.safetensors"
    if kind == "dense" or path.is_file():
        return whole if kind == "dense" else path
    import torch

    from trtkit import masks, models, prune

    model = models.load_weights(whole)
    if kind == "2:4":
        model = masks.apply_masks(model, {
            f"{name}.weight": masks.nm_mask(m.weight) for name, m in model.named_modules()
            if isinstance(m, torch.nn.Conv2d) and m.in_channels % 4 == 0})       # all but the first
    else:
        model = prune.prune_channels(model, torch.zeros(1, 3, 64, 64), params_removed=REMOVED[kind], round_to=ROUND_TO)
    models.save_weights(bench_graphs.settled(model), path)
    return path


def graph(kind: str, precision: str, folder: Path) -> Path:
    """Write the graph of `write_weights(kind, folder)` in a precision of `bench_graphs.PRECISIONS`, once; its path.

    The whole network's is the one that `trtkit bench` measures, so both share an engine.
    """
    file = write_weights(kind, folder)
    stem = "w1" if kind == "dense" else file.stem
    path = Path(folder) / f"{stem}_{precision}.onnx"
    if not path.is_file():
        fp32 = weights_module.to_graph(file, path.with_name(f"{stem}_fp32.onnx"))
        bench_graphs.typed(fp32, precision, 1.0)
    return path


def _staircase(precision: str, folder: Path, level: int, jobs: int) -> dict:
    """Times of `staircase.CHANNELS` in one engine: `jobs` has nothing to share out."""
    fp32 = onnx.load(staircase.write_graph(folder / "staircase_fp32.onnx"))
    if precision == "fp16":
        model = half.to_fp16(fp32)
    else:                                           # any ranges: a kernel's time does not depend on them
        model = qdq.insert_qdq(fp32, {name: Range(-4.0, 4.0) for name in qdq.activation_names(fp32)}, target="trt",
                               rest="fp16")
    path = folder / f"staircase_{precision}.onnx"
    onnx.save(model, path)
    plan = engine.build(path, BuildConfig(optimization_level=level), backend="trt")
    with engine.load(plan) as runner:
        rng = np.random.default_rng(0)
        feed = {name: rng.random(spec.shape, np.float32) for name, spec in runner.inputs.items()}
        times = layer_times(runner, feed, 50)
        label = runner.label
    ms = staircase.middle_ms(dict(zip(times["layer"], times["ms"], strict=True)))
    tactics = {node: str(layer.get("TacticName", ""))[:120] for layer in cache.sidecar(plan)["layers"]
               for node in inspector.nodes(layer)}
    return {"label": label, "level": level, "maps": list(staircase.MAPS),
            "ms": {str(c): round(t, 5) for c, t in ms.items()},
            "tactic": {str(c): tactics.get(f"c{c}_1", "") for c in ms}}


def _plans(kinds: Sequence[str], batch: int, folder: Path, level: int, jobs: int) -> dict[str, Path]:
    """Engines by "kind precision", built `jobs` at once."""
    graphs = {f"{kind} {precision}": graph(kind, precision, folder) for kind in kinds for precision in PRECISIONS}
    with ThreadPoolExecutor(jobs) as pool:
        building = {name: pool.submit(engine.build, path, BuildConfig(
            batch=(batch,) * 3, optimization_level=level, sparse=name.startswith("2:4")), backend="trt")
            for name, path in graphs.items()}
        return {name: future.result() for name, future in building.items()}


def _compared(kinds: Sequence[str], batch: int, folder: Path, level: int, jobs: int) -> dict:
    """Device time of engines that take turns, and what is known of each plan."""
    from trtkit import bench_speed

    plans = _plans(kinds, batch, folder, level, jobs)
    found = bench_speed.engines(plans, batch)
    for name, plan in plans.items():
        sidecar = cache.sidecar(plan)
        found[name] |= {"build_s": sidecar["build_s"], "plan_mib": round(plan.stat().st_size / 2**20, 2),
                        "layers": len(sidecar["layers"]), "parameters": _parameters(name.rpartition(" ")[0], folder)}
        if name.startswith("2:4"):
            said = [m[:CHARACTERS] for m in dict.fromkeys(sidecar["messages"]) if m.startswith("(Sparsity)")]
            eligible, chosen = (f(sidecar["layers"]) for f in (eligible_layers, sparse_layers))
            found[name] |= {"eligible": len(eligible), "sparse": len(chosen), "sparse_layers": chosen, "said": said}
    return {"level": level, "batch": batch, "engines": found}


def _parameters(kind: str, folder: Path) -> int:
    """Trainable numbers of a weights file: all but BatchNorm's statistics."""
    tensors, _ = weights_module.read_weights(write_weights(kind, folder))
    return sum(t.size for name, t in tensors.items() if "running" not in name)


STEPS = {
    "staircase_fp16": partial(_staircase, "fp16"),
    "staircase_int8": partial(_staircase, "int8"),
    "pruned_b1": partial(_compared, list(REMOVED), 1),
    "pruned_b32": partial(_compared, list(REMOVED), 32),
    "sparse_b1": partial(_compared, ["dense", "2:4"], 1),
    "sparse_b32": partial(_compared, ["dense", "2:4"], 32),
}
