"""Joules from counters: a folder that looks like Linux's powercap, and a card that looks like NVML's."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit import energy

RANGE_UJ = 262_143_328_850          # of a desktop's package, in its own words


def zone(root, folder: str, name: str, energy_uj: int | str, range_uj: int = RANGE_UJ):
    """One powercap zone; the kernel ends every file with a newline."""
    path = root / "sys/class/powercap" / folder
    path.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        (path / file).write_text(f"{value}\n")
    return path / "energy_uj"


@pytest.fixture
def server(tmp_path):
    """Two packages, the first with its cores and its memory, and the whole platform beside them."""
    files = {
        "package": zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        "cores": zone(tmp_path, "intel-rapl:0:0", "core", 500_000),
        "memory": zone(tmp_path, "intel-rapl:0:1", "dram", 200_000, 65_712_999_613),
        "second": zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000),
        "platform": zone(tmp_path, "intel-rapl:2", "psys", 9_000_000),
        "again": zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000),
    }
    return tmp_path, files


def test_packages_and_memory_count_once(server):
    root, files = server
    counter, name = energy.counter("cpu", root=root)
    assert name == counter.name == "RAPL package-0 + dram + package-1"
    before = counter.read()
    for part, joules in (("package", 3), ("cores", 2), ("memory", 1), ("second", 5), ("platform", 20), ("again", 3)):
        files[part].write_text(f"{int(files[part].read_text()) + joules * 1_000_000}\n")
    assert counter.between(before, counter.read()) == pytest.approx(3 + 1 + 5)


@given(st.integers(0, RANGE_UJ - 1), st.integers(0, RANGE_UJ - 1))
def test_a_counter_that_starts_again_at_zero_loses_nothing(start, spent):
    counter = energy.Counter("RAPL", lambda: (), (RANGE_UJ,), 1e-6)
    assert counter.between((start,), ((start + spent) % RANGE_UJ,)) == pytest.approx(spent * 1e-6)


def test_a_measurement_across_the_wrap(tmp_path):
    """Each run adds 2 J to a counter that is 3 J from its end."""
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 3_000_000)
    counter, _ = energy.counter("cpu", root=tmp_path)

    def run():
        file.write_text(f"{(int(file.read_text()) + 2_000_000) % RANGE_UJ}\n")
    found = energy.measure(run, counter, images=4, seconds=0.05)
    assert found.images % 4 == 0 and found.images >= 8 and found.counter == "RAPL package-0"
    assert found.joules == pytest.approx(2 * found.images / 4)          # the first run, which sets up, is left out
    assert found.joules_per_image == pytest.approx(0.5)
    assert found.watts == pytest.approx(found.joules / found.seconds) and found.seconds >= 0.05


def test_no_counter_is_said_plainly(tmp_path):
    counter, why = energy.counter("cpu", root=tmp_path)
    assert counter is None and "no energy counter" in why and "virtual machine" in why
    zone(tmp_path, "intel-rapl:0", "psys", 5)                           # the platform alone is not the CPU
    assert energy.counter("cpu", root=tmp_path)[0] is None


def test_a_counter_that_only_root_may_read_is_named_with_the_way_out(server):
    root, files = server
    files["memory"].unlink()                        # root reads any file, so a missing one stands for it
    counter, why = energy.counter("cpu", root=root)
    assert counter is None and f"sudo chmod a+r {files['memory']}" in why and "CVE-2020-8694" in why


class _Nvml:
    class NVMLError(Exception):
        pass

    def __init__(self, readings=(), refuses: bool = False):
        self.readings, self.refuses, self.open = list(readings), refuses, 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return SimpleNamespace(index=index)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        assert handle.index == 0 and self.open == 1
        if self.refuses:
            raise self.NVMLError("Not Supported")
        return self.readings.pop(0)


def test_a_card_counts_millijoules(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = _Nvml([10_000, 10_000, 17_500])          # asked once to see whether it answers, then before and after
    counter, name = energy.counter("gpu", nvml=nvml)
    assert name == "NVML, the whole card" and nvml.open == 0
    found = energy.measure(lambda: None, counter, images=10, seconds=1e-6)
    assert found.joules == pytest.approx(7.5) and nvml.open == 0 and not nvml.readings


def test_a_card_without_a_counter_and_one_that_starts_anew(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    counter, why = energy.counter("gpu", nvml=_Nvml(refuses=True))
    assert counter is None and "before Volta" in why
    counter, _ = energy.counter("gpu", nvml=_Nvml([5, 500, 3]))
    with pytest.raises(ValueError, match=r"got 500 and then 3, expected counts that grow"):
        energy.measure(lambda: None, counter, seconds=1e-6)


@pytest.mark.parametrize(("images", "seconds"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -2.0)])
def test_nothing_to_measure_is_refused(images, seconds):
    with pytest.raises(ValueError, match="expected at least 1 in more than 0 s"):
        energy.measure(lambda: None, energy.Counter("none", lambda: (0,), (0,), 1.0), images=images, seconds=seconds)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="got 'tpu', expected 'cpu' or 'gpu'"):
        energy.counter("tpu")
