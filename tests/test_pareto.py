import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit.pareto import front

POINTS = {"slow": (30.0, 0.96), "fast": (10.0, 0.95), "bad": (12.0, 0.94), "tiny": (5.0, 0.80)}
points_of_three = st.dictionaries(st.integers(0, 99), st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=12)


def test_what_is_beaten_leaves_the_front_and_equals_stay():
    assert front(POINTS, ("low", "high")) == ["slow", "fast", "tiny"]
    assert front(POINTS | {"twin": (5.0, 0.80)}, ("low", "high")) == ["slow", "fast", "tiny", "twin"]
    assert front(POINTS, ("low", "low")) == ["tiny"] and front(POINTS, ("high", "high")) == ["slow"]
    assert front({}, ("low",)) == []


@given(points_of_three)
def test_front_equals_a_comparison_of_all_pairs_as_arrays(points):
    values = np.array(list(points.values())) * [1, -1, 1]
    beaten = (values[None] <= values[:, None]).all(2) & (values[None] < values[:, None]).any(2)
    expected = [name for name, b in zip(points, beaten.any(1), strict=True) if not b]
    assert front(points, ("low", "high", "low")) == expected


@given(points_of_three, st.integers(1, 50), st.integers(0, 50))
def test_units_do_not_matter_and_a_beaten_point_changes_nothing(points, factor, offset):
    better = ("low", "high", "low")
    on_it = front(points, better)
    assert front({k: (a * factor + offset, b, c) for k, (a, b, c) in points.items()}, better) == on_it
    a, b, c = points[on_it[0]]
    assert front(points | {"worse": (a + 1, b - 1, c)}, better) == on_it


@pytest.mark.parametrize(("points", "better"), [(POINTS, ("low",)), (POINTS, ("low", "up")), (POINTS, ()),
                                                ({"x": (1.0, float("nan"))}, ("low", "high"))])
def test_bad_input_is_refused(points, better):
    with pytest.raises(ValueError, match="expected"):
        front(points, better)
