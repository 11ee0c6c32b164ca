"""The digits classifier: its data, that it learns, and that its graph computes the same and takes Q/DQ."""

import numpy as np
import onnx
import pytest
import torch
from conftest import randomize_batchnorm
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from trtkit import calib, costs, digits, engine, export, qdq


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return digits.Digits()


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return digits.train(digits.Digits(8), epochs=12, lr=1e-2, progress=False)


def test_the_halves_are_all_the_digits_once():
    x_train, y_train, x_test, y_test = digits.load()
    assert x_train.shape == (897, 1, 8, 8) and x_test.shape == (900, 1, 8, 8)
    assert x_train.dtype == np.float32 and y_train.dtype == np.int64
    assert min(x_train.min(), x_test.min()) == 0 and max(x_train.max(), x_test.max()) == 1
    source = load_digits()
    rows = np.concatenate([np.c_[x.reshape(-1, 64) * 16, y] for x, y in ((x_train, y_train), (x_test, y_test))])
    expected = np.c_[source.data, source.target]
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    assert np.bincount(y_test).min() > 70, "every digit must be in the test half, or its accuracy says little"


def test_shapes_and_parameters(fresh):
    assert fresh(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    c = 32
    convolutions = 9 * (c + 2 * c * c + 2 * c * c + 2 * (2 * c) ** 2)
    norms = 2 * (3 * c + 3 * 2 * c)
    assert digits.parameters(fresh) == convolutions + norms + (2 * c * 16 * 2 * c + 2 * c) + (2 * c * 10 + 10)


def test_a_silent_block_hands_its_input_on():
    block = digits.Residual(4).eval()
    torch.nn.init.zeros_(block.second[1].weight)
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x.clamp(min=0))


def test_it_learns_and_leaves_its_argument_alone(trained):
    x_train, y_train, x_test, y_test = digits.load()
    linear = LogisticRegression(max_iter=500).fit(x_train.reshape(len(x_train), -1), y_train)
    assert digits.accuracy(trained) > linear.score(x_test.reshape(len(x_test), -1), y_test)
    model = digits.Digits(4)
    before = [p.clone() for p in model.parameters()]
    again = [digits.train(model, epochs=1, seed=3, progress=False) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)) and model.training
    assert not any(m.training for m in again)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*(m.parameters() for m in again), strict=True))


def test_accuracy_counts_what_is_right():
    y, labels = np.eye(10, dtype=np.float32)[[3, 1, 4, 1]], np.array([3, 1, 4, 5])
    assert digits.top1(y, labels) == 0.75
    always_three = digits.Digits(2)
    torch.nn.init.zeros_(always_three.out.weight)
    always_three.out.bias.data = torch.eye(10)[3]
    assert digits.accuracy(always_three) == (digits.load()[3] == 3).mean()
    assert always_three.training, "asking for the accuracy must not leave another mode behind"


def test_the_graph_computes_the_same_and_holds_no_batchnorm(fresh, tmp_path, cache):
    model = randomize_batchnorm(digits.train(fresh, epochs=1, progress=False))
    graph = digits.to_graph(model, tmp_path / "new" / "digits.onnx", batch=5)
    ops = [n.op_type for n in onnx.load(graph).graph.node]
    assert ops.count("Conv") == 6 and ops.count("Gemm") == 2 and not {"BatchNormalization", "Identity"} & set(ops)
    x = digits.load()[2][:5]
    with engine.load(engine.build(graph, backend="ort")) as runner:
        assert export.max_abs_diff(runner, model, x) < 1e-4
    assert sum(c.macs for c in costs.costs(onnx.load(graph))) == 5 * (
        9 * (64 * (32 + 2 * 32 * 32) + 16 * (32 * 64 + 2 * 64 * 64)) + 1024 * 64 + 64 * 10)


def test_in_8_bits_it_still_knows_its_digits(trained, tmp_path, cache):
    graph = onnx.load(digits.to_graph(trained, tmp_path / "digits.onnx", batch=300))
    x_train, _, x_test, labels = digits.load()
    exposed = tmp_path / "exposed.onnx"
    names = [n for n in qdq.activation_names(graph) if n != "images"]
    onnx.save(export.expose_tensors(graph, names), exposed)
    with engine.load(engine.build(exposed, backend="ort")) as runner:
        table = calib.ranges(calib.collect(lambda x: {"images": x, **runner.infer({"images": x})}, [x_train[:300]],
                                           progress=False), "max")
    quantized = tmp_path / "int8.onnx"
    onnx.save(qdq.insert_qdq(graph, table, target="cpu"), quantized)
    with engine.load(engine.build(quantized, backend="ort")) as runner:
        y = np.concatenate([runner.infer({"images": x})["logits"] for x in np.split(x_test, 3)])
    assert digits.top1(y, labels) >= digits.accuracy(trained) - 0.02


@pytest.mark.parametrize(("options", "message"), [
    ({"epochs": 0}, "epochs=0"), ({"batch": 0}, "batch=0"), ({"lr": 0}, "lr=0"), ({"lr": float("nan")}, "lr=nan"),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        digits.train(digits.Digits(2), **options)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="channels: got 0"):
        digits.Digits(0)
    with pytest.raises(ValueError, match="batch: got 0"):
        digits.to_graph(digits.Digits(2), tmp_path / "d.onnx", batch=0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FloatingPointError, match="lower lr"):
        digits.train(digits.Digits(2), epochs=2, lr=1e30, progress=False)
