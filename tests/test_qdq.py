import collections

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import SIZE, randomize_batchnorm
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader
from torch import nn

from trtkit import calib, engine, export, placement, qdq, quant
from trtkit.lint import lint
from trtkit.models import Residual, conv_bn_leaky


class Tiny(nn.Module):
    """Everything that YOLOv3 is made of: chain, residual Add, upsample, Concat, a linear head."""

    def __init__(self, channels: int):
        super().__init__()
        self.stem = conv_bn_leaky(3, channels, 3)
        self.down = conv_bn_leaky(channels, 2 * channels, 3, 2)
        self.residual = Residual(2 * channels)
        self.lateral = conv_bn_leaky(2 * channels, channels, 1)
        self.join = conv_bn_leaky(2 * channels, channels, 3)
        self.predict = nn.Conv2d(channels, 5, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x):
        x = self.stem(x)
        y = self.upsample(self.lateral(self.residual(self.down(x))))
        return self.predict(self.join(torch.cat([y, x], 1)))


def _images(n: int, size: int, seed: int) -> np.ndarray:
    """Smooth in places and noisy in others, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((n, 3, 4, 4), dtype=np.float32).repeat(size // 4, 2).repeat(size // 4, 3)
    return np.clip(coarse + rng.normal(size=coarse.shape).astype(np.float32) * 0.1, 0, 1)


def _run(model: onnx.ModelProto, x: np.ndarray, folder, name: str) -> list[np.ndarray]:
    onnx.save(model, folder / f"{name}.onnx")
    with engine.load(engine.build(folder / f"{name}.onnx", backend="ort")) as runner:
        return list(runner.infer({"images": x}).values())


def _table(model: onnx.ModelProto, images: np.ndarray, folder, method: str = "max") -> dict[str, calib.Range]:
    names = qdq.activation_names(model)
    exposed = export.expose_tensors(model, [n for n in names if n != "images"])
    onnx.save(exposed, folder / "exposed.onnx")
    with engine.load(engine.build(folder / "exposed.onnx", backend="ort")) as runner:
        histograms = calib.collect(
            lambda x: {"images": x, **runner.infer({"images": x})}, images[:, None], progress=False
        )
    return calib.ranges({n: histograms[n] for n in names}, method)


class Case:
    """A float graph, images it was calibrated on, and its table."""

    def __init__(self, model: onnx.ModelProto, size: int, folder):
        self.model, self.folder = model, folder
        self.images = _images(4, size, seed=1)
        self.table = _table(model, self.images, folder)
        self.heads = qdq.head_convs(model)
        self.float_outputs = _run(model, self.images, folder, "float")

    def quantize(self, target: str) -> onnx.ModelProto:
        return qdq.insert_qdq(self.model, self.table, target=target, skip=self.heads)


def _export(module: nn.Module, folder) -> Case:
    return Case(onnx.load(export.export_onnx(module, folder / "m.onnx", size=32, output_names=("y",))), 32, folder)


@pytest.fixture(scope="module", params=["tiny8", "tiny12", "yolo"])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "yolo":
        return Case(onnx.load(request.getfixturevalue("yolo_graph")), SIZE, folder)
    channels = int(request.param.removeprefix("tiny"))
    torch.manual_seed(channels)
    return _export(randomize_batchnorm(Tiny(channels), channels), folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    return _export(randomize_batchnorm(Tiny(8)), folder)


@pytest.fixture(params=qdq.TARGETS)
def target(request):
    return request.param


DEQUANTIZE = "DequantizeLinear"


class Graph:
    """Who writes and who reads each tensor."""

    def __init__(self, model: onnx.ModelProto):
        self.nodes = list(model.graph.node)
        self.writer = {out: n for n in self.nodes for out in n.output}
        self.readers = collections.defaultdict(list)
        for n in self.nodes:
            for name in n.input:
                self.readers[name].append(n)
        self.constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}

    def kind(self, name: str) -> str:
        return self.writer[name].op_type if name in self.writer else "constant" if name in self.constants else "input"

    def in_codes(self, name: str) -> bool:
        """Whether a tensor comes from a pair, or through a LeakyRelu from one."""
        node = self.writer.get(name)
        return self.kind(node.input[0] if node is not None and node.op_type == "LeakyRelu" else name) == DEQUANTIZE

    def of(self, op_type: str) -> list[onnx.NodeProto]:
        return [n for n in self.nodes if n.op_type == op_type]


def _mean_sqnr(floats, quantized) -> float:
    return float(np.mean([quant.sqnr_db(f, q) for f, q in zip(floats, quantized, strict=True)]))


@pytest.fixture
def sqnr_floor(case):
    """dB that INT8 must reach.

    One 8-bit rounding of a bell-shaped tensor by its maximum gives some 35 dB. Independent noises of equal power add:
    k roundings in a row cost 10 log10(k), so 15 for Tiny's 6 layers and 20 dB for YOLOv3's 75 leave room, while a
    misplaced pair (wrong scale, wrong zero point, unscaled bias) gives less than 10 dB.
    """
    return 15.0 if len(case.model.graph.node) > 100 else 20.0


def test_the_quantized_graph_stays_close_to_the_float_graph(case, target, sqnr_floor):
    outputs = _run(case.quantize(target), case.images, case.folder, target)
    assert _mean_sqnr(case.float_outputs, outputs) > sqnr_floor
    assert not any(np.array_equal(f, q) for f, q in zip(case.float_outputs, outputs, strict=True))


def test_images_that_were_not_calibrated_lose_little_more(case, sqnr_floor):
    x = _images(2, case.images.shape[-1], seed=2)
    expected = _run(case.model, x, case.folder, "float")
    assert _mean_sqnr(expected, _run(case.quantize("cpu"), x, case.folder, "cpu")) > sqnr_floor - 3


def test_every_quantize_has_its_dequantize_with_the_same_parameters(case, target):
    g = Graph(case.quantize(target))
    assert g.of("QuantizeLinear")
    for q in g.of("QuantizeLinear"):
        (dq,) = g.readers[q.output[0]]
        assert dq.op_type == "DequantizeLinear" and list(dq.input[1:]) == list(q.input[1:])
        zero = g.constants[q.input[2]]
        assert zero.shape == g.constants[q.input[1]].shape == ()            # activations: per tensor
        assert zero.dtype == (np.uint8 if target == "cpu" else np.int8)
        assert target == "cpu" or zero == 0
    for dq in g.of("DequantizeLinear"):
        assert g.kind(dq.input[0]) in ("QuantizeLinear", "constant")
        assert g.readers[dq.output[0]], f"{dq.name} feeds nothing"
    assert set(g.constants) == {name for n in g.nodes for name in n.input if name in g.constants}     # nothing is left


def test_quantized_convolutions_hold_per_channel_int8_weights(case, target):
    g, floats = Graph(case.quantize(target)), Graph(case.model)
    original = {n.name: n for n in floats.of("Conv")}
    quantized = [n for n in g.of("Conv") if n.name not in case.heads]
    assert len(quantized) == len(original) - len(case.heads) > 0
    for conv in quantized:
        assert g.kind(conv.input[0]) == g.kind(conv.input[1]) == "DequantizeLinear"
        dq = g.writer[conv.input[1]]
        codes, scale, zero = (g.constants[name] for name in dq.input)
        weight = floats.constants[original[conv.name].input[1]]
        assert codes.dtype == zero.dtype == np.int8 and (zero == 0).all()
        assert helper.get_node_attr_value(dq, "axis") == 0 and scale.shape == (weight.shape[0],)
        assert codes.min() >= -127 and (np.abs(codes).max(axis=(1, 2, 3)) == 127).all()
        np.testing.assert_allclose(scale, np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
        error = np.abs(codes * scale[:, None, None, None] - weight)
        assert (error <= scale[:, None, None, None] * 0.5001).all()


def test_biases_are_int32_in_steps_of_both_scales_for_the_cpu_and_float_for_tensorrt(case, target):
    g, floats = Graph(case.quantize(target)), Graph(case.model)
    original = {n.name: floats.constants[n.input[2]] for n in floats.of("Conv")}
    for conv in g.of("Conv"):
        bias = original[conv.name]
        if conv.name in case.heads or target == "trt":
            np.testing.assert_array_equal(g.constants[conv.input[2]], bias)
            continue
        codes, scale, _ = (g.constants[name] for name in g.writer[conv.input[2]].input)
        x_scale, w_scale = (g.constants[g.writer[conv.input[i]].input[1]] for i in (0, 1))
        assert codes.dtype == np.int32
        np.testing.assert_allclose(scale, x_scale * w_scale, rtol=1e-6)
        assert (np.abs(codes * scale.astype(np.float64) - bias) <= scale * 0.5001).all()


def test_skipped_heads_stay_float(case, target):
    g, floats = Graph(case.quantize(target)), Graph(case.model)
    before = {n.name: n for n in floats.of("Conv")}
    assert case.heads
    for conv in (n for n in g.of("Conv") if n.name in case.heads):
        assert "DequantizeLinear" not in [g.kind(name) for name in conv.input]
        np.testing.assert_array_equal(g.constants[conv.input[1]], floats.constants[before[conv.name].input[1]])
        assert "QuantizeLinear" not in [n.op_type for n in g.readers[conv.output[0]]]


def test_tensorrt_gets_a_pair_before_the_leaky_relu_of_a_larger_kernel_or_into_an_add_and_no_other(case):
    g = Graph(case.quantize("trt"))
    split, far = [], []
    for node in g.of("LeakyRelu"):
        readers = [n.op_type for n in g.readers[node.output[0]]]
        source = node.input[0]
        if g.kind(source) == DEQUANTIZE:
            q = g.writer[g.writer[source].input[0]]
            source = q.input[0]
            (behind,) = {n.input[1] for n in g.readers[node.output[0]] if n.op_type == "QuantizeLinear"} or {None}
            scale = case.table[node.output[0]].amax / 127 if behind is None else g.constants[behind]
            np.testing.assert_allclose(g.constants[q.input[1]], scale, rtol=1e-6)
            split.append(node.name)
        conv = g.writer[source]
        weight = g.constants[g.writer[conv.input[1]].input[0] if conv.name not in case.heads else conv.input[1]]
        larger = weight.shape[-1] > 1 and set(readers) == {"QuantizeLinear"}
        if case.table[source].low < -placement.FAR * case.table[node.output[0]].amax:
            far.append(node.name)
        assert (node.name in split) == (node.name not in far and (readers == ["Add"] or larger)), node.name
    assert split or len(far) > 20                           # random weights of 75 layers reach far below zero
    for node in (*g.of("Concat"), *g.of("Resize")):
        assert "DequantizeLinear" not in [g.kind(name) for name in node.input]


def test_tensorrt_gets_a_pair_on_both_inputs_of_an_add_behind_an_activation(case):
    g = Graph(case.quantize("trt"))
    assert g.of("Add")
    for node in g.of("Add"):
        assert all(g.in_codes(name) for name in node.input)
        assert "LeakyRelu" in [g.kind(name) for name in node.input]        # the pair is before it


def test_the_cpu_gets_pairs_on_all_inputs_of_every_operator_on_the_way(case):
    g = Graph(case.quantize("cpu"))
    for op_type in ("LeakyRelu", "Add", "Concat", "Resize"):
        for node in g.of(op_type):
            feeds_head = all(n.name in case.heads for n in g.readers[node.output[0]])
            inputs = node.input[:1] if op_type == "Resize" else node.input
            assert feeds_head or {g.kind(name) for name in inputs} == {"DequantizeLinear"}, node.name


def _optimized_kinds(model: onnx.ModelProto, folder) -> collections.Counter:
    """Operators that ORT really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return collections.Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


def test_onnxruntime_runs_every_quantized_convolution_in_integers(case):
    kinds = _optimized_kinds(case.quantize("cpu"), case.folder)
    convs = len(qdq.conv_names(case.model)) - len(case.heads)
    assert kinds["QLinearConv"] == convs
    assert kinds["Conv"] + kinds["FusedConv"] + kinds["NhwcFusedConv"] == len(case.heads)
    float_graph = collections.Counter(n.op_type for n in case.model.graph.node)
    assert kinds["QLinearAdd"] == float_graph["Add"] and kinds["QLinearConcat"] == float_graph["Concat"]
    # Each convolution has an activation; the last one before a float head has only float readers and stays float.
    assert kinds["QLinearLeakyRelu"] == convs - len(case.heads)
    assert kinds["QuantizeLinear"] == 1 and kinds["DequantizeLinear"] == len(case.heads)    # in once, out per head


class _Reader(CalibrationDataReader):
    def __init__(self, images):
        self._feeds = iter([{"images": x[None]} for x in images])

    def get_next(self):
        return next(self._feeds, None)


def test_ours_is_not_worse_than_onnxruntimes_own_quantizer(case):
    """Static quantization by ORT: QDQ, U8 x S8 per channel, min and max of the same images, heads float."""
    from onnxruntime import quantization as oq

    source, out = case.folder / "float.onnx", case.folder / "ort_static.onnx"
    oq.quantize_static(
        source, out, _Reader(case.images), quant_format=oq.QuantFormat.QDQ, per_channel=True,
        activation_type=oq.QuantType.QUInt8, weight_type=oq.QuantType.QInt8, nodes_to_exclude=case.heads,
        calibrate_method=oq.CalibrationMethod.MinMax,
    )  # fmt: skip
    theirs = _run(onnx.load(out), case.images, case.folder, "ort_static")
    ours = _run(case.quantize("cpu"), case.images, case.folder, "cpu")

    def error(outputs):
        pairs = zip(outputs, case.float_outputs, strict=True)
        return np.mean([np.abs(o - f).mean() / np.abs(f).mean() for o, f in pairs])

    assert error(ours) <= 1.25 * error(theirs)


# --- one convolution, against integers in NumPy ---


def _conv_graph(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """images -> conv -> leaky -> conv1x1 -> y; the second one gives the first one's output a reader in codes."""
    ones = np.ones((1, weight.shape[0], 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["c"], ["a"], "leaky", alpha=0.1),
        helper.make_node("Conv", ["a", "ones"], ["y"], "head", kernel_shape=[1, 1]),
    ]
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
              for n, s in (("images", ["batch", weight.shape[1], 8, 8]), ("y", ["batch", 1, 8, 8]))]
    constants = [numpy_helper.from_array(v, n) for n, v in (("w", weight), ("b", bias), ("ones", ones))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _conv_float(x, w, b):
    return nn.functional.conv2d(*(torch.from_numpy(np.asarray(v, np.float64)) for v in (x, w, b)), padding=1).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_an_integer_convolution_in_numpy_equals_onnxruntimes_to_one_step(tmp_path, seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(6, 3, 3, 3)).astype(np.float32) * rng.uniform(0.05, 2, (6, 1, 1, 1)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    c = _conv_float(x, weight, bias)
    table = {"images": calib.Range(float(x.min()), float(x.max())), "c": calib.Range(float(c.min()), float(c.max())),
             "a": calib.Range(float(c.min()) / 10, float(c.max()))}
    model = qdq.insert_qdq(_conv_graph(weight, bias), table, target="cpu", skip=["head"])
    onnx.save(export.expose_tensors(model, ["c_q"]), tmp_path / "m.onnx")
    session_model = onnx.load(tmp_path / "m.onnx")
    next(o for o in session_model.graph.output if o.name == "c_q").type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(session_model, tmp_path / "m.onnx")
    with engine.load(engine.build(tmp_path / "m.onnx", backend="ort")) as runner:
        got = runner.infer({"images": x})["c_q"]

    g = Graph(model)
    q_x, q_c = (quant.affine_qparams(table[n].low, table[n].high) for n in ("images", "c"))
    conv = next(n for n in g.of("Conv") if n.name == "conv")
    codes_w, scale_w, _ = (g.constants[name] for name in g.writer[conv.input[1]].input)
    codes_b = g.constants[g.writer[conv.input[2]].input[0]]
    codes_x = quant.quantize(x, q_x).astype(np.int64) - int(q_x.zero_point)
    sums = _conv_float(codes_x, codes_w, codes_b)                   # integers below 2^53: exact in double
    factor = q_x.scale.astype(np.float64) * scale_w / q_c.scale
    expected = np.clip(np.rint(sums * factor[:, None, None]) + int(q_c.zero_point), 0, 255)
    difference = np.abs(got.astype(int) - expected)
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99


@pytest.mark.parametrize("tiny_scale", [0.0, 1e-30, 1e-14])
def test_the_bias_of_a_dead_channel_survives(tmp_path, tiny_scale):
    """Steps of scale_x * scale_w are too fine (or none) there: INT32 must not clip it, nor 8 bits round it."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[2] *= np.float32(tiny_scale)
    bias = np.array([0.1, -0.2, 3.0, 0.0], np.float32)
    table = {"images": calib.Range(0, 1), "c": calib.Range(-9, 9), "a": calib.Range(-1, 9)}
    model = qdq.insert_qdq(_conv_graph(weight, bias), table, target="cpu", skip=["head"])
    g = Graph(model)
    conv = next(n for n in g.of("Conv") if n.name == "conv")
    codes, scale, _ = (g.constants[name] for name in g.writer[conv.input[2]].input)
    np.testing.assert_allclose(codes * scale.astype(np.float64), bias, rtol=1e-6, atol=scale[:2].max())
    onnx.save(export.expose_tensors(model, ["c_dq"]), tmp_path / "m.onnx")
    with engine.load(engine.build(tmp_path / "m.onnx", backend="ort")) as runner:
        got = runner.infer({"images": rng.random((1, 3, 8, 8), dtype=np.float32)})["c_dq"]
    assert np.abs(got[:, 2] - 3.0).max() <= 18 / 255


class _Tied(nn.Module):
    """Two convolutions that share weights and bias but not the scale of their input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = nn.functional.leaky_relu(self.conv(x), 0.1)
        return self.conv(nn.functional.leaky_relu(self.conv(y) * 7, 0.1))


def test_convolutions_that_share_weights_are_each_quantized(tmp_path, target):
    torch.manual_seed(0)
    case = _export(_Tied().eval(), tmp_path)
    outputs = _run(case.quantize(target), case.images, tmp_path, target)
    assert _mean_sqnr(case.float_outputs, outputs) > 20


def test_an_untrained_network_whose_equal_biases_the_exporter_merges_runs_in_integers(tmp_path, target):
    torch.manual_seed(0)
    case = _export(Tiny(8).eval(), tmp_path)
    biases = collections.Counter(n.input[2] for n in case.model.graph.node if n.op_type == "Conv")
    assert max(biases.values()) > 1, "the exporter no longer merges; drop this test"
    quantized = case.quantize(target)
    for model in (case.model, quantized):
        assert not Graph(model).of("Identity")
    convs = Graph(quantized).of("Conv")
    kinds = {Graph(quantized).kind(n.input[2]) for n in convs if n.name not in case.heads}
    assert kinds == {"constant" if target == "trt" else "DequantizeLinear"}
    if target == "cpu":
        assert _optimized_kinds(quantized, tmp_path)["QLinearConv"] == len(convs) - 1
    assert _mean_sqnr(case.float_outputs, _run(quantized, case.images, tmp_path, target)) > 15


class _BothFeedConvolutions(nn.Module):
    """An Add whose inputs are both read by convolutions too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn_leaky(3, 8, 3), conv_bn_leaky(8, 8, 3), conv_bn_leaky(8, 8, 3)
        self.predict = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        y = self.a(x)
        z = self.b(y)
        return self.predict(self.c(z) + (y + z))


def test_where_no_convolution_takes_the_add_over_what_has_a_pair_is_read_behind_it(tmp_path):
    torch.manual_seed(0)
    case = _export(randomize_batchnorm(_BothFeedConvolutions()), tmp_path)
    model = qdq.insert_qdq(case.model, case.table, target="trt")
    g = Graph(model)
    kinds = sorted(sorted(g.kind(name) for name in node.input) for node in g.of("Add"))
    assert kinds == [["Add", "LeakyRelu"], ["DequantizeLinear"] * 2]
    assert sorted(sum(map(g.in_codes, node.input)) for node in g.of("Add")) == [1, 2]
    assert not [f for f in lint(model, "trt") if f.rule == "residual"]
    for target in qdq.TARGETS:
        assert _mean_sqnr(case.float_outputs, _run(case.quantize(target), case.images, tmp_path, target)) > 20


def test_both_sides_of_a_nearest_resize_share_one_scale_whatever_the_table_says(tiny):
    (resize,) = Graph(tiny.model).of("Resize")
    table = tiny.table | {resize.output[0]: calib.Range(-77, 77)}
    assert qdq.insert_qdq(tiny.model, table, target="cpu", skip=tiny.heads) == tiny.quantize("cpu")


# --- names and errors ---


def test_names_of_the_graphs_parts(case):
    convs = [n for n in case.model.graph.node if n.op_type == "Conv"]
    assert qdq.conv_names(case.model) == [n.name for n in convs]
    heads = len(case.model.graph.output)
    assert len(qdq.head_convs(case.model)) == heads
    activations = qdq.activation_names(case.model)
    assert activations[0] == "images" and len(set(activations)) == len(activations)


def test_the_argument_is_not_changed(tiny, target):
    before = tiny.model.SerializeToString()
    tiny.quantize(target)
    assert tiny.model.SerializeToString() == before


def test_skip_takes_patterns_and_nothing_skipped_is_allowed(tiny, target):
    by_pattern = qdq.insert_qdq(tiny.model, tiny.table, target=target, skip=["/pred*"])
    assert by_pattern == tiny.quantize(target)
    everything = qdq.insert_qdq(tiny.model, tiny.table, target=target)
    assert _mean_sqnr(tiny.float_outputs, _run(everything, tiny.images, tiny.folder, "all")) > 20


def test_all_skipped_is_the_float_graph(tiny, target):
    model = qdq.insert_qdq(tiny.model, tiny.table, target=target, skip=["*"])
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in model.graph.node}
    for a, b in zip(_run(model, tiny.images, tiny.folder, "none"), tiny.float_outputs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("skipped", range(6))
def test_any_single_skipped_convolution_leaves_a_graph_that_computes_the_same(tiny, target, skipped):
    name = qdq.conv_names(tiny.model)[skipped]
    model = qdq.insert_qdq(tiny.model, tiny.table, target=target, skip=[name])
    g = Graph(model)
    conv = next(n for n in g.of("Conv") if n.name == name)
    assert "DequantizeLinear" not in [g.kind(i) for i in conv.input]
    assert _mean_sqnr(tiny.float_outputs, _run(model, tiny.images, tiny.folder, "one")) > 20


def _poisoned(model, value):
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    conv = next(n for n in broken.graph.node if n.op_type == "Conv")
    (weight,) = [i for i in broken.graph.initializer if i.name == conv.input[1]]
    array = numpy_helper.to_array(weight).copy()
    array.flat[5] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    return broken, conv.name


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_named(tiny, target, value):
    broken, name = _poisoned(tiny.model, value)
    with pytest.raises(ValueError, match=f"weights of '{name}'"):
        qdq.insert_qdq(broken, tiny.table, target=target)


def test_broken_biases_are_named(target):
    weight, bias = np.ones((2, 3, 3, 3), np.float32), np.array([0, np.nan], np.float32)
    table = {n: calib.Range(-1, 1) for n in ("images", "c", "a")}
    with pytest.raises(ValueError, match="'conv'"):
        qdq.insert_qdq(_conv_graph(weight, bias), table, target=target)


def test_weights_that_are_computed_are_refused(target):
    model = _conv_graph(np.ones((2, 3, 3, 3), np.float32), np.zeros(2, np.float32))
    model.graph.node.insert(0, helper.make_node("Neg", ["w"], ["neg_w"], "neg"))
    model.graph.node[1].input[1] = "neg_w"
    table = {n: calib.Range(-1, 1) for n in ("images", "c", "a")}
    with pytest.raises(ValueError, match="'conv' reads 'neg_w'"):
        qdq.insert_qdq(model, table, target=target)
    qdq.insert_qdq(model, table, target=target, skip=["conv"])      # the way out that the message names


def test_wrong_arguments_are_named(tiny):
    with pytest.raises(ValueError, match="'gpu'"):
        qdq.insert_qdq(tiny.model, tiny.table, target="gpu")
    with pytest.raises(ValueError, match=r"'/nothing\*'"):
        qdq.insert_qdq(tiny.model, tiny.table, target="cpu", skip=["/nothing*"])
    with pytest.raises(ValueError, match="QuantizeLinear"):
        qdq.insert_qdq(tiny.quantize("cpu"), tiny.table, target="cpu")
    with pytest.raises(ValueError, match="'images'"):
        qdq.insert_qdq(tiny.model, {k: v for k, v in tiny.table.items() if k != "images"}, target="trt")
    with pytest.raises(ValueError, match="'images'"):
        qdq.insert_qdq(tiny.model, tiny.table | {"images": calib.Range(0, np.nan)}, target="cpu")


def test_batchnorm_that_is_not_folded_is_refused(tiny):
    model = onnx.ModelProto()
    model.CopyFrom(tiny.model)
    model.graph.node.add(op_type="BatchNormalization", name="bn")
    with pytest.raises(ValueError, match="'bn'"):
        qdq.insert_qdq(model, tiny.table, target="cpu")
