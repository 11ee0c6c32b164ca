"""What the C program computes from seeded weights, for tests/test_darknet.py: `darknet_twin.json` and the layer tables.

Weights and input come from NumPy alone, so a test makes the same files again; kept are two hundred numbers of each
head and, of one program, eight of every layer and what it detects. Two programs ran: darknet of Joseph Redmon at
61c9d02 (2018-09-14, the source package of Debian 12 without its patches) and Alexey Bochkovskiy's fork (the source in
the crate darknet-sys 0.4.0), both made with their own Makefile for one core, without CUDA and OpenCV. With
`darknet_dump.c` built against each, and with opencv-python-headless 4.14, whose cv2.dnn reads darknet's files (5.0 does
not):

    python tests/oracles/darknet_twin.py redmon ./darknet_dump
    python tests/oracles/darknet_twin.py fork ./darknet_dump_fork
    python tests/oracles/darknet_twin.py opencv
    python tests/oracles/darknet_twin.py tables ./darknet_dump CFGS

The last writes what the program prints of the real yolov3.cfg, yolov3-spp.cfg and yolov3-tiny.cfg in folder CFGS, at
416 x 416: `darknet_yolov3.txt` and so on. The SHA-256 of these cfg files begin with 22489ea3, 7a4ec2d7 and 84eb7a67.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from trtkit import darknet_cfg, darknet_layers, darknet_nets, darknet_weights

HERE = Path(__file__).parent
KEPT = HERE / "darknet_twin.json"
HEAD_SAMPLES, LAYER_SAMPLES = 200, 8
IMAGE_WH, THRESHOLD = (640, 480), 0.4           # what the detections are of
DETECTING = ("yolov3", "yolov3-tiny")
LEAK_POWER = (1 + 0.1**2) / 2           # of what LeakyReLU leaves of numbers as often below 0 as above
CASES = {
    "yolov3": lambda: darknet_nets.yolov3(4, 0.125, size=96),
    "yolov3-spp": lambda: darknet_nets.yolov3(4, 0.125, size=96, spp=True),
    "yolov3-tiny": lambda: darknet_nets.yolov3_tiny(4, 0.25, size=96),
    "yolov3-full": lambda: darknet_nets.yolov3(80, 1.0, size=416),
}


def layers(case: str) -> list[darknet_layers.Layer]:
    """Of one of `CASES`."""
    return darknet_layers.layers(darknet_cfg.parse(CASES[case]()))


def weights(layers: list[darknet_layers.Layer], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Seeded weights with which 75 layers neither die out nor grow: what comes in has about the power that they expect.

    Variances lie in 0.7 to 1.3 as after a training, and no mean, scale or bias is at 0 or 1, so each has work to do.
    """
    rng = np.random.default_rng(seed)
    shapes = iter(darknet_weights.convolutions(layers))
    power, made = {-1: 1 / 3}, []                   # mean square of each layer's output; the image's is uniform

    def uniform(low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        return rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)

    for layer in layers:
        sources = [power[s] for s in layer.sources]
        power[layer.index] = sum(sources) if layer.kind == "shortcut" else float(np.mean(sources))
        if layer.kind == "convolutional":
            convolution = next(shapes)
            n, c_in, size, _ = convolution.shapes["weight"]
            bound = float(np.sqrt(3 / (c_in * size**2 * sources[0])))
            arrays = {"bias": uniform(-0.3, 0.3, (n,))}
            if convolution.batch_normalize:
                arrays |= {"scale": uniform(0.5, 1.5, (n,)), "mean": uniform(-0.3, 0.3, (n,)),
                           "variance": uniform(0.7, 1.3, (n,))}
            made.append({**arrays, "weight": uniform(-bound, bound, (n, c_in, size, size))})
            power[layer.index] = LEAK_POWER * 1.2   # scale and mean add a little to the variance of 1
    return made


def image(layers: list[darknet_layers.Layer], seed: int = 1) -> np.ndarray:
    """(1, 3, H, W) float32 in [0, 1)."""
    return np.random.default_rng(seed).random((1, *layers[0].in_chw), np.float32)


def heads(layers: list[darknet_layers.Layer]) -> list[int]:
    """Indices of the layers whose outputs are the raw heads. A [yolo] layer of the program holds something else."""
    return [layer.index - 1 for layer in layers if layer.kind == "yolo"]


def kept(outputs: dict[int, np.ndarray], layers: list[darknet_layers.Layer]) -> dict[str, list]:
    """By layer: [largest absolute number, samples], evenly spaced; more of the heads."""
    found = {}
    for index, output in outputs.items():
        places = positions(output.size, HEAD_SAMPLES if index in heads(layers) else LAYER_SAMPLES)
        found[str(index)] = [short(np.abs(output).max()), [short(x) for x in output.ravel()[places]]]
    return found


def positions(size: int, count: int) -> np.ndarray:
    """Evenly spaced indices, both ends among them."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(np.int64))


def short(number: np.floating) -> float:
    """Seven digits: what float32 has."""
    return float(f"{number:.7g}")


def of_the_program(program: Path, case: str) -> tuple[list[np.ndarray], list[list[float]]]:
    """Every layer's output; of the first program, detections in an image of `IMAGE_WH` pixels."""
    of_case = layers(case)
    with tempfile.TemporaryDirectory() as folder:
        cfg, file, x, out = (Path(folder) / name for name in ("net.cfg", "net.weights", "x.f32", "out.f32"))
        cfg.write_text(CASES[case]())
        darknet_weights.write(file, weights(of_case))
        image(of_case).tofile(x)
        options = [*map(str, IMAGE_WH), str(THRESHOLD), Path(folder) / "boxes"]
        subprocess.run([program, cfg, file, x, out, *options], capture_output=True, check=True)
        numbers, outputs = np.fromfile(out, np.float32), []
        lines = options[-1].read_text().splitlines() if options[-1].exists() else []
    for layer in of_case:
        count = int(np.prod(layer.out_chw))
        outputs.append(numbers[:count].reshape(layer.out_chw))
        numbers = numbers[count:]
    assert numbers.size == 0, f"{numbers.size} numbers left over"
    return outputs, [list(map(float, line.split())) for line in lines]


def of_opencv(case: str) -> dict[int, np.ndarray]:
    """OpenCV's raw heads, under the indices of the convolutions that made them."""
    import cv2

    of_case = layers(case)
    with tempfile.TemporaryDirectory() as folder:
        cfg, file = Path(folder) / "net.cfg", Path(folder) / "net.weights"
        cfg.write_text(CASES[case]())
        darknet_weights.write(file, weights(of_case))
        net = cv2.dnn.readNetFromDarknet(str(cfg), str(file))
    net.setInput(image(of_case))
    outputs = net.forward([f"conv_{index}" for index in heads(of_case)])
    return {index: output[0] for index, output in zip(heads(of_case), outputs, strict=True)}


def record(name: str, program: str) -> None:
    """Add one program's numbers to the file."""
    everything = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for case in CASES:
        of_case = layers(case)
        if name == "opencv":
            outputs = of_opencv(case)
        else:
            full, detections = of_the_program(Path(program).resolve(), case)
            if name == "redmon" and case in DETECTING:
                everything.setdefault(case, {})["detections"] = detections
            every = name == "redmon" and case != "yolov3-full"      # all layers of one program are enough
            of_layers = [x.index for x in of_case if x.kind != "yolo"] if every else heads(of_case)
            outputs = {index: full[index] for index in of_layers}
        everything.setdefault(case, {})[name] = kept(outputs, of_case)
    lines = [f'"{case}": {{\n' + ",\n".join(f' "{name}": {json.dumps(numbers, separators=(",", ":"))}'
                                            for name, numbers in of.items()) + "\n}" for case, of in everything.items()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def tables(program: str, cfgs: str) -> None:
    """Write what the program prints of the real cfgs at 416, which need no weights for that."""
    for name in ("yolov3", "yolov3-spp", "yolov3-tiny"):
        with tempfile.TemporaryDirectory() as folder:
            cfg, file, x = (Path(folder) / part for part in ("net.cfg", "net.weights", "x.f32"))
            cfg.write_text(re.sub(r"(?m)^(width|height)=.*$", r"\1=416", (Path(cfgs) / f"{name}.cfg").read_text()))
            file.touch()
            np.zeros((3, 416, 416), np.float32).tofile(x)
            done = subprocess.run([Path(program).resolve(), cfg, file, x, Path(folder) / "out"], capture_output=True,
                                  check=True)
        (HERE / f"darknet_{name}.txt").write_text(done.stderr.decode().split("Loading weights")[0])


if __name__ == "__main__":
    if sys.argv[1] == "tables":
        tables(*sys.argv[2:])
    else:
        record(sys.argv[1], "".join(sys.argv[2:]))
