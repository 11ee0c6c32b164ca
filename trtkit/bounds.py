"""Bounds of claims that differ by device. `check.claim` looks here when a lesson gives no bound itself.

A device class is what `check.device_class` makes of a runner's label. Each bound leaves room for a busy machine; the
comment says what was measured, so that a reader can judge it.
"""

BOUNDS: dict[str, dict[str, dict[str, float]]] = {
    # Time of the INT8 model over FP32's. Measured 0.49 on two cores with AVX512-VNNI. Without VNNI one INT8
    # multiply-add takes three instructions instead of one, and the gain is small: expected, not measured by us.
    "int8_model_time": {
        "cpu-vnni": {"at_most": 0.9},
        "cpu": {"at_most": 1.3},
        "gpu": {"at_most": 1.0},
    },
}
