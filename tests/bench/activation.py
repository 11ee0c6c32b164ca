"""What LeakyReLU costs an INT8 engine: YOLOv3-416, width 1.0, as it is, with the pair before LeakyReLU, with ReLU.

    python tests/bench/activation.py --record                   # about 8 minutes at level 1; --level 3: about 30
    python tests/bench/activation.py --record --only split --level 3 --contest      # and PyTorch beside it

TensorRT fuses LeakyReLU into the convolution, but 8.6's fast INT8 kernels end in a ReLU or in nothing; the ones that
can do more take up to four times as long (level 1). "relu" is the same graph with other activations: another network,
which would have to be trained, but its time tells. "early" keeps the network: where LeakyReLU goes into an Add, the
Q/DQ pair stands before it, so that the convolution writes codes at once and the Add's kernel, which reads them anyhow,
does the LeakyReLU on the way. "split" puts a pair before every other LeakyReLU of a convolution larger than 1x1, too,
if one stands behind it: a kernel more, which only reads and writes codes. "blocks" has the stem of `stem.py` besides.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from stem import DEPTH, stem_to_depth

from trtkit import bench, bench_graphs, bench_speed, cache, engine, qdq, recorded, weights
from trtkit.engine import BuildConfig
from trtkit.wiring import Wiring, wiring

OUT = "activation_yolov3_{gpu}.json"            # in datasets/results
GRAPHS = ("leaky", "relu", "early", "split", "blocks", "early, blocks", "split, blocks")


def with_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with ReLU for each LeakyReLU."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights.use_relu(changed.graph)
    return changed


def early_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose pairs between a LeakyReLU and an Add stand before the LeakyReLU.

    The scale stays: the largest value is the same on both sides, and of the numbers below its negative, which are
    clipped now, LeakyReLU would leave a tenth. Between 0 and there the codes are ten times as fine as before.

    Args:
        model: of `qdq.insert_qdq(..., target="trt")`.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    wires = wiring(changed)
    behind: dict[str, onnx.NodeProto] = {}          # output of a pair -> the LeakyReLU that reads it now
    for add in (n for n in wires.nodes if n.op_type == "Add"):
        for i, name in enumerate(add.input):
            dq = wires.writer.get(name)
            q = wires.writer.get(dq.input[0]) if dq is not None and dq.op_type == "DequantizeLinear" else None
            leaky = wires.writer.get(q.input[0]) if q is not None else None
            alone = all(len(wires.readers[n.output[0]]) == 1 for n in (leaky, q, dq) if n is not None)
            if leaky is not None and leaky.op_type == "LeakyRelu" and alone:
                q.input[0], leaky.input[0], add.input[i] = leaky.input[0], name, leaky.output[0]
                behind[name] = leaky
    ordered = []                                    # writers before readers
    for node in wires.nodes:
        if node.op_type != "LeakyRelu" or node.input[0] not in behind:
            ordered += [node, behind[node.output[0]]] if node.output[0] in behind else [node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del changed.graph.node[:]
    changed.graph.node.extend(copies)
    onnx.checker.check_model(changed)
    return changed


def split_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with a second pair, of the same scale, before each LeakyReLU between a convolution and a pair.

    The same scale changes no code above zero. Convolutions of 1x1 keep their LeakyReLU: they have too little to do for
    a kernel more to pay.

    Args:
        model: of `early_pairs`, where those before an Add are done.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    wires, nodes = wiring(changed), []
    for node in wires.nodes:
        conv = wires.writer.get(node.input[0]) if node.op_type == "LeakyRelu" else None
        behind = wires.readers.get(node.output[0], [])
        if (conv is not None and conv.op_type == "Conv" and _quantized(wires, conv) and _size(wires, conv) > 1
                and len(wires.readers[conv.output[0]]) == 1 and [n.op_type for n in behind] == ["QuantizeLinear"]):
            source, codes, number = (f"{conv.output[0]}{end}" for end in ("", "_codes", "_dq"))
            parameters = behind[0].input[1:]
            nodes += [helper.make_node("QuantizeLinear", [source, *parameters], [codes], codes),
                      helper.make_node("DequantizeLinear", [codes, *parameters], [number], number)]
            node.input[0] = number
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del changed.graph.node[:]
    changed.graph.node.extend(copies)
    onnx.checker.check_model(changed)
    return changed


PAIRS = {"early": early_pairs, "split": lambda model: split_pairs(early_pairs(model))}


def _quantized(wires: Wiring, conv: onnx.NodeProto) -> bool:
    return all(wires.writer_type(name) == "DequantizeLinear" for name in conv.input[:2])


def _size(wires: Wiring, conv: onnx.NodeProto) -> int:
    """Of the kernel, in pixels."""
    return int(np.prod(wires.constants[wires.writer[conv.input[1]].input[0]].shape[2:]))


def int8_blocks(width: float, work: Path) -> onnx.ModelProto:
    """`bench_graphs.graph(width, "int8", work)` with the stem on blocks, in 8 bits as well."""
    fp32 = bench_graphs.graph(width, "fp32", work)
    model = stem_to_depth(onnx.load(fp32))
    table = dict(bench_graphs.table(fp32, width))
    table[DEPTH] = table["images"]
    return qdq.insert_qdq(model, table, target="trt", skip=qdq.head_convs(model), rest="fp16")


def graphs(width: float, work: Path) -> dict:
    """Makers of `GRAPHS`."""
    def plain():
        return onnx.load(bench_graphs.graph(width, "int8", work))

    def blocks():
        return int8_blocks(width, work)

    return {"leaky": plain, "relu": lambda: with_relu(plain()), "early": lambda: early_pairs(plain()),
            "split": lambda: PAIRS["split"](plain()), "blocks": blocks,
            "early, blocks": lambda: early_pairs(blocks()), "split, blocks": lambda: PAIRS["split"](blocks())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, nargs="?", const=recorded.RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder of graphs and random weights")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--level", type=int, default=1, help="the builder's optimization level, 0 to 5")
    parser.add_argument("--only", nargs="+", choices=GRAPHS, default=GRAPHS, metavar="GRAPH", help=f"of {GRAPHS}")
    parser.add_argument("--contest", action="store_true", help="PyTorch beside them, in the same process")
    args = parser.parse_args()
    made_from = recorded.provenance(f"python tests/bench/activation.py {shlex.join(sys.argv[1:])}".strip())
    out = args.record / OUT.format(gpu=recorded.gpu_model(made_from)) if args.record else None
    body = {"provenance": made_from}
    if out and out.is_file():
        body = bench.merged(out, made_from)     # refuses before the device's time is spent
    args.work.mkdir(parents=True, exist_ok=True)
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
    for name, times in found.items():
        if name in plans:
            times["layers"] = bench_speed.layers(plans[name], batch=args.batch, runs=20)
        body = bench.add(body, f"b{args.batch} level {args.level}{', contest' * args.contest}", name, times, made_from)
    if out:
        recorded.write(out, body)


if __name__ == "__main__":
    main()
