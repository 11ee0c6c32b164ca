"""What one image costs on a GPU: YOLOv3-416, width 1.0, as several graphs, built in several ways, beside PyTorch.

    python tests/bench/latency.py --record
    python tests/bench/latency.py --record --part streams --only fp16 --streams auto 0 2 4 --no-compile

All engines of a run are measured in turn, in one process with PyTorch; torch.compile comes in a process of its own on
the same machine. "blocks" has the stem of `trtkit.stem`; "stem" has it in 8 bits, "heads" the last convolutions, too.
"half interface" takes and gives FP16, as torch.compile's network does. "one" has the batch size in the graph, not in a
profile. "relu" is another network, which tells what LeakyReLU costs.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
from activation import int8, with_relu

from trtkit import bench, bench_graphs, bench_speed, cache, engine, half, models, recorded
from trtkit.engine import BuildConfig
from trtkit.stem import stem_to_depth

OUT = "latency_yolov3_{gpu}.json"                # in datasets/results
MODE = "reduce-overhead"                        # of torch.compile: with CUDA graphs
GRAPHS = ("fp16", "fp16, one", "fp16, blocks", "fp16, half interface", "fp16, relu", "int8", "int8, blocks",
          "int8, stem", "int8, stem, heads")


def graphs(width: float, work: Path) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Makers of `GRAPHS`."""
    def fp32() -> onnx.ModelProto:
        return onnx.load(bench_graphs.graph(width, "fp32", work))

    def fp16(change: Callable = lambda model: model) -> onnx.ModelProto:
        return half.to_fp16(change(fp32()))

    return {
        "fp16": fp16,
        "fp16, one": lambda: fp16(fixed),
        "fp16, blocks": lambda: fp16(stem_to_depth),
        "fp16, half interface": lambda: half_interface(fp16()),
        "fp16, relu": lambda: fp16(with_relu),
        "int8": lambda: int8(width, work),
        "int8, blocks": lambda: int8(width, work, stem="blocks"),
        "int8, stem": lambda: int8(width, work, stem="stem"),
        "int8, stem, heads": lambda: int8(width, work, stem="stem", heads=True),
    }


def fixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, in place, with one image at its interface instead of any number."""
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return model


def half_interface(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph of `half.to_fp16` without the Casts at its inputs and outputs: these are FP16 as well."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    inputs, outputs = {x.name for x in graph.input}, {y.name for y in graph.output}
    casts = [n for n in graph.node if n.op_type == "Cast" and (n.input[0] in inputs or n.output[0] in outputs)]
    renamed = {n.output[0]: n.input[0] for n in casts if n.input[0] in inputs}
    renamed |= {n.input[0]: n.output[0] for n in casts if n.output[0] in outputs}
    for node in casts:
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.checker.check_model(changed)
    return changed


def _streams(text: str) -> int | None:
    return None if text == "auto" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, nargs="?", const=recorded.RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder of graphs and random weights")
    parser.add_argument("--part", default="all", help="name of this run in the file")
    parser.add_argument("--only", nargs="+", choices=GRAPHS, default=GRAPHS, metavar="GRAPH", help=f"of {GRAPHS}")
    parser.add_argument("--level", type=int, nargs="+", default=[2], help="the builder's optimization levels, 0 to 5")
    parser.add_argument("--timings", type=int, nargs="+", default=[1], help="how often the builder times each kernel")
    parser.add_argument("--streams", type=_streams, nargs="+", default=[None], metavar="N",
                        help="streams beside the main one; auto: as TensorRT likes")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile as well")
    parser.add_argument("--compile-python", default="python3.12", help="with torch and Triton")
    args = parser.parse_args()
    made_from = recorded.provenance(f"python tests/bench/latency.py {shlex.join(sys.argv[1:])}".strip())
    out = args.record / OUT.format(gpu=recorded.gpu_model(made_from)) if args.record else None
    body = {"provenance": made_from}
    if out and out.is_file():
        body = bench.merged(out, made_from)     # refuses before the device's time is spent
    args.work.mkdir(parents=True, exist_ok=True)
    makers, plans, facts = graphs(1.0, args.work), {}, {}
    with engine.kept_builder():
        paths = {name: args.work / f"latency_{name.replace(', ', '_').replace(' ', '_')}.onnx" for name in args.only}
        for name, path in paths.items():
            onnx.save(makers[name](), path)
        for name, level, timings, streams in itertools.product(paths, args.level, args.timings, args.streams):
            config = BuildConfig(batch=(1, 1, 1), optimization_level=level, timing_iterations=timings,
                                 aux_streams=streams)
            key = f"{name}; level {level}, timed {timings}x, {'auto' if streams is None else streams} streams"
            plans[key] = engine.build(paths[name], config, backend="trt")
            built = cache.sidecar(plans[key])
            facts[key] = {"graph": name, "level": level, "timings": timings, "streams": streams,
                          "build_s": built["build_s"], "layers": len(built["layers"])}
            sys.stdout.write(f"{key}: built in {built['build_s']} s\n")
            sys.stdout.flush()
    found = bench_speed.contest(plans, bench_graphs.weights_file(1.0, args.work), 1, rounds=8, duration_s=1.0)
    found = {name.removeprefix("tensorrt "): times for name, times in found.items()}
    if args.compile:
        classes = models.load_weights(bench_graphs.weights_file(1.0, args.work)).num_classes
        compiled = bench_speed.compiled(args.compile_python, 1.0, classes, "fp16", batches=[1], rounds=8, turn_s=0.2,
                                        modes=[MODE])
        found |= {f"torch.compile fp16 {MODE}": times for _, times in compiled}
    for name, times in found.items():
        if name in plans:
            times |= facts[name]
            if "relu" in name:
                del times["max_rel_error"]          # another network than PyTorch's
            if not facts[name]["streams"]:          # else TensorRT tells no times of layers
                times["kernels"] = bench_speed.layers(plans[name], batch=1)
        body = bench.add(body, args.part, name, times, made_from)
        sys.stdout.write(f"{name}: {times['median_ms']} ms, {times.get('max_rel_error', '')}\n")
    if out:
        recorded.write(out, body)


if __name__ == "__main__":
    main()
