"""Q/DQ in graphs that are no YOLOv3, against a simulation in NumPy and PyTorch that says itself where the pairs are."""

import collections

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from test_qdq import Graph, _images, _mean_sqnr, _optimized_kinds, _run, _table
from torch import nn
from torch.nn import functional as F

from trtkit import calib, export, placement, qdq, quant
from trtkit.lint import lint
from trtkit.wiring import fold_identities, wiring


class Net(nn.Module):
    """`run(x, q, w)`: q(tag, t) marks a tensor that flows in codes, "cpu:tag" for that target only; w(layer) gives
    weights and bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(16, 4, 1)
        self.e, self.f = nn.Linear(8 * 8 * 8, 10), nn.Linear(8, 8)
        self.g = nn.Linear(8, 10)

    def forward(self, x):
        return self.run(x, lambda tag, t: t, lambda layer: (layer.weight, layer.bias))


class Plain(Net):
    def run(self, x, q, w):
        y = q("y", F.relu(F.conv2d(q("x", x), *w(self.a), padding=1)))
        return F.conv2d(y, *w(self.b), padding=1)


class Gemm(Net):
    def run(self, x, q, w):
        y = q("y", F.max_pool2d(F.relu(F.conv2d(q("x", x), *w(self.a), padding=1)), 2))
        return F.linear(y.flatten(1), *w(self.e))


class Shortcut(Net):
    def run(self, x, q, w):
        y = q("y", F.relu(F.conv2d(q("x", x), *w(self.a), padding=1)))
        z = y + q("cpu:z", F.conv2d(y, *w(self.b), padding=1))
        return F.conv2d(q("s", F.relu(z)), *w(self.c))


class Join(Net):
    def run(self, x, q, w):
        y = F.relu(F.conv2d(q("x", x), *w(self.a), padding=1))
        z = q("cpu:z", F.relu(F.conv2d(q("y", y), *w(self.b), padding=1)))
        return F.conv2d(q("joined", torch.cat([q("cpu:y", y), z], 1)), *w(self.d))


class Pooled(Net):
    def run(self, x, q, w):
        y = q("cpu:y", F.relu(F.conv2d(q("x", x), *w(self.a), padding=1)))
        return F.linear(q("mean", F.adaptive_avg_pool2d(y, 1)).flatten(1), *w(self.g))


class Attention(Net):
    """MatMuls of two computed inputs; its Linear on three axes is exported as MatMul and Add of a constant."""

    def run(self, x, q, w):
        y = q("y", F.conv2d(q("x", x), *w(self.a), padding=1)).flatten(2).transpose(1, 2)       # (N, 256, 8)
        key = q("key", F.linear(y, *w(self.f)))
        return key.transpose(1, 2) @ y / 100


NETS = {"plain": Plain, "gemm": Gemm, "residual": Shortcut, "concat": Join, "pooled": Pooled, "attention": Attention}


class Case:
    def __init__(self, name: str, folder):
        torch.manual_seed(len(name))
        self.net, self.folder = NETS[name]().eval(), folder
        self.model = onnx.load(export.export_onnx(self.net, folder / "m.onnx", size=16, output_names=("y",)))
        self.images = _images(4, 16, seed=1)
        self.table = _table(self.model, self.images, folder)
        (self.expected,) = _run(self.model, self.images, folder, "float")


@pytest.fixture(scope="module", params=NETS)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=placement.TARGETS)
def target(request):
    return request.param


def _simulate(net: Net, x: np.ndarray, target: str) -> np.ndarray:
    """Fake quantization by trtkit.quant in between the operators of PyTorch, in double precision."""
    ranges, quantizing = {}, False

    def q(tag, t):
        if tag.startswith("cpu:") and target == "trt":
            return t
        a = t.numpy()
        low, high = ranges.setdefault(tag, (min(a.min(), 0), max(a.max(), 0)))
        params = quant.affine_qparams(low, high) if target == "cpu" else quant.symmetric_qparams(max(-low, high))
        return torch.from_numpy(quant.fake_quantize(a, params).astype(np.float64)) if quantizing else t

    def w(layer):
        weight, bias = (p.detach().double() for p in (layer.weight, layer.bias))
        if quantizing:
            params = quant.symmetric_qparams(weight.abs().amax(tuple(range(1, weight.ndim))).numpy(), axis=0)
            weight = torch.from_numpy(quant.fake_quantize(weight.numpy(), params).astype(np.float64))
        return weight, bias

    net.run(torch.from_numpy(x).double(), q, w)         # the float pass records the ranges
    quantizing = True
    return net.run(torch.from_numpy(x).double(), q, w).numpy()


def test_numpy_and_the_graph_differ_by_at_most_one_step(case, target):
    model = qdq.insert_qdq(case.model, case.table, target=target)
    (got,) = _run(model, case.images, case.folder, target)
    expected = _simulate(case.net, case.images, target)
    step = np.abs(case.expected).max() / 127
    difference = np.abs(got - expected) / step
    assert difference.max() <= 1 and np.median(difference) < 0.05
    assert np.abs(got - case.expected).max() > 3e-4 * step      # it was quantized at all


def test_every_input_of_a_weighted_operator_is_in_codes(case, target):
    g = Graph(qdq.insert_qdq(case.model, case.table, target=target))
    weighted = [n for kind in placement.WEIGHTED for n in g.of(kind)]
    assert weighted
    for node in weighted:
        assert {g.kind(name) for name in node.input[:2]} <= {"DequantizeLinear", "Flatten", "MaxPool", "Transpose",
                                                             "Reshape"}, node.name
        if target == "trt" and len(node.input) > 2:
            assert g.kind(node.input[2]) == "constant"


def test_onnxruntime_finds_integer_kernels_for_other_operators(tmp_path):
    kinds = {name: _optimized_kinds(qdq.insert_qdq((c := Case(name, tmp_path)).model, c.table, target="cpu"), tmp_path)
             for name in ("gemm", "residual", "pooled", "attention")}
    assert kinds["gemm"]["QGemm"] == 1 and not kinds["gemm"]["Gemm"] and kinds["gemm"]["NhwcMaxPool"] == 1
    assert not kinds["residual"]["Relu"] and kinds["residual"]["QLinearAdd"] == 1
    assert kinds["pooled"]["QLinearGlobalAveragePool"] == kinds["pooled"]["QGemm"] == 1
    assert kinds["attention"]["MatMulIntegerToFloat"] == 2 and not kinds["attention"]["MatMul"]


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_a_relu_that_a_float_reads_does_not_keep_its_convolution_from_8_bits(tmp_path, name):
    """Alone in the first network, beside an Add in codes in the second."""
    case = Case(name, tmp_path)
    names = qdq.conv_names(case.model)
    model = qdq.insert_qdq(case.model, case.table, target="cpu", skip=[names[1]])
    kinds = _optimized_kinds(model, tmp_path)
    assert kinds["QLinearConv"] == len(names) - 1 and not kinds["Relu"]
    assert kinds["Conv"] + kinds["FusedConv"] == 1
    (got,) = _run(model, case.images, tmp_path, "cpu")
    assert 0 < np.abs(got - case.expected).max() < 0.05 * np.abs(case.expected).max()


@pytest.mark.parametrize("wider", [0, 1])
def test_tensorrt_reads_a_concat_and_its_parts_with_the_widest_scale(tmp_path, wider):
    case = Case("concat", tmp_path)
    (concat,) = Graph(case.model).of("Concat")
    names = [concat.input[0], concat.output[0]]         # the first part also feeds a convolution
    table = case.table | {names[wider]: calib.Range(0, 99)}
    g = Graph(qdq.insert_qdq(case.model, table, target="trt"))
    scales = {float(g.constants[q.input[1]]) for n in names for q in g.readers[n] if q.op_type == "QuantizeLinear"}
    assert scales == {float(quant.symmetric_qparams(99).scale)}


class Downsample(nn.Module):
    """A residual Add whose shortcut is a convolution of its own: neither input feeds another one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.c(F.silu(self.a(x) + self.b(x)))


def test_a_shortcut_that_is_a_convolution_gets_the_one_pair_for_tensorrt(tmp_path, target):
    torch.manual_seed(0)
    model = onnx.load(export.export_onnx(Downsample(), tmp_path / "m.onnx", size=16, output_names=("y",)))
    images = _images(2, 16, seed=1)
    quantized = qdq.insert_qdq(model, _table(model, images, tmp_path), target=target)
    g = Graph(quantized)
    (add,) = g.of("Add")
    kinds = [g.kind(name) for name in add.input]
    assert kinds.count("DequantizeLinear") == (1 if target == "trt" else 2)
    assert _mean_sqnr(_run(model, images, tmp_path, "f"), _run(quantized, images, tmp_path, "q")) > 30


BRANCHES = {"conv": ["Conv"], "leaky": ["Conv", "LeakyRelu"], "add": ["Neg"], "stem": []}


def _joined(left: str, right: str, left_read: bool) -> onnx.ModelProto:
    """stem -> (left, right) -> Add -> head; `left_read`: another convolution reads the left branch too."""
    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def layer(op_type: str, source: str, name: str) -> str:
        weight = []
        if op_type == "Conv":
            weight = [name + "_w"]
            constants.append(numpy_helper.from_array(rng.normal(size=(4, 4, 1, 1)).astype(np.float32), weight[0]))
        nodes.append(helper.make_node(op_type, [source, *weight], [name], name))
        return name

    ends = {}
    stem = layer("LeakyRelu", layer("Conv", "images", "stem"), "stem_leaky")
    for side, kind in (("left", left), ("right", right)):
        ends[side] = stem
        for op_type in BRANCHES[kind]:
            ends[side] = layer(op_type, ends[side], f"{side}_{op_type}")
    nodes.append(helper.make_node("Add", [ends["left"], ends["right"]], ["sum"], "sum"))
    outputs = [layer("Conv", "sum", "head")] + ([layer("Conv", ends["left"], "other")] if left_read else [])
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4, 8, 8]) for n in ("images", *outputs)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("left_read", [False, True])
@pytest.mark.parametrize("right", BRANCHES)
@pytest.mark.parametrize("left", BRANCHES)
def test_an_add_that_a_convolution_takes_over_reads_its_shortcut_in_codes_any_other_both(left, right, left_read):
    model = _joined(left, right, left_read)
    quantized = qdq.insert_qdq(model, {n: calib.Range(-9, 9) for n in qdq.activation_names(model)}, target="trt")
    g = Graph(quantized)
    (add,) = g.of("Add")
    in_codes = [g.in_codes(name) for name in add.input]
    fused = [left == "conv" and not left_read, right == "conv"]
    if sum(fused) == 1:
        assert in_codes == [not f for f in fused]
    elif right == "leaky" or {left, right} <= {"leaky", "stem"}:
        assert all(in_codes)
    else:
        assert any(in_codes) == ((left, right, left_read) != ("add", "add", False))
    assert not [f for f in lint(quantized, "trt") if f.rule == "residual"]


def test_shapes_that_a_graph_computes_are_no_activations(tmp_path):
    """Shape, Gather and an INT64 Concat before a Reshape: none of them has a range."""
    class Shaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            y = self.a(x)
            return self.b(y.view(x.shape[0], 8, x.shape[0] * y.shape[2] // x.shape[0], -1))

    model = onnx.load(export.export_onnx(Shaped(), tmp_path / "m.onnx", size=16, output_names=("y",)))
    kinds = {n.op_type for n in model.graph.node}
    assert {"Shape", "Concat"} <= kinds, "the exporter folds shapes now; build this graph by hand"
    table = _table(model, _images(2, 16, seed=0), tmp_path)
    for target in placement.TARGETS:
        _run(qdq.insert_qdq(model, table, target=target), _images(2, 16, seed=0), tmp_path, target)


def _gemm(*, trans_b: int, alpha: float, beta: float) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    b = rng.normal(size=(6, 8) if trans_b else (8, 6)).astype(np.float32)
    nodes = [helper.make_node("Gemm", ["images", "b", "c"], ["y"], "gemm", transB=trans_b, alpha=alpha, beta=beta)]
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4, c]) for n, c in (("images", 8), ("y", 6))]
    constants = [numpy_helper.from_array(b, "b"), numpy_helper.from_array(b.ravel()[:6].copy(), "c")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0)])
def test_gemm_keeps_its_attributes_meaning(tmp_path, target, trans_b, alpha, beta):
    model = _gemm(trans_b=trans_b, alpha=alpha, beta=beta)
    x = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    table = {"images": calib.Range(float(x.min()), float(x.max())), "y": calib.Range(-9, 9)}
    quantized = qdq.insert_qdq(model, table, target=target)
    (dq,) = [n for n in quantized.graph.node if n.name == "gemm.weight_DequantizeLinear"]
    assert helper.get_node_attr_value(dq, "axis") == (0 if trans_b else 1)
    (got,), (expected,) = (_run(m, x, tmp_path, "m") for m in (quantized, model))
    assert quant.sqnr_db(expected, got) > 35


def test_fp16_for_the_rest_runs_on_the_cpu_and_changes_only_what_is_skipped(case, target):
    skip = [qdq.weighted_names(case.model)[-1]]
    half, single = (qdq.insert_qdq(case.model, case.table, target=target, skip=skip, rest=r) for r in ("fp16", "fp32"))
    kinds = collections.Counter(n.op_type for n in half.graph.node)
    assert kinds["Cast"] >= 2 and not any(n.op_type == "Cast" for n in single.graph.node)
    assert all(i.data_type != onnx.TensorProto.FLOAT16 for i in single.graph.initializer)
    (a,), (b,) = (_run(m, case.images, case.folder, "rest") for m in (half, single))
    assert a.dtype == np.float32 and quant.sqnr_db(b, a) > 50           # ten bits of mantissa: about 62 dB
    assert not np.array_equal(a, b)


def test_an_activation_follows_its_convolution_into_fp16(tmp_path, target):
    case = Case("plain", tmp_path)
    first = qdq.weighted_names(case.model)[0]
    g = Graph(qdq.insert_qdq(case.model, case.table, target=target, skip=[first], rest="fp16"))
    (relu,) = g.of("Relu")
    assert g.writer[relu.input[0]].name == first                    # no Cast in between
    assert [n.op_type for n in g.readers[relu.output[0]]] == ["Cast"]
    conv = g.writer[relu.input[0]]
    assert {g.constants[name].dtype for name in conv.input[1:]} == {np.dtype(np.float16)}


def test_a_weight_beyond_fp16_is_named(tmp_path):
    model = _gemm(trans_b=0, alpha=1.0, beta=1.0)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 6), 7e4, np.float32), "b"))
    with pytest.raises(ValueError, match=r"tensor 'b'.*65504.*rest='fp32'"):
        qdq.insert_qdq(model, {}, target="cpu", skip=["gemm"], rest="fp16")


# --- bad input ---


@pytest.mark.parametrize("bad", [(0.0, 0.0), (0.0, np.nan), (-np.inf, 1.0), (2.0, 3.0), (1.0, -1.0)])
def test_bad_ranges_are_named_and_never_become_a_scale(target, bad):
    table = {"images": calib.Range(*bad), "y": calib.Range(-1, 1)}
    with pytest.raises(ValueError, match=r"tensor 'images': got the range .*expected .*calibrat"):
        qdq.insert_qdq(_gemm(trans_b=0, alpha=1.0, beta=1.0), table, target=target)


def test_a_table_of_another_graph_names_the_first_missing_tensor(case, target):
    with pytest.raises(ValueError, match=r"table: got no range for tensor 'images' and \d+ others.*another graph"):
        qdq.insert_qdq(case.model, {"other": calib.Range(-1, 1)}, target=target)


def test_names_and_types_that_cannot_be_told_apart_are_refused(target):
    model = _gemm(trans_b=0, alpha=1.0, beta=1.0)
    model.graph.node[0].name = ""
    with pytest.raises(ValueError, match=r"node\.name = node\.output"):
        qdq.insert_qdq(model, {}, target=target)
    model = _gemm(trans_b=0, alpha=1.0, beta=1.0)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((8, 6), np.float16), "b"))
    with pytest.raises(ValueError, match="FP16 tensor 'b'"):
        qdq.insert_qdq(model, {}, target=target)
    with pytest.raises(ValueError, match=r"rest: got 'int4'"):
        qdq.insert_qdq(_gemm(trans_b=0, alpha=1.0, beta=1.0), {}, target=target, rest="int4")


def test_constants_are_found_wherever_they_are_kept():
    node = helper.make_node("Constant", [], ["k"], "k", value=numpy_helper.from_array(np.float32([1, 2])))
    model = _gemm(trans_b=0, alpha=1.0, beta=1.0)
    model.graph.node.insert(0, node)
    model.graph.node.insert(1, helper.make_node("Identity", ["k"], ["same"], "same"))
    constants = wiring(model).constants
    assert set(constants) == {"b", "c", "k", "same"} and constants["same"].tolist() == [1, 2]


def test_copies_of_constants_are_read_at_their_source_and_no_other_identity_goes():
    model = _gemm(trans_b=0, alpha=1.0, beta=1.0)
    identity = [("c", "copy"), ("copy", "copy_of_copy"), ("k", "k2"), ("images", "same"), ("b", "shown")]
    copies = [helper.make_node("Identity", [source], [to], to) for source, to in identity]
    constant = helper.make_node("Constant", [], ["k"], "k", value=numpy_helper.from_array(np.float32([[1] * 8])))
    sum_ = helper.make_node("Add", ["same", "k2"], ["sum"], "sum")
    model.graph.node[0].input[:] = ["sum", "b", "copy_of_copy"]
    gemm = model.graph.node[0]
    nodes = [constant, *copies, sum_, gemm]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("shown", onnx.TensorProto.FLOAT, [8, 6]))
    x = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    onnx.checker.check_model(model)
    session = [ort.InferenceSession(model.SerializeToString()).run(None, {"images": x})]
    fold_identities(model.graph)
    onnx.checker.check_model(model)
    g = Graph(model)
    assert [n.name for n in g.of("Identity")] == ["same", "shown"]         # an activation; an output keeps its name
    assert list(g.of("Gemm")[0].input) == ["sum", "b", "c"] and list(g.of("Add")[0].input) == ["same", "k"]
    session.append(ort.InferenceSession(model.SerializeToString()).run(None, {"images": x}))
    for before, after in zip(*session, strict=True):
        np.testing.assert_array_equal(before, after)
