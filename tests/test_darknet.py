"""darknet's cfg files and layer tables: the numbers that the C program prints, and what is no cfg."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit import darknet_cfg, darknet_layers, darknet_nets, darknet_weights, yolo

ORACLES = Path(__file__).parent / "oracles"
TEXTS = {
    "yolov3": darknet_nets.yolov3,
    "yolov3-spp": lambda *args, **more: darknet_nets.yolov3(*args, spp=True, **more),
    "yolov3-tiny": darknet_nets.yolov3_tiny,
}
NET = "[net]\nwidth=64\nheight=64\nchannels=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\nstride=1\npad=1\nactivation=leaky\n"


def layers(name: str = "yolov3", size: int = 416) -> list[darknet_layers.Layer]:
    return darknet_layers.layers(darknet_cfg.parse(TEXTS[name]()), size=size)


def cumulative(size: int, upto: int) -> float:
    return round(sum(layer.bflops for layer in layers(size=size)[: upto + 1]), 3)


@pytest.mark.parametrize("name", TEXTS)
def test_the_table_is_the_one_that_darknet_prints_of_the_real_cfg(name):
    assert darknet_layers.table(layers(name)) == (ORACLES / f"darknet_{name}.txt").read_text()


def test_yolov3_has_107_layers_of_the_known_kinds():
    kinds = [layer.kind for layer in layers()]
    assert len(kinds) == 107
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {"convolutional": 75, "shortcut": 23, "route": 4, "upsample": 2, "yolo": 3}
    assert [i for i, kind in enumerate(kinds) if kind == "yolo"] == [82, 94, 106]


@pytest.mark.parametrize(("size", "bflops"), [(320, 38.973), (416, 65.864), (608, 140.692)])
def test_bflops_are_the_published_ones(size, bflops):
    assert cumulative(size, 106) == bflops


@pytest.mark.parametrize(
    ("upto", "bflops"),
    [(0, 0.299), (36, 24.577), (61, 40.348), (74, 49.032), (81, 54.436), (93, 60.062), (105, 65.864)],
)
def test_bflops_add_up_as_known(upto, bflops):
    assert cumulative(416, upto) == bflops


def test_bflops_split_as_known():
    backbone, head = layers()[:75], layers()[75:]
    assert round(sum(x.bflops for x in backbone), 3) == 49.032 and round(sum(x.bflops for x in head), 3) == 16.832
    by_size = {k: sum(x.bflops for x in layers() if x.section.values.get("size") == k) for k in (1, 3)}
    assert {k: round(v, 3) for k, v in by_size.items()} == {1: 6.554, 3: 59.310}


def test_taps_and_routes_have_the_known_shapes():
    made = layers()
    assert made[36].out_chw == (256, 52, 52) and made[61].out_chw == (512, 26, 26)
    assert made[86].sources == (85, 61) and made[86].out_chw == (768, 26, 26)
    assert made[98].sources == (97, 36) and made[98].out_chw == (384, 52, 52)


@pytest.mark.parametrize(("size", "boxes"), [(320, 6300), (416, 10_647), (608, 22_743)])
def test_heads_predict_the_known_number_of_boxes_with_the_anchors_of_yolo(size, boxes):
    made = layers(size=size)
    heads = darknet_layers.heads(made)
    assert [head.layer for head in heads] == [82, 94, 106] and [head.stride for head in heads] == list(yolo.STRIDES)
    np.testing.assert_array_equal([head.anchors_wh for head in heads], yolo.ANCHORS)
    assert sum(3 * np.prod(made[head.layer].out_chw[1:]) for head in heads) == boxes
    assert [made[head.layer].out_chw[0] for head in heads] == [255] * 3


def test_tiny_has_its_own_anchors():
    coarse, fine = darknet_layers.heads(layers("yolov3-tiny"))
    assert coarse.stride == 32 and coarse.anchors_wh.tolist() == [[81, 82], [135, 169], [344, 319]]
    assert fine.stride == 16 and fine.anchors_wh.tolist() == [[10, 14], [23, 27], [37, 58]]


@pytest.mark.parametrize(
    ("name", "floats"),
    # yolov3.weights has 248,007,048 bytes, yolov3-tiny.weights 35,434,956. The pyramid of -spp makes four times 512
    # channels of 512, which one convolution more has to reduce.
    [("yolov3", (248_007_048 - 20) // 4), ("yolov3-tiny", (35_434_956 - 20) // 4),
     ("yolov3-spp", 62_001_757 + 4 * 512 * 512 + 4 * 512)],
)  # fmt: skip
def test_floats_are_those_of_the_published_files(name, floats):
    assert sum(c.floats for c in darknet_weights.convolutions(layers(name))) == floats


def test_parameters_of_yolov3_are_the_known_ones():
    convolutions = darknet_weights.convolutions(layers())
    assert sum(c.floats for c in convolutions) == 62_001_757
    assert sum(c.floats - 2 * c.c_out * c.batch_normalize for c in convolutions) == 61_949_149
    assert sum(int(np.prod(c.shapes["weight"])) for c in convolutions) == 61_895_776


@given(name=st.sampled_from(list(TEXTS)), classes=st.integers(1, 200), width=st.floats(0.01, 2),
       size=st.integers(1, 20).map(lambda n: 32 * n))  # fmt: skip
def test_every_text_parses_to_what_it_was_written_from(name, classes, width, size):
    sections = darknet_cfg.parse(TEXTS[name](classes, width, size=size))
    assert darknet_cfg.parse(darknet_cfg.text(sections)) == sections
    made = darknet_layers.layers(sections)
    for head in darknet_layers.heads(made):
        assert made[head.layer].out_chw == (3 * (5 + classes), size // head.stride, size // head.stride)


@given(size=st.integers(1, 13), stride=st.integers(1, 3), side=st.sampled_from([32, 64, 96]))
def test_sides_after_a_maxpool_are_those_of_the_program(size, stride, side):
    """maxpool_layer.c: padding = size - 1, out = (side + padding - size) / stride + 1."""
    text = f"[net]\nwidth={side}\nheight={side}\nchannels=3\n[maxpool]\nsize={size}\nstride={stride}\n"
    (layer,) = darknet_layers.layers(darknet_cfg.parse(text))
    expected = (side + (size - 1) - size) // stride + 1
    assert layer.out_chw == (3, expected, expected)


def test_white_space_comments_aliases_defaults_and_training_keys_are_read_as_darknet_does():
    text = "\r\n".join([
        "# a comment", "[network]", " width = 64", "height=64 ", "channels=\t3", "hue=.1", "steps=400000,450000", "",
        "; another", "[conv]", "filters=8", "size=1", "activation=leaky", "[max]", "size=2", "[upsample]",
        "[shortcut]", "from=-1",
    ])  # fmt: skip
    sections = darknet_cfg.parse(text)
    assert [s.kind for s in sections] == ["net", "convolutional", "maxpool", "upsample", "shortcut"]
    assert sections[0].values == {"width": 64, "height": 64, "channels": 3, "hue": ".1", "steps": "400000,450000"}
    assert [sections[1].values[key] for key in ("stride", "pad", "batch_normalize")] == [1, 0, 0]
    assert sections[2].values["stride"] == 1 and sections[3].values == {"stride": 2}
    assert sections[1].line == 10 and sections[4].values == {"from": -1, "activation": "linear"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "got 0 sections"),
        (NET, "got 1 sections, expected .net. and at least one layer"),
        (CONV + NET, r"line 1, \[convolutional\]: expected \[net\] once, as the first"),
        (NET + CONV + NET, r"line 11, layer 1 \[net\]: expected \[net\] once"),
        ("filters=3\n" + NET + CONV, r"line 1: got 'filters=3', expected \[net\]"),
        ("<!DOCTYPE html>\n<html>", r"line 1: got '<!DOCTYPEhtml>', expected \[net\]; is this a .cfg"),
        (NET + CONV + "nonsense\n", r"line 11: got 'nonsense', expected key=value"),
        (NET + CONV + "[lstm]\n", r"line 11, layer 1 \[lstm\]: got an unknown section, expected one of \[net\]"),
        (NET + CONV + "[yolo\n", r"line 11, layer 1 \[yolo: got an unknown section"),
        (NET + CONV + "groups=2\n", r"line 11, layer 0 \[convolutional\]: groups: got an unknown key"),
        (NET + CONV + "size=5\n", r"layer 0 \[convolutional\]: size: got it twice"),
        (NET + CONV.replace("size=3", "size=big"), r"layer 0 .*: size: got 'big', expected an integer of at"),
        (NET + CONV.replace("size=3", "size=0"), r"size: got '0', expected an integer of at least 1"),
        (NET + CONV.replace("size=3", "size="), r"size: got '', expected an integer"),
        (NET + CONV.replace("stride=1", "stride=1#2"), r"stride: got '1#2'"),
        (NET + CONV.replace("pad=1", "pad=2"), r"pad: got '2', expected 0 or 1"),
        (NET + CONV.replace("leaky", "mish"), r"activation: got 'mish', expected leaky or linear"),
        (NET + CONV.replace("filters=8\n", ""), r"line 5, layer 0 .*: filters: got nothing, expected an integer"),
        ("[net]\nwidth=64\nheight=64\n" + CONV, r"line 1, \[net\]: channels: got nothing"),
        (NET + CONV + "[route]\nlayers=-1,x\n", r"layers: got '-1,x', expected integers with commas"),
        (NET + CONV + "[yolo]\nmask=0\nanchors=1,b\nclasses=1\nnum=1\n", r"anchors: got '1,b', expected numbers"),
    ],
)  # fmt: skip
def test_what_is_no_cfg_is_refused_with_line_and_layer(text, match):
    with pytest.raises(ValueError, match=match):
        darknet_cfg.parse(text)


@pytest.mark.parametrize(
    ("tail", "match"),
    [
        ("[route]\nlayers=-2\n", r"line 11, layer 1 \[route\]: layers: got -2, expected an earlier layer, 0 to 0 or"),
        ("[route]\nlayers=7\n", "layers: got 7, expected an earlier layer"),
        ("[route]\nlayers=1\n", "layers: got 1, expected an earlier layer"),        # itself
        ("[shortcut]\nfrom=-3\n", r"layer 1 \[shortcut\]: from: got -3, expected an earlier layer"),
        (CONV.replace("=8", "=16") + "[shortcut]\nfrom=-2\n",
         r"layer 2 .*from: got an output of \(8, 64, 64\), expected \(16, 64, 64\)"),
        (CONV.replace("stride=1", "stride=2") + "[route]\nlayers=-1,0\n",
         r"layer 2 .*layers: got 0 with 64 x 64 pixels, expected 32 x 32"),
        ("[yolo]\nmask=0\nanchors=1,2\nclasses=1\nnum=1\n",
         r"layer 1 \[yolo\]: got 8 channels, expected 1 anchors \* \(5 \+ 1 classes\) = 6; set filters"),
        ("[yolo]\nmask=0\nanchors=1,2,3\nclasses=3\nnum=1\n", "anchors: got 3 numbers, expected 2 [*] num = 2"),
        ("[yolo]\nmask=1\nanchors=1,2\nclasses=3\nnum=1\n", r"mask: got \(1,\), expected numbers of anchors, 0 to 0"),
        (CONV.replace("size=3", "size=99").replace("pad=1", "pad=0"), r"size: got 99, expected at most the input's 64"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_refused_with_line_and_layer(tail, match):
    sections = darknet_cfg.parse(NET + CONV + tail)
    with pytest.raises(ValueError, match=match):
        darknet_layers.layers(sections)


@pytest.mark.parametrize("size", [0, -32, 100, 415])
def test_an_input_that_is_no_multiple_of_32_is_refused(size):
    with pytest.raises(ValueError, match="expected multiples of 32"):
        darknet_layers.layers(darknet_cfg.parse(NET + CONV), size=size)
    with pytest.raises(ValueError, match="multiple of 32"):
        darknet_nets.yolov3(size=size)
    sections = darknet_cfg.parse(NET.replace("width=64", "width=100") + CONV)
    with pytest.raises(ValueError, match=r"line 1, \[net\]: got 100 x 64 pixels"):
        darknet_layers.layers(sections)


def test_a_file_that_is_not_there_or_no_text_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.cfg"):
        darknet_cfg.read(tmp_path / "none.cfg")
    (tmp_path / "x.cfg").write_bytes(b"\x00\xff\xfe\x80" * 10)
    with pytest.raises(ValueError, match=r"x\.cfg: got bytes that are no text"):
        darknet_cfg.read(tmp_path / "x.cfg")
    (tmp_path / "y.cfg").write_text(NET + CONV)
    assert darknet_cfg.read(tmp_path / "y.cfg") == darknet_cfg.parse(NET + CONV)
