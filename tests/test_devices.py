"""Data sheets against what they are made of, and which sheet belongs to the GPU that the driver names."""

import pytest

from trtkit import devices
from trtkit.devices import DEVICES, Found, find

# Operations that a multiprocessor starts per clock: FP32 on its CUDA cores (two per core), FP16 and INT8 on its tensor
# cores, dense. NVIDIA's white papers on Volta (Xavier's INT8: twice its FP16), Turing, GA100, Orin and Hopper.
VOLTA_TURING = {"fp32": 128, "fp16": 1024, "int8": 2048}
GA100 = {"fp32": 128, "tf32": 1024, "fp16": 2048, "bf16": 2048, "int8": 4096}
ORIN = {"fp32": 256, "fp16": 2048, "int8": 4096}
HOPPER = {"tf32": 2048, "fp16": 4096, "bf16": 4096, "fp8": 8192, "int8": 8192}
MADE_OF = {         # operations per clock of a multiprocessor, GHz that the sheet counts with
    "Tesla T4": (VOLTA_TURING, 1.59),
    "NVIDIA A100-SXM4-40GB": (GA100, 1.41),
    "NVIDIA A100-SXM4-80GB": (GA100, 1.41),
    "NVIDIA H100 80GB HBM3": (HOPPER, 1.83),
    "NVIDIA H200": (HOPPER, 1.83),
    "Jetson AGX Xavier": (VOLTA_TURING, 1.377),
    "Jetson AGX Orin 64GB": (ORIN, 1.3),
}


@pytest.mark.parametrize("name", DEVICES)
def test_a_dense_peak_is_units_times_operations_times_clock(name):
    """Within 1.2 %: data sheets round (T4's 8.1 is 8.14). A figure with sparsity would be off by a factor of 2."""
    sheet, (per_clock, ghz) = DEVICES[name], MADE_OF[name]
    for precision, operations in per_clock.items():
        assert sheet.peak(precision) == pytest.approx(sheet.sms * operations * ghz / 1000, rel=0.012), precision
    assert set(sheet.peak_tflops) - {"fp32"} == set(per_clock) - {"fp32"}


def test_hoppers_fp32_is_of_a_higher_clock():
    assert DEVICES["NVIDIA H100 80GB HBM3"].peak("fp32") == pytest.approx(132 * 256 * 1.98 / 1000, rel=0.005)


@pytest.mark.parametrize(("name", "memory_mhz", "bus_bits", "rel"), [
    ("Tesla T4", 5001, 256, 0.002),
    ("NVIDIA A100-SXM4-40GB", 1215, 5120, 0.002),
    ("NVIDIA A100-SXM4-80GB", 1593, 5120, 0.002),
    ("NVIDIA H100 80GB HBM3", 2619, 5120, 0.002),
])
def test_bandwidth_is_what_clock_and_bus_make(name, memory_mhz, bus_bits, rel):
    """Clocks and widths as the CUDA driver reports them for these cards."""
    sheet = DEVICES[name]
    found = Found(name, sheet.sms, 1000, memory_mhz, bus_bits)
    assert found.bandwidth_gb_per_s == pytest.approx(sheet.bandwidth_gb_per_s, rel=rel)
    assert devices.here(found)[0] is sheet


def test_jetsons_share_a_name_and_are_told_apart_by_their_size():
    assert devices.here(Found("Xavier", 8, 1377))[0].name == "Jetson AGX Xavier"
    sheet, said = devices.here(Found("Orin", 16, 1300, 1300, 128))
    assert sheet.name == "Jetson AGX Orin 64 GB"
    assert "GB/s" not in said                       # 1300 MHz and 128 bits are not those of its memory
    sheet, said = devices.here(Found("Orin", 8, 918))                   # an Orin NX
    assert sheet is None and "Orin: 8 multiprocessors" in said and "has 16, so it is not for this one" in said
    assert devices.here(Found("Xavier", 6, 1109))[0] is None            # a Xavier NX


def test_a_gpu_without_a_sheet_is_told_what_to_do():
    sheet, said = devices.here(Found("NVIDIA L4", 58, 2040, 6251, 192))
    assert sheet is None and said.startswith("NVIDIA L4: 58 multiprocessors, at most 2040 MHz, 192 bits at 6251 MHz "
                                             "make 300 GB/s. Not in the table of data sheets: measure it")
    assert "add its data sheet to trtkit/devices.py" in said
    sliced = Found("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16, 1980, 2619, 640)
    assert devices.here(sliced)[0] is None


class _Cuda:
    """libcuda with the four calls that are asked; 0 is success."""

    def __init__(self, name=b"NVIDIA H100 80GB HBM3", init_error=0, get_error=0, **attributes):
        self.name, self.init_error, self.get_error = name, init_error, get_error
        self.attributes = {16: 132, 13: 1_980_000, 36: 2_619_000, 37: 5120} | attributes

    def cuInit(self, flags):
        return self.init_error

    def cuDeviceGet(self, device, ordinal):
        assert ordinal == 0
        device._obj.value = 7
        return self.get_error

    def cuDeviceGetName(self, buffer, length, device):
        assert length == 256 and device.value == 7
        buffer.value = self.name
        return 0

    def cuDeviceGetAttribute(self, number, attribute, device):
        assert device.value == 7
        if self.attributes[attribute] is None:
            return 1
        number._obj.value = self.attributes[attribute]
        return 0


def test_the_driver_is_asked_for_name_size_and_clocks():
    found = devices.ask_cuda(_Cuda())
    assert found == Found("NVIDIA H100 80GB HBM3", 132, 1980, 2619, 5120)
    assert devices.here(found)[0].name == "H100 SXM"


def test_what_the_driver_does_not_say_is_zero_and_no_obstacle():
    cuda = _Cuda()
    cuda.attributes[36] = cuda.attributes[37] = None
    found = devices.ask_cuda(cuda)
    assert (found.memory_mhz, found.bus_bits, found.bandwidth_gb_per_s) == (0, 0, 0)
    sheet, said = devices.here(found)
    assert sheet.name == "H100 SXM" and said == "NVIDIA H100 80GB HBM3: 132 multiprocessors, at most 1980 MHz"


def test_without_a_driver_or_a_device_there_is_none(monkeypatch):
    assert devices.ask_cuda(_Cuda(init_error=100)) is None
    assert devices.ask_cuda(_Cuda(get_error=101)) is None
    assert devices.ask_cuda(object()) is None                           # a stand-in that was meant for linking

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")
    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    sheet, said = devices.here()
    assert sheet is None and "no GPU here" in said and "roofline.measured_cpu()" in said


def test_sheets_are_found_by_the_label_of_a_runner():
    assert find("tensorrt 8.6.1 · NVIDIA H100 80GB HBM3") is DEVICES["NVIDIA H100 80GB HBM3"]
    assert find("tensorrt 8.6.1 · NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert find("tensorrt 8.5.2 · Orin") is None               # which Orin, a label does not say
    assert find("onnxruntime 1.32.0 · CPU 2 threads") is None
