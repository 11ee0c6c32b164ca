"""Every name of TensorRT's that trtkit touches is there, in each of three eras; read from the code, on any machine."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from trt_names import SURFACES, Names, surface

from trtkit import eras

PACKAGE = Path(__file__).parent.parent / "trtkit"
MODULES = ("backend_trt", "runner_trt", "trt_plan", "calibrators_trt")
ERAS = ("8.6", "10.15", "11.4")


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("module", MODULES)
def test_every_name_that_the_code_reaches_is_in_the_wheel(module, era):
    names = Names((PACKAGE / f"{module}.py").read_text(), surface(era))
    assert not names.missing, f"{module}.py in TensorRT {era}:\n" + "\n".join(names.missing)


def test_the_check_sees_what_matters():
    """Else it would pass by seeing nothing."""
    seen = {m: Names((PACKAGE / f"{m}.py").read_text(), surface("8.6")).touched for m in MODULES}
    assert {"BuilderFlag.INT8", "BuilderFlag.FP16", "Builder.build_serialized_network", "OnnxParser.num_errors",
            "IOptimizationProfile.set_shape", "IBuilderConfig.set_tactic_sources"} <= seen["backend_trt"]
    assert {"IExecutionContext.execute_async_v3", "IExecutionContext.set_tensor_address",
            "ICudaEngine.num_io_tensors"} <= seen["runner_trt"]
    assert {"IBuilderConfig.int8_calibrator", "BuilderFlag.INT8"} <= seen["calibrators_trt"]
    in_11 = Names((PACKAGE / "backend_trt.py").read_text(), surface("11.4")).touched
    assert not in_11 & {"BuilderFlag.INT8", "BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"}


# One line of code each, and the eras that must refuse it.
PLANTED = {
    "trt.UffParser()": "10.15 11.4",
    "trt.NoSuchThing": "8.6 10.15 11.4",
    "config.set_flag(trt.BuilderFlag.FP16)": "11.4",
    "flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)": "11.4",
    "flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)": "8.6",
    "trt.Builder(logger).max_batch_size": "10.15 11.4",
    "b = trt.Builder(logger); c = b.create_builder_config(); c.int8_calibrator = x": "11.4",
    "config.max_workspace_size = 1 << 30": "10.15 11.4",
    "config.max_workspace = 1 << 30": "8.6 10.15 11.4",
    "engine.num_layers = 3": "8.6 10.15 11.4",
    "context.execute_async_v2(bindings=[], stream_handle=0)": "10.15 11.4",
    "context.execute_async_v3(stream=0)": "8.6 10.15 11.4",
    "context.execute_async_v3()": "8.6 10.15 11.4",
    "builder.build_serialized_network(network)": "8.6 10.15 11.4",
    "profile.set_shape('x', (1,), (1,))": "8.6 10.15 11.4",
    "class M(trt.IProgressMonitor): pass": "8.6",
    "class C(trt.IInt8MinMaxCalibrator): pass": "11.4",
    "getattr(trt, 'IProgressMonitor')": "8.6",
    "[trt.TacticSource.CUDNN for _ in x]": "11.4",
    "def f(c: 'trt.IBuilderConfig'): return c.progress_monitor": "8.6",
    "def f(): return lambda: trt.IInt8EntropyCalibrator2()": "11.4",
    "layer = network.get_layer(0); layer.precision = trt.float16": "11.4",
    "print(parser.get_error(0).node_name())": "8.6",
    "from tensorrt import x as trt; trt.NoSuchThing": "8.6 10.15 11.4",
    "x = _f()\ndef _f(): return trt.UffParser": "10.15 11.4",
    "if not hasattr(trt.BuilderFlag, 'FP16'): config.set_flag(trt.BuilderFlag.FP16)": "11.4",
    "if hasattr(trt.BuilderFlag, 'INT8'): config.set_flag(trt.BuilderFlag.FP8)": "",
    "def _old():\n    return hasattr(trt, 'Builder')\nif _old(): trt.UffParser()": "10.15 11.4",
    "if hasattr(trt, 'UffParser') or x: trt.UffParser()": "10.15 11.4",
}
GUARDED = [
    "def _old():\n    return hasattr(trt, 'UffParser')\nif _old(): trt.UffParser()",
    "def _new():\n    return not hasattr(trt, 'UffParser')\nif not _new(): trt.UffParser()",
    "if hasattr(trt.BuilderFlag, 'FP16'): config.set_flag(trt.BuilderFlag.FP16)",
    "old = hasattr(trt, 'UffParser')\nif old and x: trt.UffParser()",
    "hasattr(config, 'progress_monitor') and config.progress_monitor",
    "x = trt.TacticSource.CUDNN if hasattr(trt.TacticSource, 'CUDNN') else None",
    "def f():\n    if not hasattr(trt, 'IInt8Calibrator'):\n        raise ValueError\n    return trt.IInt8Calibrator",
    "if hasattr(trt, 'IProgressMonitor'):\n    x = _Monitor()\nclass _Monitor(trt.IProgressMonitor): pass",
    "getattr(trt, 'UffParser', None)",
    "[getattr(trt.TacticSource, n) for n in names if hasattr(trt.TacticSource, n)]",
    "if not hasattr(trt, 'UffParser'):\n    pass\nelse:\n    trt.UffParser()",
    "builder.build_serialized_network(network, config=config); context.execute_async_v3(stream_handle=0)",
    "from trtkit import cache\ncache.folder()",
    "def f(config: BuildConfig): return config.batch",
    "create = builder.create_network; create(0)",
    "trt.Logger(trt.Logger.WARNING); trt.Logger.Severity.ERROR; trt.__version__; trt.float32",
]


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_fault_is_found(code):
    refused = [era for era in ERAS if Names(code, surface(era)).missing]
    assert refused == PLANTED[code].split()


@pytest.mark.parametrize("code", GUARDED)
def test_a_guard_is_understood(code):
    assert not [line for era in ERAS for line in Names(code, surface(era)).missing]


@pytest.mark.parametrize("era", ERAS)
def test_a_surface_says_where_it_comes_from(era):
    facts = surface(era)
    assert facts["version"].startswith(era) and facts["version"] in facts["wheel"]
    assert re.fullmatch(r"[0-9a-f]{64}", facts["sha256"]) and facts["sha256"] in (SURFACES / "README.md").read_text()


# The table that the lesson shows, against the wheels. ---------------------------------------------------------------
@pytest.mark.parametrize("era", ERAS)
def test_the_lessons_table_is_what_the_wheels_say(era):
    assert eras.ERAS == ERAS
    facts, column = surface(era), ERAS.index(era)
    for name, values in (row for names in eras.NAMES.values() for row in names.items()):
        assert values[column] == _in_wheel(facts, name), name


def _in_wheel(facts: dict, name: str):
    owner, _, member = name.rpartition(".")
    if not owner:
        return True if any(name in facts[k] for k in ("functions", "constants", "enums", "classes")) else None
    if owner in facts["enums"]:
        return facts["enums"][owner].get(member)
    entry = facts["classes"].get(owner, {})
    return True if any(member in entry.get(k, ()) for k in ("methods", "properties", "attributes")) else None


def test_names_are_probed_without_their_versions():
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(FP16=0), UffParser=None)
    assert eras.has(trt, "BuilderFlag.FP16") and eras.has(trt, "UffParser")
    assert not eras.has(trt, "BuilderFlag.INT8") and not eras.has(trt, "NoSuch.name.at.all")
    assert eras.names_of("11.4")["BuilderFlag.FP16"] is False and eras.names_of("8.6")["BuilderFlag.FP16"] is True
    with pytest.raises(ValueError, match="'9'"):
        eras.names_of("9")


@pytest.mark.parametrize("era", ERAS)
def test_a_stand_in_has_the_names_of_its_era(era):
    trt, facts = eras.StandIn(era), surface(era)
    assert {name: eras.has(trt, name) for name in eras.names_of(era)} == eras.names_of(era)
    assert eras.era_of(trt) == era and era in repr(trt)
    assert int(trt.TacticSource.JIT_CONVOLUTIONS) == facts["enums"]["TacticSource"]["JIT_CONVOLUTIONS"]
    with pytest.raises(TypeError):
        1 << trt.TacticSource.JIT_CONVOLUTIONS


def test_rows_show_values_where_there_are_any():
    rows = {r["name"]: r for r in eras.rows("what the network is")}
    strongly = rows["NetworkDefinitionCreationFlag.STRONGLY_TYPED"]
    assert [strongly[e] for e in ERAS] == ["-", "= 1", "= 0"]
    assert [rows["UffParser"][e] for e in ERAS] == ["yes", "-", "-"]
