"""The loss between two networks' heads: closed forms, gradients, and a short fine-tuning that lowers it."""

import math

import pytest
import torch
from conftest import randomize_batchnorm, without_channels
from hypothesis import given
from hypothesis import strategies as st
from test_train import QUICK, _fit, _model, _set

from trtkit import train
from trtkit.distill import distillation_loss
from trtkit.models import YOLOv3
from trtkit.train import TrainConfig

SIDES = (1, 2, 4)
FINE = TrainConfig(steps=10, batch=3, warmup=3, lr=5e-3, augment=False)


def heads(seed: int, *, classes: int = 2, batch: int = 2) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(batch, 3 * (5 + classes), s, s, generator=rng) for s in SIDES]


def kl(t: float, s: float) -> float:
    """Of two Bernoulli variables, from their logits, as in the textbook."""
    p, q = (1 / (1 + math.exp(-x)) for x in (t, s))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@given(st.integers(0, 10**6))
def test_it_is_zero_for_equal_heads_and_above_for_others(seed):
    teacher, student = heads(seed), heads(seed + 1)
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0, abs=1e-5)
    assert distillation_loss(student, teacher) > 0.1


def one_box(objectness: float, **channels: float) -> list[torch.Tensor]:
    """One image of one class; all boxes are empty but one, in the coarsest head."""
    made = [torch.zeros(1, 3 * 6, s, s) for s in SIDES]
    for head in made:
        head[:, 4::6] = -40.0
    box = made[0].view(3, 6)[1]
    box[4] = objectness
    for name, value in channels.items():
        box[("tx", "ty", "tw", "th", "_", "k").index(name)] = value
    return made


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ({"k": 1.0}, {"k": -0.5}, kl(1.0, -0.5)),
        ({"tw": 0.3}, {"tw": 0.1}, 0.2**2),
        ({"th": -1.0}, {}, 1.0),
        ({"tx": 2.0}, {}, (1 / (1 + math.exp(-2.0)) - 0.5) ** 2),
        ({"ty": 2.0, "tw": 0.5}, {}, (1 / (1 + math.exp(-2.0)) - 0.5) ** 2 + 0.25),
    ],
)
def test_classes_and_boxes_count_as_far_as_the_teacher_sees_an_object(teacher, student, expected):
    sure = distillation_loss(one_box(12.0, **student), one_box(12.0, **teacher))
    assert float(sure) == pytest.approx(expected, rel=1e-3)
    unsure = distillation_loss(one_box(0.0, **student), one_box(0.0, **teacher))       # half an object, divided by 1
    assert float(unsure) == pytest.approx(expected / 2, rel=1e-3)
    nothing = distillation_loss(one_box(-40.0, **student), one_box(-40.0, **teacher))
    assert float(nothing) == pytest.approx(0, abs=1e-9)


def test_objectness_counts_everywhere():
    got = distillation_loss(one_box(-1.0), one_box(2.0))
    assert float(got) == pytest.approx(kl(2.0, -1.0), rel=1e-3)
    assert float(distillation_loss(one_box(2.0), one_box(-40.0))) == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-3)


def test_twice_the_images_cost_the_same():
    teacher, student = heads(0), heads(1)
    twice = [[torch.cat([h, h]) for h in both] for both in (student, teacher)]
    torch.testing.assert_close(distillation_loss(*twice), distillation_loss(student, teacher))


def test_the_gradient_flows_into_the_student_alone():
    teacher = [h.requires_grad_() for h in heads(0)]
    student = [h.requires_grad_() for h in heads(1)]
    distillation_loss(student, teacher).backward()
    assert all(h.grad is None for h in teacher)
    assert all(h.grad.isfinite().all() and h.grad.abs().sum() > 0 for h in student)


def test_extreme_logits_stay_finite():
    student, teacher = ([s * h.sign() * 90 for h in heads(0)] for s in (1, -1))
    student = [h.requires_grad_() for h in student]
    loss = distillation_loss(student, teacher)
    loss.backward()
    assert loss.isfinite() and all(h.grad.isfinite().all() for h in student)


def test_heads_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"got \[\(2, 24, 1, 1\).*expected the teacher's \[\(2, 21, 1, 1\)"):
        distillation_loss(heads(0, classes=3), heads(0))


# --- in a training ---


def pruned_pair() -> tuple[YOLOv3, YOLOv3]:
    """A network, and the same without half of the inner channels of some blocks."""
    teacher = student = randomize_batchnorm(_model(width=0.05))
    for block in ("stages.0.1", "stages.2.3", "stages.3.4", "stages.4.2"):
        kept = range(0, student.get_submodule(block).reduce[0].out_channels, 2)
        student = without_channels(student, block, list(kept))
    return student, teacher


def term(student, teacher) -> float:
    x = torch.from_numpy(_set().images_u8).float() / 255
    with torch.no_grad():
        return float(distillation_loss(student.train()(x), teacher.eval()(x)))


def test_a_short_fine_tuning_with_a_teacher_lowers_the_term_more_than_one_without():
    after = {}
    for name in ("with", "without"):
        student, teacher = pruned_pair()
        before, state = term(student, teacher), {k: v.clone() for k, v in teacher.state_dict().items()}
        average = _fit(student, FINE, teacher=teacher if name == "with" else None)
        assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())
        assert [v.shape for v in average.state_dict().values()] == [v.shape for v in student.state_dict().values()]
        after[name] = term(student, teacher)
    assert after["with"] < 0.75 * before and after["with"] < 0.8 * after["without"]


def test_the_teacher_is_asked_in_eval_mode_and_left_in_its_own(monkeypatch):
    seen, real = [], YOLOv3.forward

    def watched(self, x):
        seen.append((self.training, torch.is_grad_enabled()))
        return real(self, x)

    monkeypatch.setattr(YOLOv3, "forward", watched)
    teacher = _model(seed=1).train()
    _fit(_model(), teacher=teacher)
    assert seen == [(True, True), (False, False)] * QUICK.steps and teacher.training


def test_a_checkpoint_goes_on_with_the_same_teacher_only(tmp_path):
    path = tmp_path / "c.safetensors"
    _fit(_model(), teacher=_model(seed=1), checkpoint=path, stop=2)
    assert _fit(_model(), teacher=_model(seed=1), checkpoint=path, stop=3) is not None
    for other in (_model(seed=2), None):
        with pytest.raises(ValueError, match=r"was made with .*'teacher': '[0-9a-f]{16}'.*delete or match it"):
            _fit(_model(), teacher=other, checkpoint=path)


def test_a_teacher_with_other_classes_is_refused():
    with pytest.raises(ValueError, match="both networks need the same classes"):
        _fit(_model(), teacher=_model(classes=3))


def test_the_teachers_term_is_added_to_the_loss(monkeypatch):
    """With the objects' own loss taken away, what is left moves the student towards the teacher."""
    monkeypatch.setattr(train, "yolo_loss", lambda heads, *_: sum(h.sum() for h in heads) * 0)
    student, teacher = pruned_pair()
    before = term(student, teacher)
    _fit(student, FINE, teacher=teacher)
    assert term(student, teacher) < 0.75 * before
