"""Which channels go together, on networks small enough to say it by hand."""

import pytest
import torch
import torchvision
from conftest import randomize_batchnorm
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_to_prune import MODELS, network, outputs, worst, zeroed
from torch import nn
from torch.nn import functional as F

from trtkit.coupling import coupled_layers, groups
from trtkit.coupling_draw import ranges
from trtkit.models import YOLOv3
from trtkit.prune import apply, kept_channels
from trtkit.prune_cut import kept_positions

X = torch.zeros(1, 3, 8, 8)


def conv(c_in: int, c_out: int, **options) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, **options)


class Net(nn.Module):
    """A network of named layers whose forward is a lambda of itself and x."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def members(model: nn.Module, layer: str, x: torch.Tensor = X) -> dict[str, tuple]:
    """"layer.side" -> positions of each choice."""
    return {f"{m.layer}.{m.side}": m.index for m in coupled_layers(model, layer, x).members}


def one_each(n: int, offset: int = 0) -> tuple:
    return tuple((i + offset,) for i in range(n))


@pytest.mark.parametrize("width", [0.0625, 0.25, 1.0])
def test_yolov3_has_75_convolutions_and_23_shortcuts_in_5_groups(width):
    with torch.device("meta"):                  # shapes are all that is needed, so width 1 costs nothing
        model = YOLOv3(80, width)
    found = groups(model, torch.empty(1, 3, 64, 64, device="meta"))
    assert sum(m.writes for g in found for m in g.members) == 75
    shortcuts = [sum(line.kind == "join" for line in g.steps) for g in found]
    assert sum(shortcuts) == 23 and [s for s in shortcuts if s] == [1, 2, 8, 8, 4]
    # The convolution in front of a stage's shortcuts is one of the group's writers.
    joined = [g for g in found if any(line.kind == "join" for line in g.steps)]
    assert [sum(m.writes for m in g.members) for g in joined] == [2, 3, 9, 9, 5]
    assert sorted(g.name for g in found if g.fixed == "output of the network") == [
        "head16.predict", "head32.predict", "head8.predict"]


@pytest.mark.parametrize("name", ["yolov3-0.25", "resnet18", "mobilenet_v2", "densenet121", "unet", "classifier"])
def test_every_channel_of_every_layer_is_in_exactly_one_choice(name):
    model, x = network(name)
    positions: dict = {}
    for g in groups(model, x):
        for m in g.members:
            assert len(m.index) == g.channels
            positions.setdefault((m.layer, m.side), []).extend(p for choice in m.index for p in choice)
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert sorted(positions[layer, "out"]) == list(range(module.out_channels))
            assert sorted(positions[layer, "in"]) == list(range(module.in_channels))
        elif isinstance(module, nn.Linear):
            assert sorted(positions[layer, "out"]) == list(range(module.out_features))
            assert sorted(positions[layer, "in"]) == list(range(module.in_features))
        elif isinstance(module, nn.BatchNorm2d):
            assert sorted(positions[layer, "out"]) == list(range(module.num_features))


def test_the_name_of_a_group_is_its_own():
    names = [g.name for g in groups(*network("densenet121")) if g.name]
    assert len(names) == len(set(names)) == 121             # 120 convolutions and the classifier


def test_convolution_batchnorm_convolution():
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 5))
    assert members(model, "0") == {"0.out": one_each(4), "1.out": one_each(4), "3.in": one_each(4)}
    assert coupled_layers(model, "1", X) == coupled_layers(model, "0", X)
    assert coupled_layers(model, "0", X).fixed == ""
    assert coupled_layers(model, "3", X).fixed == "output of the network"
    assert groups(model, X)[-1].fixed == "input of the network" and groups(model, X)[-1].name == ""


@pytest.mark.parametrize("combine", [torch.add, torch.sub, torch.mul, torch.maximum, lambda a, b: a.add_(b)])
def test_what_is_added_or_multiplied_goes_together(combine):
    model = Net(lambda s, x: s.c(combine(s.a(x), s.b(x))), a=conv(3, 4), b=conv(3, 4), c=conv(4, 1))
    assert members(model, "a") == {"a.out": one_each(4), "b.out": one_each(4), "c.in": one_each(4)}


def test_a_concatenation_gives_an_offset():
    model = Net(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), a=conv(3, 2), b=conv(3, 4), c=conv(6, 1))
    assert members(model, "a") == {"a.out": one_each(2), "c.in": one_each(2)}
    assert members(model, "b") == {"b.out": one_each(4), "c.in": one_each(4, offset=2)}
    assert "puts them at 2-5 of 6" in str(coupled_layers(model, "b", X))


def test_a_concatenation_that_is_added_to_something_wider_is_one_group():
    model = Net(lambda s, x: s.d(torch.cat([s.a(x), s.b(x)], 1) + s.c(x)),
                a=conv(3, 2), b=conv(3, 4), c=conv(3, 6), d=conv(6, 1))
    assert members(model, "c") == {"a.out": (*one_each(2), (), (), (), ()), "b.out": ((), (), *one_each(4)),
                                   "c.out": one_each(6), "d.in": one_each(6)}


@pytest.mark.parametrize("flat", [lambda x: x.flatten(1), lambda x: x.reshape(x.shape[0], -1), nn.Flatten()])
def test_a_flatten_gives_each_channel_its_pixels(flat):
    model = Net(lambda s, x: s.b(flat(s.a(x))), a=conv(3, 4), b=nn.Linear(4 * 64, 2))
    assert members(model, "a")["b.in"] == tuple(tuple(range(64 * c, 64 * c + 64)) for c in range(4))


@pytest.mark.parametrize("pool", [
    lambda x: x.mean((2, 3)), lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), lambda x: x.flatten(2).sum(-1),
    lambda x: x.amax((2, 3), keepdim=True).squeeze((2, 3))])
def test_a_global_pooling_leaves_one_position_each(pool):
    model = Net(lambda s, x: s.b(pool(s.a(x))), a=conv(3, 4), b=nn.Linear(4, 2))
    assert members(model, "a")["b.in"] == one_each(4)


def test_depthwise_and_grouped_convolutions_tie_inputs_to_outputs():
    model = nn.Sequential(conv(3, 4), conv(4, 8, groups=4), conv(8, 12, groups=2), conv(12, 1))
    assert members(model, "0") == {
        "0.out": ((0, 1), (2, 3)), "1.in": ((0, 1), (2, 3)), "1.out": ((0, 1, 2, 3), (4, 5, 6, 7)),
        "2.in": ((0, 1, 2, 3), (4, 5, 6, 7)), "2.out": (tuple(range(6)), tuple(range(6, 12))),
        "3.in": (tuple(range(6)), tuple(range(6, 12)))}


def test_halves_lose_the_same_channels():
    model = Net(lambda s, x: s.b((lambda p, q: p * q.sigmoid())(*s.a(x).chunk(2, 1))), a=conv(3, 8), b=conv(4, 1))
    assert members(model, "a") == {"a.out": tuple((i, i + 4) for i in range(4)), "b.in": one_each(4)}
    apart = Net(lambda s, x: (lambda p, q: s.b(p) + s.c(q))(*s.a(x).chunk(2, 1)), a=conv(3, 8), b=conv(4, 1),
                c=conv(4, 1))
    assert members(apart, "a")["a.out"] == tuple((i, i + 4) for i in range(4))


def test_a_pixel_shuffle_takes_four_channels_for_one():
    model = nn.Sequential(conv(3, 8), nn.PixelShuffle(2), conv(2, 1))
    assert members(model, "0") == {"0.out": ((0, 1, 2, 3), (4, 5, 6, 7)), "2.in": one_each(2)}


def test_a_layer_that_runs_twice_binds_what_it_reads_in_both_runs():
    model = Net(lambda s, x: s.c(s.a(x)) + s.c(s.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 1))
    assert members(model, "a") == {"a.out": one_each(4), "b.out": one_each(4), "c.in": one_each(4)}


def test_squeeze_and_excitation_gates_go_with_their_channels():
    model = Net(lambda s, x: s.out((lambda y: y * s.up(s.down(y.mean((2, 3), keepdim=True))).sigmoid())(s.a(x))),
                a=conv(3, 4), down=nn.Conv2d(4, 2, 1), up=nn.Conv2d(2, 4, 1), out=conv(4, 1))
    assert set(members(model, "a")) == {"a.out", "down.in", "up.out", "out.in"}


@pytest.mark.parametrize("layer", [
    nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Dropout(), nn.Dropout2d(), nn.GELU(), nn.Hardswish(inplace=True), nn.SiLU(), nn.Identity(),
    nn.ReflectionPad2d(1), nn.ZeroPad2d(1), nn.AdaptiveMaxPool2d(2), nn.PReLU(), nn.InstanceNorm2d(4),
    nn.BatchNorm2d(4, affine=False),
    nn.Softplus(), nn.Mish(), nn.Hardsigmoid()], ids=lambda m: type(m).__name__)
def test_what_treats_each_channel_by_itself_lets_it_pass(layer):
    model = nn.Sequential(conv(3, 4), layer, conv(4, 1))
    assert members(model, "0")["2.in"] == one_each(4)


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.Softmax(1), nn.LayerNorm([4, 8, 8])],
                         ids=lambda m: type(m).__name__)
def test_what_mixes_channels_makes_them_one_choice(layer):
    assert coupled_layers(nn.Sequential(conv(3, 4), layer, conv(4, 1)), "0", X).channels == 1


def test_what_is_cut_at_places_in_the_code_must_stay():
    for cut in (lambda y: y[:, :2], lambda y: y.split([2, 2], 1)[0], lambda y: y.split(2, 1)[1], lambda y: y[:, 1:2]):
        c = cut(torch.zeros(1, 4, 1, 1)).shape[1]
        model = Net(lambda s, x, cut=cut: s.b(cut(s.a(x))), a=conv(3, 4), b=conv(c, 1))
        assert "cuts its channels at places written into its code" in coupled_layers(model, "a", X).fixed
    # Pixels may be cut.
    assert coupled_layers(Net(lambda s, x: s.b(s.a(x)[:, :, ::2]), a=conv(3, 4), b=conv(4, 1)), "a", X).fixed == ""


def test_constants_between_channels_must_stay():
    pad = Net(lambda s, x: s.b(F.pad(s.a(x), (0, 0, 0, 0, 1, 1)) + s.c(x)), a=conv(3, 2), b=conv(4, 1), c=conv(3, 4))
    assert "padding" in coupled_layers(pad, "c", X).fixed
    ones = Net(lambda s, x: s.b(torch.cat([s.a(x), torch.ones(1, 2, 8, 8, device=x.device)], 1)), a=conv(3, 2),
               b=conv(4, 1))
    assert members(ones, "a") == {"a.out": one_each(2), "b.in": one_each(2)}
    assert [g.fixed for g in groups(ones, X)].count("constants that the model itself joins on") == 1


def test_one_channel_that_is_spread_over_others_must_stay():
    model = Net(lambda s, x: s.b(s.a(x) * s.m(x).sigmoid()), a=conv(3, 4), m=conv(3, 1), b=conv(4, 1))
    assert "spreads it over other channels" in coupled_layers(model, "m", X).fixed
    assert coupled_layers(model, "a", X).channels == 4 and not coupled_layers(model, "a", X).fixed


def test_what_is_added_to_the_input_must_stay():
    model = Net(lambda s, x: s.b(x + s.a(x)), a=conv(3, 3), b=conv(3, 1))
    assert coupled_layers(model, "a", X).fixed == "input of the network"


def test_several_inputs_and_outputs_in_any_container():
    model = Net(lambda s, x: {"y": [s.b(s.a(x)), None], "n": 3}, a=conv(3, 4), b=conv(4, 2))
    assert coupled_layers(model, "b", X).fixed and not coupled_layers(model, "a", X).fixed
    two = Net(None, a=conv(3, 4), b=conv(2, 4), c=conv(4, 1))
    two.forward = lambda x, y: two.c(two.a(x) + two.b(y))
    with pytest.raises(ValueError, match="does not run on shapes alone"):
        groups(two, X)


def test_the_model_is_neither_run_nor_changed():
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout(), conv(4, 1)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    groups(model, torch.full((2, 3, 8, 8), torch.nan))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and all(m.training and not m._forward_hooks and not m._forward_pre_hooks
                                  for m in model.modules())


def test_the_drawing_of_a_residual_block():
    with torch.device("meta"):
        model = YOLOv3(3, 0.25)
    assert str(coupled_layers(model, "stages.0.1.expand.0", torch.zeros(1, 3, 64, 64))) == """\
16 channels that live or die together: 2 layers write them, 2 layers read them
●    stages.0.0.0         Conv2d 8 → 16, 3×3, stride 2   writes 0-15
○    stages.0.0.1         BatchNorm2d                    passes on 0-15
├─▶  stages.0.1.reduce.0  Conv2d 16 → 8, 1×1             reads 0-15
│ ●  stages.0.1.expand.0  Conv2d 8 → 16, 3×3             writes 0-15
│ ○  stages.0.1.expand.1  BatchNorm2d                    passes on 0-15
├─╯  stages.0.1           add                            joins the branches: channel c with channel c
╰─▶  stages.1.0.0         Conv2d 16 → 32, 3×3, stride 2  reads 0-15"""


@pytest.mark.parametrize("name", MODELS)
def test_every_group_can_be_drawn_and_names_all_its_layers(name):
    for group in groups(*network(name)):
        text = str(group)
        assert all(m.layer in text for m in group.members)
        assert ("they must stay" in text) == bool(group.fixed)
        assert not any(line != line.rstrip() for line in text.splitlines())


def test_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges(range(0, 20, 2)) == "0, 2, 4, ... (10 pieces)"


def _branch(model, x):
    return model.b(model.a(x) if x.sum() > 0 else x)


@pytest.mark.parametrize(("model", "message"), [
    (Net(_branch, a=conv(3, 3), b=conv(3, 1)), "reads a number while the network runs"),
    (Net(lambda s, x: s.b(s.a(x) * s.a.bias.mean().item()), a=conv(3, 3), b=conv(3, 1)), "reads a number"),
    (Net(lambda s, x: s.b(s.a(x).cumsum(1)), a=conv(3, 4), b=conv(4, 1)), r"aten\.cumsum\.default works on channels"),
    (Net(lambda s, x: s.b(s.a(x) + s.a.bias.view(1, -1, 1, 1)), a=conv(3, 4), b=conv(4, 1)), "along the channels"),
    (Net(lambda s, x: s.b(F.conv2d(s.a(x), s.a.weight * 2)), a=conv(3, 3), b=conv(3, 1)), "no torch.nn layer's own"),
    (Net(lambda s, x: s.a(x).numpy(), a=conv(3, 3)), "does not run on shapes alone"),
    (Net(lambda s, x: nn.Module(), a=conv(3, 3)), "returns Module, expected tensors"),
    (nn.Sequential(conv(3, 4), conv(5, 1)), "^trace: 1 does not run"),
    (torchvision.models.convnext_tiny(), "features.1.0.layer_scale"),
], ids=range(9))
def test_what_cannot_be_traced_says_where(model, message):
    with pytest.raises(ValueError, match=message):
        groups(model, torch.zeros(1, 3, 32, 32))


def test_the_error_names_the_layer():
    inner = Net(_branch, a=conv(4, 4), b=conv(4, 4))
    model = nn.Sequential(conv(3, 4), Net(lambda s, x: s.deep(x), deep=inner))
    with pytest.raises(ValueError, match=r"^trace: 1\.deep: "):
        groups(model, X)


def test_tied_weights_are_an_error_that_names_both():
    model = nn.Sequential(conv(3, 3), nn.ReLU(), conv(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"0\.weight and 2\.weight are one tied parameter"):
        groups(model, X)


def test_a_layer_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"got 'stages\.0\.1\.expand', .*stages\.0\.1\.expand\.0"):
        coupled_layers(YOLOv3(3, 0.0625), "stages.0.1.expand", torch.zeros(1, 3, 64, 64))


class Random(nn.Module):
    """A network drawn at random: a list of tensors, each made from earlier ones."""

    def __init__(self, draw, steps: int):
        super().__init__()
        self.layers, self.plan, channels = nn.ModuleList(), [], [3]
        for _ in range(steps):
            kind = draw(st.sampled_from(["conv", "depthwise", "add", "cat", "chunk", "gate", "shuffle", "pixels"]))
            i, j = (draw(st.integers(0, len(channels) - 1)) for _ in range(2))
            c, made = channels[i], []
            width = draw(st.sampled_from([2, 4, 6]))
            if kind == "conv":
                made, out = [nn.Conv2d(c, width, 3, padding=1), nn.BatchNorm2d(width)], width
            elif kind == "depthwise":
                made, out = [nn.Conv2d(c, 2 * c, 3, padding=1, groups=c)], 2 * c
            elif kind in ("add", "gate"):
                made, out = [nn.Conv2d(channels[j], c, 1)], c
            elif kind == "cat":
                out = c + channels[j]
            elif kind == "pixels":
                made, out = [nn.Conv2d(c, 4 * width, 1)], width
            elif c % 2 or c < 4:        # a half of one channel cannot lose any
                continue
            else:
                out = c // 2 if kind == "chunk" else c
            self.plan.append((kind, i, j, len(self.layers), len(made)))
            self.layers.extend(made)
            channels.append(out)
        self.head = nn.Conv2d(sum(channels[-3:]), 2, 1)

    def forward(self, x):
        made = [x]
        for kind, i, j, first, count in self.plan:
            y, layers = made[i], self.layers[first:first + count]
            if kind in ("conv", "depthwise"):
                y = F.leaky_relu(nn.Sequential(*layers)(y), 0.1)
            elif kind == "add":
                y = y + layers[0](made[j])
            elif kind == "gate":
                y = y * layers[0](made[j].mean((2, 3), keepdim=True)).sigmoid()
            elif kind == "cat":
                y = torch.cat([y, made[j]], 1)
            elif kind == "chunk":
                a, b = y.chunk(2, 1)
                y = a * b.tanh()
            elif kind == "shuffle":
                n, c, h, w = y.shape
                y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            else:
                y = F.avg_pool2d(F.pixel_shuffle(layers[0](y), 2), 2)
            made.append(y)
        return self.head(torch.cat(made[-3:], 1))


@settings(max_examples=40)
@given(st.data())
def test_any_network_that_is_pruned_equals_itself_with_zeros(data):
    torch.manual_seed(data.draw(st.integers(0, 9)))
    model = randomize_batchnorm(Random(data.draw, data.draw(st.integers(1, 9)))).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = [g for g in groups(model, x) if not g.fixed]
    kept = {g.name: sorted(data.draw(st.sets(st.integers(0, g.channels - 1), min_size=1))) for g in found}
    if not all(kept_positions(groups(model, x), kept).values()):
        with pytest.raises(ValueError, match="would be empty"):
            apply(model, x, kept)
        return
    assert worst(outputs(apply(model, x, kept), x), zeroed(model, x, kept)) < 1e-9
    assert set(kept_channels(model, x, ratio=0)) == set(kept)
