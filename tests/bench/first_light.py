"""Ratios of the main job on this machine, FP32 and INT8 measured in turn in one process.

usage: .venv/bin/python tests/bench/first_light.py [--rounds 40] [--width-1]
Prints one line per figure, with the target beside it. It asserts nothing: times belong to a machine, not to a test.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import cv2
import onnx
import torch

from trtkit import calib, data, draw, engine, evaluate, export, models, qdq, scenes, yolo
from trtkit.profiling import interleaved

CALIB_IMAGES = 32


def calibrated(graph: Path, folder: Path) -> dict[str, calib.Range]:
    """The largest values seen in `CALIB_IMAGES` images: lesson 12's table."""
    model = onnx.load(graph)
    names = qdq.activation_names(model)
    onnx.save(export.expose_tensors(model, names[1:]), folder / "exposed.onnx")
    with engine.load(engine.build(folder / "exposed.onnx")) as runner:
        batches = [yolo.letterbox(s.img_hwc_u8)[0] for s in data.load_split("calib", CALIB_IMAGES, progress=False)]
        seen = calib.collect(lambda x: {"images": x, **runner.infer({"images": x})}, batches, progress=False)
    return calib.ranges(seen, "max")


def quantized(graph: Path, folder: Path) -> Path:
    """Lesson 12's recipe: its table, CPU target, heads and first convolution float."""
    model = onnx.load(graph)
    skip = [*qdq.head_convs(model), qdq.conv_names(model)[0]]
    onnx.save(qdq.insert_qdq(model, calibrated(graph, folder), target="cpu", skip=skip), folder / "int8.onnx")
    return folder / "int8.onnx"


def model_times(model: torch.nn.Module, folder: Path, rounds: int) -> dict[str, engine.Runner]:
    """Print the INT8/FP32 ratio of a network's model time and return both runners."""
    graph = export.export_onnx(model, folder / "fp32.onnx")
    runners = {"FP32": engine.load(engine.build(graph)), "INT8": engine.load(engine.build(quantized(graph, folder)))}
    x = yolo.letterbox(scenes.render(0).img_hwc_u8)[0]
    ms = interleaved({k: lambda r=r: r.infer({"images": x}) for k, r in runners.items()}, rounds).median_ms
    print(f"width {model.width:g}: FP32 {ms['FP32']:.1f} ms, INT8 {ms['INT8']:.1f} ms, "
          f"ratio {ms['INT8'] / ms['FP32']:.3f}  (target <= 0.4)   {runners['INT8'].label}")
    return runners


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--width-1", action="store_true", help="also the paper's full network, random weights")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())

    cv2.setNumThreads(1)
    start = time.perf_counter()
    for seed in range(60):
        scenes.render(seed)
    print(f"scenes: {60 / (time.perf_counter() - start):.0f} images/s at 640x480 on one core  (target >= 60)")
    cv2.setNumThreads(-1)

    model = models.load_weights(data.dataset_file("weights/yolov3_w025.safetensors"))
    runners = model_times(model, folder, args.rounds)
    test = data.load_split("test", progress=False)
    accuracy = {k: evaluate.score(r, test) for k, r in runners.items()}
    for metric, target in (("map50", 1), ("map50_95", 2)):
        fp32, int8 = (100 * getattr(accuracy[k], metric) for k in ("FP32", "INT8"))
        print(f"{metric}: FP32 {fp32:.2f}, INT8 {int8:.2f}, loss {fp32 - int8:.2f} points  (target <= {target})")

    image = test[0].img_hwc_u8
    x, placement = yolo.letterbox(image)
    heads = list(runners["INT8"].infer({"images": x}).values())
    found = yolo.postprocess(heads, placement)
    ms = interleaved(
        {
            "letterbox": lambda: yolo.letterbox(image),
            "decode+nms": lambda: yolo.postprocess(heads, placement),
            "infer": lambda: runners["INT8"].infer({"images": x}),
            "draw": lambda: draw.annotate(image, found, scenes.CLASSES),
        },
        args.rounds,
    ).median_ms
    share = (ms["letterbox"] + ms["decode+nms"]) / ms["infer"]
    print(", ".join(f"{k} {v:.2f} ms" for k, v in ms.items()), f"-> share {share:.2f}  (target <= 0.35)")

    if args.width_1:
        torch.manual_seed(0)
        model_times(models.YOLOv3(80).eval(), Path(tempfile.mkdtemp()), max(5, args.rounds // 4))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
