"""What names NVIDIA's Python bindings of TensorRT have, read from the real wheels. Needs gcc and nm, no GPU.

    pip download --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d WHEELS tensorrt_bindings==8.6.1
    (and so for tensorrt_cu13_bindings==10.15.1.29 and tensorrt_cu13_bindings==11.4.0.106)
    python3.11 tests/oracles/extract_trt_api.py WHEELS tests/oracles/trt_api

A wheel of bindings is one compiled module that wants a dozen functions of libnvinfer when it is loaded, and calls none
of them while it defines its classes. So a library of that name whose functions return 0 is enough to import it, and
`dir()` then says everything. One process per wheel: two versions do not live in one.
"""

import enum
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OF_THE_SYSTEM = re.compile(r"^_?Py|^(dl|_Unwind|__cxa|_ITM)|^_Z(N?K?S[a-z]|T|[nd][la])")
SIGNATURE = re.compile(r"\w+\((.*)\)(?: -> (.*))?$", re.S)


def main(wheels: Path, out: Path) -> None:
    """Write one JSON file per wheel in a folder."""
    for wheel in sorted(wheels.glob("*.whl")):
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(wheel).extractall(folder)
            _stub_libraries(Path(folder))
            command = [sys.executable, __file__, "--read", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={"LD_LIBRARY_PATH": folder})
        origin = {"wheel": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
        surface = origin | json.loads(done.stdout)
        era = ".".join(surface["version"].split(".")[:2])
        (out / f"{era}.json").write_text(_one_line_per_name(surface))


def _stub_libraries(folder: Path) -> None:
    """Libraries with the names that the module wants; the first has every function that it misses."""
    module = folder / "tensorrt_bindings" / "tensorrt.so"
    wanted = re.findall(r"\[(libnv\S+)\]", subprocess.check_output(["readelf", "-d", module], text=True))
    listed = subprocess.check_output(["nm", "-D", "--undefined-only", module], text=True)
    names = [line.split()[-1] for line in listed.splitlines() if "@" not in line and " w " not in line]
    source = "".join(f"void *{n}(void) {{ return 0; }}\n" for n in names if not OF_THE_SYSTEM.match(n))
    for library in wanted:
        subprocess.run(["gcc", "-shared", "-fPIC", "-xc", "-", f"-Wl,-soname,{library}", "-o", folder / library],
                       input=source if library == wanted[0] else "", text=True, check=True)


def read(folder: str) -> dict:
    """The public names of the bindings in a folder."""
    sys.path.insert(0, folder)
    trt = importlib.import_module("tensorrt_bindings")
    surface = {"version": trt.__version__, "functions": {}, "constants": {}, "enums": {}, "classes": {}}
    for name in _public(trt):
        value = getattr(trt, name)
        if isinstance(value, type):
            _add_class(surface, name, value)
        elif callable(value):
            surface["functions"][name] = _signature(value)
        elif not isinstance(value, type(sys)):                      # ctypes, os, ... came along
            surface["constants"][name] = _shown(value)
    return surface


def _public(thing: object) -> list[str]:
    return [n for n in dir(thing) if not n.startswith("_")]


def _add_class(surface: dict, name: str, cls: type) -> None:
    if hasattr(cls, "__members__"):
        members = {n: m.value if isinstance(m, enum.Enum) else int(m) for n, m in cls.__members__.items()}
        surface["enums"][name] = members
        return
    inherited = set(dir(object))
    entry = {"bases": [b.__name__ for b in cls.__bases__ if b.__module__.startswith("tensorrt")],
             "methods": {}, "properties": {}, "attributes": {}}
    if cls.__init__ is not object.__init__:
        entry["init"] = _signature(cls.__init__)
    for member in _public(cls):
        if member in inherited:
            continue
        value = getattr(cls, member)
        if isinstance(value, property):
            entry["properties"][member] = "writable" if value.fset else "readable"
        elif isinstance(value, type):
            entry["attributes"][member] = f"{name}.{member}"
            _add_class(surface, f"{name}.{member}", value)
        elif callable(value):
            entry["methods"][member] = _signature(value)
        else:
            entry["attributes"][member] = _shown(value)
    surface["classes"][name] = entry


def _shown(value: object) -> str:
    """A constant: "DataType.FLOAT", or its value."""
    named = getattr(type(value), "__members__", None)
    return f"{type(value).__name__}.{value.name}" if named else repr(value)


def _signature(function: object) -> list[str]:
    """[arguments, returned type] from the first line that pybind11 writes into each docstring; "" where it is not.

    Overloads: the arguments of all, with " | " between them.
    """
    doc = function.__doc__ or ""
    lines = [line for line in doc.splitlines() if re.match(r"(\d+\. )?\w+\(.*\)( -> .*)?$", line.strip())]
    numbered = [line for line in lines if re.match(r"\d+\. ", line.strip())]
    lines = numbered if "Overloaded function" in doc else lines[:1]
    parts = [SIGNATURE.search(line.strip()) for line in lines]
    found = [(_plain(p[1]), _plain(p[2] or "")) for p in parts if p]
    return [" | ".join(arguments for arguments, _ in found), found[0][1] if found else ""]


def _plain(text: str) -> str:
    text = re.sub(r"(tensorrt_bindings\.)?tensorrt(_bindings)?\.(tensorrt\.)?|nv\w+::(ILogger::)?", "", text)
    return re.sub(r"^(self|arg0)(: [\w.]+)?(, )?", "", text)


def _one_line_per_name(surface: dict) -> str:
    """JSON in which a line is a class, an enum or a function, so that two eras can be compared with diff."""
    lines = [f' "{key}": {json.dumps(surface[key])}' for key in ("wheel", "sha256", "version")]
    for key in ("functions", "constants", "enums", "classes"):
        rows = [f'  "{n}": {json.dumps(v, separators=(",", ":"))}' for n, v in sorted(surface[key].items())]
        lines.append(f' "{key}": {{\n' + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        sys.stdout.write(json.dumps(read(sys.argv[2])))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
