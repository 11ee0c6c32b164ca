"""What pip installed, and which CUDA each package was built for; nothing of it is imported. Lesson 00."""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from trtkit.machine import text

# PyCUDA's source says cuCtxCreate; from CUDA 13 on the toolkit's header makes this symbol of it.
CUDA_13_SYMBOL = b"cuCtxCreate_v4"


@dataclass(frozen=True)
class Packages:
    """Versions by normalized name, and the CUDA version of those that bring or use CUDA libraries.

    `cuda`: for example "13.2" or "13", "" for a build without CUDA, "unknown" where the files do not tell.
    `requires`: what trtkit's own metadata asks for, for example 'torch>=2.8' and 'pytest>=8.3; extra == "test"'.
    """

    versions: dict[str, str]
    cuda: dict[str, str]
    requires: tuple[str, ...]
    requires_python: str

    def needed(self, extra: str = "") -> list[Requirement]:
        """Requirements of trtkit itself, or those that `extra` adds; for this Python and system."""
        parsed = [Requirement(line) for line in self.requires]
        asked = [r for r in parsed if ("extra ==" in str(r.marker)) == bool(extra)]
        return [r for r in asked if r.marker is None or r.marker.evaluate({"extra": extra})]

    def extras(self) -> list[str]:
        """Names of trtkit's extras."""
        return sorted({name for line in self.requires for name in re.findall(r"""extra == ["']([^"']+)""", line)})


def read(path: list[str] | None = None) -> Packages:
    """Everything installed in the folders of `path`; None takes those of this Python."""
    versions, cuda, requires, requires_python = {}, {}, (), ""
    for distribution in importlib.metadata.distributions(**({} if path is None else {"path": path})):
        metadata = distribution.metadata                        # parsed anew at each access
        name, version = metadata["Name"] or "", metadata["Version"] or ""
        if not name or normalized(name) in versions:
            continue                                            # the rest of a broken uninstall; shadowed by the first
        name = normalized(name)
        versions[name] = version
        if (found := _cuda(name, distribution)) is not None:
            cuda[name] = found
        if name == "trtkit":
            requires = tuple(metadata.get_all("Requires-Dist") or ())
            requires_python = metadata["Requires-Python"] or ""
    return Packages(dict(sorted(versions.items())), dict(sorted(cuda.items())), requires, requires_python)


def normalized(name: str) -> str:
    """A distribution's name as pip compares it: "tensorrt_cu13" and "TensorRT-cu13" are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _cuda(name: str, distribution: importlib.metadata.Distribution) -> str | None:
    """CUDA version of a package that the course uses on a GPU, None for every other."""
    if name == "torch":
        # Importing torch takes seconds; it keeps the version in a file of its own.
        found = re.search(r"^cuda\b.*?=\s*(None|'([\d.]+)')", _file(distribution, "torch/version.py"), re.M)
        return (found[2] or "") if found else "unknown"
    if name == "tensorrt" or name.startswith("tensorrt-"):
        found = re.search(r"-cu(\d+)(-|$)", name)
        return found[1] if found else "unknown"
    if name == "pycuda":
        return _pycuda(distribution)
    return None


def _pycuda(distribution: importlib.metadata.Distribution) -> str:
    """From its extension module: the libcudart that it asks for, else a symbol that only CUDA 13 has."""
    modules = sorted(Path(distribution.locate_file("pycuda")).glob("_driver*.so"))
    try:
        content = modules[0].read_bytes()
    except (OSError, IndexError):
        return "unknown"
    if found := re.search(rb"libcudart\.so\.(\d+)", content):
        return found[1].decode()
    if CUDA_13_SYMBOL in content:
        return "13"
    return "12" if b"cuCtxCreate_v2" in content else "unknown"


def _file(distribution: importlib.metadata.Distribution, name: str) -> str:
    return text(Path(distribution.locate_file(name)))
