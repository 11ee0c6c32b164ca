import os
import threading
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from threadpoolctl import threadpool_info
from torch.utils.flop_counter import FlopCounterMode

from trtkit import roofline
from trtkit.costs import by_layer, costs, fused
from trtkit.devices import DEVICES, Device
from trtkit.export import export_onnx
from trtkit.roofline import attainable_ms, conv_macs, matmul_macs

BOX = Device("box", {"fp32": 1.0, "fp16": 4.0}, 100.0)      # 1e12 operations and 1e11 bytes a second


def graph(nodes, inputs: dict, weights: dict, outputs: list) -> onnx.ModelProto:
    """A model; shapes of inputs and weights by name."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    constants = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    made = helper.make_graph(nodes, "g", values, results, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])


# The two roofs


def test_a_layer_takes_the_longer_of_compute_and_memory():
    assert attainable_ms(5e8, 0, BOX) == pytest.approx(1.0)             # 1e9 operations at 1e12 a second
    assert attainable_ms(0, 1e8, BOX) == pytest.approx(1.0)
    assert attainable_ms(5e8, 3e8, BOX) == pytest.approx(3.0)
    assert attainable_ms(5e8, 1, BOX, "fp16") == pytest.approx(0.25)


@given(st.floats(1, 1e12), st.floats(1, 1e12), st.sampled_from(["fp32", "fp16"]))
def test_the_ridge_separates_compute_from_memory(macs, moved, precision):
    compute_ms = attainable_ms(macs, 0, BOX, precision)
    bound_by_compute = attainable_ms(macs, moved, BOX, precision) <= compute_ms * (1 + 1e-9)
    intensity = 2 * macs / moved
    if abs(intensity / BOX.ridge(precision) - 1) > 1e-6:
        assert bound_by_compute == (intensity > BOX.ridge(precision))


def test_yolov3_at_its_floor_on_an_h100():
    # 65.864 GFLOP at 989.4 TFLOP/s
    h100 = DEVICES["NVIDIA H100 80GB HBM3"]
    assert attainable_ms(65.864e9 / 2, 0, h100, "fp16") == pytest.approx(0.0666, rel=2e-3)


def test_bad_work_is_refused():
    with pytest.raises(ValueError, match=r"got 'int4', expected one of \['fp16', 'fp32'\] on box"):
        attainable_ms(1, 1, BOX, "int4")
    with pytest.raises(ValueError, match="got -1 multiply-adds"):
        attainable_ms(-1, 1, BOX)


def test_the_cpu_is_as_fast_as_its_best_run(monkeypatch):
    calls = []

    def best(run, repeats):
        run()
        calls.append(repeats)
        return 0.5 if len(calls) == 4 else 0.25 if len(calls) == 3 else 9.0      # ms; odd calls are products
    monkeypatch.setattr(roofline, "_best_ms", best)
    device = roofline.measured_cpu(size=64, copy_mib=2, turns=3)
    cores = len(os.sched_getaffinity(0))                # a product on each
    assert device.peak_tflops == {"fp32": pytest.approx(cores * 2 * 64**3 / 0.25e-3 / 1e12)}
    assert device.bandwidth_gb_per_s == pytest.approx(2 * 2 * 2**20 / 0.5e-3 / 1e9, rel=1e-4)
    assert calls == [10, 5] * 3


def test_every_core_multiplies_for_itself_and_the_products_are_right(monkeypatch):
    seen = []

    def multiplied(a, b, out):
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
        seen.append((threading.get_ident(), np.dot(a, b, out=out)[0, 0]))

    monkeypatch.setattr(roofline.np, "matmul", multiplied)
    roofline.measured_cpu(size=64, copy_mib=2, turns=1)
    assert len(seen) == 11 * len(os.sched_getaffinity(0)) and {value for _, value in seen} == {64.0}
    assert threading.get_ident() not in {thread for thread, _ in seen}


def test_the_first_run_does_not_count(monkeypatch):
    durations = iter([0.001, 0.005, 0.003, 0.004])
    now = [0.0]
    monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run():
        now[0] += next(durations)
    assert roofline._best_ms(run, 3) == pytest.approx(3.0)


# Multiply-adds


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 2), st.sampled_from([1, 2]))
def test_conv_macs_are_the_multiplications_of_the_definition(batch, channels, kernel, stride, groups):
    """Count them with a convolution of ones, without padding: every output number is the sum of its products."""
    c_in, c_out = channels * groups, 2 * groups
    with torch.no_grad():
        y = torch.nn.functional.conv2d(torch.ones(batch, c_in, 7, 6), torch.ones(c_out, channels, kernel, kernel),
                                       stride=stride, groups=groups)
    assert conv_macs(c_in, c_out, (kernel, kernel), tuple(y.shape[2:]), batch=batch, groups=groups) == int(y.sum())


def test_matmul_macs():
    assert matmul_macs(2, 3, 5, batch=7) == 7 * 2 * 3 * 5


# A graph's costs


def test_costs_equal_pytorchs_flop_counter(small_yolo, yolo_graph):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small_yolo(torch.zeros(2, 3, 96, 96))
    assert 2 * sum(c.macs for c in costs(onnx.load(yolo_graph), batch=2)) == counter.get_total_flops()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_costs_of_transposed_and_matrix_operators_equal_pytorchs(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
            self.linear = torch.nn.Linear(7, 5)

        def forward(self, x):
            y = self.linear(self.up(x).flatten(1)[:, :7])
            return y @ y.T

    net, x = Net().eval(), torch.zeros(3, 4, 5, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=False, opset_version=17)
    found = costs(onnx.load(tmp_path / "net.onnx"))
    assert {"ConvTranspose", "Gemm", "MatMul"} <= {c.op for c in found}
    assert 2 * sum(c.macs for c in found) == counter.get_total_flops()


def test_bytes_are_those_of_every_tensor_once():
    x, w, half = (1, 4, 8, 8), (6, 4, 3, 3), TensorProto.FLOAT16
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["y"], ["z"], "cast", to=half),
    ]
    conv, cast = costs(graph(nodes, {"x": x}, {"w": w, "b": (6,)}, ["z"]))
    assert (conv.weight_bytes, dict(conv.inputs), dict(conv.outputs)) == (4 * 222, {"x": 1024}, {"y": 1536})
    assert conv.bytes_moved == 888 + 1024 + 1536
    assert conv.intensity == 2 * 64 * 6 * 36 / conv.bytes_moved
    assert (dict(cast.inputs), dict(cast.outputs), cast.macs) == ({"y": 1536}, {"z": 768}, 0)


def test_what_stays_inside_a_fused_kernel_moves_no_bytes():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("Sigmoid", ["a"], ["b"], "second"),
        helper.make_node("Add", ["b", "a"], ["c"], "third"),
    ]
    parts = costs(graph(nodes, {"x": (1, 8)}, {}, ["c"]))
    whole = fused(parts, "all", set())
    assert (whole.op, dict(whole.inputs), dict(whole.outputs)) == ("Relu+Sigmoid+Add", {"x": 32}, {"c": 32})
    # `third` alone in a layer still reads `a`, so the first layer must write it.
    layers = by_layer(parts, {"one": ["first", "second"], "two": ["third"]})
    assert dict(layers["one"].outputs) == {"a": 32, "b": 32} and dict(layers["two"].inputs) == {"b": 32, "a": 32}


def test_a_node_that_no_layer_names_belongs_to_its_reader():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
    ]
    parts = costs(graph(nodes, {"x": (1, 4, 8, 8)}, {"w": (4, 4, 1, 1)}, ["z"]))
    layers = by_layer(parts, {"kernel": ["z"], "copy": ["not in the graph"]})
    assert list(layers) == ["kernel"]
    assert (layers["kernel"].op, layers["kernel"].macs) == ("Conv+Relu", 64 * 16)


def test_layers_of_any_grouping_do_all_the_work(yolo_graph, rng):
    parts = costs(onnx.load(yolo_graph))
    cuts = np.sort(rng.choice(np.arange(1, len(parts)), 20, replace=False))
    groups = {f"layer {i}": [p.name for p in g] for i, g in enumerate(np.split(np.array(parts, object), cuts))}
    layers = by_layer(parts, groups)
    assert sum(c.macs for c in layers.values()) == sum(c.macs for c in parts)
    assert sum(c.weight_bytes for c in layers.values()) == sum(c.weight_bytes for c in parts)
    assert sum(c.bytes_moved for c in layers.values()) < sum(c.bytes_moved for c in parts)


def test_integer_convolutions_and_products_count_like_their_float_twins():
    byte = TensorProto.UINT8
    scalars = ["s", "z", "s", "z", "s", "z"]                            # scale and zero point of x, w, y
    nodes = [
        helper.make_node("QLinearConv", ["x", *scalars[:2], "w", *scalars[2:]], ["y"], "conv", group=2),
        helper.make_node("ConvInteger", ["y", "v"], ["c"], "whole"),
        helper.make_node("QLinearMatMul", ["a", *scalars[:2], "b", *scalars[2:]], ["p"], "matmul"),
        helper.make_node("MatMulInteger", ["p", "d"], ["q"], "integers"),
    ]
    values = [helper.make_tensor_value_info(n, byte, shape) for n, shape in (("x", (2, 4, 6, 6)), ("a", (3, 5)))]
    constants = [onnx.numpy_helper.from_array(np.ones(shape, np.uint8), n)
                 for n, shape in (("w", (8, 2, 3, 3)), ("v", (5, 8, 1, 1)), ("b", (5, 7)), ("d", (7, 2)), ("z", ()))]
    constants.append(onnx.numpy_helper.from_array(np.float32(1), "s"))
    results = [helper.make_tensor_value_info(name, TensorProto.INT32, None) for name in ("c", "q")]
    made = helper.make_model(helper.make_graph(nodes, "g", values, results, constants),
                             opset_imports=[helper.make_opsetid("", 17)])
    assert [c.macs for c in costs(made)] == [2 * 16 * 8 * 2 * 9, 2 * 16 * 5 * 8, 3 * 5 * 7, 3 * 7 * 2]


def test_an_operator_whose_multiply_adds_are_not_known_is_refused():
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], "product", equation="ij,jk->ik")]
    with pytest.raises(ValueError, match=r"node 'product': got Einsum, expected convolutions and matrix products"):
        costs(graph(nodes, {"x": (2, 3)}, {"w": (3, 4)}, ["y"]))


def test_parameters_and_activations_of_a_layer():
    conv, relu = costs(graph([helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv"),
                              helper.make_node("Relu", ["y"], ["z"], "relu")],
                             {"x": (2, 4, 8, 8)}, {"w": (6, 4, 3, 3), "b": (6,)}, ["z"]))
    assert (conv.params, relu.params) == (6 * 4 * 9 + 6, 0)
    assert conv.activation_bytes == relu.activation_bytes == 4 * 2 * 6 * 6 * 6
    assert fused([conv, relu], "both", set()).params == conv.params
    assert fused([conv, relu], "both", set()).activation_bytes == conv.activation_bytes


def test_a_shape_that_nobody_knows_is_named():
    nodes = [helper.make_node("NonZero", ["x"], ["where"], "find")]
    with pytest.raises(ValueError, match=r"node 'find': got no shape of \['where'\]"):
        costs(graph(nodes, {"x": (3, 3)}, {}, ["where"]))


def test_batch_takes_the_place_of_an_open_dimension(small_yolo, tmp_path):
    model = onnx.load(export_onnx(small_yolo, tmp_path / "y.onnx", size=64))
    one, four = (sum(c.macs for c in costs(model, batch=n)) for n in (1, 4))
    assert four == 4 * one
