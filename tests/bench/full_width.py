"""YOLOv3 of full width, trained on the scenes for the record, and its engines. Its weights are too big to commit.

    python tests/bench/full_width.py train WEIGHTS --limit-s 540    # a GPU; as many steps as fit into the time
    python tests/bench/full_width.py engines WEIGHTS --record       # a GPU with TensorRT: mAP and time per precision
    python tests/bench/full_width.py accuracy WEIGHTS --record      # any machine: mAP of the graphs in ONNX Runtime
    python tests/bench/full_width.py train RELU --start WEIGHTS     # the same network with ReLU, trained on
    python tests/bench/full_width.py engines RELU --contest 32      # and beside PyTorch, 32 images at once

Writes datasets/results/{train,engines,accuracy}_yolov3_w1_GPU.json, or _cpu.json; "w1relu" with ReLU. Nothing but
rendered scenes is seen, the seed is fixed, and the steps that fitted are in the file: with them as --steps, the run can
be made again.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from trtkit import bench_graphs, data, engine, evaluate, models, recorded, weights
from trtkit.train import TrainConfig, fit, init_head_bias

WIDTH = 1.0
TIMED_STEPS, WARM_STEPS = 30, 10
SCORING_S = 50              # to export, and to score 200 images on a CPU


def network(start: Path | None) -> models.YOLOv3:
    """The paper's 75 convolutions, for the scenes' classes, with fresh weights, or `start`'s and ReLU."""
    if start:
        return models.use_relu(models.load_weights(start))
    torch.manual_seed(0)
    model = models.YOLOv3(len(data.scenes.CLASSES), WIDTH)
    init_head_bias(model)
    return model


def steps_that_fit(training: data.TrainingSet, args: argparse.Namespace, left_s: float) -> int:
    """How many steps take so many seconds: measured on some, the first of which choose kernels."""
    config = TrainConfig(steps=TIMED_STEPS, batch=args.batch, lr=1e-5, warmup=1)
    model = network(args.start)
    fit(model, training, config, stop=WARM_STEPS, progress=False)
    begun = time.perf_counter()
    fit(model, training, config, progress=False)        # reads its loss at the end, so it waits for the GPU
    step_s = (time.perf_counter() - begun) / TIMED_STEPS
    spent_s = time.perf_counter() - begun + WARM_STEPS * step_s
    return int(0.97 * (left_s - spent_s) / step_s)


def train(args: argparse.Namespace) -> dict:
    """Train, save, and score the weights as they are saved."""
    start = time.perf_counter()
    torch.backends.cudnn.benchmark = True               # every batch has the same shape
    training = data.training_set(data.split_seeds("train", args.images), progress=False)
    rendered_s = time.perf_counter() - start
    steps = args.steps or steps_that_fit(training, args, args.limit_s - SCORING_S - rendered_s)
    config = TrainConfig(steps=steps, batch=args.batch, lr=args.lr, warmup=min(200, steps // 5))
    sys.stdout.write(f"rendered in {rendered_s:.0f} s; {config}\n")
    sys.stdout.flush()
    begun = time.perf_counter()
    tuned = fit(network(args.start), training, config, progress=False)
    train_s = time.perf_counter() - begun
    models.save_weights(tuned, args.weights)
    graph = weights.to_graph(args.weights, Path(tempfile.mkdtemp(prefix="trtkit-")) / "w1.onnx")
    with engine.load(engine.build(graph, backend="ort")) as runner:
        accuracy = evaluate.score(runner, data.load_split("test", args.test_images, progress=False))
        label = runner.label
    return {"config": asdict(config), "images": args.images, "parameters": sum(p.numel() for p in tuned.parameters()),
            "train_s": round(train_s, 1), "map50": round(accuracy.map50, 4), "map50_95": round(accuracy.map50_95, 4),
            "per_class": {name: round(ap, 4) for name, ap in accuracy.per_class.items()}, "runner": label}


def engines(args: argparse.Namespace) -> dict:
    """mAP of the engines of one image, on the whole test split, and their device time in turn; with --contest, those of
    so many images beside PyTorch."""
    from trtkit import bench_accuracy, bench_speed

    folder = args.weights.parent
    fp32 = weights.to_graph(args.weights, folder / "w1_trained_fp32.onnx")
    graphs = {precision: bench_graphs.typed(fp32, precision, 0.25)      # ranges of as many images as the quarter's
              for precision in args.precisions}

    def built(batch: int, precisions: Sequence[str]) -> dict[str, Path]:
        config = engine.BuildConfig(batch=(batch,) * 3, optimization_level=args.level)
        return {precision: engine.build(graphs[precision], config, backend="trt") for precision in precisions}

    with engine.kept_builder():
        plans = built(1, args.precisions)
        of_many = built(args.contest, [p for p in args.precisions if p != "fp32"]) if args.contest else {}
    found = {name: dict(scored) for name, scored in bench_accuracy.mean_average_precision(plans)}
    for name, times in bench_speed.engines(plans, 1).items():
        found[name] |= times
    sys.stdout.write(f"{found}\n")
    sys.stdout.flush()                          # the contest may fail, and these took minutes
    contest = {f"b{args.contest}": bench_speed.contest(of_many, args.weights, args.contest)} if of_many else {}
    return {"level": args.level, "by_precision": found, **contest}


def accuracy(args: argparse.Namespace) -> dict:
    """mAP of the graphs that TensorRT gets, with its placement of Q/DQ, executed by ONNX Runtime on the CPU."""
    from trtkit import bench_accuracy

    fp32 = weights.to_graph(args.weights, args.weights.parent / "w1_trained_fp32.onnx")
    plans = {precision: engine.build(bench_graphs.typed(fp32, precision, 0.25), backend="ort")
             for precision in ("fp32", "int8")}
    return {"by_precision": dict(bench_accuracy.mean_average_precision(plans))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("train", "engines", "accuracy"))
    parser.add_argument("weights", type=Path, help="safetensors, 124 MB: written by train, read by the others")
    parser.add_argument("--record", type=Path, nargs="?", const=data.DATASETS / "results", help="folder of the results")
    parser.add_argument("--limit-s", type=float, default=540.0, help="of train, all in all")
    parser.add_argument("--steps", type=int, help="of train; instead of as many as fit")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak of the cosine")
    parser.add_argument("--images", type=int, default=16_000, help="of the training split, 0.5 MB of memory each")
    parser.add_argument("--test-images", type=int, default=data.TEST_IMAGES)
    parser.add_argument("--start", type=Path, metavar="WEIGHTS", help="of train: put ReLU into these, and train on")
    parser.add_argument("--contest", type=int, default=0, metavar="BATCH", help="of engines: a batch beside PyTorch")
    parser.add_argument("--precisions", nargs="+", choices=bench_graphs.PRECISIONS, default=bench_graphs.PRECISIONS)
    parser.add_argument("--level", type=int, default=2, help="optimization level of the engines")
    args = parser.parse_args()
    if (args.start and args.part != "train") or (args.contest and args.part != "engines"):
        parser.error("--start is of train, --contest of engines")
    if args.start and (width := float(weights.read_weights(args.start)[1]["width"])) != WIDTH:
        parser.error(f"--start: got weights of width {width}, expected {WIDTH}")
    made_from = recorded.provenance(f"python tests/bench/full_width.py {shlex.join(sys.argv[1:])}")
    body = {"train": train, "engines": engines, "accuracy": accuracy}[args.part](args)
    sys.stdout.write(f"{body}\n")
    if args.record:
        gpu = recorded.gpu_model(made_from) or "cpu"
        relu = weights.activation(weights.read_weights(args.weights)[1]) == "relu"
        out = args.record / f"{args.part}_yolov3_w1{'relu' * relu}_{gpu}.json"
        recorded.write(out, {"provenance": made_from, **body})


if __name__ == "__main__":
    main()
