"""The kit's own classifier: handwritten digits, seconds of training, a residual block. Lesson 04.

scikit-learn carries 1,797 real digits of 8x8 pixels, so neither data nor weights need a download. The network is small,
and yet has all that makes pruning interesting: convolutions behind each other, an addition that ties channels
together, a stride, and a flatten in front of a linear layer.
Source of the data: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository.
"""

import copy
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from trtkit.export import export_onnx
from trtkit.progress import bar
from trtkit.pytorch import nn, torch

CLASSES = 10
SIDE = 8                    # pixels
TRAIN_IMAGES = 897          # of 1,797; a large test half makes its accuracy sure to 0.4 points


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The digits, shuffled once and for all.

    Returns:
        x_train (897, 1, 8, 8) and its labels (897,), x_test (900, 1, 8, 8) and its labels (900,): float32 in [0, 1] and
        int64 in 0 ... 9.
    """
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)        # grey levels 0 ... 16
    order = np.random.default_rng(0).permutation(len(x))
    train, test = np.split(order, [TRAIN_IMAGES])
    labels = digits.target.astype(np.int64)
    return x[train], labels[train], x[test], labels[test]


def conv_bn_relu(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution without bias, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class Residual(nn.Module):
    """relu(x + second(first(x))): what is added must have as many channels as x."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = conv_bn_relu(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return nn.functional.relu(x + self.second(self.first(x)))


class Digits(nn.Module):
    """Six convolutions and two linear layers; 178 thousand parameters at the default width.

    Args:
        channels: of the stem and its block; twice as many behind the stride. At least 1.

    Input: (N, 1, 8, 8) float in [0, 1]. Output: (N, 10) logits.

    Raises:
        ValueError: channels below 1.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: got {channels}, expected at least 1; 32 is the lesson's")
        self.stem = conv_bn_relu(1, channels)
        self.block = Residual(channels)
        self.down = conv_bn_relu(channels, 2 * channels, 2)
        self.block2 = Residual(2 * channels)
        self.hidden = nn.Linear(2 * channels * (SIDE // 2) ** 2, 2 * channels)
        self.out = nn.Linear(2 * channels, CLASSES)

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.block2(self.down(self.block(self.stem(x_nchw))))
        return self.out(nn.functional.relu(self.hidden(x.flatten(1))))


def train(
    model: nn.Module, *, epochs: int = 15, lr: float = 3e-3, batch: int = 64, seed: int = 0, progress: bool = True
) -> nn.Module:
    """Train on the training half, on the CPU.

    Args:
        model: of this module, pruned or not; unchanged.
        epochs: passes over the training half, at least 1; a quarter of a second each on two cores.
        lr: peak of AdamW's learning rate, which rises and falls once; a tenth of the default for fine-tuning.
        batch: images per step.
        seed: of the images' order.
        progress: show a bar.

    Returns:
        A trained copy in eval mode.

    Raises:
        ValueError: epochs or batch below 1, or lr not above 0.
        FloatingPointError: the loss is no longer finite.
    """
    if epochs < 1 or batch < 1 or not lr > 0:
        raise ValueError(f"train: got epochs={epochs}, batch={batch}, lr={lr}, expected at least 1, 1 and above 0")
    trained = copy.deepcopy(model).train()
    x, labels = (torch.from_numpy(a) for a in load()[:2])
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(trained.parameters(), lr, weight_decay=0.02)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for epoch in bar(range(epochs), "train", unit="epoch", show=progress):
        for pick in torch.randperm(len(x), generator=rng).split(batch):
            loss = nn.functional.cross_entropy(trained(x[pick]), labels[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if not loss.isfinite():
            raise FloatingPointError(f"train: loss is {loss.item()} in epoch {epoch}; lower lr (now {lr})")
    return trained.eval()


def accuracy(model: nn.Module) -> float:
    """Share of the 900 test digits that a model names right, in [0, 1]; two standard errors are at most 0.033, and
    0.009 where 98 % are right."""
    _, _, x, labels = load()
    return top1(logits(model, x), labels)


def logits(model: nn.Module, x_nchw: np.ndarray) -> np.ndarray:
    """(N, 10) float32 logits of images (N, 1, 8, 8), as the model gives them in eval mode."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        y = model(torch.from_numpy(x_nchw)).numpy()
    model.train(training)
    return y


def top1(y: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows of (N, 10) logits whose largest is at the label."""
    return float((y.argmax(1) == labels).mean())


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())


def to_graph(model: nn.Module, path: Path, *, batch: int = 256) -> Path:
    """Write an ONNX graph: BatchNorm folded, FP32; input "images" (batch, 1, 8, 8), output "logits" (batch, 10).

    Args:
        model: of this module, pruned or not.
        path: of the .onnx file.
        batch: fixed, so that every tensor's shape is known; many at once, since one digit is too little work to time.

    Returns:
        `path`.

    Raises:
        ValueError: batch below 1.
    """
    if batch < 1:
        raise ValueError(f"batch: got {batch}, expected at least 1")
    return export_onnx(model, path, size=SIDE, channels=1, batch=batch, output_names=("logits",))
