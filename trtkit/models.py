"""YOLOv3, the network of the paper. Lessons 05, 10, 11.

75 convolutions, 23 shortcuts, two upsamplings, three heads: Darknet-53 (52 convolutions) and a feature pyramid (23).
Source: Redmon and Farhadi 2018, table 1, and darknet's yolov3.cfg. At width 1 and 80 classes: 61,949,149 trainable
parameters, 62,001,757 floats with the running statistics, 65.86 GFLOPs at 416x416.
Modules are created in darknet's order, so weights of either layout can be read in one pass.
"""

import hashlib
from pathlib import Path

from trtkit.files import replacing
from trtkit.heads import ANCHORS_PER_HEAD
from trtkit.pytorch import nn, torch

BLOCKS = (1, 2, 8, 8, 4)                     # residual blocks after each of the five halvings


def conv_bn_leaky(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, LeakyReLU(0.1): 72 of the 75 convolutions."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out, momentum=0.03),
        nn.LeakyReLU(0.1, inplace=True),
    )


class Residual(nn.Module):
    """x + conv3x3(conv1x1(x)), darknet's shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = conv_bn_leaky(channels, channels // 2, 1)
        self.expand = conv_bn_leaky(channels // 2, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.expand(self.reduce(x))


class Head(nn.Module):
    """Five convolutions that the next scale shares, then the 3x3 and the linear 1x1 that predict."""

    def __init__(self, c_in: int, c_mid: int, c_out: int):
        super().__init__()
        self.neck = nn.Sequential(
            conv_bn_leaky(c_in, c_mid, 1),
            conv_bn_leaky(c_mid, c_mid * 2, 3),
            conv_bn_leaky(c_mid * 2, c_mid, 1),
            conv_bn_leaky(c_mid, c_mid * 2, 3),
            conv_bn_leaky(c_mid * 2, c_mid, 1),
        )
        self.expand = conv_bn_leaky(c_mid, c_mid * 2, 3)
        self.predict = nn.Conv2d(c_mid * 2, c_out, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, c_in, H, W) -> features (N, c_mid, H, W) and predictions (N, c_out, H, W)."""
        features = self.neck(x)
        return features, self.predict(self.expand(features))


class YOLOv3(nn.Module):
    """YOLOv3 with scaled channels.

    Args:
        num_classes: K, at least 1.
        width: factor on all channels, rounded to a multiple of 8, at least 8. 1 is the paper's network.

    Input: (N, 3, H, W) float in [0, 1], H and W multiples of 32.
    Output: three tensors (N, 3 * (5 + K), H/s, W/s) for the strides s = 32, 16, 8, channels in the order
    tx, ty, tw, th, objectness, classes for each of three anchors; `yolo.decode` turns them into boxes.

    Raises:
        ValueError: num_classes below 1, width not above 0, or an input that is no multiple of 32.
    """

    def __init__(self, num_classes: int, width: float = 1.0):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes}, expected at least 1")
        if not width > 0:
            raise ValueError(f"width: got {width}, expected a factor above 0; 1 is the paper's network, 0.25 the kit's")
        self.num_classes, self.width = num_classes, width
        # Halves of a residual block must stay whole, so channels are rounded where they are widest.
        c = [max(8, round(n * width / 8) * 8) for n in (32, 64, 128, 256, 512, 1024)]
        self.stem = conv_bn_leaky(3, c[0], 3)
        self.stages = nn.ModuleList(
            nn.Sequential(conv_bn_leaky(c[i], c[i + 1], 3, 2), *(Residual(c[i + 1]) for _ in range(blocks)))
            for i, blocks in enumerate(BLOCKS)
        )
        c_out = ANCHORS_PER_HEAD * (5 + num_classes)
        self.head32 = Head(c[5], c[5] // 2, c_out)
        self.lateral16 = conv_bn_leaky(c[5] // 2, c[4] // 2, 1)
        self.head16 = Head(c[4] // 2 + c[4], c[4] // 2, c_out)
        self.lateral8 = conv_bn_leaky(c[4] // 2, c[3] // 2, 1)
        self.head8 = Head(c[3] // 2 + c[3], c[3] // 2, c_out)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x_nchw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See the class."""
        if x_nchw.shape[-1] % 32 or x_nchw.shape[-2] % 32:
            raise ValueError(f"x_nchw: got {tuple(x_nchw.shape)}, expected H and W multiples of 32; use yolo.letterbox")
        x, taps = self.stem(x_nchw), []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        features, out32 = self.head32(taps[4])
        x = torch.cat([self.upsample(self.lateral16(features)), taps[3]], 1)    # route 86 of yolov3.cfg
        features, out16 = self.head16(x)
        x = torch.cat([self.upsample(self.lateral8(features)), taps[2]], 1)     # route 98
        _, out8 = self.head8(x)
        return out32, out16, out8


def use_relu(model: YOLOv3) -> YOLOv3:
    """Put ReLU in the place of every LeakyReLU, in the network itself, and return it; it must be trained on then.

    Codes of 8 bits are never negative where a ReLU wrote them, so a kernel that clips its codes has done the ReLU; a
    LeakyReLU is one more pass over the tensor, on a CPU.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(parent, name, nn.ReLU(inplace=True))
    return model


def save_weights(model: YOLOv3, path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write all parameters and running statistics as FP16 safetensors, with what is needed to rebuild the network.

    Args:
        model: the network; of one whose channels were pruned, or with ReLU, the metadata say so.
        path: ends in .safetensors; written to a temporary file first, so an interrupted save leaves the old one.
        metadata: strings kept beside num_classes and width (seeds, steps, mAP).

    Raises:
        ValueError: a number that FP16 cannot hold, beyond 65,504 or NaN (named).
    """
    from safetensors.torch import save_file

    # num_batches_tracked is a training counter, of no use to inference.
    tensors = {k: v.detach().half().contiguous().cpu() for k, v in model.state_dict().items() if v.is_floating_point()}
    if broken := [k for k, v in tensors.items() if not v.isfinite().all()]:
        raise ValueError(f"weights: {broken[0]}: got numbers that FP16 cannot hold, expected finite ones up to 65,504; "
                         "the training diverged")
    whole = _on_meta(model.num_classes, model.width).state_dict()
    pruned = {"pruned": "true"} if any(v.shape != whole[k].shape for k, v in tensors.items() if k in whole) else {}
    relu = {"activation": "relu"} if any(isinstance(m, nn.ReLU) for m in model.modules()) else {}
    meta = {"num_classes": str(model.num_classes), "width": str(model.width), **pruned, **relu, **(metadata or {})}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=meta)


def load_weights(path: Path) -> YOLOv3:
    """Rebuild a network from `save_weights`' file, in FP32 and eval mode.

    Args:
        path: a .safetensors file. Pickles (.pt, .pth, .pkl) are refused: loading one runs code from it.

    Returns:
        The network with its weights.

    Raises:
        FileNotFoundError, ValueError: see `weights.read_weights`; and tensors of another network.
    """
    from trtkit.weights import activation, read_weights  # here: it needs onnx, and a network alone does not

    path = Path(path)
    arrays, meta = read_weights(path)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        network = _on_meta(int(meta["num_classes"]), float(meta["width"]))
    except (ValueError, OverflowError, RuntimeError) as e:
        raise ValueError(f"weights: {path.name} has metadata {meta} that makes no network ({e})") from e
    if activation(meta) == "relu":
        use_relu(network)
    if meta.get("pruned") == "true":
        from trtkit.channels import reshaped  # here, since it imports this module

        network = reshaped(network, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    expected = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    for name, tensor in expected.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            got = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(f"weights: {name}: got {got}, expected {tuple(tensor.shape)}; another network's file?")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"weights: got {len(extra)} tensors that YOLOv3 lacks, first {extra[0]}; another network's?")
    model = network.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()          # the one thing that a file does not hold
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a network's numbers with their names, shapes and types: what a checkpoint was made for."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _on_meta(num_classes: int, width: float) -> YOLOv3:
    """Shapes without memory: a damaged width may ask for terabytes."""
    with torch.device("meta"):
        return YOLOv3(num_classes, width)
