"""The graphs whose engines `tests/bench/activation.py` compares."""

import sys
from pathlib import Path

import numpy as np
import onnx
from test_qdq_leaky import residual, run

from trtkit import bench_graphs
from trtkit.wiring import wiring

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from activation import GRAPHS, KINDS, graphs, with_relu


def test_with_relu_changes_the_activation_alone():
    model = with_relu(residual())
    x = np.random.default_rng(1).uniform(-1.9, 1.9, (1, 4, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(residual("Relu"), x), atol=1e-6)
    assert not any(n.op_type == "LeakyRelu" for n in model.graph.node)


def _behind_a_pair(model: onnx.ModelProto) -> int:
    wires = wiring(model)
    leakies = [n for n in wires.nodes if n.op_type == "LeakyRelu"]
    return sum(wires.writer_type(n.input[0]) == "DequantizeLinear" for n in leakies)


def test_every_graph_of_the_quarter_width_is_made(tmp_path):
    makers = graphs(0.25, tmp_path)
    assert tuple(makers) == tuple(GRAPHS)
    models = {name: makers[name]() for name in GRAPHS}
    assert len({model.SerializeToString(deterministic=True) for model in models.values()}) == len(GRAPHS) == 30
    for model in models.values():
        onnx.checker.check_model(model)         # every tensor that is read is there
    nodes = {name: [n.op_type for n in model.graph.node] for name, model in models.items()}
    assert {nodes[name].count("LeakyRelu") for name, (kind, *_) in GRAPHS.items() if kind != "relu"} == {72}
    assert {nodes[name].count("LeakyRelu") for name, (kind, *_) in GRAPHS.items() if kind == "relu"} == {0}
    assert [name for name in GRAPHS if "SpaceToDepth" in nodes[name]] == [n for n in GRAPHS if "blocks" in n]
    halves = {name: sum(i.data_type == onnx.TensorProto.FLOAT16 and len(i.dims) == 4 for i in model.graph.initializer)
              for name, model in models.items()}
    assert halves == {name: (not stem) + 3 * (not heads) for name, (_, stem, heads) in GRAPHS.items()}
    # Of the 52 convolutions in the backbone, 3x3 but for 23: 23 go into an Add, the stem is float, 5 halve. In the
    # heads: two 3x3 of each three, and none that a float predict reads. A pair at an Add moves, and is no new one.
    split = {name: _behind_a_pair(model) for name, model in models.items()}
    assert {kind: split[kind] for kind in KINDS[:4]} == {"leaky": 0, "relu": 0, "early": 23, "split": 23 + 5 + 6}
    assert split["all"] > split["split"] + 23
    for name, (kind, stem, heads) in GRAPHS.items():        # the stem's own, and the one before each predict
        more = bool(stem) + 3 * bool(heads) if kind in ("split", "all") else 0
        assert split[name] == split[kind] + more, name
    assert models["split, stem"] == onnx.load(bench_graphs.graph(0.25, "int8", tmp_path))   # what is measured elsewhere
    pairs = {name: nodes[name].count("QuantizeLinear") for name in GRAPHS}
    assert pairs["leaky"] == pairs["early"] == pairs["split"] - 11
