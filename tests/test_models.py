import copy
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trtkit.models import Residual, YOLOv3, load_weights, save_weights, use_relu


@pytest.fixture(scope="module")
def paper() -> YOLOv3:
    """The paper's network without memory for its weights."""
    with torch.device("meta"):
        return YOLOv3(num_classes=80).eval()


def test_the_papers_network_has_the_structure_of_yolov3_cfg(paper):
    kinds = [type(m) for m in paper.modules()]
    assert kinds.count(nn.Conv2d) == 75
    assert kinds.count(Residual) == 23
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.LeakyReLU) == 72
    assert sum(p.numel() for p in paper.parameters()) == 61_949_149
    floats = sum(v.numel() for v in paper.state_dict().values() if v.is_floating_point())
    assert floats == 62_001_757                 # of darknet's yolov3.weights: 4 * this + 20 = 248,007,048 bytes
    assert sum(m.weight.numel() for m in paper.modules() if isinstance(m, nn.Conv2d)) == 61_895_776


@pytest.mark.parametrize(
    ("size", "bflops", "boxes"), [(320, 38.973, 6_300), (416, 65.864, 10_647), (608, 140.692, 22_743)]
)
def test_operations_and_boxes_equal_darknets(paper, size, bflops, boxes):
    operations, handles = [], []
    for m in paper.modules():
        if isinstance(m, nn.Conv2d):
            handles.append(m.register_forward_hook(
                lambda m, _, y: operations.append(2 * y.shape[2] * y.shape[3] * m.weight.numel())))
    try:
        heads = paper(torch.empty(1, 3, size, size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    assert sum(operations) / 1e9 == pytest.approx(bflops, abs=6e-4)
    assert [tuple(h.shape) for h in heads] == [(1, 255, size // s, size // s) for s in (32, 16, 8)]
    assert sum(3 * h.shape[2] * h.shape[3] for h in heads) == boxes


def test_modules_run_in_the_order_in_which_they_are_registered(small_yolo):
    """darknet's weight file is read in one pass over state_dict, so this order is a contract."""
    ran, handles = [], []
    for name, m in small_yolo.named_modules():
        if isinstance(m, nn.Conv2d):
            handles.append(m.register_forward_hook(lambda m, x, y, name=name: ran.append(name)))
    small_yolo(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    assert ran == [name for name, m in small_yolo.named_modules() if isinstance(m, nn.Conv2d)]


def _yolov3_cfg(model: YOLOv3, x: torch.Tensor) -> list[torch.Tensor]:
    """darknet's yolov3.cfg, layer by layer with its own numbers, eating the weights in the order of state_dict."""
    weights = iter(v for k, v in model.state_dict().items() if "num_batches" not in k)
    out, heads = [], []                                             # out[i] is what layer i of the cfg returns

    def conv(stride: int = 1) -> None:
        w, gamma, beta, mean, var = (next(weights) for _ in range(5))
        y = nn.functional.conv2d(out[-1] if out else x, w, stride=stride, padding=w.shape[-1] // 2)
        y = (y - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * gamma[:, None, None] + beta[:, None, None]
        out.append(torch.where(y > 0, y, 0.1 * y))

    def head() -> None:
        for _ in range(6):
            conv()
        heads.append(nn.functional.conv2d(out[-1], next(weights), next(weights)))
        out.extend([heads[-1], heads[-1]])                          # the linear convolution and [yolo]

    conv()
    for blocks in (1, 2, 8, 8, 4):
        conv(stride=2)
        for _ in range(blocks):
            conv()
            conv()
            out.append(out[-1] + out[-3])                           # [shortcut] from=-3
    head()                                                          # layers 75 to 82
    for tap in (61, 36):
        out.append(out[-4])                                         # [route] layers=-4
        conv()
        out.append(out[-1].repeat_interleave(2, 2).repeat_interleave(2, 3))
        out.append(torch.cat([out[-1], out[tap]], 1))               # [route] layers=-1,61 and -1,36
        head()
    assert len(out) == 107 and next(weights, None) is None
    return heads


def test_the_network_computes_what_darknets_cfg_says(small_yolo):
    model = copy.deepcopy(small_yolo).double()
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        for got, expected in zip(model(x), _yolov3_cfg(model, x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 64, 96), (1, 96, 32)])
@pytest.mark.parametrize("classes", [1, 3])
def test_heads_have_the_shape_of_the_strides(shape, classes):
    n, h, w = shape
    with torch.device("meta"):
        heads = YOLOv3(classes, 0.25).eval()(torch.empty(n, 3, h, w))
    assert [tuple(x.shape) for x in heads] == [(n, 3 * (5 + classes), h // s, w // s) for s in (32, 16, 8)]


@pytest.mark.parametrize("width", [0.01, 0.1, 0.25, 0.3, 0.5, 1.3])
def test_any_width_gives_channels_that_are_multiples_of_four(width):
    with torch.device("meta"):
        model = YOLOv3(3, width).eval()
        model(torch.empty(1, 3, 32, 32))
    inner = [m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "predict" not in name]
    assert all(c % 4 == 0 and c >= 4 for c in inner)


def test_images_of_a_batch_do_not_touch_each_other(small_yolo):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both, alone = small_yolo(x), small_yolo(x[1:])
    for b, a in zip(both, alone, strict=True):
        torch.testing.assert_close(b[1:], a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: YOLOv3(0), "num_classes"),
        (lambda: YOLOv3(3, 0), "width"),
        (lambda: YOLOv3(3, -1), "width"),
        (lambda: YOLOv3(3, float("nan")), "width"),
        (lambda: YOLOv3(3, 0.25)(torch.zeros(1, 3, 100, 96)), "multiples of 32"),
        (lambda: YOLOv3(3, 0.25)(torch.zeros(1, 3, 96, 100)), "multiples of 32"),
    ],
)
def test_wrong_sizes_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.fixture
def saved(small_yolo, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(small_yolo, path, metadata={"seed": "7"})
    return path


def test_weights_come_back_rounded_to_fp16_and_in_eval_mode(small_yolo, saved):
    loaded = load_weights(saved)
    assert not loaded.training and (loaded.num_classes, loaded.width) == (3, 0.25)
    want, got = small_yolo.state_dict(), loaded.state_dict()
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        if tensor.is_floating_point():
            assert got[name].dtype == torch.float32
            torch.testing.assert_close(got[name], tensor.half().float(), rtol=0, atol=0)


def test_saving_leaves_one_file_of_two_bytes_a_float(small_yolo, saved):
    assert [p.name for p in saved.parent.iterdir()] == ["w.safetensors"]
    floats = sum(v.numel() for v in small_yolo.state_dict().values() if v.is_floating_point())
    assert 0 < saved.stat().st_size - 2 * floats < 100_000          # the rest is the header


def test_an_interrupted_save_leaves_the_old_file(small_yolo, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half a fi")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(small_yolo, saved)
    assert saved.read_bytes() == before


def test_weights_that_fp16_cannot_hold_are_not_saved(tmp_path):
    model = YOLOv3(1, 0.01)
    model.stem[1].running_var.fill_(1e5)
    with pytest.raises(ValueError, match=r"stem\.1\.running_var"):
        save_weights(model, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match="no intact safetensors"):
        load_weights(saved)


def test_a_flipped_byte_of_the_header_is_refused_or_changes_no_tensor(saved):
    """safetensors has no checksum: a flip in the numbers is for data.dataset_file, which has one, to find."""
    data = bytearray(saved.read_bytes())
    (header,) = struct.unpack("<Q", data[:8])
    good = load_file(saved)
    for position in range(0, 8 + header, max(1, header // 20)):
        flipped = bytearray(data)
        flipped[position] ^= 0x02
        saved.write_bytes(flipped)
        try:
            loaded = load_weights(saved)
        except ValueError:
            continue
        state = loaded.state_dict()
        assert all(torch.equal(state[k], v.float()) for k, v in good.items())


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("name", "match"),
    [("w.pt", "pickles run code"), ("w.pth", "pickles run code"), ("w.pkl", "pickles run code"),
     ("w.safetensors", "no intact safetensors")],
)  # fmt: skip
def test_a_pickle_is_refused_and_runs_nothing_under_any_name(tmp_path, name, match):
    path, evidence = tmp_path / name, tmp_path / "it_ran"
    path.write_bytes(pickle.dumps({"stem": _Bomb(evidence)}))
    with pytest.raises(ValueError, match=match):
        load_weights(path)
    assert not evidence.exists()
    pickle.loads(path.read_bytes())                         # the bomb is real: elsewhere it goes off
    assert evidence.exists()


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t, m: t.update({"stem.0.weight": torch.zeros(8, 3, 1, 1)}), r"stem\.0\.weight: got \(8, 3, 1, 1\)"),
        (lambda t, m: t.pop("head8.predict.bias"), r"head8\.predict\.bias: got nothing"),
        (lambda t, m: t.update({"zzz": torch.zeros(1)}), "zzz"),
        (lambda t, m: m.pop("width"), "width"),
        (lambda t, m: m.update(num_classes="4"), "predict"),
        (lambda t, m: m.update(width="0.5"), "expected"),
        (lambda t, m: m.update(width="1000"), "expected"),          # must not ask for terabytes first
        (lambda t, m: m.update(width="wide"), "metadata"),
        (lambda t, m: m.update(num_classes="three"), "metadata"),
    ],
)
def test_files_of_another_network_are_refused(saved, change, match):
    tensors, meta = load_file(saved), {"num_classes": "3", "width": "0.25"}
    change(tensors, meta)
    save_file(tensors, saved, metadata=meta)
    with pytest.raises(ValueError, match=match):
        load_weights(saved)


def test_relu_comes_back_as_relu(saved, tmp_path, rng):
    leaky = load_weights(saved)
    model = use_relu(load_weights(saved))
    save_weights(model, tmp_path / "relu.safetensors")
    loaded = load_weights(tmp_path / "relu.safetensors")
    for network, gone in ((model, nn.LeakyReLU), (loaded, nn.LeakyReLU), (leaky, nn.ReLU)):
        assert not any(isinstance(m, gone) for m in network.modules())
    x = torch.from_numpy(rng.random((1, 3, 64, 64), dtype=np.float32))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))
        assert not torch.allclose(loaded(x)[0], leaky(x)[0], rtol=1e-3)


def test_metadata_is_kept(saved):
    data = saved.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    assert json.loads(data[8 : 8 + header])["__metadata__"] == {"num_classes": "3", "width": "0.25", "seed": "7"}
