"""How much of what a bad calibration lost quantization-aware training wins back, on YOLOv3 width 0.25.

usage: .venv/bin/python tests/bench/qat.py [--divide 6] [--steps 200] [--batch 32] [--out qat.json]
The bad calibration: the range of every activation is divided by `--divide`. mAP of the 200 test images, each graph run
by ONNX Runtime. Two controls: the good calibration, and the same fine-tuning without fake quantization, quantized with
the bad table afterwards: what training on alone would bring. Needs a GPU to be quick; it asserts nothing.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from first_light import calibrated

from trtkit import calib, data, engine, evaluate, export, models, qat, qdq

WEIGHTS = "weights/yolov3_w025.safetensors"


def scored(graph: Path, test: list) -> dict[str, float]:
    """mAP of a graph, and what ran it."""
    with engine.load(engine.build(graph)) as runner:
        accuracy = evaluate.score(runner, test)
        label = runner.label
    return {"map50": round(accuracy.map50, 4), "map50_95": round(accuracy.map50_95, 4), "runner": label}


def main() -> None:
    """Measure everything, print it, and write it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", choices=qdq.TARGETS)
    parser.add_argument("--divide", type=float, default=6.0, help="every range by this, to spoil the calibration")
    parser.add_argument("--steps", type=int, default=200, help="0 stops after the calibrations")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--images", type=int, default=2000, help="of the training split, 0.5 MB of memory each")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()

    folder = Path(tempfile.mkdtemp())
    model = models.load_weights(data.dataset_file(WEIGHTS))
    graph = export.export_onnx(model, folder / "fp32.onnx")
    table = calibrated(graph, folder)
    bad = {name: calib.Range(r.low / args.divide, r.high / args.divide) for name, r in table.items()}
    floats = onnx.load(graph)
    skip = [*qdq.head_convs(floats), qdq.conv_names(floats)[0]]
    test = data.load_split("test", progress=False)

    def quantized(source: Path, ranges: dict[str, calib.Range], name: str) -> Path:
        path = folder / f"{name}.onnx"
        onnx.save(qdq.insert_qdq(onnx.load(source), ranges, target=args.target, skip=skip), path)
        return path

    results = {}

    def note(name: str, graph: Path) -> None:
        results[name] = scored(graph, test)
        print(f"{name}: {results[name]}", flush=True)

    note("fp32", graph)
    note("ptq_good", quantized(graph, table, "good"))
    note("ptq_bad", quantized(graph, bad, "bad"))
    if not args.steps:
        return
    training = data.training_set(data.split_seeds("train", args.images), progress=False)
    # Without a single pair, the same loop is plain fine-tuning.
    runs = {"qat": skip, "finetuned_float": ["*"]}
    logs = {}
    for name, left_float in runs.items():
        prepared = qat.prepare(model, bad, target=args.target, skip=left_float)
        start = time.perf_counter()
        losses = qat.finetune(prepared, training, steps=args.steps, batch=args.batch, lr=args.lr)
        tenth = max(1, args.steps // 10)
        means = [float(np.mean(losses[i : i + tenth])) for i in range(0, args.steps, tenth)]
        logs[name] = {"train_s": round(time.perf_counter() - start, 1), "loss_by_tenth": [round(x, 3) for x in means]}
        print(f"{name}: {logs[name]}", flush=True)
        if name == "qat":
            note("qat", qat.export_qdq(prepared, folder / "qat.onnx"))
        else:
            tuned = export.export_onnx(prepared.float_model, folder / "tuned.onnx")
            note("finetuned_float_then_ptq_bad", quantized(tuned, bad, "tuned_bad"))
    recovered = {
        metric: round((results["qat"][metric] - results["ptq_bad"][metric])
                      / (results["fp32"][metric] - results["ptq_bad"][metric]), 3)
        for metric in ("map50", "map50_95")
    }
    print(f"recovered share of the loss: {recovered}  (target >= 0.5)")
    if args.out:
        body = {
            "what": "mAP of YOLOv3 width 0.25 on the test split: FP32, INT8 from a good and from a spoilt calibration "
                    "table, and INT8 with the spoilt table after quantization-aware training",
            "command": f"python tests/bench/qat.py {' '.join(sys.argv[1 : sys.argv.index('--out')])}",
            "spoilt": f"low and high of all {len(bad)} ranges divided by {args.divide:g}",
            "results": results,
            "recovered_share": recovered,
            "training": logs,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "python": platform.python_version(),
            "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__,
                         "opencv": cv2.__version__, "numpy": np.__version__},
            "date": date.today().isoformat(),
        }
        args.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
