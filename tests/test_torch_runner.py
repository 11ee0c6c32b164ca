import numpy as np
import pytest
import torch

from trtkit import engine, yolo
from trtkit.torch_runner import TorchRunner

SIZE = 96


@pytest.fixture
def runner(small_yolo):
    import copy

    with TorchRunner(copy.deepcopy(small_yolo), size=SIZE) as runner:
        yield runner


def test_it_computes_what_the_exported_graph_computes(runner, yolo_graph, rng, cache):
    x = rng.random((1, 3, SIZE, SIZE), np.float32)
    with engine.load(engine.build(yolo_graph, backend="ort")) as other:
        expected = other.infer({"images": x})
    heads = runner.infer({"images": x})
    assert list(heads) == list(expected) == list(runner.outputs)
    for name, head in heads.items():
        assert np.abs(head - expected[name]).max() <= 1e-4 * np.abs(expected[name]).max()
    assert set(runner.inputs) == set(other.inputs) and other.inputs["images"].dtype == runner.inputs["images"].dtype


def test_detect_takes_it_like_any_runner_and_any_batch_fits(runner, rng):
    assert runner.label.startswith(f"torch {torch.__version__} eager · CPU ")
    yolo.detect(runner, np.zeros((48, 64, 3), np.uint8))
    assert runner.infer({"images": rng.random((3, 3, SIZE, SIZE), np.float32)})["head32"].shape[0] == 3


def test_what_it_returns_belongs_to_the_caller(runner, rng):
    feed = {"images": rng.random((1, 3, SIZE, SIZE), np.float32)}
    first = runner.infer(feed)["head32"]
    kept = first.copy()
    runner.infer({"images": np.zeros_like(feed["images"])})
    assert np.array_equal(first, kept)
    first += 1                                              # and may be written to


@pytest.mark.parametrize("feed", [{}, {"x": np.zeros(1)}, {"images": np.zeros((1, 3, SIZE, SIZE))}, {"images": [1.0]}])
def test_a_wrong_feed_is_refused(runner, feed):
    with pytest.raises(ValueError, match="expected"):
        runner.infer(feed)


def test_a_closed_one_says_so(runner):
    runner.close()
    runner.close()
    with pytest.raises(engine.BackendError, match="closed"):
        runner.infer({"images": np.zeros((1, 3, SIZE, SIZE), np.float32)})
