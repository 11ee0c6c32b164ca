"""A TensorRT without TensorRT: exactly the names of an era, and the little behaviour that a build needs.

`module(era, script)` has every class, enum and function of `oracles/trt_api`, and nothing else: any other name raises
AttributeError, as there. Methods that have no behaviour here raise NotImplementedError. What it does was taken from the
documentation and is only as true as that; the real library is asked on the GPU.
"""

import enum
import importlib
import json
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
from trt_names import surface

import trtkit

MAGIC = b"fake plan "


@dataclass
class Script:
    """What the fake shall do, and what it was told."""

    parser_errors: list[tuple[int, str]] = field(default_factory=list)      # (node, what is wrong)
    build_fails: bool = False
    warnings: list[str] = field(default_factory=list)                       # of the builder
    layers: list = field(default_factory=list)                              # the inspector's JSON
    unasked: list = field(default_factory=list)     # the same, if it differs while no layer was asked for a type
    network_flags: list[int] = field(default_factory=list)
    configs: list = field(default_factory=list)
    profiles: list[dict] = field(default_factory=list)
    calibrated: list[np.ndarray] = field(default_factory=list)
    halves: list[str] = field(default_factory=list)                         # layers that were asked for FP16
    lowered: onnx.ModelProto | None = None                                  # what was parsed in place of the file
    steps: int = 2                                                          # of the builder's only phase


class _Fake:
    """Root of all classes; like pybind11's, they take no names that they do not have."""

    def __init__(self, *args, **kwargs):
        object.__setattr__(self, "_ready", True)

    def __setattr__(self, name, value):
        if type(self).__module__ == __name__ and not name.startswith("_") and not isinstance(
                getattr(type(self), name, None), property):
            raise AttributeError(f"{type(self).__name__} has no property {name!r} that can be set")
        object.__setattr__(self, name, value)


def _ready(thing):
    """As pybind11 says it of a subclass whose __init__ forgot the base's."""
    if not getattr(thing, "_ready", False):
        raise TypeError(f"{type(thing).__name__}.__init__() must be called when overriding __init__")
    return thing


def module(era: str, script: Script) -> ModuleType:
    """The fake, to be put in the place of `tensorrt`."""
    names, trt = surface(era), ModuleType("tensorrt")
    trt.__version__ = names["version"]
    for name, members in names["enums"].items():
        if "." not in name:
            setattr(trt, name, _enum(name, members))
    for name in names["classes"]:
        _add_class(trt, names, name)
    for name, text in names["constants"].items():
        owner, _, member = text.partition(".")
        setattr(trt, name, getattr(getattr(trt, owner, None), member, None))
    for name in names["functions"]:
        setattr(trt, name, _unwritten(name))
    for owner, methods in _behaviour(trt, names, script).items():
        for name, function in methods.items():
            if owner in names["classes"] and (name == "__init__" or name in names["classes"][owner]["methods"]
                                              or name in names["classes"][owner]["properties"]):
                setattr(getattr(trt, owner), name, function)
    return trt


def _enum(name: str, members: dict):
    # Like pybind11's: not an int, but int() takes it.
    return enum.Enum(name, members, type=type("Base", (), {"__int__": lambda self: self.value}))


def _unwritten(name: str):
    def method(*args, **kwargs):
        raise NotImplementedError(f"fake TensorRT: {name} has no behaviour")

    return method


def _add_class(trt, names: dict, name: str) -> type:
    if hasattr(trt, name):
        return getattr(trt, name)
    entry = names["classes"][name]
    body = {m: _unwritten(f"{name}.{m}") for m in entry["methods"]}
    body |= {p: _property(p, writable == "writable") for p, writable in entry["properties"].items()}
    for attribute in entry["attributes"]:
        nested = names["enums"].get(f"{name}.{attribute}")
        if nested:
            body[attribute] = _enum(attribute, nested)
            body |= {m: body[attribute][m] for m in nested if m in entry["attributes"]}
    bases = tuple(_add_class(trt, names, b) for b in entry["bases"]) or (_Fake,)
    cls = type(name, bases, {**body, "__module__": __name__})
    if "." not in name:
        setattr(trt, name, cls)
    return cls


def _property(name: str, writable: bool) -> property:
    def get(self):
        if "_" + name not in vars(self):
            raise NotImplementedError(f"fake TensorRT: {type(self).__name__}.{name} has no value")
        return vars(self)["_" + name]

    return property(get, (lambda self, value: object.__setattr__(self, "_" + name, value)) if writable else None)


def _set(thing, **values):
    vars(thing).update({"_" + k: v for k, v in values.items()})
    return thing


def _behaviour(trt, names: dict, script: Script) -> dict:
    """Methods by class; those that an era lacks are dropped."""
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    error = trt.ILogger.ERROR

    def builder(self, logger):
        _Fake.__init__(self)
        _set(self, log=_ready(logger).log)

    def create_network(self, flags_value=0):
        script.network_flags.append(flags_value)
        return _set(trt.INetworkDefinition(), name="", inputs=[], num_layers=0)

    def create_builder_config(self):
        config = _set(trt.IBuilderConfig(), set_flags=set(), profiles=[], pools={}, sources=None, preview={},
                      timing=None, int8_calibrator=None, progress_monitor=None, profiling_verbosity=None,
                      builder_optimization_level=3)
        config._set_flags.add(trt.BuilderFlag.TF32)             # as the real one begins
        script.configs.append(config)
        return config

    def strongly_typed():
        if not hasattr(flags, "EXPLICIT_BATCH"):
            return True                                         # 11: nothing else
        return hasattr(flags, "STRONGLY_TYPED") and bool(script.network_flags[-1] >> int(flags.STRONGLY_TYPED) & 1)

    def refusal(network, config) -> str:
        if era_of_8 and not script.network_flags[-1] & 1:
            return "implicit batch"
        if any(-1 in tuple(x.shape) for x in network._inputs):
            missing = [x.name for x in network._inputs if -1 in tuple(x.shape) and not any(
                x.name in p._shapes for p in config._profiles)]
            if missing:
                return f"Network has dynamic or shape inputs, but no optimization profile has been defined: {missing}"
        types = {f.name for f in config._set_flags} & {"FP16", "INT8", "BF16", "FP8"}
        if strongly_typed() and types:
            return f"{sorted(types)} cannot be set for a strongly typed network"
        if not strongly_typed() and network._quantized and "INT8" not in types and config._int8_calibrator is None:
            return "Network has Q/DQ layers but the INT8 flag is not set"
        return "out of luck" if script.build_fails else ""

    def build_serialized_network(self, network, config):
        for text in script.warnings:
            self._log(trt.ILogger.WARNING, text)
        if monitor := config._progress_monitor:
            _ready(monitor).phase_start("Building Engine", None, script.steps)
            for step in range(script.steps):
                monitor.step_complete("Building Engine", step)
            monitor.phase_finish("Building Engine")
        script.halves += [layer.name for layer in network._layers if "_precision" in vars(layer)]
        if why := refusal(network, config):
            self._log(error, why)
            return None
        if config._int8_calibrator is not None:
            _calibrate(_ready(config._int8_calibrator), network._inputs[0].name, script)
        most_frequent = {k: three[1] for p in config._profiles for k, three in p._shapes.items()}
        return MAGIC + json.dumps([(x.name, x.shape, most_frequent.get(x.name)) for x in network._inputs]).encode()

    def parser(self, network, logger):
        _Fake.__init__(self)
        _set(self, network=network, log=_ready(logger).log, num_errors=0)

    def parse_from_file(self, path):
        for node, text in script.parser_errors:
            self._log(error, f"node {node}: {text}")
        _set(self, num_errors=len(script.parser_errors))
        if script.parser_errors:
            return False
        return read(self, onnx.load(path).graph)

    def parse(self, model):
        script.lowered = onnx.load_from_string(model)
        return read(self, script.lowered.graph)

    def read(self, graph):
        constants = {i.name for i in graph.initializer}
        inputs = [_set(trt.ITensor(), name=i.name, shape=tuple(
            d.dim_value if d.HasField("dim_value") else -1 for d in i.type.tensor_type.shape.dim))
            for i in graph.input if i.name not in constants]
        quantized = any(n.op_type == "QuantizeLinear" for n in graph.node)
        layers = [_set(trt.ILayer(), name=n.name) for n in graph.node]
        _set(self._network, inputs=inputs, num_inputs=len(inputs), layers=layers, num_layers=len(layers),
             quantized=quantized)
        return True

    def get_error(self, index):
        node, text = script.parser_errors[index]
        return _set(trt.ParserError(), told=text, at=node)

    def combine(self, other, ignore_mismatch):
        _set(self, content=self._content + other._content)
        return True

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        script.profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def deserialize(self, plan):
        if not bytes(plan).startswith(MAGIC):
            self._log(error, "magic tag does not match")
            return None
        inputs = json.loads(bytes(plan)[len(MAGIC):])
        return _set(trt.ICudaEngine(), runtime=self, inputs={n: (shape, best) for n, shape, best in inputs},
                    num_io_tensors=len(inputs))

    def get_engine_information(self, format):
        """Types are hidden where the shapes are not known, as in 8.6."""
        context = self._execution_context
        if any(-1 in shape for shape in context._shapes.values()):
            return json.dumps({"Layers": [{"Name": name} for name in ("unknown shapes",)]})
        layers = script.layers if script.halves or not script.unasked else script.unasked
        return json.dumps({"Layers": layers, "Bindings": []})

    def done(function):
        def method(self, *args):
            function(self, *args)
            return True

        return method

    era_of_8 = not hasattr(flags, "STRONGLY_TYPED")
    return {
        "Builder": {"__init__": builder, "create_network": create_network,
                    "create_builder_config": create_builder_config,
                    "create_optimization_profile": lambda self: _set(trt.IOptimizationProfile(), shapes={}),
                    "build_serialized_network": build_serialized_network},
        "INetworkDefinition": {"get_input": lambda self, index: self._inputs[index],
                               "get_layer": lambda self, index: self._layers[index]},
        "OnnxParser": {"__init__": parser, "parse_from_file": parse_from_file, "parse": parse, "get_error": get_error},
        "ParserError": {"desc": lambda self: self._told, "node": lambda self: self._at},
        "IBuilderConfig": {
            "set_flag": lambda self, flag: self._set_flags.add(trt.BuilderFlag(flag)),
            "clear_flag": lambda self, flag: self._set_flags.discard(flag),
            "set_memory_pool_limit": lambda self, pool, size: self._pools.__setitem__(pool.name, size),
            "set_tactic_sources": done(lambda self, bits: _set(self, sources=bits)),
            "set_preview_feature": lambda self, feature, on: self._preview.__setitem__(feature.name, on),
            "create_timing_cache": lambda self, content: _set(trt.ITimingCache(), content=bytes(content)),
            "set_timing_cache": done(lambda self, timing, ignore: _set(self, timing=(timing, ignore))),
            "add_optimization_profile": add_optimization_profile,
            "set_calibration_profile": done(lambda self, profile: _set(self, calibration=profile._shapes)),
        },
        "IOptimizationProfile": {
            "set_shape": lambda self, input, min, opt, max: self._shapes.__setitem__(input, (min, opt, max))},
        "ITimingCache": {"serialize": lambda self: self._content + b"timed ", "combine": combine},
        "Runtime": {"__init__": builder, "deserialize_cuda_engine": deserialize},
        "ICudaEngine": {
            "create_engine_inspector": lambda self: trt.EngineInspector(),
            "create_execution_context": lambda self: _set(trt.IExecutionContext(), shapes={
                n: shape for n, (shape, _) in self._inputs.items()}),
            "get_tensor_name": lambda self, index: list(self._inputs)[index],
            "get_tensor_mode": lambda self, name: trt.TensorIOMode.INPUT,
            "get_tensor_profile_shape": lambda self, name, profile: [None, self._inputs[name][1], None],
        },
        "IExecutionContext": {
            "get_tensor_shape": lambda self, name: self._shapes[name],
            "set_input_shape": done(lambda self, name, shape: self._shapes.__setitem__(name, shape)),
        },
        "EngineInspector": {"get_engine_information": get_engine_information},
    }


def _calibrate(calibrator, name: str, script: Script) -> None:
    """As TensorRT does: an exception in a callback is swallowed, and ends the batches."""
    assert calibrator.get_batch_size() >= 1 and calibrator.read_calibration_cache() is None
    while True:
        try:
            pointers = calibrator.get_batch([name])
        except Exception:                       # the original prints it and goes on
            break
        if not pointers:
            break
        script.calibrated.append(MEMORY[pointers[0]].copy())
    if script.calibrated:
        amax = max(np.abs(x).max() for x in script.calibrated)
        bits = int(np.float32(amax / 127).view(np.uint32))
        calibrator.write_calibration_cache(memoryview(f"TRT-8601-MinMaxCalibration\n{name}: {bits:x}\n".encode()))


MODULES = ("trt_plan", "backend_trt", "calibrators_trt")        # what has to be imported anew
MEMORY: dict[int, np.ndarray] = {}              # what the fake device holds, by address


class _Buffer:
    def __init__(self, nbytes: int):
        self.nbytes, self.ptr = nbytes, 1000 + len(MEMORY)
        MEMORY[self.ptr] = np.zeros(0, np.float32)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.ptr = None


def _copy_to_device(buffer: _Buffer, array: np.ndarray, stream=None) -> None:
    assert array.flags.c_contiguous and array.nbytes <= buffer.nbytes and buffer.ptr in MEMORY
    MEMORY[buffer.ptr] = array


@contextmanager
def installed(monkeypatch, era: str, script: Script, *, free_mib: int = 4096):
    """`trtkit.backend_trt` and `trtkit.calibrators_trt` on the fake and on a fake `trtkit.cuda`, freshly imported."""
    cuda = SimpleNamespace(
        primary_context=lambda device=0: nullcontext(), memory_mib=lambda: (free_mib, 8192), DeviceBuffer=_Buffer,
        copy_to_device=_copy_to_device, device_name=lambda device=0: "NVIDIA Fake", compute_capability=lambda *_: "9.0",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", module(era, script))
    monkeypatch.setitem(sys.modules, "trtkit.cuda", cuda)
    monkeypatch.setattr(trtkit, "cuda", cuda, raising=False)
    fresh = {}
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"trtkit.{name}", raising=False)
        monkeypatch.delattr(trtkit, name, raising=False)
    try:
        for name in MODULES:
            fresh[name] = importlib.import_module(f"trtkit.{name}")
        yield SimpleNamespace(**fresh)
    finally:
        for name in fresh:                      # else the next test would find them on this fake
            sys.modules.pop(f"trtkit.{name}", None)
            vars(trtkit).pop(name, None)
