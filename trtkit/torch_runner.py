"""PyTorch's own eager mode as a runner: what every speed-up is measured against. Lesson 11.

It takes arrays and returns arrays, as any other runner, so that one clock and one mAP serve all. On a GPU the copies to
and from it are therefore part of an inference, as they are in `runner_trt`.
"""

from collections.abc import Sequence

import numpy as np
import torch

from trtkit import export
from trtkit.engine import BackendError, TensorSpec, check_feed


class TorchRunner:
    """A module in eval mode, FP32, NCHW, with PyTorch's defaults otherwise; see `engine.Runner`.

    Convolutions on a GPU since Ampere round their inputs to TF32's 10 bits: PyTorch's default too.
    """

    def __init__(self, model: torch.nn.Module, *, device: str = "cpu", threads: int = 0, size: int = 416,
                 output_names: Sequence[str] = export.OUTPUT_NAMES):
        """Moves the module to the device.

        Args:
            model: one image input (N, 3, size, size), as many outputs as there are names.
            device: "cpu" or "cuda".
            threads: of PyTorch in this process, on a CPU; 0 leaves what is set.
            size: of the input, pixels.
            output_names: of the outputs, in their order.
        """
        if threads:
            torch.set_num_threads(threads)
        self._model: torch.nn.Module | None = model.float().eval().to(device)
        self._device = device
        self.inputs = {"images": TensorSpec(("batch", 3, size, size), np.dtype(np.float32))}
        self.outputs = {name: TensorSpec(("batch", "channels", "height", "width"), np.dtype(np.float32))
                        for name in output_names}
        where = torch.cuda.get_device_name() if device == "cuda" else f"CPU {torch.get_num_threads()} threads"
        self.label = f"torch {torch.__version__} eager · {where}"

    def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; see `engine.Runner.infer`."""
        if self._model is None:
            raise BackendError("runner: got a closed one, expected an open one; make another TorchRunner")
        check_feed(feed, self.inputs)
        with torch.inference_mode():
            heads = self._model(torch.from_numpy(feed["images"]).to(self._device))
            return {name: head.cpu().numpy() for name, head in zip(self.outputs, heads, strict=True)}

    def close(self) -> None:
        """Let go of the module; a second call does nothing."""
        self._model = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
