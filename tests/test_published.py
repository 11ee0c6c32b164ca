import pytest

from trtkit import published


def test_every_figure_says_where_it_is_from_and_what_it_counts():
    for figure in published.FIGURES:
        assert figure.source.startswith("github.com/") and figure.software.startswith("TensorRT ")
        assert figure.counted in (published.NETWORK, published.LOOP, published.WITH_RESIZE)
        assert figure.precision in ("fp32", "fp16", "int8") and figure.images_per_s > 0
        assert figure.ms * figure.images_per_s == pytest.approx(1000)
    keys = [(f.device, f.network, f.precision, f.counted) for f in published.FIGURES]
    assert len(set(keys)) == len(keys)


def test_operations_a_second_are_two_per_multiply_add():
    xavier = [f for f in published.of("Jetson AGX Xavier") if f.network == "YOLOv3"]
    assert [f.tflops for f in xavier] == [pytest.approx(1.317, abs=1e-3)]      # 65.86 GFLOP, 20 times a second


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="got 'Jetson', expected one of"):
        published.of("Jetson")
