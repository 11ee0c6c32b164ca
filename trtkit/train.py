"""Training YOLOv3 from scratch on rendered scenes. Lessons 04, 06 and 10 fine-tune with it.

loss = (3 * sum CIoU(box, object) + sum BCE(objectness) + sum BCE(classes)) / number of positives
An object's positives are its best anchor by shape and every other anchor with a shape IoU above 0.5, in the cell of
its centre. Other predictions that overlap an object by more than 0.5 are left out of the objectness term, as in the
paper; the box term is CIoU where the paper has squared errors, since it is what mAP measures.
Source: Redmon and Farhadi 2018, section 2.1; Zheng et al. 2020, "Distance-IoU Loss", equation 10.
"""

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from trtkit.data import TrainingSet
from trtkit.distill import distillation_loss
from trtkit.files import replacing
from trtkit.models import YOLOv3, fingerprint
from trtkit.progress import bar
from trtkit.yolo import ANCHORS, STRIDES

BOX_GAIN = 3.0
SHAPE_IOU_THR = 0.5
IGNORE_IOU_THR = 0.5
MIN_LEFT = 0.3              # of an object's area inside the image after augmentation, else it is ignored


@dataclass(frozen=True)
class TrainConfig:
    """What a training run depends on besides its data.

    `steps` of `batch` images; `lr` is the peak of a cosine after `warmup` steps; `augment` False for fine-tuning on the
    very images.
    """

    steps: int = 2000
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 200
    ema_decay: float = 0.999
    augment: bool = True
    seed: int = 0


def fit(
    model: YOLOv3,
    data: TrainingSet,
    config: TrainConfig = TrainConfig(),
    *,
    teacher: nn.Module | None = None,
    device: str | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    stop: int | None = None,
    progress: bool = True,
) -> YOLOv3:
    """Train a network, in mixed precision on a GPU, and return the moving average of its weights.

    Args:
        model: trained in place; pruned or not.
        data: see `data.training_set`.
        config: see `TrainConfig`.
        teacher: a network with the same heads, left as it is, whose `distill.distillation_loss` is added to the loss,
            for example the one from which `model` was pruned.
        device: "cuda", "cpu", or None for the GPU where there is one.
        checkpoint: safetensors file, written every `checkpoint_every` steps; if it exists, training goes on from it.
        checkpoint_every: steps.
        stop: end after this many of `config.steps`; the schedule stays that of all of them.
        progress: show a bar with the loss.

    Returns:
        A second network, on the CPU in eval mode, that holds the exponential moving average.

    Raises:
        ValueError: the checkpoint belongs to another configuration, network or teacher; a teacher with other heads.
        FloatingPointError: the loss is no longer finite.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(model)              # not a network of its width anew: a pruned one has other channels
    made_for = {"config": asdict(config), "teacher": fingerprint(teacher)[:16] if teacher is not None else ""}
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(device, memory_format=torch.channels_last).eval()
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), config.lr, fused=True)
    start = _load_checkpoint(checkpoint, made_for, model, average, optimizer) if checkpoint else 0
    images = torch.from_numpy(data.images_u8).to(device)
    boxes, labels = torch.from_numpy(data.boxes_xyxy).to(device), torch.from_numpy(data.labels).to(device)
    averaged, current = _float_tensors(average), _float_tensors(model)

    last = min(stop or config.steps, config.steps)
    steps = bar(range(start, last), "train", total=last, unit="step", show=progress, initial=start)
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        # A generator per step: a resumed run sees the batches that an uninterrupted one would have seen.
        rng = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
        pick = torch.randint(len(images), (config.batch,), generator=rng, device=device)
        x, b, k = images[pick].float().div_(255), boxes[pick], labels[pick]
        if config.augment:
            x, b, k = augment(x, b, k, rng)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            heads = [h.float() for h in model(x)]
            with torch.no_grad():
                wanted = [h.float() for h in teacher(x)] if teacher is not None else []
        total = yolo_loss(heads, b, k)
        if teacher is not None:
            total = total + distillation_loss(heads, wanted)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        torch._foreach_lerp_(averaged, current, 1 - min(config.ema_decay, (step + 1) / (step + 10)))
        save = checkpoint and ((step + 1) % checkpoint_every == 0 or step + 1 == last)
        if step % 50 == 0 or step + 1 == last or save:  # not always: reading the loss waits for the GPU
            value = total.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"train: loss is {value} at step {step}; lower lr (now {config.lr})")
            steps.set_postfix(loss=f"{value:.3f}")
        if save:
            _save_checkpoint(checkpoint, step + 1, made_for, model, average, optimizer)
    return average.cpu().eval()


def init_head_bias(model: YOLOv3, prior: float = 0.01) -> None:
    """Set the objectness biases so that a fresh network says "nothing here" with probability 1 - `prior`.

    Without it the 10,647 empty boxes swamp the first steps. Source: Lin et al. 2017, "Focal Loss", section 4.1.
    """
    for head in (model.head32, model.head16, model.head8):
        bias = head.predict.bias.detach().view(3, -1)           # (A, 5+K), a view: writes go through
        bias[:, 4] = -math.log((1 - prior) / prior)


def _parameter_groups(model: YOLOv3, weight_decay: float) -> list[dict]:
    """Decay kernels only; shrinking BatchNorm's gamma or a bias changes the function, not its complexity."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up to 1, then a cosine to 0.01."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    t = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * t)) / 2


def _float_tensors(model: YOLOv3) -> list[torch.Tensor]:
    """Parameters and running statistics, detached: writes go to the model and leave no gradient behind."""
    return [v for v in model.state_dict().values() if v.is_floating_point()]


def augment(
    x_nchw: torch.Tensor, boxes_xyxy: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mirror, scale by 0.7 to 1.4, shift by up to 15 %, and change brightness, contrast and saturation.

    Args:
        x_nchw: (B, 3, S, S) float in [0, 1].
        boxes_xyxy: (B, M, 4) float, pixels.
        labels: (B, M) int64, negative where there is no object.
        rng: on the device of the tensors.

    Returns:
        The same three, changed; an object that is mostly outside gets the label -2 (ignored) or -1 (gone).
    """
    batch, size = x_nchw.shape[0], x_nchw.shape[-1]

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(batch, generator=rng, device=x_nchw.device) * (high - low) + low

    zoom, flip = torch.exp(uniform(math.log(0.7), math.log(1.4))), torch.sign(uniform(-1, 1))
    shift_x, shift_y = uniform(-0.3, 0.3), uniform(-0.3, 0.3)           # in half images: 0.3 is 15 % of the side
    zero = torch.zeros_like(zoom)
    # Sampling asks for the source of each target pixel, so this is the inverse of what happens to the boxes.
    theta = torch.stack([flip / zoom, zero, -flip * shift_x / zoom, zero, 1 / zoom, -shift_y / zoom], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x_nchw.shape), align_corners=False)
    moved = F.grid_sample(x_nchw - 0.5, grid, align_corners=False) + 0.5       # outside is grey, as in the letterbox

    centre = size / 2
    scale = torch.stack([flip * zoom, zoom], 1)[:, None]                # (B, 1, 2)
    shift = torch.stack([shift_x, shift_y], 1)[:, None] * centre
    corners = [(boxes_xyxy[..., i : i + 2] - centre) * scale + shift + centre for i in (0, 2)]
    full = torch.cat([torch.minimum(*corners), torch.maximum(*corners)], -1)    # a mirror swaps left and right
    boxes = full.clamp(0, size)
    sides, full_sides = (b[..., 2:] - b[..., :2] for b in (boxes, full))
    left = sides.prod(-1) / full_sides.prod(-1).clamp(min=1e-6)
    labels = torch.where((labels >= 0) & ((left < MIN_LEFT) | (sides.amin(-1) < 3)), -2, labels)
    labels = torch.where(sides.amin(-1) <= 0, -1, labels)

    gain, contrast, saturation = (uniform(1 - a, 1 + a).view(-1, 1, 1, 1) for a in (0.25, 0.25, 0.3))
    grey = moved.mean(1, keepdim=True)
    moved = (grey + (moved - grey) * saturation - 0.5) * contrast + 0.5
    return (moved * gain).clamp(0, 1), boxes, labels


def _shape_iou(wh: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """(..., 2) and (9, 2) to (..., 9): IoU of boxes that share a centre."""
    overlap = torch.minimum(wh[..., None, :], anchors).prod(-1)
    return overlap / (wh.prod(-1)[..., None] + anchors.prod(-1) - overlap).clamp(min=1e-6)


def _iou(a_xyxy: torch.Tensor, b_xyxy: torch.Tensor) -> torch.Tensor:
    """(B, N, 4) and (B, M, 4) to (B, N, M); torchvision's box_iou takes one image at a time."""
    top_left = torch.maximum(a_xyxy[:, :, None, :2], b_xyxy[:, None, :, :2])
    bottom_right = torch.minimum(a_xyxy[:, :, None, 2:], b_xyxy[:, None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a_xyxy, b_xyxy))
    return overlap / (area_a[:, :, None] + area_b[:, None] - overlap).clamp(min=1e-6)


def yolo_loss(heads: list[torch.Tensor], boxes_xyxy: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of a batch; see the module's first lines.

    Args:
        heads: three tensors (B, 3 * (5 + K), H, W) float32, strides 32, 16, 8.
        boxes_xyxy: (B, M, 4) float32, pixels of the network input.
        labels: (B, M) int64; -1 no object, -2 an object to ignore.

    Returns:
        A scalar.
    """
    from torchvision.ops import complete_box_iou_loss

    anchors = torch.from_numpy(ANCHORS).to(boxes_xyxy)                  # (3, A, 2)
    wh = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    centre = (boxes_xyxy[..., 2:] + boxes_xyxy[..., :2]) / 2
    shape_iou = _shape_iou(wh, anchors.view(-1, 2))                     # (B, M, 9)
    best = F.one_hot(shape_iou.argmax(-1), shape_iou.shape[-1]).bool()
    assigned = (best | (shape_iou > SHAPE_IOU_THR)) & (labels >= 0)[..., None]
    assigned = assigned.view(*labels.shape, *anchors.shape[:2])         # (B, M, 3, A)
    present = labels != -1                                              # ignored objects too silence objectness

    box_sum = objectness_sum = class_sum = boxes_xyxy.new_zeros(())
    for i, (head, stride) in enumerate(zip(heads, STRIDES, strict=True)):
        b_size, _, height, width = head.shape
        t = head.view(b_size, anchors.shape[1], -1, height, width).permute(0, 1, 3, 4, 2)       # (B, A, H, W, 5+K)
        cell = torch.stack(torch.meshgrid(*(torch.arange(n, device=head.device) for n in (width, height)),
                                          indexing="xy"), -1)                                   # (H, W, 2) as x, y
        xy = (t[..., 0:2].sigmoid() + cell) * stride
        half = anchors[i, :, None, None] * t[..., 2:4].clamp(max=8).exp() / 2
        predicted = torch.cat([xy - half, xy + half], -1)                                       # (B, A, H, W, 4)

        b, m, a = assigned[:, :, i].nonzero(as_tuple=True)
        gx, gy = (centre[b, m] / stride).long().unbind(-1)
        gx, gy = gx.clamp(0, width - 1), gy.clamp(0, height - 1)
        target = torch.zeros_like(t[..., 4])
        target[b, a, gy, gx] = 1
        with torch.no_grad():
            overlap = (_iou(predicted.reshape(b_size, -1, 4), boxes_xyxy) * present[:, None]).amax(2).view_as(target)
            counts = (overlap <= IGNORE_IOU_THR) | (target == 1)
        bce = F.binary_cross_entropy_with_logits(t[..., 4], target, reduction="none")
        objectness_sum = objectness_sum + (bce * counts).sum()
        hits = t[b, a, gy, gx]                                                                  # (P, 5+K)
        box_sum = box_sum + complete_box_iou_loss(predicted[b, a, gy, gx], boxes_xyxy[b, m], reduction="sum")
        one_hot = F.one_hot(labels[b, m], hits.shape[-1] - 5).float()
        class_sum = class_sum + F.binary_cross_entropy_with_logits(hits[:, 5:], one_hot, reduction="sum")
    return (BOX_GAIN * box_sum + objectness_sum + class_sum) / assigned.sum().clamp(min=1)


def _named_state(model: YOLOv3, average: YOLOv3, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    state |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{slot}": v for slot, v in slots.items()}
    return state


def _save_checkpoint(path: Path, step: int, made_for: dict, model, average, optimizer) -> None:
    from safetensors.torch import save_file

    state = {k: v.contiguous().cpu() for k, v in _named_state(model, average, optimizer).items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"step": str(step), "made_for": json.dumps(made_for, sort_keys=True)})


def _load_checkpoint(path: Path, made_for: dict, model, average, optimizer) -> int:
    """Restore everything and return the step to go on with; 0 if there is no checkpoint."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            meta, state = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as e:
        raise ValueError(f"checkpoint: {path} is no intact safetensors file ({e}); delete it to start again") from e
    if (got := json.loads((meta or {}).get("made_for", "null"))) != made_for:
        raise ValueError(f"checkpoint: {path} was made with {got}, expected {made_for}; delete or match it")
    for prefix, module in (("model.", model), ("average.", average)):
        try:
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        except RuntimeError as e:
            raise ValueError(f"checkpoint: {path} holds another network ({e}); delete it or match the network") from e
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused step walks memory, so each moment must lie as its parameter does: channels last.
    for parameter, moments in optimizer.state.items():
        for slot, value in moments.items():
            if value.shape == parameter.shape:
                moments[slot] = torch.empty_like(parameter).copy_(value)
    return int(meta["step"])
