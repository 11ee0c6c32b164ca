"""Fixtures that several test files share. Everything is made from seeds, on the CPU, in temporary folders."""

import os
import tempfile

# Before any test imports a module that reads it; a test run must not touch the user's plans.
_CACHE = tempfile.TemporaryDirectory(prefix="trtkit-test-cache-")
os.environ["TRTKIT_CACHE"] = _CACHE.name
# On a busy machine, threads that spin at each other's barriers take minutes for what is seconds of work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# No deadline: this may run on a busy machine, and an example's time says nothing about what holds.
settings.register_profile(
    "trtkit", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("trtkit")

SIZE = 96                   # side of the inputs of the small YOLOv3, pixels


def pytest_sessionstart(session):
    try:
        import torch
    except ImportError:                 # the tests of layer 0 run without it
        return
    torch.set_num_threads(2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def axes(monkeypatch) -> list:
    """The axes of the figure that the next call would show."""
    import matplotlib.pyplot as plt

    seen = []
    monkeypatch.setattr(plt, "show", lambda: seen.extend(plt.gcf().axes))
    return seen


def randomize_batchnorm(module, seed: int = 0):
    """Statistics as after a training: no mean at 0, no variance or gamma at 1, so that folding has work to do."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low: float, high: float):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.data = uniform(m.running_mean, -0.3, 0.3)
            m.running_var.data = uniform(m.running_var, 0.3, 1.5)
            m.weight.data = uniform(m.weight, 0.5, 1.5)
            m.bias.data = uniform(m.bias, -0.3, 0.3)
    return module.eval()


@pytest.fixture(scope="session")
def small_yolo():
    """YOLOv3 with 3 classes, width 0.25, random BatchNorm statistics, in eval mode. Shared: do not change it."""
    import torch

    from trtkit.models import YOLOv3

    torch.manual_seed(0)
    return randomize_batchnorm(YOLOv3(num_classes=3, width=0.25))


def without_channels(model, block: str, kept: list[int]):
    """A copy of a YOLOv3 whose residual block, such as "stages.1.2", keeps these of its inner channels: by hand."""
    import copy

    from torch import nn

    model = copy.deepcopy(model)
    reduce, expand = (model.get_submodule(f"{block}.{part}") for part in ("reduce", "expand"))
    reduce[0].weight = nn.Parameter(reduce[0].weight.detach()[kept])
    expand[0].weight = nn.Parameter(expand[0].weight.detach()[:, kept])
    for name in ("weight", "bias"):
        setattr(reduce[1], name, nn.Parameter(getattr(reduce[1], name).detach()[kept]))
    for name in ("running_mean", "running_var"):
        setattr(reduce[1], name, getattr(reduce[1], name)[kept].clone())
    reduce[0].out_channels = reduce[1].num_features = expand[0].in_channels = len(kept)
    return model


@pytest.fixture(scope="session")
def yolo_graph(small_yolo, tmp_path_factory):
    """Path of `small_yolo`'s ONNX graph at 96x96."""
    from trtkit.export import export_onnx

    return export_onnx(small_yolo, tmp_path_factory.mktemp("graph") / "small_yolo.onnx", size=SIZE)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty plan cache for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRTKIT_CACHE", str(folder))
    return folder
