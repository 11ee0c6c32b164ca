"""Keras 3 on PyTorch: a Keras model down the same path, without TensorFlow. Lesson 05.

Keras chooses its backend when it is first imported, from the environment variable KERAS_BACKEND; later it cannot be
changed. A model that exists in TensorFlow alone takes TensorFlow's own route, `python -m tf2onnx.convert`, in an
environment of its own, since TensorFlow is larger than all of this together; only the ONNX file comes here.
Source: Keras documentation, "Model export", `keras.Model.export(format="onnx")`.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import onnx

from trtkit.export_torch import OPSET
from trtkit.files import replacing
from trtkit.lowering import cap_ir
from trtkit.surgery import rename

if TYPE_CHECKING:
    import keras


def keras_on_torch() -> ModuleType:
    """Import Keras with PyTorch underneath.

    Raises:
        ModuleNotFoundError: Keras is not installed.
        RuntimeError: this process imported Keras with another backend.
    """
    if importlib.util.find_spec("keras") is None:
        raise ModuleNotFoundError("Keras is not installed, and this needs it: pip install --editable '.[keras]'",
                                  name="keras")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"           # read at import, and never again
    module = importlib.import_module("keras")
    if (backend := module.backend.backend()) != "torch":
        raise RuntimeError(f"keras: got the backend {backend!r}, expected 'torch'; restart the process, and call "
                           "keras_on_torch() before anything else imports keras")
    return module


def export_keras(
    model: "keras.Model", path: Path, *, input_name: str = "images", output_name: str = "y", opset: int = OPSET
) -> Path:
    """Write a Keras model with one input and one output as an ONNX graph, batch open.

    Args:
        model: built, on the torch backend. Keras puts channels last, (N, H, W, C), and so does the graph's input; each
            convolution stands between two Transpose nodes, which `simplify` and every builder move and cancel.
        path: of the .onnx file; written under another name first, so a failed export leaves nothing.
        input_name, output_name: in the graph; Keras has names of its own.
        opset: of the graph.

    Returns:
        `path`.

    Raises:
        ValueError: a model with other numbers of inputs or outputs.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"model: got {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one of "
                         "each; call model.export(path, format=\"onnx\") yourself")
    # Keras exports only what was called once; sides that it leaves open are 1 here.
    model(np.zeros((1, *(side or 1 for side in model.inputs[0].shape[1:])), np.float32))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")             # of the exporter, about its age and Keras's own shapes
            model.export(str(temporary), format="onnx", verbose=False, opset_version=opset)
        graph = onnx.load(temporary)
        graph = rename(graph, {graph.graph.input[0].name: input_name, graph.graph.output[0].name: output_name})
        for value in (*graph.graph.input, *graph.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"      # one name, where the exporter invents a second
        cap_ir(graph)
        onnx.save(graph, temporary)
    return path
