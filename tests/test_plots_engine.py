"""Pictures of lesson 07: what is drawn, counted in the figure."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from trtkit import eras, plots, plots_engine


def test_fusion_draws_every_operator_once(axes):
    counts = {"graph": {"Conv": 5, "Relu": 4, "rare": 1}, "plan": {"FusedConv": 5, "other": 2}}
    assert plots_engine.fusion(counts, named=2) is None
    lengths = [sum(p.get_width() for p in axes[0].patches if round(p.get_y() + p.get_height() / 2) == row)
               for row in (0, 1)]
    assert lengths == [10, 7]


def test_more_types_than_colors_are_drawn_all_the_same(axes):
    plots_engine.fusion({"graph": {f"op{i}": 10 for i in range(10)}}, named=10)
    assert sum(p.get_width() for p in axes[0].patches) == 100
    plots_engine.fusion({"graph": {"Conv": 5, "Relu": 4}})
    assert [bar.get_label() for bar in axes[-1].containers] == ["Conv", "Relu"]        # and no others


def test_no_pictures_are_named():
    with pytest.raises(ValueError, match="pictures: got none"):
        plots.images([])


def test_strips_color_precisions_and_lower_what_only_copies(axes):
    layers = [{"name": "a", "type": "CaskConvolution", "precision": "INT8"},
              {"name": "b", "type": "Reformat", "precision": "FP32"},
              {"name": "c", "type": "Myelin", "precision": "INT64"}]
    plots_engine.layer_strips({"x": layers, "y": layers[:1]}, "title")
    cells = [(p.get_facecolor(), p.get_height()) for p in axes[0].patches[:3]]
    color = {k: plt.matplotlib.colors.to_rgba(v) for k, v in plots_engine.PRECISION_COLORS.items()}
    assert cells == [(color["INT8"], 1), (color["FP32"], 0.45), (color[""], 1)]


def test_the_winner_is_the_solid_bar(axes):
    plots_engine.tactic_times({"one": {"a": 2.0, "b": 1.0}, "two": {"a": 3.0, "b": 9.0}})
    bars = [(p.get_height(), p.get_alpha()) for p in axes[0].patches]
    assert sorted(bars) == [(1.0, 1), (1.0, 1), (2.0, 0.4), (3.0, 0.4)]


def test_every_name_has_a_cell_per_era(axes):
    plots_engine.era_matrix(eras.NAMES, eras.ERAS)
    names = [name for topic in eras.NAMES.values() for name in topic]
    assert sum(len(ax.patches) for ax in axes) == 3 * len(names)
    shown = {t.get_text() for ax in axes for t in ax.texts}
    assert {*names, *eras.NAMES, *eras.ERAS} <= shown


def test_break_even_crosses_one_where_the_formula_says(axes):
    plots_engine.break_even((10.0, 2.0), (30.0, 1.0), ("a", "b"), "")
    runs, ratio = axes[0].lines[0].get_data()
    crossing = runs[ratio < 1][0]
    assert crossing == pytest.approx(1000 * (30 - 10) / (2 - 1), rel=0.06)


def test_ratios_are_sorted(axes):
    plots_engine.threshold_ratios({"minmax": np.array([1.0, 0.9, 1.1])}, "")
    assert list(axes[0].lines[0].get_ydata()) == [0.9, 1.0, 1.1]
