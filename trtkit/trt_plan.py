"""What TensorRT says, and what is in a plan: the logger, loading, the inspector. Lesson 07."""

import json
import weakref
from pathlib import Path

import tensorrt as trt

from trtkit.engine import BackendError

WORTH_KEEPING = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)


class _Logger(trt.ILogger):
    """The one logger of this process: TensorRT keeps the first that it gets, and writes to it even when its last
    objects are destroyed, so this one is never destroyed itself."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.readers: weakref.WeakSet[Log] = weakref.WeakSet()

    def log(self, severity, message: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in WORTH_KEEPING or message.startswith("(Sparsity)"):      # which layers have sparse kernels
            for reader in list(self.readers):
                reader.messages.append(message)


LOGGER = _Logger()


class Log:
    """TensorRT's warnings and errors since this object was made, and what it says of sparse kernels; whichever thread
    they are about."""

    def __init__(self):
        self.messages: list[str] = []
        LOGGER.readers.add(self)

    def said(self) -> str:
        """All messages, for the end of an error's text; the last ones of very many."""
        return "; ".join(dict.fromkeys(self.messages[-20:])) or "TensorRT said nothing"


def deserialize(plan: Path, log: Log):
    """A runtime and the engine of a plan; the runtime must outlive the engine.

    Raises:
        BackendError: TensorRT refuses the plan; with what it said.
    """
    runtime = trt.Runtime(LOGGER)
    engine = runtime.deserialize_cuda_engine(Path(plan).read_bytes())
    if engine is None:
        raise BackendError(f"plan: TensorRT {trt.__version__} refused {Path(plan).name}: {log.said()}; build() it "
                           "again on this machine")
    return runtime, engine


def inspect(engine, context) -> list[dict]:
    """What the inspector tells about each layer; a layer of a plan without details has only its name.

    Args:
        engine: to look at.
        context: of it. With dynamic shapes an inspector can tell types only if it has a context that knows its shapes,
            here the most frequent; 8.6 does not tell them even then, see `precision.reads`. None, where there was no
            memory for one, leaves them out.
    """
    inspector = engine.create_engine_inspector()
    if context is not None:
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in tuple(context.get_tensor_shape(name)):
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return [layer if isinstance(layer, dict) else {"Name": layer} for layer in told["Layers"]]
