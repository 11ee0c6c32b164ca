"""Pictures of lesson 11: what is drawn, counted in the figure."""

import numpy as np
import pytest
from test_evaluate import NAMES, A, B, _found, _truth

from trtkit import plots_accuracy, plots_pareto
from trtkit.evaluate import SIZES, mean_average_precision


def test_precision_recall_draws_the_curve_and_names_its_ap(axes):
    half = mean_average_precision([_found([A])], [_truth([A, B])], NAMES)
    plots_accuracy.precision_recall({"x": half}, ["car"])
    (line,) = axes[0].lines
    assert np.array_equal(line.get_ydata(), half.curve("car")) and line.get_label() == "x: AP 0.505"


def test_confusion_writes_every_count_and_colors_mistakes_alone(axes):
    matrix = np.array([[50, 1, 2], [0, 60, 0], [3, 0, 0]])
    plots_accuracy.confusion({"a": matrix, "b": matrix.T}, NAMES)
    for ax, expected in zip(axes, (matrix, matrix.T), strict=True):
        written = {t.get_position()[::-1]: int(t.get_text()) for t in ax.texts}
        assert written == {(i, j): n for (i, j), n in np.ndenumerate(expected) if n}
        assert ax.images[0].get_array().max() == 3 and ax.images[0].get_clim() == (0, 3)


def test_confusion_without_a_mistake_is_drawn_too(axes):
    plots_accuracy.confusion({"a": np.diag([5, 5, 0])}, NAMES)
    assert axes[0].images[0].get_clim() == (0, 1)


def test_misses_are_shares_of_the_objects_of_a_class_and_of_a_size(axes):
    total = np.array([[4, 6, 0], [0, 10, 0]])
    missed = np.array([[2, 3, 0], [0, 1, 0]])
    plots_accuracy.misses({"x": (missed, total), "y": (total, total)}, NAMES)
    by_class, by_size = ([p.get_height() for p in ax.patches] for ax in axes)
    assert by_class == pytest.approx([50, 10, 100, 100])
    assert by_size == pytest.approx([50, 25, 0, 100, 100, 0])           # no large object: nothing to miss
    assert [t.get_text() for t in axes[1].get_xticklabels()] == [
        f"{size}\n{n} objects" for size, n in zip(SIZES, (4, 16, 0), strict=True)]


def test_ladder_names_the_factor_of_each_step_and_of_all(axes):
    plots_accuracy.ladder({"eager": 40.0, "compiled": 20.0, "INT8": 0.5}, xlabel="ms")
    assert [p.get_width() for p in axes[0].patches] == [40, 20, 0.5]
    assert [t.get_text() for t in axes[0].texts] == [
        "40.0 ms", "20.0 ms   × 2.00, in all × 2.0", "0.500 ms   × 40.00, in all × 80.0"]


POINTS = {"whole": {"FP32": (30.0, 0.96, 15.0), "INT8": (11.0, 0.955, 4.0)}, "pruned": {"INT8": (7.0, 0.94, 2.0)},
          "bad": {"FP32": (20.0, 0.93, 9.0)}}


def test_pareto_joins_the_front_and_a_precision_keeps_its_marker(axes):
    plots_pareto.pareto(POINTS, xlabel="ms", ylabel="mAP50, %")
    (line,) = axes[0].lines
    assert list(zip(*line.get_data(), strict=True)) == [(7, 94), (11, 95.5), (30, 96)]
    handles, labels = axes[0].get_legend_handles_labels()
    assert set(labels) == {"Pareto front", "whole, FP32: 15.00 MB", "whole, INT8: 4.00 MB", "pruned, INT8: 2.00 MB",
                           "bad, FP32: 9.00 MB"}
    assert len({tuple(h.get_facecolor()[0]) for h in handles if hasattr(h, "get_offsets")}) == 3


def test_panels_have_a_front_each_and_the_better_side_is_named(axes):
    accuracy = {(n, p): point[1] for n, by in POINTS.items() for p, point in by.items()}
    rate = {("whole", "FP32"): 40.0, ("whole", "INT8"): 90.0, ("pruned", "INT8"): 80.0}
    plots_pareto.panels(accuracy, [
        plots_pareto.Axis("ms", {(n, p): point[0] for n, by in POINTS.items() for p, point in by.items()}),
        plots_pareto.Axis("images/s", rate, plots_pareto.HIGH),
    ], ylabel="mAP50, %")                               # fmt: skip
    fronts = [list(zip(*ax.lines[0].get_data(), strict=True)) for ax in axes]
    assert fronts == [[(7, 94), (11, 95.5), (30, 96)], [(40, 96), (90, 95.5)]]
    assert axes[0].get_xlabel() == "ms   ← better" and axes[1].get_xlabel() == "images/s   → better"


def test_frame_rates_have_a_bar_each_and_a_line_at_the_claim(axes):
    plots_pareto.frame_rates({"here": (42.0, "measured"), "there": (7.5, "published"), "roof": (170.0, "computed")})
    assert [p.get_width() for p in axes[0].patches] == [42, 7.5, 170]
    assert [t.get_text() for t in axes[0].texts] == ["42", "7.5", "170"]
    assert axes[0].lines[0].get_xdata()[0] == 30 and len({p.get_facecolor() for p in axes[0].patches}) == 3
