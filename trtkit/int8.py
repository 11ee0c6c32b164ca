"""Multiplying codes: what an INT8 layer computes. Lesson 02.

accumulate:   acc = sum (a - zero_point_a) * (b - zero_point_b) + bias            exact, int32
requantize:   y = clip(round(acc * (scale_a * scale_b / scale_y)) + zero_point_y, qmin, qmax)

The multiplier and its product with acc are float32 and ties go to even, as in ONNX Runtime, so the codes are those of
its QLinearMatMul, QGemm and QLinearConv, bit for bit (its int8 results go down to -128, so take a `q_y` from
`affine_qparams(..., signed=True)`). Integer-only hardware has a fixed-point multiplier instead, and may
differ by one code at a tie. An x86 CPU without VNNI adds pairs of U8 x S8 products in 16 bits, which saturate
once |weight| > 64; this module never does.
Source: Jacob et al. 2018, section 2.2; ONNX operators QLinearMatMul-10 and QLinearConv-10.
"""

import numpy as np

from trtkit.quant import QParams

INT32 = np.iinfo(np.int32)


def int8_matmul(
    a: np.ndarray, b: np.ndarray, q_a: QParams, q_b: QParams, q_y: QParams, bias: np.ndarray | None = None
) -> np.ndarray:
    """Codes of the matrix product.

    Args:
        a: (..., M, K) codes of dtype `q_a.dtype`.
        b: (K, N) codes of dtype `q_b.dtype`.
        q_a: per tensor.
        q_b: per tensor, or per column: axis 1 (or -1).
        q_y: of the result, per tensor.
        bias: (N,) int32, in steps of scale_a * scale_b.

    Returns:
        (..., M, N), `q_y.dtype`.

    Raises:
        ValueError: shapes, dtypes or axes do not fit, or a sum is beyond int32.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim < 2 or b.ndim != 2 or a.shape[-1] != b.shape[0]:
        raise ValueError(f"a, b: got shapes {a.shape} and {b.shape}, expected (..., M, K) and (K, N) with the same K")
    _require_codes(a=(a, q_a), b=(b, q_b))
    _require_granularity(q_b, b.shape, channel_axis=1, per_tensor={"q_a": q_a, "q_y": q_y})
    sums = _centred(a, q_a.zero_point) @ _centred(b, q_b.zero_point) + _bias(bias, b.shape[1])
    return requantize(_as_int32(sums), _multiplier(q_a, q_b, q_y), q_y)


def int8_conv2d(
    x: np.ndarray,
    w: np.ndarray,
    q_x: QParams,
    q_w: QParams,
    q_y: QParams,
    bias: np.ndarray | None = None,
    *,
    stride: int = 1,
    padding: int | tuple[int, int, int, int] = 0,
    dilation: int = 1,
    groups: int = 1,
) -> np.ndarray:
    """Codes of the 2D convolution (cross-correlation, as every framework has it).

    Args:
        x: (N, C, H, W) codes.
        w: (C_out, C / groups, kH, kW) codes.
        q_x: per tensor.
        q_w: per tensor, or per output channel: axis 0.
        q_y: of the result, per tensor.
        bias: (C_out,) int32, in steps of scale_x * scale_w.
        stride: step of the window, in both directions.
        padding: rows and columns added around x: one number, or (top, left, bottom, right). They hold the code of 0,
            which is x's zero point.
        dilation: distance between the taps of the kernel.
        groups: of channels that do not see each other; C for a depthwise convolution.

    Returns:
        (N, C_out, H_out, W_out), `q_y.dtype`, with H_out = (H + top + bottom - dilation * (kH - 1) - 1) // stride + 1.

    Raises:
        ValueError: shapes, dtypes or axes do not fit, the kernel is larger than the padded x, or a sum is beyond int32.
    """
    x, w = np.asarray(x), np.asarray(w)
    top, left, bottom, right = (padding,) * 4 if isinstance(padding, int | np.integer) else padding
    if min(stride, dilation, groups) < 1 or min(top, left, bottom, right) < 0:
        raise ValueError(f"stride, dilation, groups: got {stride}, {dilation}, {groups}, expected at least 1; "
                         f"padding: got {padding}, expected at least 0")
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(f"x, w: got shapes {x.shape} and {w.shape} with groups={groups}, expected (N, C, H, W) and "
                         "(C_out, C / groups, kH, kW), C_out a multiple of groups")
    _require_codes(x=(x, q_x), w=(w, q_w))
    _require_granularity(q_w, w.shape, channel_axis=0, per_tensor={"q_x": q_x, "q_y": q_y})
    padded = np.pad(_centred(x, q_x.zero_point), ((0, 0), (0, 0), (top, bottom), (left, right)))    # 0 is the real zero
    taps = _windows(padded, w.shape[2:], stride, dilation)              # (N, C, H_out, W_out, kH, kW)
    channels, filters = w.shape[1], w.shape[0] // groups
    kernel = _centred(w, _per_filter(q_w.zero_point))
    parts = [
        np.einsum("nchwij,ocij->nohw", taps[:, g * channels : (g + 1) * channels],
                  kernel[g * filters : (g + 1) * filters], optimize=True)
        for g in range(groups)
    ]
    sums = np.concatenate(parts, 1) + _bias(bias, w.shape[0])[:, None, None]
    multiplier = _multiplier(q_x, q_w, q_y)
    return requantize(_as_int32(sums), multiplier[:, None, None] if multiplier.ndim else multiplier, q_y)


def requantize(acc: np.ndarray, multiplier: np.ndarray, q_y: QParams) -> np.ndarray:
    """Codes of accumulated sums.

    Args:
        acc: any shape, int32, in steps of scale_a * scale_b.
        multiplier: float32 that broadcasts over acc, scale_a * scale_b / scale_y.
        q_y: of the result, per tensor.

    Returns:
        Same shape, `q_y.dtype`.
    """
    steps = np.rint(acc.astype(np.float32) * multiplier)
    return np.clip(steps + np.float32(q_y.zero_point), q_y.qmin, q_y.qmax).astype(q_y.dtype)


def _multiplier(q_a: QParams, q_b: QParams, q_y: QParams) -> np.ndarray:
    with np.errstate(over="ignore"):
        multiplier = np.asarray(q_a.scale * q_b.scale / q_y.scale, np.float32)      # ONNX Runtime's order of rounding
    if not np.isfinite(multiplier).all():
        raise ValueError(f"scales: got {q_a.scale.max()} * {q_b.scale.max()} / {q_y.scale}, beyond float32, expected a "
                         "finite multiplier; calibrate the result's range")
    return multiplier


def _bias(bias: np.ndarray | None, channels: int) -> np.ndarray:
    if bias is None:
        return np.zeros(channels)
    if bias.shape != (channels,) or bias.dtype != np.int32:
        raise ValueError(f"bias: got {bias.dtype} {bias.shape}, expected int32 ({channels},), round(bias / (scale of "
                         "the input * scale of the weights))")
    return bias.astype(np.float64)


def _centred(codes: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    # float64 holds integers up to 2^53 exactly and has a fast matrix product, which NumPy's integers lack.
    return codes.astype(np.float64) - zero_point.astype(np.float64)


def _per_filter(zero_point: np.ndarray) -> np.ndarray:
    return zero_point[:, None, None, None] if zero_point.ndim else zero_point


def _windows(padded: np.ndarray, kernel: tuple[int, ...], stride: int, dilation: int) -> np.ndarray:
    spans = tuple(dilation * (k - 1) + 1 for k in kernel)
    if spans[0] > padded.shape[2] or spans[1] > padded.shape[3]:
        raise ValueError(f"w: got a kernel that spans {spans}, expected at most the padded input {padded.shape[2:]}")
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    return windows[:, :, ::stride, ::stride, ::dilation, ::dilation]


def _as_int32(sums: np.ndarray) -> np.ndarray:
    if sums.size and not (INT32.min <= sums.min() and sums.max() <= INT32.max):
        raise ValueError(f"sum: got {sums.min():.0f} to {sums.max():.0f}, expected int32; split the inner dimension")
    return sums.astype(np.int32)


def _require_codes(**tensors: tuple[np.ndarray, QParams]) -> None:
    for name, (codes, q) in tensors.items():
        if codes.dtype != q.dtype:
            raise ValueError(f"{name}: got {codes.dtype}, expected the codes' {q.dtype}; take quant.quantize({name}, "
                             f"q_{name})")


def _require_granularity(
    q: QParams, shape: tuple[int, ...], *, channel_axis: int, per_tensor: dict[str, QParams]
) -> None:
    for name, other in per_tensor.items():
        if other.axis is not None:
            raise ValueError(f"{name}: got axis={other.axis}, expected one scale for the whole tensor; scales that "
                             "differ along the sum cannot be taken out of it")
    if q.axis is None:
        return
    if q.group_size is not None or q.axis not in (channel_axis, channel_axis - len(shape)):
        raise ValueError(f"weights: got axis={q.axis}, group_size={q.group_size}, expected axis={channel_axis} without "
                         "groups; scales that differ along the sum cannot be taken out of it")
    if q.scale.shape != (shape[channel_axis],):
        raise ValueError(f"weights: got {q.scale.size} scales, expected {shape[channel_axis]} on axis {channel_axis}")
