"""Constants computed, copies removed: onnxslim, guarded. Lesson 05.

An exporter writes what the program did, also where it computed the same number again and again. TensorRT and ONNX
Runtime remove that by themselves when they build; a simplified file is smaller to read, to draw and to change.
"""

import contextlib
import importlib.util
import io

import onnx

from trtkit.graph_summary import summary


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A smaller graph of the same function; inputs, outputs and open dimensions stay.

    onnxslim computes both graphs on one random input with ONNX Runtime, and what differs is not handed out: version
    0.1.98 turns the padding of a strided Keras convolution around, from (0, 1) to (1, 0), when the batch is open.

    Raises:
        ModuleNotFoundError: onnxslim is not installed.
        ValueError: onnxslim's graph computes something else, or has other inputs or outputs.
    """
    if importlib.util.find_spec("onnxslim") is None:
        raise ModuleNotFoundError("onnxslim is not installed, and simplifying needs it: "
                                  "pip install --editable '.[export]'", name="onnxslim")
    import onnxslim

    copy = onnx.ModelProto()
    copy.CopyFrom(model)                        # onnxslim changes its argument
    try:
        with contextlib.redirect_stdout(io.StringIO()):     # it prints what it found
            slim = onnxslim.slim(copy, model_check=True)
    except Exception as e:                      # its own kinds, and ORT's of the graph that it made
        raise ValueError(f"simplify: onnxslim {onnxslim.__version__} fails on this graph ({e}); use it as it is") from e
    if slim is None:
        raise ValueError("simplify: got another function from onnxslim, expected the same outputs on a random input; "
                         "use the graph as it is, or give its input a fixed shape before")
    asked, given = summary(model), summary(slim)
    if given.inputs != asked.inputs or given.outputs != asked.outputs:
        raise ValueError(f"simplify: got inputs {given.inputs} and outputs {given.outputs} from onnxslim, expected "
                         f"{asked.inputs} and {asked.outputs}; use the graph as it is")
    onnx.checker.check_model(slim)
    return slim
