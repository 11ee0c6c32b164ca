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
one stands behind it. "all" has those of 1x1 as well. "blocks" has the stem of `trtkit.stem` besides.
"""

import argparse
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
GRAPHS = ("leaky", "relu", "early", "split", "all", "blocks", "early, blocks", "split, blocks", "all, blocks")


def with_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with ReLU for each LeakyReLU."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights.use_relu(changed.graph)
    return changed


def int8_blocks(width: float, work: Path) -> onnx.ModelProto:
    """`bench_graphs.graph(width, "int8", work)` with the stem on blocks, in 8 bits as well."""
    fp32 = bench_graphs.graph(width, "fp32", work)
    model = stem_to_depth(onnx.load(fp32))
    table = dict(bench_graphs.table(fp32, width))
    table[DEPTH] = table["images"]
    return qdq.insert_qdq(model, table, target="trt", skip=qdq.head_convs(model), rest="fp16")


def graphs(width: float, work: Path) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Makers of `GRAPHS`."""
    def with_pairs(kind: str, make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
        if kind in ("leaky", "relu"):
            model = planted.pairs_behind_leaky_relus(make())
            return with_relu(model) if kind == "relu" else model
        with patch.object(placement, "larger_than_1x1", {"early": lambda *_: False, "all": lambda *_: True}.get(
                kind, placement.larger_than_1x1)):
            return make()

    def plain() -> onnx.ModelProto:
        return onnx.load(bench_graphs.graph(width, "int8", work))

    stems = {"": plain, ", blocks": lambda: int8_blocks(width, work)}
    makers = {kind + stem: partial(with_pairs, kind, make) for stem, make in stems.items()
              for kind in ("leaky", "relu", "early", "split", "all")}
    return {name: makers["leaky, blocks" if name == "blocks" else name] for name in GRAPHS}


def accuracy(work: Path, only: Sequence[str]) -> dict:
    """mAP of the trained quarter width: in FP32, and of its INT8 graphs but for "relu", which is not trained."""
    makers = graphs(0.25, work)
    plans = {"fp32": engine.build(bench_graphs.graph(0.25, "fp32", work), backend="ort")}
    for name in (name for name in only if name != "relu"):
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
    parser.add_argument("--only", nargs="+", choices=GRAPHS, default=GRAPHS, metavar="GRAPH", help=f"of {GRAPHS}")
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
    config = BuildConfig(batch=(args.batch,) * 3, optimization_level=args.level)
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
    # A contest is named by its engines, so that each stays beside the PyTorch that it was measured with.
    part = f"b{args.batch} level {args.level}" + (f", contest of {' | '.join(plans)}" if args.contest else "")
    for name, times in found.items():
        if name in plans:
            times["layers"] = bench_speed.layers(plans[name], batch=args.batch, runs=20)
        body = bench.add(body, part, name, times, made_from)
    if out:
        recorded.write(out, body)


if __name__ == "__main__":
    main()
