"""The recorder of lesson 07: what it keeps of an engine, and that a failed step costs no other."""

import json
from collections import Counter

import onnx
import pytest
from test_backend_trt import layers

from trtkit import calib, engine, precision, record_07, recorded
from trtkit.engine import BackendError
from trtkit.qdq import activation_names


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(record_07.engine, "available", lambda: {"ort": "", "trt": ""})
    monkeypatch.setattr(record_07, "histograms", lambda folder, images: {})
    monkeypatch.setattr(record_07, "write_graphs", lambda folder, table: {})
    return tmp_path / "h100_lesson07.json"


def test_rows_are_short_text():
    long = layers("INT8")[0] | {"Name": "n" * 500, "TacticName": "t" * 500}
    (row,) = record_07.rows([long])
    assert row == {"name": "n" * 100, "type": "CaskConvolution", "precision": "INT8", "reads": "INT8", "writes": "INT8",
                   "tactic": "t" * 100}


def test_the_example_is_the_inspectors_own_text():
    conv, other = layers("INT8")[0], {"Name": "copy", "LayerType": "Reformat"}
    assert record_07.example([other, conv, other]) == conv and record_07.example([other]) == {}


def test_a_failed_step_leaves_the_others_and_is_told(out, monkeypatch):
    def fails(graphs, found):
        raise BackendError("no luck")

    monkeypatch.setattr(record_07, "STEPS", {"one": lambda *_: 1, "two": fails, "three": lambda *_: 3})
    with pytest.raises(BackendError, match="lacks two: no luck"):
        record_07.record(out)
    body = json.loads(out.read_text())
    assert (body["one"], body["three"], "two" in body) == (1, 3, False)
    monkeypatch.setattr(record_07, "STEPS", {"two": lambda *_: 2})
    record_07.record(out, ["two"])
    body = recorded.load(out.name, out.parent)
    assert (body["one"], body["two"], body["three"]) == (1, 2, 3) and body["images"] == record_07.IMAGES


def test_a_step_of_another_day_keeps_its_own_date(out, monkeypatch):
    def on(date, step):
        monkeypatch.setattr(record_07, "STEPS", {step: lambda *_: {"ms": 1}})
        monkeypatch.setattr(record_07.recorded, "provenance", lambda command: {
            "gpu": "G", "driver": "", "versions": {}, "command": command, "commit": f"of {date}", "date": date})
        record_07.record(out)

    on("2026-01-01", "one")
    on("2026-01-02", "two")
    captions = [record_07.recorded_step(step, out.parent)["caption"] for step in ("one", "two")]
    assert captions == ["recorded: G, 2026-01-01", "recorded: G, 2026-01-02"]
    measured = json.loads(out.read_text())["measured"]
    assert [measured[step]["commit"] for step in ("one", "two")] == ["of 2026-01-01", "of 2026-01-02"]


def test_a_step_that_failed_was_not_measured(out, monkeypatch):
    def fails(graphs, found):
        raise BackendError("no luck")

    monkeypatch.setattr(record_07, "STEPS", {"one": lambda *_: 1, "two": fails})
    with pytest.raises(BackendError, match="no luck"):
        record_07.record(out)
    assert list(json.loads(out.read_text())["measured"]) == ["one"]


def test_the_timing_cache_is_measured_from_an_empty_folder(monkeypatch, cache, tmp_path):
    """What an earlier build left must not warm the first one."""
    seen = []

    def build(graph, config, backend):
        seen.append((engine.cache_dir(), config.workspace_mib, list(engine.cache_dir().iterdir())))
        return tmp_path / "a.plan"

    monkeypatch.setattr(record_07.engine, "build", build)
    monkeypatch.setattr(record_07.cache, "sidecar", lambda plan: {"build_s": 10.0 / len(seen), "messages": []})
    took = record_07.STEPS["timing_cache"]({"FP16": tmp_path / "g.onnx"}, {})
    (first, mib, found), (again, other_mib, _) = seen
    assert first == again != cache and mib != other_mib and not found       # one folder, empty; two plans
    assert (took["first"], took["again"]) == (10.0, 5.0)
    assert engine.cache_dir() == cache


def test_a_step_that_dies_leaves_what_was_before(out, monkeypatch):
    def dies(graphs, found):
        raise KeyboardInterrupt

    monkeypatch.setattr(record_07, "STEPS", {"one": lambda *_: 1, "two": dies})
    with pytest.raises(KeyboardInterrupt):
        record_07.record(out)
    assert json.loads(out.read_text())["one"] == 1


def test_a_step_that_nobody_recorded_is_empty(out, monkeypatch):
    assert record_07.recorded_step("one", out.parent) == {}
    monkeypatch.setattr(record_07, "STEPS", {"one": lambda *_: {"ms": 1}})
    record_07.record(out)
    found = record_07.recorded_step("one", out.parent)
    assert found["ms"] == 1 and found["caption"].startswith("recorded: ")
    assert record_07.recorded_step("two", out.parent) == {}


def test_an_unknown_step(out):
    with pytest.raises(ValueError, match=r"\['calibrator'\], expected some of \['era', "):
        record_07.record(out, ["calibrator"])


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(record_07.engine, "available", lambda: {"ort": "", "trt": "no driver"})
    with pytest.raises(BackendError, match="no driver"):
        record_07.record(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_the_graphs_are_the_detector_in_three_types(tmp_path, cache):
    """Two images, through ORT: what the GPU run does first."""
    found = record_07.histograms(tmp_path, 2)
    graphs = record_07.write_graphs(tmp_path, calib.ranges(found, "max"))
    models = {name: onnx.load(path) for name, path in graphs.items()}
    assert len(found) == len(activation_names(models["FP32"])) and found.images == 2
    asked = {name: Counter(precision.asked(model).values()) for name, model in models.items()}
    assert asked == {"FP32": {"FP32": 75}, "FP16": {"FP16": 75}, "INT8": {"INT8": 71, "FP16": 4}}   # stem, three heads
    assert [b.shape for b in record_07.batches(2, 2)] == [(2, 3, 416, 416)]
