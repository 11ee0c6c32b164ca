"""What Q and DQ compute, in torch, and with a gradient. Lesson 06.

Forward:                     x' = (clip(round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale
Backward, straight through:  dL/dx = dL/dx' inside the range, 0 where x clips
round() has a slope of zero almost everywhere and would stop all learning, so its slope is taken as 1.
Source: Bengio et al. 2013, "Estimating or Propagating Gradients", section 3; Jacob et al. 2018, section 3.
"""

import numpy as np
import torch
from torch import nn

WEIGHT_LEVELS = 127
BIAS_LEVELS = 2**31 - 1


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        steps = torch.round(x / scale) + zero_point
        ctx.save_for_backward((steps >= qmin) & (steps <= qmax))
        return (steps.clamp(qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


def fake_quantize_ste(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, qmin: int, qmax: int
) -> torch.Tensor:
    """`quant.fake_quantize` in torch, bit for bit, with the straight-through gradient.

    Args:
        x: any shape, float32.
        scale: float32, above 0, () per tensor or broadcastable to x, such as (C_out, 1, 1, 1) for weights.
        zero_point: float32 whole numbers, shape of `scale`.
        qmin: smallest code.
        qmax: largest code.

    Returns:
        Same shape, float32. The gradient is 1 for x whose code lies in [qmin, qmax], else 0; scale and zero_point get
        none.
    """
    return _StraightThrough.apply(x, scale, zero_point, qmin, qmax)


class Pair(nn.Module):
    """The Q/DQ pair of an activation.

    Args:
        scale: () float32.
        zero_point: () int8 or uint8, the type of the codes.
    """

    def __init__(self, scale: np.ndarray, zero_point: np.ndarray):
        super().__init__()
        # Tensors, not Python floats: a GPU divides by a number by multiplying with its rounded inverse.
        self.register_buffer("scale", torch.from_numpy(scale.copy()))
        self.register_buffer("zero_point", torch.from_numpy(zero_point.astype(np.float32)))
        # ONNX saturates at the ends of the type, -128 too, where `quant` stops at -127.
        self.limits = np.iinfo(zero_point.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape, float32."""
        return fake_quantize_ste(x, self.scale, self.zero_point, int(self.limits.min), int(self.limits.max))


class QuantizedConv(nn.Module):
    """A convolution that reads a pair: its weights in INT8 per output channel, as `insert_qdq` stores them.

    Args:
        conv: its parameters are shared, not copied.
        scale_x: () float32, of the pair that it reads.
        bias_in_codes: INT32 bias with scale = scale_x * scale_w, target "cpu"; else the bias stays float.
    """

    def __init__(self, conv: nn.Conv2d, scale_x: torch.Tensor, bias_in_codes: bool):
        super().__init__()
        self.conv = conv
        self.bias_in_codes = bias_in_codes
        self.register_buffer("scale_x", scale_x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        weight, bias = self.conv.weight, self.conv.bias                         # (C_out, C_in, kH, kW), (C_out,)
        # The scale follows the weights as they train, since the export takes it from the final ones.
        amax = weight.detach().abs().amax((1, 2, 3)).double()
        if self.bias_in_codes:              # see qdq: in a channel of tiny weights the bias sets the scale
            amax = torch.maximum(amax, 127 * bias.detach().abs() / (self.scale_x.double() * 2**30))
        scale = amax / WEIGHT_LEVELS
        scale = torch.where(scale > 0, scale.clamp(min=torch.finfo(torch.float32).tiny), 1.0).float()
        zero, per_channel = torch.zeros_like(scale), (-1, 1, 1, 1)
        parts = {"weight": fake_quantize_ste(
            weight, scale.view(per_channel), zero.view(per_channel), -WEIGHT_LEVELS, WEIGHT_LEVELS)}
        if self.bias_in_codes:
            parts["bias"] = fake_quantize_ste(bias, self.scale_x * scale, zero, -BIAS_LEVELS, BIAS_LEVELS)
        return torch.func.functional_call(self.conv, parts, x)
