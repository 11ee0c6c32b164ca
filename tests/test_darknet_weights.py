"""darknet's weights files: there and back byte by byte, and what is no weights file."""

import struct

import numpy as np
import pytest
import torch
from conftest import randomize_batchnorm, without_channels
from hypothesis import given, settings
from hypothesis import strategies as st
from test_darknet import TEXTS

from trtkit import darknet, darknet_cfg, darknet_layers, darknet_nets, darknet_weights
from trtkit.darknet_weights import Header
from trtkit.models import YOLOv3

OLD, NEW = Header(0, 1, 0, 12_345), Header(0, 2, 5, 2**40)
FLOATS = 4 * 8 + 8 * 3 * 9 + 10 + 10 * 8                # of `tiny`


@pytest.fixture(scope="module")
def tiny() -> darknet.Darknet:
    """Two convolutions, one with BatchNorm."""
    text = """[net]\nwidth=32\nheight=32\nchannels=3\n
        [convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\npad=1\nactivation=leaky\n
        [maxpool]\nsize=2\n
        [convolutional]\nfilters=10\nsize=1\nactivation=linear\n"""
    torch.manual_seed(0)
    return randomize_batchnorm(darknet.network(darknet_cfg.parse(text)))


@pytest.fixture
def file(tiny, tmp_path):
    path = tmp_path / "tiny.weights"
    darknet.save(tiny, path)
    return path


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = darknet.arrays(a), darknet.arrays(b)
    return all(np.array_equal(x[k], y[k]) for x, y in zip(one, other, strict=True) for k in (*x, *y))


def test_a_file_is_header_and_arrays_in_darknets_order(tiny, file):
    conv, norm = tiny.steps[0][0], tiny.steps[0][1]
    expected = [norm.bias, norm.weight, norm.running_mean, norm.running_var, conv.weight,
                tiny.steps[2][0].bias, tiny.steps[2][0].weight]  # fmt: skip
    floats = b"".join(t.detach().numpy().tobytes() for t in expected)
    assert file.read_bytes() == struct.pack("<iiiQ", 0, 2, 0, 0) + floats
    assert file.stat().st_size == 20 + 4 * FLOATS
    assert [p.name for p in file.parent.iterdir()] == ["tiny.weights"]


@given(
    name=st.sampled_from(list(TEXTS)), classes=st.integers(1, 30), width=st.floats(0.01, 0.2),
    header=st.builds(Header, st.just(0), st.just(1), st.integers(0, 9), st.integers(-1, 2**31 - 1))
    | st.builds(Header, st.integers(0, 1), st.integers(2, 999), st.integers(0, 9), st.integers(0, 2**64 - 1)),
)  # fmt: skip
@settings(max_examples=15)
def test_weights_survive_any_network_of_the_three_byte_by_byte(name, classes, width, header, tmp_path_factory):
    folder = tmp_path_factory.mktemp("roundtrip")
    layers = darknet_layers.layers(darknet_cfg.parse(TEXTS[name](classes, width)))
    expected = 4 * sum(c.floats for c in darknet_weights.convolutions(layers))
    content = header.packed + np.random.default_rng(classes).random(expected // 4, np.float32).tobytes()
    (folder / "a").write_bytes(content)
    network = darknet.Darknet(layers)
    assert darknet.load(network, folder / "a") == header
    darknet.save(network, folder / "b", header)
    assert (folder / "b").read_bytes() == content

    with_names = darknet_weights.read(folder / "a", darknet_weights.convolutions(layers))     # without PyTorch
    darknet_weights.write(folder / "c", with_names[1], with_names[0])
    assert (folder / "c").read_bytes() == content


@given(classes=st.integers(1, 90), width=st.floats(0.01, 0.2))
@settings(max_examples=8)
def test_yolov3_of_any_width_turns_into_its_own_cfg_and_back(classes, width):
    torch.manual_seed(classes)
    model = randomize_batchnorm(YOLOv3(classes, width))
    assert darknet_cfg.parse(darknet.cfg_of(model)) == darknet_cfg.parse(darknet_nets.yolov3(classes, width))
    network = darknet.network(darknet_cfg.parse(darknet.cfg_of(model)))
    darknet.fill(network, darknet.arrays(model))
    back = YOLOv3(classes, width)
    darknet.fill(back, darknet.arrays(network))
    assert same(back, model)


def test_yolov3_and_its_own_cfg_compute_the_same(small_yolo):
    network = darknet.network(darknet_cfg.parse(darknet.cfg_of(small_yolo))).eval()
    darknet.fill(network, darknet.arrays(small_yolo))
    x = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))        # neither square nor the cfg's size
    with torch.inference_mode():
        for a, b in zip(small_yolo(x), network(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_pruned_yolov3_has_a_cfg_too(small_yolo, tmp_path):
    pruned = without_channels(small_yolo, "stages.1.1", [0, 2, 3, 5, 7])
    text = darknet.cfg_of(pruned, size=96)
    assert "filters=5\n" in text and "width=96\n" in text
    network = darknet.network(darknet_cfg.parse(text)).eval()
    darknet.save(pruned, tmp_path / "p.weights")
    darknet.load(network, tmp_path / "p.weights")
    x = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        for a, b in zip(pruned(x), network(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_loading_keeps_the_networks_type_and_mode(tiny, file):
    other = darknet.Darknet(tiny.layers).double().train()
    darknet.load(other, file)
    assert other.training and other.steps[0][0].weight.dtype == torch.float64
    assert same(other, tiny)


@pytest.mark.parametrize(("version", "size", "seen"), [((0, 1), 16, 7), ((0, 2), 20, 2**33), ((1, 0), 20, 7)])
def test_the_header_has_the_length_of_its_version(tiny, file, version, size, seen):
    header = Header(*version, 0, seen)
    darknet.save(tiny, file, header)
    assert file.stat().st_size == size + 4 * FLOATS and darknet.load(tiny, file) == header


def test_a_header_whose_numbers_do_not_fit_is_refused(tiny, file):
    before = file.read_bytes()
    for header in (Header(0, 1, 0, 2**31), Header(0, 2, 0, -1), Header(0, 2, 2**31)):
        with pytest.raises(ValueError, match="images seen"):
            darknet.save(tiny, file, header)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        (1, rf"got {FLOATS - 1} floats, expected {FLOATS}: 1 too few. They end in steps.2.0, .* 2 of 2, after 89 of"),
        (90, r"90 too few. They end in steps.2.0, convolution 2 of 2, after 0 of its 90"),
        (91, r"91 too few. They end in steps.0.0, convolution 1 of 2, after 247 of its 248"),
        (FLOATS, rf"got 0 floats, expected {FLOATS}"),
    ],
)  # fmt: skip
def test_too_few_floats_say_how_many_and_where(tiny, file, missing, match):
    before = [{k: v.copy() for k, v in a.items()} for a in darknet.arrays(tiny)]
    file.write_bytes(file.read_bytes()[: -4 * missing])
    with pytest.raises(ValueError, match=match):
        darknet.load(tiny, file)
    for a, b in zip(darknet.arrays(tiny), before, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in b)          # nothing was copied


@pytest.mark.parametrize(
    ("extra", "match"),
    [(4, f"got {FLOATS + 1} floats, expected {FLOATS}: 1 left over behind steps.2.0"),
     (4_000_000, r"1,000,000 left over"), (2, f"got {FLOATS} floats and 2 bytes")],
)  # fmt: skip
def test_too_many_floats_say_how_many_and_where(tiny, file, extra, match):
    file.write_bytes(file.read_bytes() + bytes(extra))
    with pytest.raises(ValueError, match=match):
        darknet.load(tiny, file)


def test_floats_of_another_number_of_classes_are_left_over(tmp_path):
    darknet.save(YOLOv3(80, 0.05), tmp_path / "w")
    with pytest.raises(ValueError, match=r"left over behind head8\.predict; .* another number of classes"):
        darknet.load(YOLOv3(20, 0.05), tmp_path / "w")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "expected darknet's header"),
        (b"\0" * 15, "expected darknet's header"),
        (struct.pack("<4i", 0, 2, 0, 0), "expected a header of 20"),
        (b"\n <!DOCTYPE html><html>" + b"x" * 5000, r"w\.weights: got a web page"),
        (b"<HTML><head>" + b"x" * 5000, "got a web page"),
        (b"[net]\nwidth=416\n" * 10, "begin with b'.net.*expected darknet's header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs|begin with b'version"),
        (b"PK\x03\x04" + bytes(5000), "begin with b'PK"),
        (b"\x80\x02}q\x00" + bytes(5000), "expected darknet's 0.1 or 0.2"),              # a pickle
        (struct.pack("<Q", 9999) + b'{"stem":{"dtype":"F32"' + bytes(5000), r"got version 9999\.0|floats"),
    ],
)  # fmt: skip
def test_what_is_no_weights_file_is_refused(tiny, tmp_path, content, match):
    (tmp_path / "w.weights").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        darknet.load(tiny, tmp_path / "w.weights")


def test_a_missing_file_is_a_missing_file(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.weights"):
        darknet.load(tiny, tmp_path / "none.weights")


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [(0, np.nan, "steps.0.0: bias: got numbers that are not finite"), (100, np.inf, "steps.0.0: weight"),
     (24, -0.5, "steps.0.0: variance: got -0.5, expected at least 0"), (FLOATS - 1, -np.inf, "steps.2.0: weight")],
)  # fmt: skip
def test_numbers_that_no_network_has_are_refused_by_layer(tiny, file, place, value, match):
    data = bytearray(file.read_bytes())
    data[20 + 4 * place : 24 + 4 * place] = struct.pack("<f", value)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=match):
        darknet.load(tiny, file)


def test_arrays_of_another_network_are_refused_before_any_is_copied(tiny):
    other = darknet.Darknet(tiny.layers)
    arrays, before = darknet.arrays(tiny), [dict(a) for a in darknet.arrays(other)]
    with pytest.raises(ValueError, match="got 1 convolutions, expected 2"):
        darknet.fill(other, arrays[:1])
    with pytest.raises(ValueError, match=r"steps\.2\.0: got .*expected"):
        darknet.fill(other, [arrays[0], {"bias": arrays[1]["bias"]}])
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(darknet.arrays(other), before, strict=True) for k in b)


def test_inputs_that_do_not_fit_are_refused(tiny):
    for shape in ((1, 3, 100, 96), (1, 3, 96, 100), (1, 4, 96, 96), (3, 96, 96)):
        with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\), H and W multiples of 32"):
            tiny(torch.zeros(shape))


@pytest.mark.parametrize(
    "conv", [torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.Conv2d(4, 4, (3, 1)), torch.nn.Conv2d(4, 4, 3, bias=False)]
)
def test_convolutions_that_darknets_files_have_no_place_for_are_refused(conv):
    with pytest.raises(ValueError, match="expected a square kernel, one group, and either BatchNorm or a bias"):
        darknet.convolutions(torch.nn.Sequential(conv))


@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 1, 0), (3, 2, 0), (4, 1, 1), (5, 3, 1), (1, 2, 1), (32, 1, 0)])
def test_convolutions_of_any_geometry_have_the_shape_of_the_table(size, stride, pad):
    text = f"""[net]\nwidth=32\nheight=64\nchannels=2\n
        [convolutional]\nfilters=3\nsize={size}\nstride={stride}\npad={pad}\nactivation=linear\n
        [upsample]\nstride=2\n[route]\nlayers=-1,-1\n[shortcut]\nfrom=-1\n"""
    network = darknet.network(darknet_cfg.parse(text))
    with torch.inference_mode():
        shapes = [tuple(output.shape[1:]) for output in network.outputs(torch.zeros(1, 2, 64, 32))]
    assert shapes == [layer.out_chw for layer in network.layers]
    assert shapes[0][2] == (32 + 2 * (size // 2) * pad - size) // stride + 1        # convolutional_out_width


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (2, 2), (5, 1), (9, 1), (13, 1), (3, 2), (4, 3), (4, 1)])
def test_maxpool_is_the_programs_loop(size, stride, rng):
    """maxpool_layer.c: windows begin at i * stride - (size - 1) / 2, rounded towards 0; outside is nothing."""
    text = f"[net]\nwidth=32\nheight=32\nchannels=2\n[maxpool]\nsize={size}\nstride={stride}\n"
    network = darknet.network(darknet_cfg.parse(text))
    x = -rng.random((1, 2, 32, 32), np.float32) - 1             # below 0, so that a padding of 0 would win
    out = network.outputs(torch.from_numpy(x))[0][0].numpy()
    assert out.shape == network.layers[0].out_chw
    first = [i * stride - (size - 1) // 2 for i in range(out.shape[1])]
    for i, top in enumerate(first):
        for j, left in enumerate(first):
            window = x[0, :, max(top, 0) : top + size, max(left, 0) : left + size]
            np.testing.assert_array_equal(out[:, i, j], window.max((1, 2)))


def test_a_maxpool_that_halves_an_odd_side_keeps_its_last_pixels():
    text = "[net]\nwidth=32\nheight=32\nchannels=1\n[maxpool]\nsize=2\nstride=5\n[maxpool]\nsize=2\nstride=2\n"
    network = darknet.network(darknet_cfg.parse(text))
    first, second = network.outputs(-1 - torch.rand(1, 1, 32, 32))
    assert first.shape[2:] == (7, 7) and second.shape[1:] == network.layers[1].out_chw == (1, 4, 4)
    torch.testing.assert_close(second[0, 0, 3, 3], first[0, 0, 6, 6])
