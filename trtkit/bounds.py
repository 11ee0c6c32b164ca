"""Bounds of claims that differ by device. `check.claim` looks here when a lesson gives no bound itself.

A device class is what `check.device_class` makes of a runner's label. Each bound leaves room for a busy machine; the
comment says what was measured, so that a reader can judge it.
"""

BOUNDS: dict[str, dict[str, dict[str, float]]] = {
    # Largest difference of the detector's heads, whose logits reach 25, from a reference that computes in FP32.
    # Measured 1e-4 with ONNX Runtime; 0.062 on an H100, where TensorRT rounds what goes into a convolution to TF32,
    # 10 bits instead of 23, unless it is told not to.
    "onnx_parity": {
        "cpu-vnni": {"at_most": 0.01},
        "cpu": {"at_most": 0.01},
        "gpu": {"at_most": 0.2},
    },
    # Time of the INT8 model over FP32's. Measured 0.49 on two cores with AVX512-VNNI. Without VNNI one INT8
    # multiply-add takes three instructions instead of one, and the gain is small: expected, not measured by us.
    "int8_model_time": {
        "cpu-vnni": {"at_most": 0.9},
        "cpu": {"at_most": 1.3},
        "gpu": {"at_most": 1.0},
    },
    # Time of 3x3 convolutions with 36 channels over those with 48, which 44 % fewer multiplications would make 0.56.
    # Measured 0.99 with ONNX Runtime's blocks of 16 channels (AVX-512). Its blocks of 8 (AVX2) would give
    # (40 / 48)^2 = 0.69: expected, not measured by us.
    "time_of_36_channels_over_48": {
        "cpu-vnni": {"at_least": 0.7},
        "cpu": {"at_least": 0.58},
    },
    # Time of the digits classifier with 60 % fewer channels in INT8 over the dense one in FP32. Measured 0.15 with
    # AVX512-VNNI; without VNNI the pruning alone gives most of it: expected, not measured by us.
    "pruned_int8_time": {
        "cpu-vnni": {"at_most": 0.5},
        "cpu": {"at_most": 0.6},
    },
    # How many times faster than PyTorch's eager FP32 the detector with half of its parameters is in INT8, width 0.25,
    # arrays in to arrays out. Measured 3.0 to 4.6 with one thread and AVX512-VNNI on a busy machine. Without VNNI the
    # graph and the pruning give their part and INT8 little; on a GPU eager mode launches some 250 kernels: both
    # expected, not measured by us.
    "optimized_over_eager": {
        "cpu-vnni": {"at_least": 1.3},
        "cpu": {"at_least": 1.1},
        "gpu": {"at_least": 2.0},
    },
}
