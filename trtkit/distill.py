"""A pruned network that learns from the one it was cut from: distillation of YOLOv3's heads. Lesson 04.

    L = sum KL(o_t || o_s) + sum o_t * KL(p_t || p_s) + sum o_t * |b_t - b_s|^2,    divided by sum o_t
o is a box's objectness, p its classes, b = (sigmoid(tx), sigmoid(ty), tw, th); t is the teacher, s the student. Nearly
all of the 10,647 boxes are background, about whose place and class the teacher knows nothing: so its objectness
weighs the two other terms. KL of two Bernoulli variables is cross-entropy less what the teacher's own doubt costs: its
gradient is cross-entropy's, and equal networks have a loss of 0.
Source: Mehta and Ozturk 2018, "Object Detection at 200 Frames per Second", "Objectness scaled distillation", where all
three terms are squared errors.
"""

import torch
import torch.nn.functional as F

from trtkit.heads import ANCHORS_PER_HEAD


def distillation_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """How far a network's heads are from another one's; see the module's first lines.

    Args:
        student: three tensors (B, 3 * (5 + K), H, W) float32.
        teacher: the same of the other network; no gradient flows into them.

    Returns:
        A scalar of at least 0; the sum of the teacher's objectness counts as at least 1, as positives do in
        `train.yolo_loss`.

    Raises:
        ValueError: heads of other shapes, for example of another number of classes.
    """
    if (got := [tuple(h.shape) for h in student]) != (expected := [tuple(h.shape) for h in teacher]):
        raise ValueError(f"heads: got {got}, expected the teacher's {expected}; both networks need the same classes "
                         "and the same input")
    total = objects = student[0].new_zeros(())
    for head_s, head_t in zip(student, teacher, strict=True):
        s, t = _per_box(head_s), _per_box(head_t.detach())
        objectness = t[:, :, 4].sigmoid()                               # (B, A, H, W)
        classes = _bernoulli_kl(s[:, :, 5:], t[:, :, 5:]).sum(2)
        centre = (s[:, :, :2].sigmoid() - t[:, :, :2].sigmoid()).square().sum(2)
        size = (s[:, :, 2:4] - t[:, :, 2:4]).square().sum(2)
        total = total + (_bernoulli_kl(s[:, :, 4], t[:, :, 4]) + objectness * (classes + centre + size)).sum()
        objects = objects + objectness.sum()
    return total / objects.clamp(min=1)


def _per_box(head: torch.Tensor) -> torch.Tensor:
    """(B, A * (5 + K), H, W) -> (B, A, 5 + K, H, W)."""
    return head.unflatten(1, (ANCHORS_PER_HEAD, -1))


def _bernoulli_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(sigmoid(teacher) || sigmoid(student)) of each logit."""
    p = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, p, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, p, reduction="none")
