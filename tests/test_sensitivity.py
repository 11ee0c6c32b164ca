"""Per-layer loss against the same thing done by hand with ONNX Runtime; search and bisection on planted faults."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import randomize_batchnorm
from test_qdq import Tiny, _images, _table

from trtkit import calib, engine, export, mixed_precision, placement, qdq, quant, sensitivity


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitive")
    torch.manual_seed(3)
    model = onnx.load(export.export_onnx(randomize_batchnorm(Tiny(8)), folder / "m.onnx", size=32, output_names=("y",)))
    images = _images(4, 32, seed=1)
    return model, _table(model, images, folder), [images[:2], images[2:]]


def _by_hand(model: onnx.ModelProto, batches) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": x})[0] for x in batches])


@pytest.fixture(scope="module")
def score(tiny):
    model, _, batches = tiny
    return sensitivity.output_sqnr(model, batches)


@pytest.mark.parametrize("target", placement.TARGETS)
@pytest.mark.parametrize("mode", ["only", "all_but"])
def test_each_layer_equals_the_same_graph_built_by_hand(tiny, score, target, mode):
    model, table, batches = tiny
    names = qdq.conv_names(model)
    got = sensitivity.layer_sensitivity(model, table, score, mode=mode, target=target, progress=False)
    assert list(got) == names
    for name in names:
        skip = [n for n in names if (n != name) == (mode == "only")]
        quantized = qdq.insert_qdq(model, table, target=target, skip=skip)
        expected = quant.sqnr_db(_by_hand(model, batches), _by_hand(quantized, batches))
        assert got[name] == pytest.approx(expected, abs=0.5)        # other threads, other order of sums


def test_a_pattern_is_one_group_and_skipped_layers_stay_out(tiny, score):
    model, table, _ = tiny
    names = qdq.conv_names(model)
    got = sensitivity.layer_sensitivity(model, table, score, layers=["/residual/*", names[0]], progress=False)
    assert list(got) == ["/residual/*", names[0]]
    alone = sensitivity.layer_sensitivity(model, table, score, layers=["/residual/*/reduce.0/Conv"], progress=False)
    assert got["/residual/*"] < alone["/residual/*/reduce.0/Conv"]
    assert names[-1] not in sensitivity.layer_sensitivity(model, table, score, skip=[names[-1]], progress=False)


def _narrowed(table, tensor: str):
    r = table[tensor]
    return table | {tensor: calib.Range(r.low / 50, r.high / 50)}


def test_the_layer_with_a_planted_fault_returns_first(tiny, score):
    model, table, _ = tiny
    names = qdq.conv_names(model)
    tensor = next(n.input[0] for n in model.graph.node if n.name == names[3])
    broken = _narrowed(table, tensor)
    for mode in ("only", "all_but"):
        scores = sensitivity.layer_sensitivity(model, broken, score, mode=mode, target="trt", progress=False)
        readers = {n.name for n in model.graph.node if n.op_type == "Conv" and tensor in n.input}
        assert sensitivity.float_order(scores, mode)[0] in readers


def test_the_search_reaches_its_budget_with_the_fewest_layers_of_the_order(tiny, score):
    model, table, _ = tiny
    order = sensitivity.float_order(sensitivity.layer_sensitivity(model, table, score, progress=False))
    with sensitivity.running(qdq.insert_qdq(model, table, target="cpu")) as runner:
        all_int8 = score(runner)
    budget = all_int8 + 3
    found = mixed_precision.search(model, table, score, order, at_least=budget, progress=False)
    assert found.score >= budget > all_int8 and 0 < len(found.skip) < len(order)
    assert set(found.skip) == set(order[: len(found.skip)])
    assert found.tried[len(found.skip)] == found.score and found.tried[len(found.skip) - 1] < budget
    with sensitivity.running(qdq.insert_qdq(model, table, target="cpu", skip=found.skip)) as runner:
        assert score(runner) == pytest.approx(found.score)


def test_a_budget_that_all_int8_meets_needs_no_float_layer_and_one_out_of_reach_says_so(tiny, score):
    model, table, _ = tiny
    names = qdq.conv_names(model)
    assert mixed_precision.search(model, table, score, names, at_least=1, progress=False).skip == []
    kept = mixed_precision.search(model, table, score, names[:1], at_least=1, skip=["/pred*"], progress=False)
    assert kept.skip == qdq.head_convs(model)
    with pytest.raises(ValueError, match=r"at_least: got 90, but with all 1 layers of the order in float"):
        mixed_precision.search(model, table, score, names[:1], at_least=90, progress=False)


@pytest.mark.parametrize("target", placement.TARGETS)
def test_a_cliff_stands_at_the_tensor_whose_range_is_too_narrow(tiny, target):
    model, table, batches = tiny
    names = qdq.conv_names(model)
    conv = next(n for n in model.graph.node if n.name == names[3])
    good = sensitivity.tensor_sqnr(model, qdq.insert_qdq(model, table, target=target), batches[0])
    broken = qdq.insert_qdq(model, _narrowed(table, conv.input[0]), target=target)
    bad = sensitivity.tensor_sqnr(model, broken, batches[0])
    assert list(good) == list(bad) and min(good.values()) > 15
    assert next(name for name in bad if bad[name] < good[name] - 6) == conv.output[0]


def test_inner_tensors_equal_ort_by_hand(tiny):
    model, table, batches = tiny
    quantized = qdq.insert_qdq(model, table, target="trt")
    name = model.graph.node[3].output[0]
    got = sensitivity.tensor_sqnr(model, quantized, batches[0], [name])

    def run(graph):
        exposed = export.expose_tensors(graph, [name])
        session = ort.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run([name], {"images": batches[0]})[0]

    assert got == {name: pytest.approx(quant.sqnr_db(run(model), run(quantized)), abs=0.5)}


def test_plans_that_were_wanted_once_do_not_stay(tiny, cache):
    model, table, batches = tiny
    score = sensitivity.output_sqnr(model, batches)
    sensitivity.layer_sensitivity(model, table, score, layers=qdq.conv_names(model)[:2], progress=False)
    assert [p.name for p in cache.glob("*")] == ["locks"] and not any(p.stat().st_size for p in cache.glob("locks/*"))
    with sensitivity.running(model) as runner:
        runner.infer({"images": batches[0]})
    with pytest.raises(engine.BackendError, match="closed"):
        runner.infer({"images": batches[0]})


def test_bad_input_is_named(tiny, score):
    model, table, batches = tiny
    with pytest.raises(ValueError, match="batches: got none"):
        sensitivity.output_sqnr(model, [])
    with pytest.raises(ValueError, match=r"layers: got '/nothing\*'"):
        sensitivity.layer_sensitivity(model, table, score, layers=["/nothing*"], progress=False)
    with pytest.raises(ValueError, match="mode: got 'one'"):
        sensitivity.layer_sensitivity(model, table, score, mode="one", progress=False)
    with pytest.raises(ValueError, match="all of which skip leaves float"):
        sensitivity.layer_sensitivity(model, table, score, layers=["/pred*"], skip=["/pred*"], progress=False)
    with pytest.raises(ValueError, match="'nowhere'"):
        sensitivity.tensor_sqnr(model, qdq.insert_qdq(model, table, target="cpu"), batches[0], ["nowhere"])
