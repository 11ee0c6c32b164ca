"""A graph made from stored weights without PyTorch is the one that PyTorch exports."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import randomize_batchnorm
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from trtkit import cli, data, engine, export, models, weights

KIT = "weights/yolov3_w025.safetensors"
META = {"num_classes": "3", "width": "0.05"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A weights file of another width and number of classes than the kit's."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    models.save_weights(randomize_batchnorm(models.YOLOv3(3, 0.05)), path)
    return path


@pytest.fixture(scope="module")
def relu(small):
    """The same with ReLU."""
    path = small.with_name("relu.safetensors")
    models.save_weights(models.use_relu(models.load_weights(small)), path)
    return path


def nodes(model: onnx.ModelProto) -> list[bytes]:
    return [node.SerializeToString(deterministic=True) for node in model.graph.node]


@pytest.mark.parametrize("which", ["kit", "small", "relu"])
def test_the_graph_is_the_one_that_pytorch_exports(which, request, tmp_path, rng):
    path = data.dataset_file(KIT) if which == "kit" else request.getfixturevalue(which)
    exported_path = export.export_onnx(models.load_weights(path), tmp_path / "exported.onnx")
    made_path = weights.to_graph(path, tmp_path / "new folder" / "made.onnx")
    made, exported = onnx.load(made_path), onnx.load(exported_path)
    assert nodes(made) == nodes(exported)
    assert list(made.graph.input) == list(exported.graph.input)
    assert list(made.graph.output) == list(exported.graph.output)
    assert list(made.opset_import) == list(exported.opset_import)
    for a, b in zip(made.graph.initializer, exported.graph.initializer, strict=True):
        got, expected = numpy_helper.to_array(a), numpy_helper.to_array(b)
        assert a.name == b.name and got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(), err_msg=a.name)
    x = rng.random((1, 3, 416, 416), dtype=np.float32)
    with engine.load(engine.build(made_path)) as one, engine.load(engine.build(exported_path)) as other:
        assert 0 <= export.max_abs_diff(one, other.infer, x) < 1e-4


def test_the_committed_structure_is_the_exporters_and_holds_no_weights(tmp_path):
    exported = export.export_onnx(models.load_weights(data.dataset_file(KIT)), tmp_path / "exported.onnx")
    path = data.dataset_file(weights.STRUCTURE)
    assert path.stat().st_size < 60_000
    committed, made = onnx.load(path), weights.structure(onnx.load(exported))
    assert nodes(committed) == nodes(made)
    assert list(committed.graph.initializer) == list(made.graph.initializer)
    assert not any(i.raw_data or i.float_data for i in committed.graph.initializer)


def test_emptying_a_graph_leaves_the_argument_alone(yolo_graph):
    full = onnx.load(yolo_graph)
    before = full.SerializeToString()
    assert len(weights.structure(full).SerializeToString()) < 60_000 and full.SerializeToString() == before


def without(name):
    return lambda t: t.pop(name)


def shaped(name, *shape):
    return lambda t: t.update({name: np.zeros(shape, np.float16)})


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (without("stem.0.weight"), r"stem\.0\.weight: got nothing, expected \(any, 3, 3, 3\)"),
        (without("stem.1.running_var"), r"stem\.1\.running_var: got nothing, expected \(8\)"),
        (without("head16.predict.bias"), r"head16\.predict\.bias: got nothing, expected \(24\)"),
        (shaped("stem.1.bias", 9), r"stem\.1\.bias: got \(9,\), expected \(8\)"),
        (shaped("stem.0.weight", 8, 4, 3, 3), r"stem\.0\.weight: got \(8, 4, 3, 3\), expected \(any, 3, 3, 3\)"),
        (shaped("stages.0.0.0.weight", 8, 8, 1, 1), r"got \(8, 8, 1, 1\), expected \(any, 8, 3, 3\)"),
        (shaped("stages.0.0.0.weight"), r"got nothing, expected \(any, 8, 3, 3\)"),
        (shaped("head8.predict.weight", 21, 16, 1, 1), r"head8\.predict\.weight: got \(21, .*expected \(24, "),
        (shaped("surplus.weight", 2), r"1 tensors that the graph lacks, first surplus\.weight"),
        (lambda t: t["stem.1.running_var"].fill(-1), r"stem\.1\.running_var: got -1.*at least 0"),
        (lambda t: t["stem.1.running_var"].fill(np.nan), r"stem\.1\.running_var: got nan.*at least 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_leave_nothing(small, tmp_path, damage, match):
    tensors = load_file(small)
    damage(tensors)
    save_file(tensors, tmp_path / "other.safetensors", metadata=META)
    with pytest.raises(ValueError, match=match):
        weights.to_graph(tmp_path / "other.safetensors", tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]


def test_layers_that_fit_their_file_but_not_each_other_are_refused(small, tmp_path):
    """A residual block whose result has other channels than what it is added to."""
    tensors = load_file(small)
    layer = "stages.0.1.expand"
    tensors[f"{layer}.0.weight"] = np.zeros((16, 8, 3, 3), np.float16)
    tensors |= {f"{layer}.1.{p}": np.ones(16, np.float16) for p in ("weight", "bias", "running_mean", "running_var")}
    tensors[f"{layer}.0.weight"] = tensors[f"{layer}.0.weight"][:, : tensors["stages.0.1.reduce.0.weight"].shape[0]]
    save_file(tensors, tmp_path / "other.safetensors", metadata=META)
    with pytest.raises(ValueError, match=r"stages\.0\.1\.expand\.0\.weight: got 16 output channels, expected 8"):
        weights.to_graph(tmp_path / "other.safetensors", tmp_path / "out.onnx")


def test_another_activation_than_the_two_is_refused(small, tmp_path):
    tensors = load_file(small)
    save_file(tensors, tmp_path / "mish.safetensors", metadata={**META, "activation": "mish"})
    for read in (models.load_weights, lambda path: weights.to_graph(path, tmp_path / "mish.onnx")):
        with pytest.raises(ValueError, match="activation: got 'mish', expected 'leaky' or 'relu'"):
            read(tmp_path / "mish.safetensors")


@pytest.mark.parametrize("count", ["", "0", "-3", "three", "4"])
def test_another_number_of_classes_than_the_heads_have_is_refused(small, tmp_path, count):
    save_file(load_file(small), tmp_path / "other.safetensors", metadata={**META, "num_classes": count})
    with pytest.raises(ValueError, match=r"num_classes: got|expected \(27, "):
        weights.to_graph(tmp_path / "other.safetensors", tmp_path / "out.onnx")


def test_types_beyond_numpys_are_refused(tmp_path):
    from safetensors.torch import save_file as save_torch

    save_torch({"stem.0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.float8_e4m3fn)}, tmp_path / "f8.safetensors", META)
    with pytest.raises(ValueError, match=r"f8\.safetensors .*save it as FP16"):
        weights.read_weights(tmp_path / "f8.safetensors")


def test_a_damaged_structure_file_is_refused(small, tmp_path, monkeypatch):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "manifest.json").write_bytes((data.DATASETS / "manifest.json").read_bytes())
    damaged = bytearray(data.dataset_file(weights.STRUCTURE).read_bytes())
    damaged[20_000] ^= 1
    (tmp_path / weights.STRUCTURE).write_bytes(damaged)
    monkeypatch.setattr(data, "DATASETS", tmp_path)
    with pytest.raises(ValueError, match=r"graphs/yolov3\.onnx.*damaged"):
        weights.to_graph(small, tmp_path / "out.onnx")


def python_without_torch(code: str) -> subprocess.CompletedProcess:
    """Run code in a process in which `import torch` fails as if it were not installed."""
    hide = "import sys, importlib.abc\nclass Hide(importlib.abc.MetaPathFinder):\n" \
           "    def find_spec(self, name, path, target=None):\n" \
           "        if name.split('.')[0] in ('torch', 'torchvision'):\n" \
           "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n" \
           "sys.meta_path.insert(0, Hide())\n"
    return subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, timeout=120, check=False)


def test_what_lessons_00_and_12_call_works_without_pytorch(tmp_path):
    done = python_without_torch(
        "from functools import partial\n"
        "import numpy as np, onnx\n"
        "from onnx.reference import ReferenceEvaluator\n"
        "from trtkit import calib, data, engine, evaluate, export, plots, qdq, scenes, video, weights, yolo\n"
        f"graph = weights.to_graph(data.dataset_file({KIT!r}), {str(tmp_path / 'y.onnx')!r})\n"
        "x = np.random.default_rng(0).random((1, 3, 416, 416), dtype=np.float32)\n"
        "with engine.load(engine.build(graph)) as runner:\n"
        "    print(export.max_abs_diff(runner, partial(ReferenceEvaluator(str(graph)).run, None), x))\n"
        "export.expose_tensors(onnx.load(graph), qdq.activation_names(onnx.load(graph))[1:])\n"
        "print('torch' in sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr
    difference, has_torch = done.stdout.split()
    assert 0 < float(difference) < 1e-3 and has_torch == "False"


def test_what_needs_pytorch_says_so_in_one_line():
    done = python_without_torch("from trtkit import models")
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: PyTorch is not installed")
    assert "pip install --editable '.[torch]'" in done.stderr
    done = python_without_torch("from trtkit import cli; sys.exit(cli.main(['train', 'out.safetensors']))")
    assert done.returncode == 2 and done.stderr == (
        "trtkit: this command needs PyTorch; pip install --editable '.[torch]'\n"
    )


def test_another_missing_package_is_no_question_of_pytorch(monkeypatch):
    def broken(args):
        raise ModuleNotFoundError("No module named 'safetensors'", name="safetensors")

    monkeypatch.setattr(cli, "_train", broken)
    with pytest.raises(ModuleNotFoundError, match="safetensors"):
        cli.main(["train", "out.safetensors"])
