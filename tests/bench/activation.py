"""What LeakyReLU costs an INT8 engine: YOLOv3-416, width 1.0, with the Q/DQ pair behind and before it, and with ReLU.

    python tests/bench/activation.py --record                   # about 8 minutes at level 1; --level 3: about 30
    python tests/bench/activation.py --record --only split --level 3 --contest      # and PyTorch beside it
    python tests/bench/activation.py --record --accuracy        # any machine: mAP of the quarter width, ONNX Runtime

TensorRT fuses LeakyReLU into the convolution, but 8.6's fast INT8 kernels end in a ReLU or in nothing; the ones that
can do more take up to four times as long (level 1). "leaky" has every pair behind the LeakyReLU, as NVIDIA
advises. "relu" is that graph with other activations: another network, which would have to be trained, but its time
tells. "early" keeps the network: where LeakyReLU goes into an Add, the pair stands before it, so that the convolution
writes codes at once and the Add's kernel, which reads them anyhow, does the LeakyReLU on the way. "split" is what
`trtkit.placement` does: a pair of the same scale before every other LeakyReLU of a convolution larger than 1x1, too, if
one stands behind it. "all" has those of 1x1 as well. Besides: "stem" has the first convolution in 8 bits, "blocks" has
it so, too, and on blocks, as `trtkit.stem` does it; "heads" has the last convolutions in 8 bits. Else these are FP16.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import onnx

from trtkit import (
    bench,
    bench_accuracy,
    bench_graphs,
    bench_speed,
    cache,
    engine,
    placement,
    planted,
    qdq,
    recorded,
    weights,
)
from trtkit.engine import BuildConfig
from trtkit.stem import DEPTH, stem_to_depth

OUT = "activation_yolov3_{gpu}.json"            # in datasets/results
ACCURACY = "activation_yolov3_w025_cpu.json"
STEMS = ("", "stem", "blocks")                  # FP16; INT8; INT8 on blocks
KINDS = ("leaky", "relu", "early", "split", "all")
GRAPHS = {", ".join(filter(None, parts)): parts for parts in itertools.product(KINDS, STEMS, ("", "heads"))}


def with_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with ReLU for each LeakyReLU."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights.use_relu(changed.graph)
    return changed


def int8(width: float, work: Path, *, stem: str = "", heads: bool = False) -> onnx.ModelProto:
    """`bench_graphs.graph(width, "int8", work)`, if `stem` is "stem"; with another of `STEMS`, or heads in 8 bits."""
    fp32 = bench_graphs.graph(width, "fp32", work)
    model, table = onnx.load(fp32), bench_graphs.table(fp32, width)
    if stem == "blocks":
        model, table = stem_to_depth(model), {**table, DEPTH: table["images"]}
    skip = [] if heads else qdq.head_convs(model)
    if not stem:
        skip.append(qdq.conv_names(model)[0])
    return qdq.insert_qdq(model, table, target="trt", skip=skip, rest="fp16")


def graphs(width: float, work: Path) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Makers of `GRAPHS`."""
    larger = {"early": lambda *_: False, "all": lambda *_: True}

    def make(kind: str, stem: str, heads: str) -> onnx.ModelProto:
        with patch.object(placement, "larger_than_1x1", larger.get(kind, placement.larger_than_1x1)):
            model = int8(width, work, stem=stem, heads=bool(heads))
        if kind in ("leaky", "relu"):
            model = planted.pairs_behind_leaky_relus(model)
        return with_relu(model) if kind == "relu" else model

    return {name: partial(make, *parts) for name, parts in GRAPHS.items()}


def accuracy(work: Path, only: Sequence[str]) -> dict:
    """mAP of the trained quarter width: in FP32, and of its INT8 graphs but for those with ReLU, which is not trained.
    """
    makers = graphs(0.25, work)
    plans = {"fp32": engine.build(bench_graphs.graph(0.25, "fp32", work), backend="ort")}
    for name in (name for name in only if "relu" not in name):
        path = work / f"accuracy_{name.replace(', ', '_')}.onnx"
        onnx.save(makers[name](), path)
        plans[name] = engine.build(path, backend="ort")
    return dict(bench_accuracy.mean_average_precision(plans))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, nargs="?", const=recorded.RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder of graphs and random weights")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--level", type=int, default=1, help="the builder's optimization level, 0 to 5")
    parser.add_argument("--timings", type=int, default=1, help="how often the builder times each kernel")
    parser.add_argument("--streams", type=int, help="beside the main one; else as TensorRT likes")
    parser.add_argument("--only", nargs="+", choices=GRAPHS, default=KINDS[:4], metavar="GRAPH",
                        help=f"of {', '.join(map(repr, GRAPHS))}")
    parser.add_argument("--contest", action="store_true", help="PyTorch beside them, in the same process")
    parser.add_argument("--accuracy", action="store_true", help="mAP instead of times")
    args = parser.parse_args()
    made_from = recorded.provenance(f"python tests/bench/activation.py {shlex.join(sys.argv[1:])}".strip())
    args.work.mkdir(parents=True, exist_ok=True)
    if args.accuracy:
        found = accuracy(args.work, args.only)
        for name, scored in found.items():
            sys.stdout.write(f"{name}: mAP50 {scored['map50']}, mAP50-95 {scored['map50_95']}\n")
        if args.record:
            recorded.write(args.record / ACCURACY, {"provenance": made_from, "by_graph": found})
        return
    out = args.record / OUT.format(gpu=recorded.gpu_model(made_from)) if args.record else None
    body = {"provenance": made_from}
    if out and out.is_file():
        body = bench.merged(out, made_from)     # refuses before the device's time is spent
    makers, plans = graphs(1.0, args.work), {}
    config = BuildConfig(batch=(args.batch,) * 3, optimization_level=args.level, timing_iterations=args.timings,
                         aux_streams=args.streams)
    with engine.kept_builder():
        for name in args.only:
            path = args.work / f"activation_{name.replace(', ', '_')}.onnx"
            onnx.save(makers[name](), path)
            plans[name] = engine.build(path, config, backend="trt")
            sys.stdout.write(f"{name}: built in {cache.sidecar(plans[name])['build_s']} s\n")
            sys.stdout.flush()
    if args.contest:
        found = bench_speed.contest(plans, bench_graphs.weights_file(1.0, args.work), args.batch)
        found = {name.removeprefix("tensorrt "): times for name, times in found.items()}
    else:
        found = bench_speed.engines(plans, args.batch)
    for name, times in found.items():
        sys.stdout.write(f"{name}: {times['median_ms']} ms, {times['images_per_s']} images/s\n")
    sys.stdout.flush()
    part = f"b{args.batch} level {args.level}"
    part += f", timed {args.timings}x" if args.timings > 1 else ""
    part += f", {args.streams} streams" if args.streams is not None else ""
    # A contest is named by its engines, so that each stays beside the PyTorch that it was measured with.
    part += f", contest of {' | '.join(plans)}" if args.contest else ""
    for name, times in found.items():
        if name in plans and not args.streams:      # with streams TensorRT tells no times of layers
            times["layers"] = bench_speed.layers(plans[name], batch=args.batch, runs=20)
        body = bench.add(body, part, name, times, made_from)
    if out:
        recorded.write(out, body)


if __name__ == "__main__":
    main()
