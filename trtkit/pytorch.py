"""PyTorch, or one line that says how to install it: for modules that cannot do without.

`import torch` would do where it is installed. Lessons without it need the rest of the package, and whoever meets the
error should know the extra's name.
"""

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        "PyTorch is not installed, and this needs it: pip install --editable '.[torch]'", name=e.name
    ) from e

__all__ = ["Tensor", "nn", "torch"]
