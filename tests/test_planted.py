"""Each graph that is wrong on purpose is wrong everywhere, in one way, and still runs."""

import numpy as np
import onnx
import pytest
import torch
from conftest import randomize_batchnorm
from test_qdq import Graph, Tiny, _images, _run, _table

from trtkit import calib, export, planted, qdq, quant
from trtkit.lint import lint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    torch.manual_seed(3)
    model = onnx.load(export.export_onnx(randomize_batchnorm(Tiny(8)), folder / "m.onnx", size=32, output_names=("y",)))
    images = _images(4, 32, seed=1)
    table = _table(model, images, folder)
    return folder, images, table, model, qdq.insert_qdq(model, table, target="trt")


def _has_pair_of(g: Graph, name: str, amax: float) -> bool:
    """Whether pairs alone read a tensor, whose scale is that of a range: the same pair before it would be no fault."""
    return all(n.op_type == "QuantizeLinear" and np.isclose(g.constants[n.input[1]], amax / 127)
               for n in g.readers[name])


def test_each_breaks_its_rule_at_every_place_and_no_other(tiny):
    folder, images, table, model, good = tiny
    convs, adds = (len(Graph(model).of(kind)) for kind in ("Conv", "Add"))
    behind = Graph(planted.pairs_behind_leaky_relus(good))
    leakies = [n for n in behind.of("LeakyRelu") if not _has_pair_of(behind, n.output[0], table[n.input[0]].amax)]
    assert 0 < len(leakies) < len(behind.of("LeakyRelu"))
    broken = {
        "bias": (planted.bias_in_8_bits(good), convs),
        "before_activation": (planted.pairs_before_activations(good, table), len(leakies)),
        "residual": (planted.pairs_on_shortcuts_alone(good), adds),
        "leaky_relu": (planted.pairs_behind_leaky_relus(good), 3),        # into the Add, and behind two of 3x3
    }
    before = good.SerializeToString()
    (expected,) = _run(good, images, folder, "good")
    for rule, (graph, places) in broken.items():
        assert [f.rule for f in lint(graph, "trt") if f.level != "note"] == [rule] * places
        (got,) = _run(graph, images, folder, rule)
        assert quant.sqnr_db(expected, got) > 20 and not np.array_equal(got, expected)
    assert good.SerializeToString() == before


def test_the_shortcut_keeps_its_pair_and_nothing_is_left_of_the_other(tiny):
    *_, good = tiny
    before, g = Graph(good), Graph(planted.pairs_on_shortcuts_alone(good))
    for add in g.of("Add"):
        kinds = {g.kind(name): name for name in add.input}
        assert set(kinds) == {"DequantizeLinear", "LeakyRelu"}
        assert "Conv" in [n.op_type for n in g.readers[kinds["DequantizeLinear"]]]      # where the block begins
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        assert len(g.of(kind)) == len(before.of(kind)) - len(g.of("Add"))
    assert set(g.constants) == {name for n in g.nodes for name in n.input if name in g.constants}


def test_behind_leaky_relus_nothing_else_has_changed(tiny, tmp_path):
    """The same numbers but for codes below zero, which are finer before a LeakyRelu than behind it."""
    _, images, _, model, good = tiny
    behind = planted.pairs_behind_leaky_relus(good)
    g, before = Graph(behind), Graph(good)
    assert [n.name for n in g.of("LeakyRelu")] == [n.name for n in before.of("LeakyRelu")]
    assert {g.kind(n.input[0]) for n in g.of("LeakyRelu")} == {"Conv"}
    assert {g.kind(name) for n in g.of("Add") for name in n.input} == {"DequantizeLinear"}
    scales = [{float(x.constants[n.input[1]]) for n in x.of("QuantizeLinear")} for x in (before, g)]
    assert scales[0] == scales[1]
    floats, split, late = (_run(m, images, tmp_path, "m")[0] for m in (model, good, behind))
    # What is below the negative of the largest value clips before a LeakyRelu; here, with random weights, some does.
    assert min(quant.sqnr_db(floats, split), quant.sqnr_db(floats, late)) > 40
    assert quant.sqnr_db(floats, split) > quant.sqnr_db(floats, late) - 3
    assert planted.pairs_behind_leaky_relus(behind) == behind


def test_weights_per_tensor_keep_their_values_to_half_a_step_of_one_scale(tiny):
    *_, model, good = tiny
    floats, g = Graph(model), Graph(planted.weights_per_tensor(good))
    for conv, original in zip(g.of("Conv"), floats.of("Conv"), strict=True):
        codes, scale, zero_point = (g.constants[name] for name in g.writer[conv.input[1]].input)
        weight = floats.constants[original.input[1]]
        assert scale.shape == zero_point.shape == () and scale == pytest.approx(np.abs(weight).max() / 127, rel=1e-5)
        assert np.abs(codes * scale - weight).max() <= scale * 1.01         # rounded twice: per channel, then again


def test_a_narrowed_range_is_one_tensors_alone():
    table = {"a": calib.Range(-1, 2), "b": calib.Range(0, 1)}
    assert planted.narrowed(table, "a", 4) == {"a": calib.Range(-0.25, 0.5), "b": calib.Range(0, 1)}
    with pytest.raises(ValueError, match="tensor: got 'c'"):
        planted.narrowed(table, "c")
