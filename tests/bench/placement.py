"""What the places of Q/DQ pairs cost: YOLOv3-416, width 1.0, on a GPU, as FP16 and as INT8 in several ways.

    python tests/bench/placement.py --record                # about 4 minutes; see OUT for the file
    python tests/bench/placement.py --record --batch 32 --level 1 3 --only fp16 "int8 both" "int8 both, blocks"

One engine after the other, since builders that share a GPU disturb each other's choice of kernels. "int8 convolutions
alone" has no pair at an Add; "int8 one pair" is the rule of TensorRT's guide for residual Adds, a pair on the shortcut
alone; "int8 both" what `trtkit.placement` does and `trtkit bench` measures, "stem fp16" has the first convolution in
FP16, "blocks" the stem of `trtkit.stem`. "with copies" keeps the Identity copies of shared biases that PyTorch's
exporter writes for fresh weights.
Builder and inspector are called directly, since `backend_trt` would refuse some of these engines.
"""

import argparse
import itertools
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx

from trtkit import cuda, export, half, models, placement, precision, qdq, recorded
from trtkit.backend_trt import keep_kernels
from trtkit.calib import Range
from trtkit.stem import stem_to_depth
from trtkit.trt_plan import LOGGER, trt

OUT = "placement_yolov3_{gpu}{batch}.json"       # in datasets/results; batch: "_b32" and so on, "" for 1
RUNS = 300
ENGINES = ("fp16", "int8 one pair, with copies", "int8 both, with copies", "int8 both", "int8 both, stem fp16",
           "int8 convolutions alone", "fp16, blocks", "int8 both, blocks", "int8 both, blocks fp16")


def graphs(folder: Path) -> dict[str, Callable[[], onnx.ModelProto]]:
    """By name, each made when it is asked for; the ranges are any, since a kernel's time does not depend on them."""
    import torch

    torch.manual_seed(0)
    model = models.YOLOv3(80, 1.0).eval()
    with patch.object(export, "fold_identities", lambda graph: None):
        copies = onnx.load(export.export_onnx(model, folder / "copies.onnx"))
    folded = onnx.load(export.export_onnx(model, folder / "folded.onnx"))

    def int8(graph: onnx.ModelProto, *, both: bool, copied: bool = False, adds: bool = True,
             stem: bool = True) -> onnx.ModelProto:
        table = {name: Range(-4.0, 4.0) for name in qdq.activation_names(graph)}
        skip = [*qdq.head_convs(graph), *([] if stem else qdq.conv_names(graph)[:1])]
        with ExitStack() as stack:
            if not both:
                stack.enter_context(patch.object(placement, "behind_activation", lambda *_: False))
            if not adds:
                stack.enter_context(patch.object(placement, "_shortcut", lambda *_: -1))
            if copied:
                stack.enter_context(patch.object(qdq, "fold_identities", lambda graph: None))
            return qdq.insert_qdq(graph, table, target="trt", skip=skip, rest="fp16")

    blocks = stem_to_depth(folded)
    return {
        "fp16": partial(half.to_fp16, folded),
        "int8 one pair, with copies": partial(int8, copies, both=False, copied=True),
        "int8 both, with copies": partial(int8, copies, both=True, copied=True),
        "int8 both": partial(int8, folded, both=True),
        "int8 both, stem fp16": partial(int8, folded, both=True, stem=False),
        "int8 convolutions alone": partial(int8, folded, both=False, adds=False),
        "fp16, blocks": partial(half.to_fp16, blocks),
        "int8 both, blocks": partial(int8, blocks, both=True),
        "int8 both, blocks fp16": partial(int8, blocks, both=True, stem=False),
    }


def measured(model: onnx.ModelProto, batch: int, level: int) -> dict:
    """Build and time one engine, and count its layers."""
    shape = (batch, 3, 416, 416)
    start = time.perf_counter()
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, LOGGER)
    assert parser.parse(model.SerializeToString())
    settings = builder.create_builder_config()
    settings.builder_optimization_level = level
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    settings.set_tactic_sources(1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS)
                                | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS))
    for flag, wanted in (("INT8", precision.has_quantized(model)), ("FP16", precision.has_half(model))):
        if wanted:
            settings.set_flag(getattr(trt.BuilderFlag, flag))
    profile = builder.create_optimization_profile()
    profile.set_shape("images", shape, shape, shape)
    settings.add_optimization_profile(profile)
    engine = trt.Runtime(LOGGER).deserialize_cuda_engine(builder.build_serialized_network(network, settings))
    build_s = time.perf_counter() - start
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(told)["Layers"]
    enqueue_ms, graph_ms = times(engine, shape)
    return {"level": level, "build_s": round(build_s, 1), "eager_ms": enqueue_ms, "graph_ms": graph_ms,
            "layers": len(layers), "types": Counter(layer["LayerType"] for layer in layers), **convolutions(layers)}


def convolutions(layers: list[dict]) -> dict:
    """How many convolutions compute in which type, with kernels made for which generation of GPUs, and how many read
    their bias as a tensor."""
    found = [layer for layer in layers if "Conv" in layer["LayerType"]]
    return {"convolutions": Counter("".join(precision.reads(layer)) for layer in found),
            "kernels": Counter(layer.get("TacticName", "").split("_")[0] for layer in found),
            "dynamic_biases": sum(layer.get("HasDynamicBias", 0) for layer in found)}


def times(engine, shape: tuple[int, ...]) -> tuple[float, float]:
    """Median device time of an enqueue and of a graph replay, ms."""
    context = engine.create_execution_context()
    context.set_input_shape("images", shape)
    with cuda.Stream() as stream, cuda.Event() as begin, cuda.Event() as end, ExitStack() as stack:
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            size = int(np.prod(tuple(context.get_tensor_shape(name)))) * 4
            context.set_tensor_address(name, stack.enter_context(cuda.DeviceBuffer(size)).ptr)

        def median(run) -> float:
            found = []
            for _ in range(RUNS + 50):
                begin.record(stream)
                run()
                end.record(stream)
                end.synchronize()
                found.append(end.elapsed_ms(begin))
            return round(float(np.median(found[50:])), 4)

        enqueue_ms = median(lambda: context.execute_async_v3(stream.handle))
        with cuda.capture(stream) as graph:
            context.execute_async_v3(stream.handle)
        return enqueue_ms, median(lambda: graph.launch(stream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, nargs="?", const=recorded.RESULTS, help="folder of the results")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--level", type=int, nargs="+", default=[2], help="the builder's optimization levels, 0 to 5")
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="ENGINE")
    args = parser.parse_args()
    made_from = recorded.provenance(f"python tests/bench/placement.py {shlex.join(sys.argv[1:])}".strip())
    body = {"provenance": made_from, "batch": args.batch, "runs": RUNS, "engines": {}}
    with cuda.primary_context(), tempfile.TemporaryDirectory() as folder:
        kernels = keep_kernels()                # else each build loads them anew
        made = graphs(Path(folder))
        for level, name in itertools.product(args.level, args.only):
            key = name if len(args.level) == 1 else f"{name}, level {level}"
            body["engines"][key] = measured(made[name](), args.batch, level)
            print(key, body["engines"][key], flush=True)
            if args.record:
                gpu = recorded.gpu_model(made_from)
                out = OUT.format(gpu=gpu, batch=f"_b{args.batch}" if args.batch > 1 else "")
                recorded.write(args.record / out, body)
        del kernels                             # while its context is there


if __name__ == "__main__":
    main()
