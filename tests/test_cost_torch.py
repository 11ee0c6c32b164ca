"""What a PyTorch module costs, against counters that others wrote: fvcore's, PyTorch's own, and torchvision's table."""

import logging
import warnings

import onnx
import pytest
import torch
import torchvision
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trtkit import cost_torch, costs, floors
from trtkit.export import export_onnx
from trtkit.models import YOLOv3

# What fvcore counts beside these (BatchNorm, LayerNorm, pooling) are operations per number, not multiply-adds of a sum.
MULTIPLY = ("conv", "linear", "matmul", "addmm", "bmm")
MODELS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "vgg11", "efficientnet_b0",
          "shufflenet_v2_x0_5", "squeezenet1_0", "regnet_y_400mf")
SIZE = 224


def fresh(name: str) -> nn.Module:
    """An untrained torchvision model in eval mode; its numbers, whatever memory held, do not matter here."""
    make = getattr(torchvision.models, name)
    if name.startswith("regnet"):                   # computes its widths with tensors, which need numbers
        return make().eval()
    with torch.device("meta"):
        model = make()
    return model.to_empty(device="cpu").eval()


def counted_by_fvcore(model: nn.Module, x: torch.Tensor, analysis: type) -> int:
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)     # names each operator that it passes over
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # of torch.jit, which fvcore traces with
        found = analysis(model, x)
        found.tracer_warnings("none")
        return sum(n for op, n in found.by_operator().items() if op in MULTIPLY)


@pytest.mark.parametrize("name", MODELS)
def test_multiply_adds_equal_fvcores(name):
    model, x = fresh(name), torch.zeros(1, 3, SIZE, SIZE)
    found = cost_torch.costs(model, x)
    assert sum(c.macs for c in found) == counted_by_fvcore(model, x, FlopCountAnalysis)
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert round(sum(c.macs for c in found) / 1e9, 3) == meta["_ops"]       # published, in 10^9
    running = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert sum(c.params for c in found) - running == meta["num_params"]


def test_attention_is_counted_where_fvcore_passes_over_it():
    """fvcore has no rule for scaled_dot_product_attention: 12 layers of two products with 197 tokens of width 768."""
    model, x = fresh("vit_b_16"), torch.zeros(1, 3, SIZE, SIZE)
    macs = sum(c.macs for c in cost_torch.costs(model, x))
    assert macs - counted_by_fvcore(model, x, FlopCountAnalysis) == 12 * 2 * 197 * 197 * 768
    assert round(macs / 1e9, 3) == torchvision.models.ViT_B_16_Weights.DEFAULT.meta["_ops"]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0"])
def test_activations_of_convolutions_equal_fvcores(name):
    model, x = fresh(name), torch.zeros(2, 3, SIZE, SIZE)
    written = sum(c.activation_bytes for c in cost_torch.costs(model, x) if c.macs) / 4
    assert written == counted_by_fvcore(model, x, ActivationCountAnalysis)


class Odd(nn.Module):
    """Groups, transposed, three dimensions, products of several kinds, a broadcast weight, in place, shared."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.volume = nn.Conv3d(2, 4, (1, 3, 3), groups=2)
        self.linear = nn.Linear(7, 7)
        self.lstm = nn.LSTM(7, 3, batch_first=True)

    def forward(self, x, v):
        y = self.linear(self.linear(self.up(x).flatten(1)[:, :7]))
        rows, _ = self.lstm(y[:, None])
        z = torch.einsum("bi,bj->bij", y, y) + torch.baddbmm(y[:, :, None], y[:, :, None], y[:, None])
        return self.volume(v).sum() + torch.addmm(y.T, y.T, y.T @ y).sum() + z.relu_().sum(), rows


def test_operators_of_every_kind_equal_pytorchs_counter():
    model, inputs = Odd().eval(), (torch.zeros(7, 4, 5, 5), torch.zeros(1, 2, 3, 6, 6))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    # PyTorch's LSTM on a CPU is one kernel that its counter passes over: (7, 7) and (7, 3) times weights for 4 gates.
    lstm = 2 * 7 * (7 + 3) * 12
    assert 2 * sum(c.macs for c in cost_torch.costs(model, inputs)) == counter.get_total_flops() + lstm


def test_products_with_vectors():
    class Net(nn.Module):
        def forward(self, x):
            return x @ x[0], torch.addmv(x[:, 0], x, x[0]), x[0] @ x[0]

    found = [(c.op, c.macs) for c in cost_torch.costs(Net(), torch.zeros(3, 5))]
    assert found == [("mv", 15), ("addmv", 15), ("dot", 5)]


def test_yolov3_of_the_paper():
    with torch.device("meta"):
        model = YOLOv3(80)
    found = cost_torch.costs(model, torch.zeros(1, 3, 416, 416))
    assert round(2 * sum(c.macs for c in found) / 1e9, 3) == 65.864
    assert sum(c.params for c in found) == 62_001_757                       # the floats of darknet's weights file
    assert sum(c.activation_bytes for c in found if c.name.endswith("predict/convolution")) == 4 * 255 * (
        13**2 + 26**2 + 52**2)


def test_a_module_costs_what_its_graph_costs(small_yolo, tmp_path):
    """Convolution by convolution, and kernel by kernel; BatchNorm, which the graph has folded, moves no bytes there."""
    model = onnx.load(export_onnx(small_yolo, tmp_path / "y.onnx", size=96))
    of_graph = floors.kernels(costs.costs(model, batch=2))
    of_module = floors.kernels(cost_torch.costs(small_yolo, torch.zeros(2, 3, 96, 96)))
    assert [c.macs for c in of_module] == [c.macs for c in of_graph]
    assert [sorted(c.inputs.values()) for c in of_module] == [sorted(c.inputs.values()) for c in of_graph]
    assert [c.name.split("/")[0] for c in of_module][:2] == ["stem.0", "stages.0.0.0"]
    of_file = {name: sum(c.params for c in parts if c.macs) for name, parts in (("m", of_module), ("g", of_graph))}
    norms = [m for m in small_yolo.modules() if isinstance(m, nn.BatchNorm2d)]
    assert of_file["m"] - of_file["g"] == 3 * sum(m.num_features for m in norms)    # four numbers became one bias


def test_modules_add_up(small_yolo):
    found = cost_torch.costs(small_yolo, torch.zeros(1, 3, 96, 96))
    modules = cost_torch.by_module(found)
    assert sum(c.macs for c in modules.values()) == sum(c.macs for c in found)
    assert sum(c.params for c in modules.values()) == sum(c.params for c in found)
    assert {"stem.0", "stem.1", "stages.0.1", cost_torch.OUTSIDE} <= set(modules)   # a shortcut; the concatenations
    assert modules["stem.0"].params == 3 * 8 * 9 and modules["stages.0.1"].op == "add"


def test_views_cost_nothing_and_in_place_operators_write():
    class Net(nn.Module):
        def forward(self, x):
            y = x.flatten(1)[:, :8].reshape(-1, 2, 4).transpose(1, 2)       # a copy: transposed rows do not lie so
            y = y.contiguous() * 2
            return y.relu_().view(-1)

    clone, mul, relu = cost_torch.costs(Net(), torch.zeros(3, 4, 4))
    assert (clone.op, dict(clone.inputs)) == ("clone", {"input": 4 * 3 * 8})
    assert list(mul.inputs) == list(clone.outputs) and list(relu.inputs) == list(mul.outputs)
    assert list(relu.outputs) != list(mul.outputs) and relu.bytes_moved == 2 * 4 * 3 * 8


def test_the_module_is_left_as_it_was_and_types_are_its_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).half().train()
    (conv,) = cost_torch.costs(model, torch.zeros(1, 3, 8, 8))
    assert conv.weight_bytes == 2 * (4 * 27 + 4) and conv.activation_bytes == 2 * 4 * 36
    assert model.training and next(model.parameters()).device.type == "cpu" and not model[0]._forward_hooks


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.warp = torchvision.ops.DeformConv2d(4, 4, 3)

    def forward(self, x):
        return self.warp(x, x.new_zeros(1, 18, 6, 6))


@pytest.mark.parametrize(("model", "shape", "said"), [
    (Branches(), (2, 3), r"costs: forward does not run on shapes alone .*no step that depends on numbers"),
    (nn.Sequential(nn.Conv2d(3, 4, 3)), (1, 5, 8, 8), r"costs: 0 does not run on shapes alone .*an input that fits"),
    (Foreign(), (1, 4, 8, 8), r"costs: warp: got torchvision.deform_conv2d.default, expected PyTorch's own operators"),
])
def test_what_cannot_be_counted_is_named(model, shape, said):
    with pytest.raises(ValueError, match=said):
        cost_torch.costs(model, torch.zeros(shape))
