"""Calibration, measured: the estimators' times against Model-Optimizer's functions, memory, and what mAP each keeps.

usage: .venv/bin/python tests/bench/calib.py                times of all four on 2,048 bins, ours and the reference
       .venv/bin/python tests/bench/calib.py --memory 60    peak memory of the process while N images are collected
       .venv/bin/python tests/bench/calib.py --record       mAP of each estimator on the whole test split, written to
                                                            datasets/results/calibration_estimators.json
It asserts nothing: times belong to a machine, not to a test.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from trtkit import calib, data, engine, evaluate, export, nvidia_calib, qdq, scenes, weights, yolo
from trtkit.files import replacing, sha256

sys.path.append(str(Path(__file__).parent.parent / "oracles"))

WEIGHTS = "weights/yolov3_w025.safetensors"
RESULT = "results/calibration_estimators.json"
CALIB_IMAGES = 64


def median_ms(run: Callable, repeats: int) -> float:
    """Median time of a call, milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def speed() -> None:
    """Print the time of each estimator on 2,048 bins in use, and the reference's."""
    import model_optimizer_histogram as reference
    from histograms import histograms

    hist, edges = histograms()["gauss"]
    ours = calib.Histogram()                    # the same values, in 2,048 bins of a power of two
    ours.collect((np.repeat(np.arange(2048), hist) + 0.5).astype(np.float32) / 2048)
    ours.counts = np.append(ours.counts.reshape(-1, 2).sum(1), np.zeros(2048, np.int64))
    ours.width *= 2
    default = {name: median_ms(lambda e=estimate: e(ours), 15) for name, estimate in calib.ESTIMATORS.items()}
    exact = {
        "percentile": median_ms(lambda: nvidia_calib.percentile_index(hist, edges), 15),
        "entropy": median_ms(lambda: nvidia_calib.entropy_index(hist, edges), 15),
        "mse": median_ms(lambda: nvidia_calib.mse_index(hist, edges), 15),
    }
    theirs = {
        "percentile": median_ms(lambda: reference._compute_amax_percentile(hist, edges, 99.99), 15),
        "entropy": median_ms(lambda: reference._compute_amax_entropy(hist.copy(), edges, 8, False), 1),
        "mse": median_ms(lambda: reference._compute_amax_mse(hist, edges, 8, False), 3),
    }
    for name, ms in default.items():
        line = f"{name:10} default {ms:8.3f} ms"
        if name in exact:
            line += f"   NVIDIA mode {exact[name]:8.3f} ms   reference {theirs[name]:9.3f} ms"
            line += f"   reference / NVIDIA mode {theirs[name] / exact[name]:6.1f}"
        print(line)
    print(f"all four   default {sum(default.values()):8.1f} ms   NVIDIA mode {sum(exact.values()):8.1f} ms   "
          f"reference {sum(theirs.values()):9.1f} ms   (target: ours <= 30 ms, at least 10 times faster)")


def _exposed(folder: Path) -> tuple[onnx.ModelProto, Path, Callable]:
    fp32 = weights.to_graph(data.dataset_file(WEIGHTS), folder / "fp32.onnx")
    graph = onnx.load(fp32)
    onnx.save(export.expose_tensors(graph, qdq.activation_names(graph)[1:]), folder / "exposed.onnx")
    runner = engine.load(engine.build(folder / "exposed.onnx", backend="ort"))
    return graph, fp32, lambda x: {"images": x, **runner.infer({"images": x})}


def _images(seeds: range, condition: str | None = None) -> Iterator[np.ndarray]:
    return (yolo.letterbox(scenes.render(seed, condition=condition).img_hwc_u8)[0] for seed in seeds)


def memory(images: int) -> None:
    """Print the peak memory of this process after every tenth of the images."""
    def watched() -> Iterator[np.ndarray]:
        for i, x in enumerate(_images(data.split_seeds("calib", images))):
            if i % max(images // 10, 1) == 0:
                peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"{i:5} images: peak {peak_mib:.0f} MiB", flush=True)
            yield x

    with tempfile.TemporaryDirectory() as folder:
        _, fp32, infer = _exposed(Path(folder))
        seen = calib.collect(infer, watched(), state=Path(folder) / "state.npz", graph_sha256=sha256(fp32))
    print(f"{seen.images} images, {len(seen)} tensors: peak "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB  (target <= 1536)")


def record() -> None:
    """Score every estimator on the test split, and night calibration on day images; write the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph, fp32, infer = _exposed(folder)
        skip = [*qdq.head_convs(graph), qdq.conv_names(graph)[0]]
        seen = calib.collect(infer, _images(data.split_seeds("calib", CALIB_IMAGES)))
        night = calib.collect(infer, _images(data.split_seeds("calib", CALIB_IMAGES), "night"))

        def score(plan: Path, test: list[scenes.Scene]) -> dict[str, float]:
            with engine.load(plan) as runner:
                accuracy = evaluate.score(runner, test)
            print(plan.name, accuracy, flush=True)
            return {"map50": round(accuracy.map50, 4), "map50_95": round(accuracy.map50_95, 4)}

        def int8(histograms: calib.Calibration, method: str) -> Path:
            path = folder / f"{method}.onnx"
            onnx.save(qdq.insert_qdq(graph, calib.ranges(histograms, method), target="cpu", skip=skip), path)
            return engine.build(path, backend="ort")

        test = data.load_split("test")
        plan = engine.build(fp32, backend="ort")
        estimators = {"fp32": score(plan, test), **{m: score(int8(seen, m), test) for m in calib.ESTIMATORS}}
        day = [scene for scene in test if scene.condition == "day"]
        of_night = {"fp32": score(plan, day), **{f"{m} calibrated on {which}": score(int8(h, m), day)
                    for which, h in (("all", seen), ("night", night)) for m in calib.ESTIMATORS}}
    body = {
        "command": "python tests/bench/calib.py --record",
        "what": f"YOLOv3 width 0.25, INT8 with target cpu, heads and first convolution float, {CALIB_IMAGES} images",
        "versions": {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "onnx": onnx.__version__},
        "weights_sha256": sha256(data.dataset_file(WEIGHTS)),
        "calib_sha256": seen.sha256,
        "test_images": {"all": len(test), "day": len(day)},
        "estimators": estimators,
        "day": of_night,
    }
    with replacing(data.DATASETS / RESULT) as temporary:
        temporary.write_text(json.dumps(body, indent=1) + "\n")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=int, metavar="N", help="collect N images and watch the memory")
    parser.add_argument("--record", action="store_true", help="write " + RESULT)
    args = parser.parse_args()
    if args.record:
        record()
    elif args.memory:
        memory(args.memory)
    else:
        speed()


if __name__ == "__main__":
    main()
