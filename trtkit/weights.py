"""Stored weights, and the graph that they make, without PyTorch. Lessons 00 and 12.

`datasets/graphs/yolov3.onnx` is what `export.export_onnx` writes, with every number left out: nodes and names, 44 kB.
`to_graph` fills it from a weights file, and folds each BatchNorm into the convolution before it, as `export` does:
    w' = w * gamma / sqrt(var + eps)        b' = beta - mean * gamma / sqrt(var + eps)
So lessons that only run the network need a tenth of the disk, and the weights are stored once.
Numbers of channels are the weights' own: any width and number of classes fits, as long as each layer fits the next.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from trtkit.data import dataset_file
from trtkit.files import replacing
from trtkit.heads import ANCHORS_PER_HEAD

STRUCTURE = "graphs/yolov3.onnx"
BATCHNORM_EPS = 1e-5            # torch.nn.BatchNorm2d's; a weights file does not say


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a file that `models.save_weights` wrote.

    Args:
        path: a .safetensors file. Pickles (.pt, .pth, .pkl) are refused: loading one runs code from it.

    Returns:
        Float32 arrays by name, and the metadata with at least "num_classes" and "width".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pickle, a damaged file, numbers that NumPy cannot hold, or no metadata.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: got {path}, expected an existing .safetensors file; see datasets/weights")
    if path.suffix != ".safetensors":
        raise ValueError(
            f"weights: got {path.name}, expected a .safetensors file; pickles run code when loaded, so convert it "
            "once in a process you trust: safetensors.torch.save_file(model.state_dict(), ...)"
        )
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118, no dict
    except SafetensorError as e:
        raise ValueError(f"weights: {path.name} is no intact safetensors file ({e}); fetch it again") from e
    except (TypeError, AttributeError) as e:        # what safetensors raises for types beyond NumPy's, BF16 or FP8
        raise ValueError(f"weights: {path.name} holds numbers that NumPy lacks ({e}); save it as FP16 or FP32") from e
    if missing := {"num_classes", "width"} - metadata.keys():
        raise ValueError(f"weights: {path.name} lacks metadata {sorted(missing)}; write it with save_weights")
    return tensors, metadata


def to_graph(weights: Path, out: Path) -> Path:
    """Write the ONNX graph of a weights file: what `export_onnx(load_weights(weights), out)` writes, without PyTorch.

    Args:
        weights: a .safetensors file of a `models.YOLOv3`, of any width and number of classes.
        out: of the .onnx file to write; input "images" (N, 3, 416, 416) float32, BatchNorm folded, FP32, opset 17.

    Returns:
        `out`.

    Raises:
        FileNotFoundError, ValueError: see `read_weights` and `activation`; and tensors that do not fit the structure or
            each other (named), or a damaged structure file.
    """
    tensors, metadata = read_weights(weights)
    model = onnx.load(dataset_file(STRUCTURE))
    graph = model.graph
    if activation(metadata) == "relu":
        use_relu(graph)
    places = {i.name: i for i in graph.initializer}
    outputs = {o.name: o.type.tensor_type.shape.dim[1] for o in graph.output}
    made = {graph.input[0].name: (3, "images")}     # tensor -> its channels, and the weights that made them
    for node in graph.node:
        sources = [made[name] for name in node.input if name in made]
        if node.op_type == "Conv":
            kernel, bias = (places[name] for name in node.input[1:])
            c_out = "any"
            if node.output[0] in outputs:
                c_out = ANCHORS_PER_HEAD * (5 + _class_count(metadata))
                outputs[node.output[0]].dim_value = c_out
            folded = _folded(tensors, kernel.name, (c_out, sources[0][0], *kernel.dims[2:]))
            kernel.CopyFrom(numpy_helper.from_array(folded[0], kernel.name))
            bias.CopyFrom(numpy_helper.from_array(folded[1], bias.name))
            made[node.output[0]] = (len(folded[1]), kernel.name)
        elif node.op_type == "Add" and sources[0][0] != sources[1][0]:
            (a, name_a), (b, name_b) = sources
            raise ValueError(f"weights: {name_b}: got {b} output channels, expected {a}, to be added to {name_a}'s")
        elif node.op_type == "Concat":
            made[node.output[0]] = (sum(c for c, _ in sources), sources[0][1])
        elif sources:
            made[node.output[0]] = sources[0]
    if tensors:
        raise ValueError(f"weights: got {len(tensors)} tensors that the graph lacks, first {min(tensors)}; "
                         "another network's file?")
    onnx.checker.check_model(model)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        onnx.save(model, temporary)
    return out


def structure(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph with its initializers' names and shapes, but none of their numbers."""
    empty = onnx.ModelProto()
    empty.CopyFrom(model)
    for initializer in empty.graph.initializer:
        initializer.ClearField("raw_data")
    return empty


def activation(metadata: dict[str, str]) -> str:
    """What follows each BatchNorm, "leaky" or "relu": see `models.use_relu`.

    Raises:
        ValueError: another one.
    """
    found = metadata.get("activation", "leaky")
    if found not in ("leaky", "relu"):
        raise ValueError(f"weights: metadata activation: got {found!r}, expected 'leaky' or 'relu'")
    return found


def use_relu(graph: onnx.GraphProto) -> None:
    """Put Relu in the place of every LeakyRelu, in the graph itself, with the names that PyTorch's exporter gives.

    `models.use_relu` for a graph; constants that are named after an activation, such as its scale, follow.
    """
    for constant in graph.initializer:
        constant.name = constant.name.replace("LeakyRelu", "Relu")
    for node in graph.node:
        if node.op_type == "LeakyRelu":
            node.op_type = "Relu"
            del node.attribute[:]
        node.name = node.name.replace("LeakyRelu", "Relu")
        for names in (node.input, node.output):
            names[:] = [name.replace("LeakyRelu", "Relu") for name in names]


def _class_count(metadata: dict[str, str]) -> int:
    text = metadata["num_classes"]
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"weights: metadata num_classes: got {text!r}, expected a number of at least 1")
    return int(text)


def _folded(
    tensors: dict[str, np.ndarray], name: str, shape: tuple[int | str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Take a convolution's tensors out of `tensors`: weights (C_out, C_in, k, k) and bias (C_out,), float32."""
    weight = _take(tensors, name, shape)
    layer = name.removesuffix(".weight")
    if not layer.endswith(".0"):                        # alone, not the first of a Sequential: no BatchNorm behind it
        return weight, _take(tensors, f"{layer}.bias", weight.shape[:1])
    norm = f"{layer[:-1]}1"
    gamma, beta, mean, var = (
        _take(tensors, f"{norm}.{part}", weight.shape[:1]) for part in ("weight", "bias", "running_mean", "running_var")
    )
    if not (var >= 0).all():
        raise ValueError(f"weights: {norm}.running_var: got {var.min()}, expected variances of at least 0; train again")
    factor = gamma / np.sqrt(var + np.float32(BATCHNORM_EPS))
    return weight * factor[:, None, None, None], beta - mean * factor


def _take(tensors: dict[str, np.ndarray], name: str, shape: tuple[int | str, ...]) -> np.ndarray:
    tensor = tensors.pop(name, None)
    got = () if tensor is None else tensor.shape
    fits = len(got) == len(shape) and all(e in ("any", g) for g, e in zip(got, shape, strict=True))
    if tensor is None or not fits:
        expected = "(" + ", ".join(map(str, shape)) + ")"
        raise ValueError(f"weights: {name}: got {got or 'nothing'}, expected {expected}; another network's file?")
    return tensor
