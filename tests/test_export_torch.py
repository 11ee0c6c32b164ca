"""Both exporters on modules of many kinds, and on those that cannot become a graph."""

import functools

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trtkit import engine, export_checks, export_torch

EXPORTERS = list(export_torch.OPSETS)


class Block(nn.Module):
    """A ConvNeXt block, small: convolutions, a norm over channels, GELU, a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.norm, self.wide, self.back = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        return x + self.back(F.gelu(self.wide(y))).permute(0, 3, 1, 2)


class Two(nn.Module):
    """Two inputs, two outputs."""

    def forward(self, a, b):
        return a + b, (a * b).flatten(1)


class ByShape(nn.Module):
    """Decides by a shape, which is the same for every input: no offence."""

    def forward(self, x):
        return x.view(x.shape[0], -1) if int(x.shape[1]) == 3 else x


class Frozen(nn.Module):
    """Makes a Python number of the batch."""

    def forward(self, x):
        return x.view(int(x.shape[0]), -1)


class ByNumber(nn.Module):
    """Decides by a number: a trace would hold one branch."""

    def forward(self, x):
        if x.mean() > 0:
            return 2 * x
        return x - 1


class Count(nn.Module):
    """Repeats something as often as the input says."""

    def forward(self, x):
        for _ in range(int(x.sum().abs()) % 4 + 1):
            x = x + 1
        return x


class Numpy(nn.Module):
    """Leaves PyTorch on the way: a trace would hold a constant."""

    def forward(self, x):
        return x + torch.from_numpy(np.sqrt(x.numpy()))


class Dice(nn.Module):
    """Dropout that does not know about eval mode."""

    def forward(self, x):
        return F.dropout(x, 0.5)


class Text(nn.Module):
    def forward(self, x):
        return {"y": x}


def image(n: int = 2, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(n))


def write(model, path, exporter, example=None, names=("y",), **settings):
    example = (image(),) if example is None else example
    return export_torch.write(model.eval(), path, example, input_names=[f"x{i}" for i in range(len(example))],
                              output_names=names, exporter=exporter, **settings)


@functools.cache
def block():
    torch.manual_seed(0)
    return Block().eval()


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_both_exporters_write_the_same_function_in_the_opset_asked_for(tmp_path, exporter, opset):
    path = write(block(), tmp_path / "m.onnx", exporter, opset=opset)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
    assert model.ir_version == 8 if opset == 17 else model.ir_version >= 8
    assert sum(n.op_type == "Gelu" for n in model.graph.node) == (opset >= 20)      # the standard has it from there on
    with engine.load(engine.build(path, backend="ort")) as r:
        for n in (1, 2, 5):
            y = r.infer({"x0": image(n).numpy()})["y"]
            with torch.inference_mode():
                np.testing.assert_allclose(y, block()(image(n)).numpy(), atol=1e-5)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_several_inputs_and_outputs_keep_their_order_and_the_batch_can_be_fixed(tmp_path, exporter):
    a, b = image(2), image(2) - 0.5
    path = write(Two(), tmp_path / "m.onnx", exporter, (a, b), ("sum", "product"), dynamic_batch=False)
    with engine.load(engine.build(path, backend="ort")) as r:
        assert list(r.inputs) == ["x0", "x1"] and r.inputs["x0"].shape[0] == 2
        got = r.infer({"x0": a.numpy(), "x1": b.numpy()})
    assert np.array_equal(got["sum"], (a + b).numpy()) and np.array_equal(got["product"], (a * b).flatten(1).numpy())


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_decision_by_shape_is_no_offence(tmp_path, exporter):
    path = write(ByShape(), tmp_path / "m.onnx", exporter)
    with engine.load(engine.build(path, backend="ort")) as r:
        assert r.infer({"x0": image(5).numpy()})["y"].shape == (5, 3 * 16 * 16)


@pytest.mark.parametrize(("module", "line"), [(ByNumber(), "if x.mean() > 0:"), (Count(), "int(x.sum().abs())"),
                                            (Numpy(), "np.sqrt(x.numpy())")])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_looks_at_numbers_is_refused_with_its_line(tmp_path, module, line, exporter):
    if exporter == "dynamo" and isinstance(module, Numpy):          # which it reads as well as PyTorch's
        with engine.load(engine.build(write(module, tmp_path / "m.onnx", exporter), backend="ort")) as r:
            x = image(3).numpy()
            np.testing.assert_allclose(r.infer({"x0": x})["y"], x + np.sqrt(x), rtol=1e-6)
        return
    with pytest.raises(ValueError, match="looks at the numbers themselves") as e:
        write(module, tmp_path / "m.onnx", exporter)
    assert "test_export_torch.py:" in str(e.value) and line in str(e.value) and "torch.where" in str(e.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "settings", "error"), [
    (nn.Conv2d(4, 2, 1), {}, r"example: got \(2, 3, 16, 16\) float32, and the module refuses it"),
    (nn.Conv2d(3, 2, 1), {"example": ()}, "the module refuses it"),
    (nn.Linear(3, 2), {}, "the module refuses it"),
    (Dice(), {}, "output 0: got two runs of one input that differ .* F.dropout"),
    (Text(), {}, "output 0: got dict, expected a tensor"),
    (nn.ReLU(), {"names": ("y", "z")}, r"got \['y', 'z'\], expected 1 names"),
    (nn.ReLU(), {"opset": 12}, "opset: got 12, expected 13 to"),
    (nn.ReLU(), {"opset": 99}, "opset: got 99, expected 13 to"),
])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_cannot_become_a_graph_is_refused_before_anything_is_written(tmp_path, exporter, module, settings, error):
    with pytest.raises(ValueError, match=error):
        write(module, tmp_path / "m.onnx", exporter, **settings)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_exporter_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"exporter: got 'onnx', expected one of \['dynamo', 'torchscript'\]"):
        write(nn.ReLU(), tmp_path / "m.onnx", "onnx")


def test_dynamo_without_onnxscript_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript is not installed.*\.\[export\]"):
        write(nn.ReLU(), tmp_path / "m.onnx", "dynamo")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_batch_that_the_module_fixes_is_refused_unless_it_shall_be_fixed(tmp_path, exporter):
    with pytest.raises(ValueError, match=r"got a batch that is always the example's, 2, expected an open one"):
        write(Frozen(), tmp_path / "m.onnx", exporter)
    if exporter == "torchscript":                                   # the other way is no other, and costs a second
        write(Frozen(), tmp_path / "m.onnx", exporter, dynamic_batch=False)


def test_what_torch_export_refuses_for_another_reason_is_a_value_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("step 1/3") from NotImplementedError("no decomposition")

    monkeypatch.setattr("torch.onnx.export", refuse)
    with pytest.raises(ValueError, match=r"dynamo: no decomposition; .*torchscript"):
        write(nn.ReLU(), tmp_path / "m.onnx", "dynamo")


def test_train_mode_is_seen_as_dice(tmp_path):
    with pytest.raises(ValueError, match="something is still random"):
        export_torch.write(nn.Dropout(0.5).train(), tmp_path / "m.onnx", (image(),), input_names=["x"],
                           output_names=["y"])


def test_asking_twice_does_not_touch_the_callers_dice():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    export_checks.outputs_of(nn.ReLU(), (image(),))
    assert torch.equal(torch.rand(3), expected)


def test_weights_of_two_gib_are_refused_before_they_are_touched():
    with torch.device("meta"):                          # shapes without numbers
        fits, too_much = nn.Linear(2**14, 2**14 - 8), nn.Linear(2**15, 2**14)
    export_checks.check_size(fits)
    with pytest.raises(ValueError, match=r"2\.00 GiB of weights.*external data"):
        export_checks.check_size(too_much)
