"""Three eras of TensorRT's Python API: which names exist when. Lesson 07.

Names come and go with a major version, and so do the numbers behind them: STRONGLY_TYPED is bit 1 in TensorRT 10 and
bit 0 in 11. So a program asks `hasattr` for what it wants to use, and takes a member's value from the enum; it compares
no version strings and writes no numbers. Source: NVIDIA's wheels `tensorrt_bindings` 8.6.1, `tensorrt_cu13_bindings`
10.15.1.29 and 11.4.0.106; the tests hold this table against all of their names.
"""

from dataclasses import dataclass
from functools import reduce

ERAS = ("8.6", "10.15", "11.4")
# In each era: None where there is no such name, the value where it is a member of an enum, else True.
NAMES: dict[str, dict[str, tuple]] = {
    "what the network is": {
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (0, 0, None),
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (None, 1, 0),
        "OnnxParser.parse": (True, True, True),
        "OnnxParser.parse_from_file": (True, True, True),
        "UffParser": (True, None, None),
        "CaffeParser": (True, None, None),
    },
    "precision": {
        "BuilderFlag.FP16": (0, 0, None),
        "BuilderFlag.INT8": (1, 1, None),
        "BuilderFlag.TF32": (7, 6, 6),
        "ILayer.precision": (True, True, None),
        "ITensor.set_dynamic_range": (True, True, None),
        "DataType.BF16": (None, 7, 7),
        "DataType.INT64": (None, 8, 8),
    },
    "calibration": {
        "IInt8MinMaxCalibrator": (True, True, None),
        "IInt8EntropyCalibrator2": (True, True, None),
        "IBuilderConfig.int8_calibrator": (True, True, None),
    },
    "build": {
        "IBuilderConfig.max_workspace_size": (True, None, None),
        "IBuilderConfig.set_memory_pool_limit": (True, True, True),
        "IBuilderConfig.builder_optimization_level": (True, True, True),
        "IBuilderConfig.progress_monitor": (None, True, True),
        "Builder.max_batch_size": (True, None, None),
        "IOptimizationProfile.set_shape": (True, True, True),
        "Builder.build_engine": (True, None, None),
        "Builder.build_serialized_network": (True, True, True),
    },
    "tactics": {
        "TacticSource.CUDNN": (2, 2, None),
        "TacticSource.JIT_CONVOLUTIONS": (4, 4, 1),
        "IBuilderConfig.create_timing_cache": (True, True, True),
        "ITimingCache.query": (None, True, True),
        "BuilderFlag.VERSION_COMPATIBLE": (15, 13, 12),
    },
    "run": {
        "ICudaEngine.num_bindings": (True, None, None),
        "ICudaEngine.num_io_tensors": (True, True, True),
        "IExecutionContext.set_binding_shape": (True, None, None),
        "IExecutionContext.set_input_shape": (True, True, True),
        "IExecutionContext.execute_async_v2": (True, None, None),
        "IExecutionContext.set_tensor_address": (True, True, True),
        "IExecutionContext.execute_async_v3": (True, True, True),
        "ICudaEngine.create_engine_inspector": (True, True, True),
    },
}


def has(trt: object, name: str) -> bool:
    """Whether a module has a name.

    Args:
        trt: the imported tensorrt.
        name: dotted, for example "BuilderFlag.FP16".
    """
    missing = object()
    return reduce(lambda thing, part: getattr(thing, part, missing), name.split("."), trt) is not missing


def era_of(trt: object) -> str:
    """The era of `ERAS` whose names a module has, or the one that it shares most with."""
    here = {name: has(trt, name) for names in NAMES.values() for name in names}
    return max(ERAS, key=lambda era: sum(here[name] == there for name, there in names_of(era).items()))


def names_of(era: str) -> dict[str, bool]:
    """Which of the names an era has.

    Raises:
        ValueError: none of `ERAS`.
    """
    if era not in ERAS:
        raise ValueError(f"era: got {era!r}, expected one of {ERAS}")
    column = ERAS.index(era)
    return {name: values[column] is not None for names in NAMES.values() for name, values in names.items()}


@dataclass(frozen=True)
class Member:
    """Member of an enum. No integer, as in TensorRT: `1 << flag` raises TypeError, `1 << int(flag)` does not."""

    name: str
    value: int

    def __int__(self):
        return self.value


class StandIn:
    """The names of `NAMES` as attributes, and nothing behind them: to try on any machine what code does in an era."""

    def __init__(self, era: str):
        self._era, column = era, ERAS.index(era)
        for name, values in (row for names in NAMES.values() for row in names.items()):
            owner, _, member = name.rpartition(".")
            holder = vars(self).setdefault(owner, type(owner, (), {})) if owner else self
            if (value := values[column]) is not None:
                setattr(holder, member, value if value is True else Member(member, value))

    def __repr__(self):
        return f"TensorRT {self._era}, names only"


def rows(topic: str) -> list[dict[str, str]]:
    """One topic of `NAMES` for `check.table`: a row per name, a column per era."""
    def cell(value: object) -> str:
        return "-" if value is None else "yes" if value is True else f"= {value}"

    return [{"name": name, **dict(zip(ERAS, map(cell, values), strict=True))} for name, values in NAMES[topic].items()]
