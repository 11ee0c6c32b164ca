import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from trtkit.receptive import receptive_fields

SIDE = 96
LAYERS = st.lists(
    st.one_of(st.tuples(st.just("conv"), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.sampled_from([1, 2])),
              st.tuples(st.just("pool"), st.just(2), st.just(2), st.just(1)),
              st.tuples(st.just("up"), st.just(2), st.just(1), st.just(1)),
              st.tuples(st.just("shortcut"), st.just(3), st.just(1), st.just(1))),
    min_size=1, max_size=5,
)


def _graph(layers):
    nodes, values = [], [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice")]
    for i, (kind, k, stride, dilation) in enumerate(layers):
        source, target = f"x{i}", f"x{i + 1}"
        if kind == "pool":
            nodes.append(helper.make_node("MaxPool", [source], [target], kernel_shape=[k, k], strides=[stride] * 2))
        elif kind == "up":
            nodes.append(helper.make_node("Resize", [source, "", "twice"], [target], mode="nearest"))
        else:
            values.append(numpy_helper.from_array(np.ones((1, 1, k, k), np.float32), f"w{i}"))
            pad = dilation * (k // 2)
            to = f"y{i}" if kind == "shortcut" else target
            nodes.append(helper.make_node("Conv", [source, f"w{i}"], [to], strides=[stride] * 2, pads=[pad] * 4,
                                          dilations=[dilation] * 2))
            if kind == "shortcut":
                nodes.append(helper.make_node("Add", [source, to], [target]))
    image, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x0", f"x{len(layers)}"))
    return helper.make_model(helper.make_graph(nodes, "g", [image], [out], values))


def _run(layers, x):
    for kind, k, stride, dilation in layers:
        if kind == "pool":
            x = F.avg_pool2d(x, k, stride)                  # the same pixels as a maximum, each with a gradient
        elif kind == "up":
            x = F.interpolate(x, scale_factor=2)
        else:
            y = F.conv2d(x, torch.ones(1, 1, k, k, dtype=x.dtype), stride=stride, dilation=dilation,
                         padding=dilation * (k // 2))
            x = x + y if kind == "shortcut" else y
    return x


@given(LAYERS)
@settings(max_examples=40)
def test_the_field_is_where_the_gradient_is_not_zero(layers):
    x = torch.ones(1, 1, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    y = _run(layers, x)
    field = receptive_fields(_graph(layers))[f"x{len(layers)}"]
    assert field.step == pytest.approx(SIDE / y.shape[-1], rel=0.2)
    sides = []
    for at in range(y.shape[-1] // 2 - 2, y.shape[-1] // 2 + 2):        # behind an upsampling, neighbours differ
        (gradient,) = torch.autograd.grad(y[0, 0, at, at], x, retain_graph=True)
        rows = gradient[0, 0].abs().sum(1).nonzero()
        sides.append(int(rows.max() - rows.min()) + 1)
    if field.side < SIDE / 2:                               # beyond, the edge of the image cuts it
        # Upsampled neighbours share their pixels, so a kernel behind it may see a step less than the formula's worst.
        slack = max(f.step for f in receptive_fields(_graph(layers)).values()) if any(
            kind == "up" for kind, *_ in layers) else 0
        assert field.side - slack <= max(sides) <= field.side + slack


def test_darknet_53_by_hand(yolo_graph):
    fields = receptive_fields(onnx.load(yolo_graph))
    side, step = 3, 1                                       # the stem
    for blocks in (1, 2, 8, 8, 4):
        side, step = side + 2 * step, 2 * step
        side += 2 * step * blocks
    assert fields["/stages.4/stages.4.4/Add_output_0"] == (side, 32)
    assert [fields[name] for name in ("head32", "head16", "head8")] == [(917, 32), (949, 16), (965, 8)]


def test_an_operator_that_mixes_positions_otherwise_is_named():
    node = helper.make_node("GlobalAveragePool", ["x0"], ["x1"], "pool")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x0", "x1")]
    with pytest.raises(ValueError, match="pool: got operator GlobalAveragePool"):
        receptive_fields(helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:])))
