"""Fake quantization in torch against NumPy, PyTorch's own, and the exported graph in ONNX Runtime."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from conftest import SIZE, randomize_batchnorm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trtkit import calib, data, engine, export, plots_qat, qat, qdq, quant, train
from trtkit.fake_quant import Pair, QuantizedConv, fake_quantize_ste
from trtkit.models import Residual, conv_bn_leaky

SPOILT = 1 / 3              # of every range: what clips must clip in both worlds


class Tiny(nn.Module):
    """Chain, residual Add, upsample, Concat, a linear head."""

    def __init__(self, channels: int = 12):
        super().__init__()
        self.stem = conv_bn_leaky(3, channels, 3)
        self.down = conv_bn_leaky(channels, channels, 3, 2)
        self.residual = Residual(channels)
        self.predict = nn.Conv2d(2 * channels, 5, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x):
        x = self.stem(x)
        return self.predict(torch.cat([self.upsample(self.residual(self.down(x))), x], 1))


def _images(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(5).random((n, 3, size, size), dtype=np.float32)


def _outputs(graph: onnx.ModelProto, x: np.ndarray, folder) -> dict[str, np.ndarray]:
    onnx.save(graph, folder / "run.onnx")
    with engine.load(engine.build(folder / "run.onnx", backend="ort")) as runner:
        return runner.infer({"images": x})


class Case:
    """A network, its float graph, and a table of what it computes for a few images."""

    def __init__(self, model: nn.Module, size: int, folder, output_names=("y",)):
        self.model, self.size, self.folder, self.names = model, size, folder, output_names
        self.graph = onnx.load(export.export_onnx(model, folder / "f.onnx", size=size, output_names=output_names))
        self.x = _images(2, size)
        tensors = [n for n in qdq.activation_names(self.graph) if n != "images"]
        seen = {"images": self.x, **_outputs(export.expose_tensors(self.graph, tensors), self.x, folder)}
        self.table = {n: calib.Range(min(0.0, float(seen[n].min())), max(0.0, float(seen[n].max())))
                      for n in ("images", *tensors)}

    def spoilt(self) -> dict[str, calib.Range]:
        return {n: calib.Range(r.low * SPOILT, r.high * SPOILT) for n, r in self.table.items()}

    def prepare(self, target: str = "cpu", table=None, **kwargs) -> qat.FakeQuantized:
        return qat.prepare(self.model, table or self.table, target=target, output_names=self.names, **kwargs)

    def exported(self, prepared: qat.FakeQuantized) -> onnx.ModelProto:
        return onnx.load(qat.export_qdq(prepared, self.folder / "q.onnx", size=self.size))

    def run(self, graph: onnx.ModelProto) -> list[np.ndarray]:
        return list(_outputs(graph, self.x, self.folder).values())

    def forward(self, module: nn.Module) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(self.x))
        return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(1)
    return Case(randomize_batchnorm(Tiny(), 1), 32, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def yolo(small_yolo, tmp_path_factory):
    return Case(small_yolo, SIZE, tmp_path_factory.mktemp("yolo"), export.OUTPUT_NAMES)


@pytest.fixture(params=qdq.TARGETS)
def target(request):
    return request.param


def _rms(arrays) -> float:
    return float(np.sqrt(np.mean(np.concatenate([a.ravel() for a in arrays]).astype(np.float64) ** 2)))


def _difference(a, b) -> list[np.ndarray]:
    return [x - y for x, y in zip(a, b, strict=True)]


# --- fake_quantize_ste ---


def _as_torch(q: quant.QParams, ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = [1] * ndim
    if q.axis is not None:
        shape[q.axis] = -1
    return tuple(torch.from_numpy(np.array(v, np.float32).reshape(shape)) for v in (q.scale, q.zero_point))


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.floats(-30, 20), st.sampled_from(["affine", "symmetric", "channels"]))
def test_forward_is_quants_fake_quantize_bit_for_bit(seed, log2_range, kind):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(4, 3, 5)) * 2.0**log2_range).astype(np.float32)
    x.flat[:2] = 0.0, -0.0
    amax = np.abs(x).max() * rng.uniform(0.3, 1.5)
    if kind == "affine":
        q = quant.affine_qparams(-amax * rng.uniform(), amax)
    elif kind == "symmetric":
        q = quant.symmetric_qparams(amax)
    else:
        q = quant.symmetric_qparams(np.abs(x).max((1, 2)) * rng.uniform(0.3, 1.5, 4), axis=0)
    got = fake_quantize_ste(torch.from_numpy(x), *_as_torch(q, 3), q.qmin, q.qmax).numpy()
    expected = quant.fake_quantize(x, q)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("zero_point", "qmin", "qmax"), [(0, -128, 127), (37, 0, 255)])
def test_forward_and_gradient_are_those_of_pytorch_per_tensor(zero_point, qmin, qmax):
    # A power of two: PyTorch multiplies with the inverse, which is exact then.
    scale, weights = 2.0**-5, torch.linspace(-2, 3, 4001)
    ours, theirs = (torch.linspace(-9, 9, 4001).requires_grad_() for _ in range(2))
    a = fake_quantize_ste(ours, torch.tensor(scale), torch.tensor(float(zero_point)), qmin, qmax)
    b = torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, qmin, qmax)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    assert torch.equal(a, b) and torch.equal(ours.grad, theirs.grad)
    assert (ours.grad == 0).sum() > 100 and (ours.grad != 0).sum() > 100


def test_forward_and_gradient_are_those_of_pytorch_per_channel():
    scale, zero = torch.tensor([0.25, 2.0**-6, 2.0**-9]), torch.zeros(3)
    ours, theirs = (torch.linspace(-4, 4, 3 * 50).view(3, 2, 5, 5).requires_grad_() for _ in range(2))
    a = fake_quantize_ste(ours, scale.view(-1, 1, 1, 1), zero.view(-1, 1, 1, 1), -127, 127)
    b = torch.fake_quantize_per_channel_affine(theirs, scale, zero.int(), 0, -127, 127)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(a, b) and torch.equal(ours.grad, theirs.grad)
    assert 0 < (ours.grad == 0).sum() < ours.numel()


# --- the network with pairs ---


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_shallow_network_equals_its_exported_graph_to_one_step(tiny, target, spoilt):
    """The head is quantized and reads codes; one flipped code of a rounding tie moves the output by one weight."""
    prepared = tiny.prepare(target, tiny.spoilt() if spoilt else tiny.table)
    (got,), (expected,) = tiny.forward(prepared), tiny.run(tiny.exported(prepared))
    (unquantized,) = tiny.forward(tiny.model)
    step = max(float(m.scale) for m in prepared.modules() if isinstance(m, Pair))
    assert np.abs(got - expected).max() <= step
    # Far below what quantization itself changed: rounding of weights alone, left out, would show.
    assert _rms([got - expected]) < 0.1 * _rms([unquantized - expected])


def test_yolov3_equals_its_exported_graph(yolo, target):
    """75 convolutions deep, flipped codes add up; next to what clipping changed they are nothing."""
    prepared = yolo.prepare(target, yolo.spoilt(), skip=["/head*/predict/Conv"])
    got, expected = yolo.forward(prepared), yolo.run(yolo.exported(prepared))
    assert _rms(_difference(got, expected)) < 0.02 * _rms(_difference(yolo.forward(yolo.model), expected))


def test_the_argument_is_unchanged_and_shares_no_memory(tiny):
    before = copy.deepcopy(tiny.model.state_dict())
    prepared = tiny.prepare()
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(1)
    for name, tensor in tiny.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_skipped_convolutions_stay_float(yolo):
    stem = qdq.conv_names(yolo.graph)[0]
    prepared = yolo.prepare(skip=["/head*/predict/Conv", stem])
    assert sum(isinstance(m, QuantizedConv) for m in prepared.modules()) == 75 - 4
    quantized = [m.conv for m in prepared.modules() if isinstance(m, QuantizedConv)]
    network = prepared.float_model
    left = [network.stem[0], *(h.predict for h in (network.head32, network.head16, network.head8))]
    assert not any(conv is q for conv in left for q in quantized)


def test_without_pairs_it_is_the_float_network(tiny):
    prepared = tiny.prepare(skip=["*"])
    assert not any(isinstance(m, Pair | QuantizedConv) for m in prepared.modules())
    (got,), (expected,) = tiny.forward(prepared), tiny.forward(tiny.model)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_every_quantized_weight_gets_a_gradient(tiny, target):
    prepared = tiny.prepare(target)
    prepared(torch.from_numpy(tiny.x))[0].square().mean().backward()
    for name, parameter in prepared.float_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_gradient_matches_pytorchs_own_layers(tiny):
    """The same convolution built of PyTorch's own fake quantization; all scales are powers of two."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        conv.weight.view(4, -1)[:, 0] = 127 / 256           # so that amax / 127 is 2^-8
    ours = QuantizedConv(copy.deepcopy(conv), torch.tensor(2.0**-7), bias_in_codes=False)
    pair = Pair(np.array(2.0**-7, np.float32), np.array(0, np.int8))
    ours(pair(x)).square().sum().backward()
    weight = torch.fake_quantize_per_channel_affine(conv.weight, torch.full((4,), 2.0**-8), torch.zeros(4).int(), 0,
                                                    -127, 127)
    y = torch.fake_quantize_per_tensor_affine(x, 2.0**-7, 0, -128, 127)
    nn.functional.conv2d(y, weight, conv.bias).square().sum().backward()
    torch.testing.assert_close(ours.conv.weight.grad, conv.weight.grad)
    torch.testing.assert_close(ours.conv.bias.grad, conv.bias.grad)


# --- fine-tuning and export ---


def _nodes(graph: onnx.ModelProto) -> list[tuple]:
    return [(n.op_type, n.name, tuple(n.input), tuple(n.output)) for n in graph.graph.node]


def _constants(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: onnx.numpy_helper.to_array(i) for i in graph.graph.initializer}


@pytest.fixture(scope="module")
def training() -> data.TrainingSet:
    rng = np.random.default_rng(0)
    boxes, labels = np.zeros((4, 24, 4), np.float32), np.full((4, 24), -1)
    images = rng.integers(0, 60, (4, 3, SIZE, SIZE), dtype=np.uint8)
    for i in range(4):
        x0, y0, side = 8 * i + 4, 10, 40
        boxes[i, 0], labels[i, 0] = (x0, y0, x0 + side, y0 + side), i % 2
        images[i, i % 2, y0 : y0 + side, x0 : x0 + side] = 250
    return data.TrainingSet(images, boxes, labels)


class Mini(nn.Module):
    """Three heads of two classes at the detector's strides, and a tenth of its layers."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.down = nn.ModuleList(conv_bn_leaky(channels if i else 3, channels, 3, 2) for i in range(5))
        self.heads = nn.ModuleList(nn.Conv2d(channels, 3 * (5 + 2), 1) for _ in range(3))

    def forward(self, x):
        taps = []
        for block in self.down:
            x = block(x)
            taps.append(x)
        return tuple(head(tap) for head, tap in zip(self.heads, taps[:1:-1], strict=True))


HEADS = ["/heads*/Conv"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(0)
    return Case(randomize_batchnorm(Mini()), SIZE, tmp_path_factory.mktemp("mini"), export.OUTPUT_NAMES)


def _finetune(prepared, training, **kwargs):
    return qat.finetune(prepared, training, batch=4, device="cpu", progress=False, **kwargs)


def test_training_lowers_the_loss_and_exports_to_the_same_graph(detector, training, target):
    prepared = detector.prepare(target, detector.spoilt(), skip=HEADS)
    before = detector.exported(prepared)
    assert _nodes(before) == _nodes(qdq.insert_qdq(detector.graph, detector.spoilt(), target=target, skip=HEADS))
    losses = _finetune(prepared, training, steps=30, lr=1e-2, augment=False)
    assert len(losses) == 30 and losses[-1] < 0.8 * losses[0]

    after = detector.exported(prepared)
    assert _nodes(after) == _nodes(before)
    old, new = _constants(before), _constants(after)
    changed = {n for n in old if not np.array_equal(old[n], new[n])}
    pairs = {n for node in before.graph.node if node.op_type == "QuantizeLinear" for n in node.input[1:]}
    assert pairs and not pairs & changed, "ranges of activations stay those of the table"
    assert len({n for n in changed if n.endswith("weight_codes")}) == 5

    # Weight scales follow the weights: the trained torch network still computes what its graph does.
    got, expected = detector.forward(prepared), detector.run(after)
    moved = _rms(_difference(detector.run(before), expected))
    assert _rms(_difference(got, expected)) < 0.02 * moved


def test_the_same_seed_gives_the_same_weights(detector, training):
    a, b = (detector.prepare(skip=HEADS) for _ in range(2))
    assert _finetune(a, training, steps=2, seed=3) == _finetune(b, training, steps=2, seed=3)


def test_recorded_training_wins_back_more_than_half_and_training_alone_does_not(monkeypatch):
    recorded = json.loads(data.dataset_file("results/qat_yolov3_w025.json").read_text())
    for metric in ("map50", "map50_95"):
        fp32, spoilt, trained, control = (
            recorded["results"][name][metric] for name in ("fp32", "ptq_bad", "qat", "finetuned_float_then_ptq_bad")
        )
        assert fp32 - spoilt > 0.1, "the calibration was spoilt in earnest"
        assert recorded["recovered_share"][metric] == round((trained - spoilt) / (fp32 - spoilt), 3) >= 0.5
        assert control <= spoilt, "the lesson says so"
    monkeypatch.setattr(plots_qat.plt, "show", lambda: None)
    plots_qat.recovery(recorded["results"])
    plots_qat.straight_through(4)


# --- bad input ---


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("steps", -3), ("lr", 0.0), ("lr", float("nan"))])
def test_bad_numbers_are_refused_before_training(tiny, training, name, value):
    with pytest.raises(ValueError, match=rf"{name}: got {value}"):
        _finetune(tiny.prepare(skip=["*"]), training, **{name: value})


def test_an_empty_training_set_is_refused(tiny, training):
    empty = data.TrainingSet(training.images_u8[:0], training.boxes_xyxy[:0], training.labels[:0])
    with pytest.raises(ValueError, match="data: got 0 images"):
        _finetune(tiny.prepare(skip=["*"]), empty, steps=1)


def test_a_prepared_network_is_not_prepared_again(tiny):
    with pytest.raises(ValueError, match="prepared already"):
        qat.prepare(tiny.prepare(), tiny.table, target="cpu")


def test_a_table_of_another_graph_is_refused(tiny, detector):
    with pytest.raises(ValueError, match="which this network's graph lacks"):
        tiny.prepare(table=detector.table)


def test_a_tensor_without_a_range_is_named(tiny):
    name = "/residual/Add_output_0"
    with pytest.raises(ValueError, match=name):
        tiny.prepare(table={n: r for n, r in tiny.table.items() if n != name})


def test_an_operator_without_a_translation_is_named(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
    case = Case(model, 32, tmp_path)
    with pytest.raises(ValueError, match="Sigmoid"):
        case.prepare()


def test_weights_that_are_no_parameters_are_named(tmp_path):
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(4, 3, 1, 1))

        def forward(self, x):
            return nn.functional.conv2d(x, self.kernel)

    with pytest.raises(ValueError, match=r"expected those of an nn\.Conv2d"):
        Case(Computed(), 32, tmp_path).prepare()


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step(detector, training, monkeypatch):
    real, calls = train.yolo_loss, []

    def failing(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(train, "yolo_loss", failing)
    prepared = detector.prepare(skip=HEADS)
    with pytest.raises(FloatingPointError, match="loss is nan at step 2"):
        _finetune(prepared, training, steps=5)
    assert all(p.isfinite().all() for p in prepared.parameters())
