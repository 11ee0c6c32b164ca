"""Copies, timelines, launches and leaks: closed forms, order, errors. What needs a GPU runs on a fake of PyCUDA."""

import mmap
import threading
import time

import fake_pycuda
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit import launches, leaks, nvidia, overlap, record_08, recorded, transfers
from trtkit.overlap import Span
from trtkit.transfers import Copy


@pytest.fixture
def cuda(monkeypatch):
    fake_pycuda.install(monkeypatch)
    yield from fake_pycuda.fresh_cuda(monkeypatch)


@given(st.floats(1e-4, 10), st.floats(0.1, 100), st.sets(st.integers(1, 1 << 28), min_size=2, max_size=15))
def test_fit_finds_the_line_that_made_the_times(t0_ms, gb_per_s, sizes):
    copies = [Copy("h2d", "pinned", n, t0_ms + n / gb_per_s / 1e6) for n in sizes]
    if max(sizes) - min(sizes) < 0.1 * t0_ms * gb_per_s * 1e6:       # a flat line says nothing of its slope
        return
    found_t0, found_gb = transfers.fit(copies)
    assert found_t0 == pytest.approx(t0_ms, rel=1e-3, abs=1e-6)
    assert found_gb == pytest.approx(gb_per_s, rel=1e-3)


def test_fit_has_no_negative_latency_and_no_bandwidth_from_nothing():
    t0, gb = transfers.fit([Copy("host", "reused", n, ms) for n, ms in ((1000, 0.5), (2000, 1.5), (4000, 3.5))])
    assert t0 == 0 and gb > 0
    assert transfers.fit([Copy("host", "reused", n, 1.0) for n in (10, 20)])[1] > 1e3


@pytest.mark.parametrize("copies", [
    [], [Copy("h2d", "pinned", 8, 1.0)], [Copy("h2d", "pinned", 8, 1.0), Copy("h2d", "pinned", 8, 1.1)],
    [Copy("h2d", "pinned", 8, 1.0), Copy("h2d", "pageable", 16, 1.0)],
    [Copy("h2d", "pinned", 8, 1.0), Copy("d2h", "pinned", 16, 1.0)],
])
def test_fit_wants_several_sizes_of_one_kind(copies):
    with pytest.raises(ValueError, match="expected two or more sizes of one kind"):
        transfers.fit(copies)


def test_bandwidth_is_bytes_over_time():
    assert Copy("h2d", "pinned", 55_000_000, 1.0).gb_per_s == pytest.approx(55)


@pytest.mark.parametrize(("generation", "width", "gb_per_s"), [(3, 16, 15.754), (4, 16, 31.508), (5, 16, 63.015),
                                                              (3, 1, 0.98462), (4, 8, 15.754), (6, 16, 121.0)])
def test_pcie_rates_are_those_of_the_specification(generation, width, gb_per_s):
    assert transfers.pcie_gb_per_s(generation, width) == pytest.approx(gb_per_s, rel=1e-4)


@pytest.mark.parametrize(("generation", "width"), [(2, 16), (7, 16), (4, 0)])
def test_other_links_are_refused(generation, width):
    with pytest.raises(ValueError, match=f"got generation {generation} x{width}"):
        transfers.pcie_gb_per_s(generation, width)


def test_host_copies_measure_each_size_both_ways():
    found = transfers.host_copies((4096, 1 << 20), runs=3)
    assert [(c.nbytes, c.memory) for c in found] == [(n, m) for n in (4096, 1 << 20) for m in ("reused", "new pages")]
    assert all(c.direction == "host" and c.host_ms > 0 and c.event_ms is None for c in found)


def test_device_copies_measure_each_size_four_ways(cuda):
    found = transfers.device_copies((16, 4096), runs=2)
    assert {(c.direction, c.memory, c.nbytes) for c in found} == {
        (d, m, n) for d in ("h2d", "d2h") for m in ("pageable", "pinned") for n in (16, 4096)}
    assert all(c.event_ms == pytest.approx(0.25) for c in found)        # one operation of the fake's clock
    assert cuda.open_bytes() == 0


@pytest.mark.parametrize("measure", [transfers.host_copies, transfers.device_copies])
def test_copies_of_nothing_are_refused(measure):
    with pytest.raises(ValueError, match="got 0 bytes"):
        measure((4096, 0))
    with pytest.raises(ValueError, match="runs: got 0"):
        measure((4096,), runs=0)


class Lane:
    """Operations of 1, 3 and 2 copies on a stream of the fake, each 0.25 ms on its clock."""

    def __init__(self, cuda, log):
        self.cuda, self.log, self.use_graph = cuda, log, True
        self.stream, self.buffer, self.x = cuda.Stream(), cuda.DeviceBuffer(8), np.zeros(8, np.uint8)

    def _copies(self, name, count):
        self.log.append((name, self, self.use_graph))
        for _ in range(count):
            self.cuda.copy_to_device(self.buffer, self.x, self.stream)

    def infer(self, feed):
        self.staged = feed["images"].shape

    def upload(self):
        self._copies("upload", 1)

    def launch(self):
        self._copies("launch", 3 if self.use_graph else 6)

    def download(self):
        self._copies("download", 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_chunks_take_turns_on_the_streams(cuda, count):
    log = []
    lanes = [Lane(cuda, log) for _ in range(count)]
    spans = overlap.device_timeline(lanes, 5, rounds=1)
    assert [(s.operation, s.chunk, s.lane) for s in spans] == [
        (step, chunk, chunk % count) for chunk in range(5) for step in overlap.STEPS]
    assert [(name, lanes.index(lane)) for name, lane, _ in log[15:]] == [(s.operation, s.lane) for s in spans]
    # The fake runs everything at once and in order, so the times follow from its clock.
    assert overlap.busy_ms(spans) == pytest.approx({"upload": 1.25, "launch": 3.75, "download": 2.5})
    assert overlap.total_ms(spans) == pytest.approx(7.5) and spans[0].start_ms == 0
    # No stream may be ahead of the event that all times count from.
    assert [len(lane.stream._use().waited_for) for lane in lanes] == [0] + [2] * (count - 1)


def test_events_of_a_timeline_are_closed_also_when_a_lane_fails(cuda):
    lane = Lane(cuda, [])
    before = len(cuda._open)
    lane.buffer.close()
    with pytest.raises(cuda.BackendError, match="closed"):
        overlap.device_timeline([lane], 2)
    assert sum(owner._held is not None for owner in cuda._open) < before


@pytest.mark.parametrize(("lanes", "chunks", "rounds"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_an_empty_timeline_is_refused(lanes, chunks, rounds):
    with pytest.raises(ValueError, match="expected 1 or more each"):
        overlap.device_timeline([object()] * lanes, chunks, rounds=rounds)


def test_launch_cost_measures_both_ways_and_leaves_the_switch_as_it_was(cuda):
    lane = Lane(cuda, [])
    found = launches.launch_cost(lane, runs=3)
    assert found["graph"]["device_ms"] == pytest.approx(0.75) and found["enqueue"]["device_ms"] == pytest.approx(1.5)
    assert all(0 < way["host_ms"] <= way["total_ms"] for way in found.values())
    assert lane.use_graph is True
    lane.use_graph = False
    launches.launch_cost(lane, runs=1)
    assert lane.use_graph is False
    with pytest.raises(ValueError, match="runs: got 0"):
        launches.launch_cost(lane, runs=0)


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_a_host_timeline_infers_what_was_prepared_in_order(buffers):
    made, seen = iter(range(100)), []

    def prepare(buffer):
        buffer[:] = next(made)

    spans = overlap.host_timeline(prepare, lambda b: seen.append(b[0]), [np.zeros(1, int) for _ in range(buffers)], 7)
    assert seen == list(range(7))
    assert [(s.operation, s.chunk, s.lane) for s in spans] == [
        (operation, chunk, lane) for chunk in range(7) for lane, operation in enumerate(("prepare", "infer"))]
    prepared = {s.chunk: s for s in spans if s.lane == 0}
    inferred = {s.chunk: s for s in spans if s.lane == 1}
    assert all(inferred[i].start_ms >= prepared[i].end_ms for i in range(7))
    # A buffer is filled again only when its last reader is done with it.
    assert all(prepared[i].start_ms >= inferred[i - buffers].end_ms for i in range(buffers, 7))


def test_two_buffers_overlap_and_one_does_not():
    def nap(_):
        time.sleep(0.01)

    def overlapping(buffers):
        spans = overlap.host_timeline(nap, nap, [np.zeros(1)] * buffers, 6)
        return overlap.hidden_share(spans, "prepare", "infer")

    assert overlapping(2) > 0 and overlapping(1) == 0


def test_the_hidden_share_is_what_the_bars_have_in_common():
    spans = [Span("upload", 0, 0, 0, 2), Span("launch", 0, 0, 2, 6), Span("upload", 1, 1, 1, 3),
             Span("launch", 1, 1, 6, 10), Span("upload", 0, 2, 5, 7)]
    assert overlap.hidden_share(spans, "upload", "launch") == pytest.approx((0 + 1 + 2) / 6)
    assert overlap.hidden_share(spans[:2], "upload", "launch") == 0
    assert overlap.hidden_share(spans, "upload", "download") == 0
    with pytest.raises(ValueError, match="expected 'download' in them"):
        overlap.hidden_share(spans, "download", "launch")


@pytest.mark.parametrize("which", ["prepare", "infer"])
def test_an_error_in_either_thread_comes_out_and_leaves_no_thread(which):
    def fail(buffer):
        raise KeyError("frame 0")

    calls = {"prepare": lambda b: None, "infer": lambda b: None, which: fail}
    with pytest.raises(KeyError, match="frame 0"):
        overlap.host_timeline(calls["prepare"], calls["infer"], [np.zeros(1)] * 2, 5)
    assert threading.active_count() == 1 or all("produce" not in t.name for t in threading.enumerate())
    with pytest.raises(ValueError, match="0 buffers"):
        overlap.host_timeline(calls["prepare"], calls["infer"], [], 5)


def test_a_curve_starts_at_zero_and_asks_after_every_step():
    held = []
    assert leaks.curve(held.append, 3, lambda: 10.0 + len(held)) == [0, 1, 2, 3]
    assert held == [0, 1, 2]
    with pytest.raises(ValueError, match="steps: got 0"):
        leaks.curve(held.append, 0, lambda: 0.0)


def test_growth_per_step_does_not_count_what_is_filled_once():
    assert leaks.per_step([0, 100, 102, 104, 106]) == 2
    assert leaks.per_step([0, 5, 10], skip=0) == 5
    with pytest.raises(ValueError, match="got 2 values, expected at least 3"):
        leaks.per_step([0, 5])


def test_resident_memory_sees_pages_that_are_kept_and_those_that_are_given_back():
    def pages() -> np.ndarray:          # straight from the kernel: malloc may have some of earlier tests in store
        fresh = np.frombuffer(mmap.mmap(-1, 40 << 20), np.uint8)
        fresh[:] = 1
        return fresh

    kept = []
    kept_mib = leaks.curve(lambda _: kept.append(pages()), 4, leaks.resident_mib)
    assert leaks.per_step(kept_mib) == pytest.approx(40, abs=4)
    kept.clear()
    assert leaks.per_step(leaks.curve(lambda _: pages(), 4, leaks.resident_mib)) < 4


def test_device_memory_is_total_less_free(cuda):
    kept = []
    growth = leaks.curve(lambda _: kept.append(cuda.DeviceBuffer(8 << 20)), 3, leaks.device_used_mib)
    assert growth == [0, 8, 16, 24]


class Nvml:
    """The part of NVML's module that is asked, for one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, answers):
        self.open, self.answers = 0, answers

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def __getattr__(self, name):
        def ask(*_):
            if name not in self.answers:
                raise self.NVMLError("Insufficient Permissions")
            return self.answers[name]
        return ask


def test_nvml_is_asked_and_let_go(monkeypatch):
    memory = type("Memory", (), {"used": 3 << 30})
    nvml = Nvml({"nvmlDeviceGetHandleByIndex": 0, "nvmlDeviceGetMemoryInfo": memory,
                 "nvmlDeviceGetMaxPcieLinkGeneration": 5, "nvmlDeviceGetMaxPcieLinkWidth": 16})
    monkeypatch.setattr(nvidia, "nvml_module", lambda: nvml)
    assert leaks.nvml_used_mib() == 3072 and transfers.pcie_link() == (5, 16)
    assert nvml.open == 0
    for silent in (Nvml({}), None):
        monkeypatch.setattr(nvidia, "nvml_module", lambda silent=silent: silent)
        assert leaks.nvml_used_mib() is None and transfers.pcie_link() is None
        assert silent is None or silent.open == 0


def test_a_recording_that_is_interrupted_keeps_what_it_has(cuda, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    measured = transfers.device_copies((16, 4096), runs=1)
    monkeypatch.setattr(transfers, "device_copies", lambda: measured)
    monkeypatch.setattr(record_08, "detector_plan", interrupt)
    with pytest.raises(KeyboardInterrupt):
        record_08.record(tmp_path / "out.json")
    body = recorded.load("out.json", tmp_path)
    assert set(body) == {"provenance", "copies", "pcie", "leak", "thread"}
    assert [(c.direction, c.memory, c.nbytes) for c in record_08.copies(body)] == [
        (c.direction, c.memory, c.nbytes) for c in measured]
    assert body["leak"]["kept"]["cuda"] == [64 * i for i in range(13)] and body["leak"]["open_mib_after"] == 0
    assert not any(body["leak"]["dropped"]["cuda"] + body["leak"]["closed"]["cuda"])
    assert "context" in body["thread"]["without"] and body["thread"]["with"] == ""


def test_recorded_timelines_come_back_as_they_were(cuda):
    lanes = [Lane(cuda, []), Lane(cuda, [])]
    found = record_08.timelines(*lanes, batch=2, chunks=3)
    assert [lane.staged for lane in lanes] == [(2, 3, 416, 416)] * 2
    one, two = (record_08.spans(found[name]) for name in ("one_stream", "two_streams"))
    assert {s.lane for s in one} == {0} and {s.lane for s in two} == {0, 1}
    assert overlap.total_ms(one) == pytest.approx(3 * 1.5)


def test_first_calls_are_timed_one_by_one(cuda):
    found = record_08.first_calls(Lane(cuda, []), [1, 2, 1])
    assert [call["batch"] for call in found] == [1, 2, 1] and all(call["ms"] >= 0 for call in found)
