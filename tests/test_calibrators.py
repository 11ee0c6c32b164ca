"""Calibration by TensorRT's own calibrators, on a fake of each era; the real ones are asked on the GPU."""

import numpy as np
import onnx
import pytest
from fake_tensorrt import Script, installed
from test_backend_trt import float_graph, layers

from trtkit.engine import BackendError


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.onnx"
    onnx.save(float_graph(), path)
    return path


@pytest.fixture
def batches(rng) -> list[np.ndarray]:
    return [rng.normal(size=(2, 3, 8, 8)).astype(np.float32) for _ in range(3)]


@pytest.fixture(params=["8.6", "10.15"])
def trt(request, monkeypatch):
    script = Script()
    with installed(monkeypatch, request.param, script) as modules:
        modules.script = script
        yield modules


def test_minmax_is_amax_over_127(trt, graph, batches):
    scales = trt.calibrators_trt.calibration_cache(graph, iter(batches))
    assert scales == {"images": np.float32(max(np.abs(x).max() for x in batches) / 127)}
    assert np.array_equal(trt.script.calibrated, batches)


def test_the_builder_is_set_up_for_implicit_int8(trt, graph, batches):
    trt.calibrators_trt.calibration_cache(graph, batches, "entropy2")
    (settings,) = trt.script.configs
    assert {f.name for f in settings._set_flags} == {"INT8"}                # no TF32: scales are to be compared
    assert settings._calibration == {"images": ((2, 3, 8, 8),) * 3}
    assert isinstance(settings._int8_calibrator, trt.calibrators_trt.trt.IInt8EntropyCalibrator2)
    assert settings._builder_optimization_level == 0
    assert trt.script.network_flags == [1]                                  # weakly typed, in 10 too


@pytest.mark.parametrize("flag", ["FP16", "INT8"])
def test_a_flag_alone_gives_layers_and_warnings(trt, graph, flag):
    trt.script.layers, trt.script.warnings = layers("FP32"), ["Missing scale and zero-point for tensor images"]
    found, messages = trt.calibrators_trt.flag_alone(graph, (1, 3, 8, 8), flag)
    assert found == layers("FP32") and messages == trt.script.warnings
    (settings,) = trt.script.configs
    assert settings._int8_calibrator is None and {f.name for f in settings._set_flags} == {flag}


def test_int8_without_ranges_tells_why_there_is_no_engine(trt, graph):
    """8.6.1 on an H100: "Calibration failure occurred with no scaling factors detected"."""
    trt.script.build_fails = True
    with pytest.raises(BackendError, match="built no engine: out of luck"):
        trt.calibrators_trt.flag_alone(graph, (1, 3, 8, 8), "INT8")


def test_an_error_among_the_batches_is_not_swallowed(trt, graph, batches):
    def failing():
        yield batches[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        trt.calibrators_trt.calibration_cache(graph, failing())


@pytest.mark.parametrize("wrong", [np.zeros((1, 3, 8, 8), np.float32), np.zeros((2, 3, 8, 8)), [0.0]])
def test_a_batch_unlike_the_first_is_named(trt, graph, batches, wrong):
    with pytest.raises(ValueError, match=r"batches\[1\]: got .*, expected float32 \(2, 3, 8, 8\)"):
        trt.calibrators_trt.calibration_cache(graph, [batches[0], wrong, batches[1]])


def test_no_batches(trt, graph):
    with pytest.raises(ValueError, match="at least one"):
        trt.calibrators_trt.calibration_cache(graph, [])


def test_an_unknown_algorithm(trt, graph, batches):
    with pytest.raises(ValueError, match=r"'max', expected one of \['entropy2', 'minmax'\]"):
        trt.calibrators_trt.calibration_cache(graph, batches, "max")


def test_batches_that_are_not_contiguous_arrive_as_they_look(trt, graph, rng):
    x = rng.normal(size=(8, 8, 3, 2)).astype(np.float32).T
    trt.calibrators_trt.calibration_cache(graph, [x])
    assert np.array_equal(trt.script.calibrated[0], x)


def test_what_the_parser_and_the_builder_say_is_told(trt, graph, batches):
    trt.script.build_fails = True
    with pytest.raises(BackendError, match="built no engine: out of luck"):
        trt.calibrators_trt.calibration_cache(graph, batches)
    trt.script.parser_errors = [(0, "no such op")]
    with pytest.raises(BackendError, match="cannot read it: node 0: no such op"):
        trt.calibrators_trt.calibration_cache(graph, batches)


def test_tensorrt_11_says_what_replaced_them(graph, batches, monkeypatch):
    with installed(monkeypatch, "11.4", Script()) as trt:
        for call in (lambda: trt.calibrators_trt.calibration_cache(graph, batches),
                     lambda: trt.calibrators_trt.flag_alone(graph, (1, 3, 8, 8), "INT8")):
            with pytest.raises(BackendError, match=r"11\.4\.0\.106 has no calibrators.*qdq\.insert_qdq"):
                call()
