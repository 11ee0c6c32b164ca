"""Pruning on whole networks, against its definition, Torch-Pruning, and ONNX Runtime."""

import copy
import functools
import warnings

import onnxruntime
import pytest
import torch
import torch_pruning
from networks_to_prune import MODELS, network, outputs, worst, zeroed

from trtkit.coupling import groups
from trtkit.export import OUTPUT_NAMES, export_onnx
from trtkit.prune import apply, kept_channels

BOUND = 1e-4                    # in float64, of outputs about 1


@functools.cache
def pruned_to_60_percent(name):
    """What stays of each group, and the pruned network. Do not change it."""
    model, x = network(name)
    kept = kept_channels(model, x, ratio=0.4, scope="layer")
    return kept, apply(model, x, kept)


@pytest.mark.parametrize("ratio", [0.1, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_network_is_the_original_with_the_removed_channels_at_zero(name, ratio):
    model, x = network(name)
    kept = kept_channels(model, x, ratio=ratio, scope="layer" if ratio > 0.3 else "global")
    pruned, whole, expected = outputs(apply(model, x, kept), x), outputs(model, x), zeroed(model, x, kept)
    assert worst(pruned, expected) < BOUND
    assert worst(whole, expected) > 10 * BOUND          # channels that matter are gone


@pytest.mark.parametrize("name", MODELS)
def test_torch_pruning_makes_the_same_network(name):
    model, x = network(name)
    kept, ours = pruned_to_60_percent(name)
    theirs = copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, x)
    for group in groups(model, x):
        if not group.fixed:
            layer = theirs.get_submodule(group.name)
            cut = graph.get_pruner_of_module(layer).prune_out_channels
            gone = sorted(set(range(group.channels)) - set(kept[group.name]))
            graph.get_pruning_group(layer, cut, gone).prune()
    assert (torch_pruning.utils.count_ops_and_params(ours, x)
            == torch_pruning.utils.count_ops_and_params(theirs, x))         # MACs and parameters
    assert worst(outputs(ours, x), outputs(theirs, x)) < BOUND
    assert worst(outputs(ours, x), zeroed(model, x, kept)) < BOUND


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_network_becomes_a_graph_that_runs(name, tmp_path):
    pruned = copy.deepcopy(pruned_to_60_percent(name)[1]).float()
    x, path = network(name)[1].float(), tmp_path / "pruned.onnx"
    if name.startswith("yolov3"):
        export_onnx(pruned, path, size=64)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")             # the TorchScript exporter is marked legacy
            torch.onnx.export(pruned, (x,), str(path), dynamo=False, input_names=["images"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(list(OUTPUT_NAMES) if name.startswith("yolov3") else None, {"images": x.numpy()})
    expected = outputs(pruned, x)
    scale = max(1.0, *(float(y.abs().max()) for y in expected))
    assert worst([torch.from_numpy(y) for y in got], expected) < BOUND * scale
