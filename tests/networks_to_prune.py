"""Networks of every kind that the course prunes, and the definition of pruning that tests hold against them."""

import functools

import torch
import torchvision
from conftest import randomize_batchnorm
from torch import nn
from torch.utils._pytree import tree_leaves

from trtkit.coupling import groups
from trtkit.models import YOLOv3
from trtkit.prune_cut import kept_positions


class UNet(nn.Module):
    """Two levels down, two up: transposed convolutions, and skips that are concatenated."""

    def __init__(self, width: int = 12):
        super().__init__()
        w = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(self.block(*c) for c in [(3, w[0]), (w[0], w[1]), (w[1], w[2])])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(*c, 2, 2) for c in [(w[2], w[1]), (w[1], w[0])])
        self.up = nn.ModuleList(self.block(*c) for c in [(2 * w[1], w[1]), (2 * w[0], w[0])])
        self.mask = nn.Conv2d(w[0], 1, 1)

    @staticmethod
    def block(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(),
                             nn.Conv2d(c_out, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    def forward(self, x):
        a = self.down[0](x)
        b = self.down[1](nn.functional.max_pool2d(a, 2))
        x = self.down[2](nn.functional.max_pool2d(b, 2))
        x = self.up[0](torch.cat([b, self.grow[0](x)], 1))
        return torch.sigmoid(self.mask(self.up[1](torch.cat([a, self.grow[1](x)], 1))))


def classifier() -> nn.Module:
    """Convolutions, a flatten, two linear layers with a one-dimensional BatchNorm between."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(24 * 16, 40), nn.BatchNorm1d(40), nn.PReLU(40),
        nn.Linear(40, 10))


MODELS = {
    "yolov3-0.0625": lambda: YOLOv3(3, 0.0625),
    "yolov3-0.25": lambda: YOLOv3(3, 0.25),
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "densenet121": torchvision.models.densenet121,
    "unet": UNet,
    "classifier": classifier,
}


@functools.cache
def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network in float64 and eval mode, its BatchNorms as after a training, and an input for it. Do not change it."""
    torch.manual_seed(0)
    model = randomize_batchnorm(MODELS[name]()).double()
    return model, torch.randn(2, 3, 64, 64, dtype=torch.float64)


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        return tree_leaves(model(x))


def zeroed(model: nn.Module, x: torch.Tensor, kept: dict[str, list[int]]) -> list[torch.Tensor]:
    """What pruning means: the outputs of the whole network if every layer reads 0 where a channel was removed."""
    handles = []
    for (layer, side), positions in kept_positions(groups(model, x), kept).items():
        if side == "in":
            def hook(module, args, positions=positions):
                axis = -1 if isinstance(module, nn.Linear) else 1
                read = torch.zeros_like(args[0])
                index = torch.tensor(positions)
                return (read.index_copy(axis, index, args[0].index_select(axis, index)),)

            handles.append(model.get_submodule(layer).register_forward_pre_hook(hook))
    found = outputs(model, x)
    for handle in handles:
        handle.remove()
    return found


def worst(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest absolute difference over all outputs."""
    return max(float((p - q).abs().max()) for p, q in zip(a, b, strict=True))
