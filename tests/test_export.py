import copy

import numpy as np
import onnx
import pytest
import torch
from conftest import SIZE, randomize_batchnorm
from torch import nn

from trtkit import engine, export
from trtkit.models import YOLOv3, conv_bn_leaky


@pytest.fixture(scope="module")
def runner(yolo_graph):
    with engine.load(engine.build(yolo_graph, backend="ort")) as r:
        yield r


def test_folding_batchnorm_keeps_the_function_in_double_precision(small_yolo):
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = copy.deepcopy(small_yolo).double()
    folded = export.fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        for a, b in zip(model(x), folded(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)      # exact but for rounding, so 1e-9 of double


def test_folding_leaves_the_argument_as_it_was(small_yolo):
    model = copy.deepcopy(small_yolo).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export.fold_batchnorm(model)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_graph_computes_what_the_module_computes_for_any_batch(small_yolo, runner, rng, batch):
    x = rng.random((batch, 3, SIZE, SIZE), dtype=np.float32)
    with torch.inference_mode():
        expected = small_yolo(torch.from_numpy(x))
    got = runner.infer({"images": x})
    assert list(got) == ["head32", "head16", "head8"]
    span = max(float(e.max() - e.min()) for e in expected)
    for g, e in zip(got.values(), expected, strict=True):
        np.testing.assert_allclose(g, e.numpy(), rtol=0, atol=1e-4 * span)      # 75 layers of float32 sums
    difference = export.max_abs_diff(runner, small_yolo, x)
    assert difference == max(np.abs(g - e.numpy()).max() for g, e in zip(got.values(), expected, strict=True))


def test_the_graph_is_opset_17_float32_one_file_with_a_dynamic_batch(yolo_graph):
    model = onnx.load(yolo_graph, load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 17)]
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    kinds = [n.op_type for n in model.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Conv") == 75
    assert kinds.count("LeakyRelu") == 72 and kinds.count("Add") == 23
    assert all(n.name for n in model.graph.node)
    assert [p.name for p in yolo_graph.parent.iterdir()] == [yolo_graph.name]


class _BatchNormFirst(nn.Module):
    """Its BatchNorm stands before the convolution and cannot be folded."""

    def __init__(self):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return torch.relu(self.bn(torch.relu(x) + self.conv(x).mean()))


class _Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("half way")


@pytest.mark.parametrize(("model", "error"), [(_BatchNormFirst(), "BatchNormalization"), (_Raises(), "half way")])
def test_a_failed_export_leaves_nothing_behind_and_keeps_the_old_graph(tmp_path, model, error):
    path = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match=error):
        export.export_onnx(model, path, size=32, output_names=("y",))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"the last good one")
    with pytest.raises(ValueError, match=error):
        export.export_onnx(model, path, size=32, output_names=("y",))
    assert path.read_bytes() == b"the last good one"


def test_unfoldable_batchnorm_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"BatchNormalization.*first /bn"):
        export.export_onnx(_BatchNormFirst(), tmp_path / "m.onnx", size=32, output_names=("y",))


def test_exporting_does_not_change_the_modules_mode(tmp_path):
    model = conv_bn_leaky(3, 4, 3).train()
    export.export_onnx(model, tmp_path / "new" / "m.onnx", size=32, output_names=("y",))
    assert model.training and (tmp_path / "new" / "m.onnx").is_file()


@pytest.mark.parametrize(("channels", "size", "batch"), [(1, (8, 12), 0), (4, 5, 0), (5, (7, 3), 3)])
def test_any_number_of_channels_any_height_and_width_open_or_fixed_batch(tmp_path, rng, channels, size, batch):
    torch.manual_seed(0)
    model = randomize_batchnorm(conv_bn_leaky(channels, 6, 3))
    path = export.export_onnx(model, tmp_path / "m.onnx", size=size, channels=channels, batch=batch,
                              output_names=("y",))
    height, width = size if isinstance(size, tuple) else (size, size)
    with engine.load(engine.build(path, backend="ort")) as r:
        assert r.inputs["images"].shape == (batch or "batch", channels, height, width)
        assert r.outputs["y"].shape == (batch or "batch", 6, height, width)
        for n in (batch,) if batch else (1, 2, 5):
            x = rng.random((n, channels, height, width), dtype=np.float32)
            assert export.max_abs_diff(r, model, x) < 1e-5


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"size": 0}, {"size": (32, 0)}, {"batch": -1}])
def test_sizes_below_one_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="images: got batch="):
        export.export_onnx(nn.Conv2d(3, 2, 1), tmp_path / "m.onnx", **{"size": 32, "output_names": ("y",), **wrong})


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_batchnorm_stays_on_request(tmp_path, rng, exporter):
    torch.manual_seed(0)
    model = randomize_batchnorm(nn.Sequential(conv_bn_leaky(3, 4, 3), conv_bn_leaky(4, 4, 3)))
    operators = {}
    for keep in (False, True):
        path = export.export_onnx(model, tmp_path / f"{keep}.onnx", size=8, output_names=("y",), exporter=exporter,
                                  keep_batchnorm=keep)
        operators[keep] = [n.op_type for n in onnx.load(path).graph.node].count("BatchNormalization")
        with engine.load(engine.build(path, backend="ort")) as r:
            assert export.max_abs_diff(r, model, rng.random((3, 3, 8, 8), dtype=np.float32)) < 1e-5
    assert operators == {False: 0, True: 2}


class _FakeRunner:
    def __init__(self, *outputs):
        self.inputs, self.outputs = {"x": None}, outputs

    def infer(self, feed):
        return dict(enumerate(self.outputs))


class _Two(nn.Module):
    def forward(self, x):
        return x, 2 * x


def test_max_abs_diff_is_the_largest_over_all_outputs_and_shows_nan():
    x = np.ones((1, 3, 2, 2), np.float32)
    assert export.max_abs_diff(_FakeRunner(x, 2 * x), _Two(), x) == 0
    assert export.max_abs_diff(_FakeRunner(x, 2 * x - 0.25), _Two(), x) == 0.25
    for outputs in ((x * np.nan, 2 * x), (x, x * np.nan)):
        assert np.isnan(export.max_abs_diff(_FakeRunner(*outputs), _Two(), x))
    with pytest.raises(ValueError):
        export.max_abs_diff(_FakeRunner(x), _Two(), x)
    with pytest.raises(ValueError, match=r"got shape \(0, 3, 2, 2\), expected at least one image"):
        export.max_abs_diff(_FakeRunner(x, x), _Two(), x[:0])


def test_max_abs_diff_takes_a_module_with_one_output_and_leaves_its_mode():
    model = nn.Sequential(nn.Conv2d(3, 2, 1)).train()
    x = np.ones((2, 3, 4, 4), np.float32)
    y = model(torch.from_numpy(x)).detach().numpy()
    assert export.max_abs_diff(_FakeRunner(y + 0.5), model, x) == pytest.approx(0.5, abs=1e-6)
    assert model.training


def test_max_abs_diff_takes_a_function_with_outputs_by_name_or_in_order():
    x = np.ones((1, 3, 2, 2), np.float32)
    runner = _FakeRunner(x, 2 * x)
    assert export.max_abs_diff(runner, lambda feed: [feed["x"], 2 * feed["x"] + 0.5], x) == 0.5
    assert export.max_abs_diff(runner, lambda feed: {1: 2 * feed["x"], 0: feed["x"]}, x) == 0      # another order
    assert export.max_abs_diff(runner, _FakeRunner(x, 2 * x + 0.25).infer, x) == 0.25
    with pytest.raises(ValueError, match="got outputs"):
        export.max_abs_diff(runner, lambda feed: {0: feed["x"]}, x)
    with pytest.raises(ValueError):
        export.max_abs_diff(runner, lambda feed: [feed["x"]], x)


def test_exposed_tensors_hold_what_torch_hooks_see(tmp_path, rng):
    torch.manual_seed(0)
    model = randomize_batchnorm(YOLOv3(2, 0.01))
    graph = onnx.load(export.export_onnx(model, tmp_path / "m.onnx", size=64))
    wanted = [n.output[0] for n in graph.graph.node if n.op_type == "LeakyRelu"]
    exposed = export.expose_tensors(graph, [*wanted, "head8"])
    assert len(graph.graph.output) == 3                             # the argument is unchanged
    assert [o.name for o in exposed.graph.output] == ["head32", "head16", "head8", *wanted]
    onnx.save(exposed, tmp_path / "exposed.onnx")
    seen, handles = [], []
    for m in model.modules():
        if isinstance(m, nn.LeakyReLU):
            handles.append(m.register_forward_hook(lambda m, x, y: seen.append(y.clone().numpy())))
    x = rng.random((2, 3, 64, 64), dtype=np.float32)
    with torch.inference_mode():
        model(torch.from_numpy(x))
    for handle in handles:
        handle.remove()
    with engine.load(engine.build(tmp_path / "exposed.onnx", backend="ort")) as r:
        got = r.infer({"images": x})
    assert len(seen) == len(wanted) == 72
    for name, e in zip(wanted, seen, strict=True):                  # both in the order in which they run
        np.testing.assert_allclose(got[name], e, atol=1e-4 * np.abs(e).max(), rtol=0, err_msg=name)


def test_exposing_an_unknown_tensor_is_refused(yolo_graph):
    with pytest.raises(ValueError, match="'nope'"):
        export.expose_tensors(onnx.load(yolo_graph), ["head32", "nope"])
