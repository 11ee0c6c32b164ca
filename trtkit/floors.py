"""The least time that a whole network can take on a device. Lesson 01.

    all at the peak      2 * sum(macs) / peak
    weights once         sum(weight_bytes) / bandwidth
    layer by layer       sum over the kernels of max(2 * macs / peak, bytes / bandwidth)
The third is the largest, since a device cannot compute one layer while it waits for the memory of another. Left out on
purpose: caches, which let a layer go below, and launches, tiles and latency, which keep it above; see lesson 09.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trtkit.costs import Cost, by_layer
from trtkit.devices import Device
from trtkit.roofline import attainable_ms

# Bytes of a number. TF32 is a way to multiply: in memory it is FP32.
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}
# What backends compute on a result before they write it, by the names of ONNX and of PyTorch's operators.
_AFTERWARDS = {"Add", "BatchNormalization", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid",
               "add", "add_", "hardsigmoid", "hardsigmoid_", "hardswish", "hardswish_", "hardtanh", "hardtanh_",
               "leaky_relu", "leaky_relu_", "mul", "mul_", "native_batch_norm", "relu", "relu_", "sigmoid", "sigmoid_",
               "silu", "silu_"}


@dataclass(frozen=True)
class Floors:
    """Milliseconds below which a network cannot run, see the module; `layers_ms` is at least the other two."""

    compute_ms: float
    weights_ms: float
    layers_ms: float


def floors(parts: Sequence[Cost], device: Device, precision: str = "fp32") -> Floors:
    """The three floors of a network.

    Args:
        parts: its kernels, with the bytes that they move: of `kernels`, and of `stored_in` for another type.
        device: its limits.
        precision: of `device.peak_tflops`; it does not change the bytes.

    Raises:
        ValueError: the device has no peak of this precision.
    """
    return Floors(
        compute_ms=attainable_ms(sum(part.macs for part in parts), 0, device, precision),
        weights_ms=attainable_ms(0, sum(part.weight_bytes for part in parts), device, precision),
        layers_ms=sum(attainable_ms(part.macs, part.bytes_moved, device, precision) for part in parts),
    )


def kernels(parts: Sequence[Cost]) -> list[Cost]:
    """Fuse what backends fuse: activations, BatchNorm and shortcut additions into the convolution before them.

    Args:
        parts: of `costs.costs` or `cost_torch.costs`.

    Returns:
        One per kernel. A shortcut's other operand is read, the sum is written, and nothing in between, unless somebody
        else reads it.
    """
    home: dict[str, str] = {}                           # tensor -> kernel that writes it
    order: dict[str, list[str]] = {}                    # kernel -> its nodes, in the order of execution
    place = {}
    for part in parts:
        written = [home[tensor] for tensor in part.inputs if tensor in home]
        kernel = max(written, key=place.__getitem__) if part.op in _AFTERWARDS and written else part.name
        place.setdefault(kernel, len(place))
        order.setdefault(kernel, []).append(part.name)
        home |= dict.fromkeys(part.outputs, kernel)
    return list(by_layer(parts, order).values())


def stored_in(parts: Sequence[Cost], precision: str) -> list[Cost]:
    """The same layers with numbers of another size.

    Args:
        parts: whose numbers take four bytes.
        precision: a key of `BYTES`. All tensors count as stored in it, also those that backends keep wider.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in BYTES:
        raise ValueError(f"precision: got {precision!r}, expected one of {list(BYTES)}")

    def narrower(n_bytes: int) -> int:
        return n_bytes * BYTES[precision] // BYTES["fp32"]

    return [replace(
        part,
        weight_bytes=narrower(part.weight_bytes),
        inputs={tensor: narrower(n) for tensor, n in part.inputs.items()},
        outputs={tensor: narrower(n) for tensor, n in part.outputs.items()},
    ) for part in parts]
