"""Speed of YOLO at 416x416 on devices that we do not have, as others published it. Lesson 11.

A figure without what was counted is a rumour: some time the network alone, some a whole loop with camera and drawing,
and half a frame rate may hide between the two. So each figure says what it counts and where it is written. All were
read there in November 2026; none was measured by us.
"""

from dataclasses import dataclass

NETWORK, LOOP, WITH_RESIZE = "network alone", "whole loop in Python", "resizing on the GPU and the network"
JKJUNG = "github.com/jkjung-avt/tensorrt_demos, issue 30, user report of 2020-01-02"
TKDNN = "github.com/ceccocats/tkDNN, README, average of 1,200 images"
ROCKY = "github.com/11rocky/tensorrt_yolo, README"
GFLOP = {"YOLOv3": 65.86, "YOLOv4": 60.1}       # at 416x416; darknet's BFLOPs


@dataclass(frozen=True)
class Figure:
    """A published speed.

    Attributes:
        device: as it is called there.
        network: a key of `GFLOP`; 416x416 pixels, 80 classes, batch 1.
        precision: "fp32", "fp16" or "int8".
        software: TensorRT's version.
        images_per_s: as published, or from the published milliseconds.
        counted: `NETWORK`, `LOOP` or `WITH_RESIZE`.
        source: where it is written.
    """

    device: str
    network: str
    precision: str
    software: str
    images_per_s: float
    counted: str
    source: str

    @property
    def ms(self) -> float:
        """Milliseconds an image."""
        return 1000 / self.images_per_s

    @property
    def tflops(self) -> float:
        """10^12 operations a second that the network's multiply-adds make of it, two to each."""
        return GFLOP[self.network] * self.images_per_s / 1000


XAVIER, NX, RTX_2080_TI, RTX_3060_TI = "Jetson AGX Xavier", "Jetson Xavier NX", "RTX 2080 Ti", "RTX 3060 Ti"
FIGURES = (
    Figure(XAVIER, "YOLOv3", "fp16", "TensorRT 5", 20.0, LOOP, JKJUNG),
    Figure(XAVIER, "YOLOv4", "fp32", "TensorRT 6.0.1", 19.96, NETWORK, TKDNN),
    Figure(XAVIER, "YOLOv4", "fp16", "TensorRT 6.0.1", 41.01, NETWORK, TKDNN),
    Figure(XAVIER, "YOLOv4", "int8", "TensorRT 6.0.1", 50.81, NETWORK, TKDNN),
    Figure(NX, "YOLOv4", "fp32", "TensorRT 7.1.0", 10.02, NETWORK, TKDNN),
    Figure(NX, "YOLOv4", "fp16", "TensorRT 7.1.0", 22.43, NETWORK, TKDNN),
    Figure(NX, "YOLOv4", "int8", "TensorRT 7.1.0", 29.08, NETWORK, TKDNN),
    Figure(RTX_2080_TI, "YOLOv4", "fp32", "TensorRT 7.0.0", 104.81, NETWORK, TKDNN),
    Figure(RTX_2080_TI, "YOLOv4", "fp16", "TensorRT 7.0.0", 169.06, NETWORK, TKDNN),
    Figure(RTX_2080_TI, "YOLOv4", "int8", "TensorRT 7.0.0", 206.93, NETWORK, TKDNN),
    Figure(RTX_3060_TI, "YOLOv3", "fp32", "TensorRT 8.6.1", 1000 / 7.42, WITH_RESIZE, ROCKY),
    Figure(RTX_3060_TI, "YOLOv3", "fp16", "TensorRT 8.6.1", 1000 / 2.88, WITH_RESIZE, ROCKY),
    Figure(RTX_3060_TI, "YOLOv3", "int8", "TensorRT 8.6.1", 1000 / 1.89, WITH_RESIZE, ROCKY),
)


def of(device: str) -> list[Figure]:
    """The figures of a device.

    Raises:
        ValueError: none is known.
    """
    found = [figure for figure in FIGURES if figure.device == device]
    if not found:
        raise ValueError(f"device: got {device!r}, expected one of {sorted({f.device for f in FIGURES})}")
    return found
