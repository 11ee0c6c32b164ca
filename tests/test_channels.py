"""A network whose channels were pruned comes back from its file, and shapes that do not fit are refused by name."""

import copy

import numpy as np
import pytest
import torch
from conftest import SIZE, randomize_batchnorm, without_channels
from safetensors.torch import load_file, save_file
from torch import nn

from trtkit import channels, engine, export, models, weights
from trtkit.models import YOLOv3

META = {"num_classes": "3", "width": "0.25", "pruned": "true"}


@pytest.fixture(scope="module")
def pruned(small_yolo):
    """Uneven cuts in three stages; as FP16 holds them, so that a file changes no number."""
    model = without_channels(small_yolo, "stages.0.1", [0, 2, 3])
    model = without_channels(model, "stages.2.5", list(range(5, 25)))
    return without_channels(model, "stages.4.4", list(range(0, 128, 3))).half().float()


@pytest.fixture
def saved(pruned, tmp_path):
    path = tmp_path / "pruned.safetensors"
    models.save_weights(pruned, path)
    return path


def heads(model, size: int = SIZE):
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(x)


def test_a_pruned_network_comes_back_whole(pruned, saved):
    loaded = models.load_weights(saved)
    assert not loaded.training and (loaded.num_classes, loaded.width) == (3, 0.25)
    assert [v.shape for v in loaded.state_dict().values()] == [v.shape for v in pruned.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(heads(loaded), heads(pruned), strict=True))
    for (name, a), b in zip(loaded.named_modules(), pruned.modules(), strict=True):
        assert repr(a) == repr(b), name                     # in_channels and num_features too: export reads them
        assert a.training == b.training


def test_a_loaded_network_can_be_saved_and_trained_again(saved, tmp_path):
    loaded = models.load_weights(saved)
    models.save_weights(loaded, tmp_path / "again.safetensors")
    again, first = load_file(tmp_path / "again.safetensors"), load_file(saved)
    assert again.keys() == first.keys() and all(torch.equal(again[k], v) for k, v in first.items())
    sum(h.square().mean() for h in loaded.train()(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
    assert all(m.num_batches_tracked == 1 for m in loaded.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_graph_of_a_pruned_networks_file_gives_the_heads_of_pytorch(pruned, saved, tmp_path, cache):
    x = torch.rand(1, 3, 416, 416, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = [h.numpy() for h in pruned(x)]
    exported = export.export_onnx(pruned, tmp_path / "exported.onnx")
    for graph in (weights.to_graph(saved, tmp_path / "made.onnx"), exported):
        with engine.load(engine.build(graph, backend="ort")) as runner:
            got = runner.infer({"images": x.numpy()})
        for g, e in zip(got.values(), expected, strict=True):
            assert np.abs(g - e).max() < 1e-4 * np.abs(e).max()


def test_only_pruned_files_may_have_other_shapes(pruned, saved, small_yolo, tmp_path):
    """A file that does not say so, and does not fit its width, is a damaged one."""
    save_file(load_file(saved), saved, metadata={k: v for k, v in META.items() if k != "pruned"})
    with pytest.raises(ValueError, match=r"stages\.0\.1\.reduce\.0\.weight: got \(3, 16, 1, 1\), expected \(8, "):
        models.load_weights(saved)
    whole = tmp_path / "whole.safetensors"
    models.save_weights(small_yolo, whole)
    assert b'"pruned"' not in whole.read_bytes()[:100_000]


def shaped(name: str, *shape: int):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def without(name: str):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (shaped("stages.0.1.reduce.0.weight", 2, 16, 1, 1), r"stages\.0\.1\.reduce\.1\.weight: got \(3,\).*\(2,\)|"
                                                            r"stages\.0\.1\.expand\.0\.weight: got 3 input .*ected 2"),
        (shaped("stages.0.1.reduce.0.weight", 3, 15, 1, 1), r"reduce\.0\.weight: got 15 input channels, expected 16"),
        (shaped("stages.0.1.expand.0.weight", 12, 3, 3, 3), r"1\.expand\.0\.weight: got 12 output channels, .*cted 16"),
        (shaped("stages.0.1.expand.0.weight", 1, 3, 3, 3), r"1\.expand\.0\.weight: got 1 output channels, .*cted 16"),
        (shaped("stages.0.0.0.weight", 16, 9, 3, 3), r"stages\.0\.0\.0\.weight: got 9 input channels, expected 8"),
        (shaped("stem.0.weight", 8, 4, 3, 3), r"stem\.0\.weight: got 4 input channels, expected 3"),
        (shaped("stem.0.weight", 8, 3, 1, 1), r"stem\.0\.weight: got \(8, 3, 1, 1\), expected \(C_out, C_in, 3, 3\)"),
        (shaped("stem.0.weight", 0, 3, 3, 3), r"stem\.0\.weight: got \(0, 3, 3, 3\).*at least one channel"),
        (shaped("stem.0.weight", 8), r"stem\.0\.weight: got \(8,\), expected \(C_out, "),
        (without("stem.0.weight"), r"stem\.0\.weight: got nothing"),
        (shaped("stages.0.1.reduce.1.running_var", 4), r"reduce\.1\.running_var: got \(4,\), expected \(3,\)"),
        (without("stages.0.1.reduce.1.bias"), r"reduce\.1\.bias: got nothing, expected \(3,\)"),
        (shaped("head8.predict.weight", 21, 64, 1, 1), r"head8\.predict\.weight: got 21 output channels, expected 24"),
        (shaped("head8.predict.bias", 21), r"head8\.predict\.bias: got \(21,\), expected \(24,\)"),
        (shaped("head16.neck.0.0.weight", 64, 191, 1, 1), r"head16\.neck\.0\.0\.weight: got 191 .* expected 192"),
        (shaped("surplus", 2), "1 tensors that YOLOv3 lacks, first surplus"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused_by_name(saved, damage, match):
    tensors = load_file(saved)
    damage(tensors)
    save_file(tensors, saved, metadata=META)
    with pytest.raises(ValueError, match=match):
        models.load_weights(saved)


def test_reshaping_leaves_its_argument_alone_and_asks_for_no_memory():
    model = randomize_batchnorm(YOLOv3(3, 0.05))
    before = copy.deepcopy(model).state_dict()
    shapes = {k: tuple(v.shape) for k, v in without_channels(model, "stages.3.2", [1]).state_dict().items()}
    other = channels.reshaped(model, shapes)
    assert all(p.device.type == "meta" for p in other.parameters())
    assert not any(m.training for m in other.modules())
    assert {k: tuple(v.shape) for k, v in other.state_dict().items()} == shapes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
