import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trtkit import engine, half, yolo
from trtkit.decode_graph import with_decode
from trtkit.export import export_onnx

STRIDES = yolo.STRIDES


def _heads_graph(height, width, classes, *, strides=STRIDES, anchors=3, opset=17, kind=TensorProto.FLOAT, batch="n"):
    """A graph whose heads are inputs' copies: "images" is there, and what the heads hold is fed besides."""
    nodes, outputs, values = [], [], []
    for s in strides:
        shape = [batch, anchors * (5 + classes), height // s, width // s]
        name = f"head{s}"
        # images -> a pooled copy of itself, scaled per channel: something that depends on the image and has its batch.
        nodes += [helper.make_node("AveragePool", ["images"], [f"p{s}"], kernel_shape=[s, s], strides=[s, s]),
                  helper.make_node("Conv", [f"p{s}", f"w{s}", f"b{s}"], [f"c{s}"], kernel_shape=[1, 1]),
                  helper.make_node("Cast", [f"c{s}"], [name], to=kind)]
        rng = np.random.default_rng(s)
        values += [onnx.numpy_helper.from_array((rng.normal(size=(shape[1], 3, 1, 1)) * 3).astype(np.float32), f"w{s}"),
                   onnx.numpy_helper.from_array(rng.normal(size=shape[1]).astype(np.float32), f"b{s}")]
        outputs.append(helper.make_tensor_value_info(name, kind, shape))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])
    graph = helper.make_graph(nodes, "heads", [images], outputs, values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(("height", "width"), [(416, 416), (96, 96), (64, 160), (320, 256)])
def test_the_engine_returns_what_numpy_decodes(tmp_path, cache, height, width):
    model = _heads_graph(height, width, 4)
    path, raw = tmp_path / "decoded.onnx", tmp_path / "raw.onnx"
    onnx.save(with_decode(model), path)
    onnx.save(model, raw)
    x = np.random.default_rng(0).normal(size=(3, 3, height, width)).astype(np.float32) * 8
    with engine.load(engine.build(path, backend="ort")) as decoded, engine.load(engine.build(raw, backend="ort")) as r:
        outputs, heads = decoded.infer({"images": x}), r.infer({"images": x})
    boxes = sum(3 * height // s * width // s for s in STRIDES)
    assert outputs["boxes"].shape == (3, boxes, 4) and outputs["scores"].shape == (3, boxes, 4)
    for i in range(3):
        conf_thr = _gap(outputs["scores"][i])
        expected = yolo.decode([h[i : i + 1] for h in heads.values()], conf_thr=conf_thr)
        got = yolo.decode_boxes(outputs["boxes"][i : i + 1], outputs["scores"][i : i + 1], conf_thr=conf_thr)
        assert len(expected[1]) > 20
        for g, e in zip(got, expected, strict=True):                # the same candidates in the same order
            np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-3)


def _gap(scores):
    """A threshold near 0.05 that no score is close to: rounding must not move a candidate across it."""
    near = np.sort(scores[(scores > 0.04) & (scores < 0.06)])
    widest = np.diff(near).argmax()
    return float(near[widest : widest + 2].mean())


def test_a_box_of_the_graph_stands_where_its_cell_is():
    """Row by row against the formula, with ONNX's own evaluator: head, anchor, row, column."""
    model = _heads_graph(64, 96, 2)
    x = np.random.default_rng(1).normal(size=(1, 3, 64, 96)).astype(np.float32) * 8
    boxes, scores = ReferenceEvaluator(with_decode(model)).run(None, {"images": x})
    heads = ReferenceEvaluator(model).run(None, {"images": x})
    row = 0
    for head, stride, anchors in zip(heads, STRIDES, yolo.ANCHORS, strict=True):
        grid = head.reshape(3, 7, *head.shape[2:])
        for a, cy, cx in np.ndindex(3, *head.shape[2:]):
            tx, ty, tw, th, to, *t_class = grid[a, :, cy, cx].astype(float)
            bx, by = (1 / (1 + np.exp(-tx)) + cx) * stride, (1 / (1 + np.exp(-ty)) + cy) * stride
            bw, bh = anchors[a] * np.exp(np.minimum([tw, th], 8))
            np.testing.assert_allclose(boxes[0, row], [bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2], rtol=1e-4,
                                       atol=1e-3)
            np.testing.assert_allclose(scores[0, row], 1 / (1 + np.exp(-to)) / (1 + np.exp(-np.array(t_class))),
                                       rtol=1e-5)
            row += 1
    assert row == boxes.shape[1]


def test_the_decoder_takes_two_heads_and_other_anchors():
    anchors = np.array([[(100, 50), (60, 80)], [(20, 10), (8, 9)]], np.float32)
    model = _heads_graph(64, 64, 3, strides=(32, 16), anchors=2)
    x = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    boxes, _ = ReferenceEvaluator(with_decode(model, anchors=anchors, strides=(32, 16))).run(None, {"images": x})
    assert boxes.shape == (2, 2 * (4 + 16), 4)


def test_half_heads_are_decoded_in_full_floats(tmp_path, cache):
    path, x = tmp_path / "half.onnx", np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    model = _heads_graph(64, 64, 1, kind=TensorProto.FLOAT16)
    onnx.save(with_decode(model), path)
    with engine.load(engine.build(path, backend="ort")) as runner:
        outputs = runner.infer({"images": x})
    assert {name: y.dtype for name, y in outputs.items()} == {"boxes": np.float32, "scores": np.float32}
    heads = [h.astype(np.float32) for h in ReferenceEvaluator(model).run(None, {"images": x})]
    for got, expected in zip(yolo.decode_boxes(*outputs.values(), conf_thr=1e-6), yolo.decode(heads, conf_thr=1e-6),
                             strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-2, atol=0.5)      # FP16 heads of two programs: one step apart


def test_yolov3_decodes_itself_and_detect_takes_it(yolo_graph, tmp_path, cache, rng):
    model = onnx.load(yolo_graph)
    before = model.SerializeToString()
    decoded = with_decode(model)
    assert model.SerializeToString() == before
    path = tmp_path / "decoded.onnx"
    onnx.save(decoded, path)
    img = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    with engine.load(engine.build(path, backend="ort")) as r, engine.load(engine.build(yolo_graph, backend="ort")) as h:
        assert {k: tuple(v.shape) for k, v in r.outputs.items()} == {"boxes": ("batch", 567, 4),
                                                                     "scores": ("batch", 567, 3)}
        for conf_thr in (0.05, 0.25):
            got, expected = yolo.detect(r, img, conf_thr=conf_thr), yolo.detect(h, img, conf_thr=conf_thr)
            assert got.labels.tolist() == expected.labels.tolist()
            np.testing.assert_allclose(got.boxes_xyxy, expected.boxes_xyxy, rtol=1e-4, atol=1e-2)
            np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-4)


def test_only_operators_of_opset_17_that_tensorrt_reads(yolo_graph):
    model = with_decode(half.to_fp16(onnx.load(yolo_graph)))
    added = {n.op_type for n in model.graph.node if n.name.startswith("decode/")}
    assert added <= {"Reshape", "Split", "Sigmoid", "Add", "Sub", "Mul", "Min", "Exp", "Concat", "Transpose", "Cast"}
    assert [o.version for o in model.opset_import if not o.domain] == [17]
    onnx.checker.check_model(model, full_check=True)


def _open_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    return model


def _named_boxes(model):
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "boxes"
    return model


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: _heads_graph(64, 64, 2, opset=12), "opset: got 12, expected 13"),
        (lambda: _heads_graph(64, 64, 2, strides=(32, 16)), r"2 outputs.*\(32, 16, 8\)"),
        (lambda: _heads_graph(64, 64, 2, strides=(8, 16, 32)), r"head8: got shape.*stride 32.*order"),
        (lambda: _heads_graph(64, 64, 2, anchors=2), r"head32: got shape \[0, 14"),
        (lambda: _heads_graph(64, 64, 0), "head32: got shape"),
        (lambda: _heads_graph(80, 64, 2), r"images: got height and width \[80, 64\].*multiples of 32"),
        (lambda: _open_size(_heads_graph(64, 64, 2)), r"images: got height and width \[64, 0\]"),
        (lambda: _named_boxes(_heads_graph(64, 64, 2)), "'boxes'"),
        (lambda: with_decode(_heads_graph(64, 64, 2)), "2 outputs"),
    ],
)
def test_what_is_no_detector_is_refused(model, match):
    with pytest.raises(ValueError, match=match):
        with_decode(model())


def test_anchors_of_other_heads_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 2\)"):
        with_decode(_heads_graph(64, 64, 2), anchors=yolo.ANCHORS[:2])


def test_export_decodes_on_request(small_yolo, tmp_path, rng):
    export_onnx(small_yolo, tmp_path / "decoded.onnx", size=64, decode=True)
    export_onnx(small_yolo, tmp_path / "raw.onnx", size=64)
    by_hand = with_decode(onnx.load(tmp_path / "raw.onnx"))
    feed = {"images": rng.uniform(size=(2, 3, 64, 64)).astype(np.float32)}
    exported = ReferenceEvaluator(str(tmp_path / "decoded.onnx"))
    assert exported.output_names == ["boxes", "scores"]
    for got, expected in zip(exported.run(None, feed), ReferenceEvaluator(by_hand).run(None, feed), strict=True):
        np.testing.assert_array_equal(got, expected)
