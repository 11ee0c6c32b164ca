import numpy as np
import pytest
import torch
from conftest import without_channels
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from trtkit import train
from trtkit.data import TrainingSet
from trtkit.models import YOLOv3
from trtkit.train import TrainConfig, augment, fit, yolo_loss
from trtkit.yolo import ANCHORS, STRIDES, decode, iou

SIZE = 96
QUICK = TrainConfig(steps=6, batch=2, warmup=2, seed=3)


def _set(n: int = 3, seed: int = 0) -> TrainingSet:
    """One bright rectangle per image: red is class 0, blue is class 1."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (n, 3, SIZE, SIZE), dtype=np.uint8)
    boxes, labels = np.zeros((n, 4, 4), np.float32), np.full((n, 4), -1)
    for i in range(n):
        x0, y0 = rng.integers(4, 40, 2)
        w, h = rng.integers(20, 50, 2)
        labels[i, 0] = i % 2
        images[i, 2 * (i % 2), y0 : y0 + h, x0 : x0 + w] = 250
        boxes[i, 0] = x0, y0, x0 + w, y0 + h
    return TrainingSet(images, boxes, labels)


def _model(width: float = 0.01, classes: int = 2, seed: int = 0) -> YOLOv3:
    torch.manual_seed(seed)
    model = YOLOv3(classes, width)
    train.init_head_bias(model)
    return model


def _fit(model, config=QUICK, data=None, **kwargs):
    return fit(model, data or _set(), config, device="cpu", progress=False, **kwargs)


def _loss_of(model, data) -> float:
    x, boxes, labels = (torch.from_numpy(a) for a in (data.images_u8, data.boxes_xyxy, data.labels))
    with torch.no_grad():
        return float(yolo_loss(list(model.train()(x.float() / 255)), boxes, labels))


# --- the loop ---


def test_training_halves_the_loss_of_a_few_images():
    data, model = _set(), _model(width=0.25)
    before = _loss_of(model, data)
    average = _fit(model, TrainConfig(steps=30, batch=3, warmup=5, lr=2e-3, augment=False), data)
    assert _loss_of(model, data) < 0.5 * before
    assert not average.training and next(average.parameters()).device.type == "cpu"


class _StopError(Exception):
    pass


def _interrupt_after(monkeypatch, calls: int):
    real, count = train.yolo_loss, iter(range(10**9))

    def counted(*args):
        if next(count) >= calls:
            raise _StopError
        return real(*args)

    monkeypatch.setattr(train, "yolo_loss", counted)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = _model()
    whole_average = _fit(whole)
    path = tmp_path / "c.safetensors"
    with monkeypatch.context() as m, pytest.raises(_StopError):
        _interrupt_after(m, 4)
        _fit(_model(), checkpoint=path, checkpoint_every=3)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    resumed = _model(seed=99)                               # its weights must come from the checkpoint
    steps, schedule = [], train._schedule
    monkeypatch.setattr(train, "_schedule", lambda step, config: steps.append(step) or schedule(step, config))
    resumed_average = _fit(resumed, checkpoint=path, checkpoint_every=3)
    assert sorted(set(steps)) == [3, 4, 5]
    for a, b in ((whole, resumed), (whole_average, resumed_average)):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7, msg=name)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    first = _fit(_model(), checkpoint=path)
    _interrupt_after(monkeypatch, 0)
    again = _fit(_model(seed=5), checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_same_seed_trains_the_same_weights_and_another_seed_others():
    a, b = _fit(_model()), _fit(_model())
    c = _fit(_model(), TrainConfig(steps=6, batch=2, warmup=2, seed=4))
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(a.stem[0].weight, c.stem[0].weight, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "c.safetensors"
    _fit(_model(), checkpoint=path)
    return path


def test_a_checkpoint_of_another_configuration_is_refused(checkpoint):
    with pytest.raises(ValueError, match="seed"):
        _fit(_model(), TrainConfig(steps=6, batch=2, warmup=2, seed=4), checkpoint=checkpoint)


def test_a_checkpoint_of_another_network_is_refused(checkpoint):
    with pytest.raises(ValueError, match="another network"):
        _fit(_model(classes=3), checkpoint=checkpoint)


def test_a_pruned_network_trains_and_goes_on_from_its_own_checkpoint_alone(tmp_path):
    """Width and classes are those of the whole network; only the shapes tell them apart."""
    path = tmp_path / "c.safetensors"
    pruned = without_channels(_model(), "stages.3.2", [0, 2])
    whole_run = _fit(without_channels(_model(), "stages.3.2", [0, 2]))
    _fit(pruned, checkpoint=path, stop=3)
    average = _fit(without_channels(_model(seed=9), "stages.3.2", [0, 2]), checkpoint=path)
    assert average.stages[3][2].reduce[0].weight.shape[0] == 2
    for (name, a), b in zip(whole_run.state_dict().items(), average.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
    for other in (_model(), without_channels(_model(), "stages.3.2", [0, 1, 2])):
        with pytest.raises(ValueError, match=r"(?s)another network.*stages\.3\.2"):
            _fit(other, checkpoint=path)


def test_files_that_are_no_checkpoint_are_refused(checkpoint, tmp_path):
    path = tmp_path / "c.safetensors"
    for content in (b"", b"text", checkpoint.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="checkpoint"):
            _fit(_model(), checkpoint=path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="checkpoint"):
        _fit(_model(), checkpoint=path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    count, real = iter(range(100)), train.yolo_loss
    monkeypatch.setattr(train, "yolo_loss", lambda *a: real(*a) * (float("nan") if next(count) >= 3 else 1))
    with pytest.raises(FloatingPointError, match=r"step 3.*lr"):
        _fit(_model(), checkpoint=path, checkpoint_every=2)
    monkeypatch.undo()
    average = _fit(_model(), checkpoint=path, checkpoint_every=2)
    assert all(v.isfinite().all() for v in average.state_dict().values())


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    config = TrainConfig(steps=100, warmup=10)
    rates = [train._schedule(s, config) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1) and rates[55] == pytest.approx(0.505)
    assert 0.01 <= rates[-1] < 0.012 and (np.diff(rates[10:]) < 0).all()


def test_fresh_heads_say_nothing_is_here():
    model = _model()
    for head in (model.head32, model.head16, model.head8):
        objectness = torch.sigmoid(head.predict.bias.detach().view(3, -1)[:, 4])
        torch.testing.assert_close(objectness, torch.full((3,), 0.01))


# --- the loss ---


def _perfect(boxes, labels, classes: int) -> list[torch.Tensor]:
    """Logits that decode to the objects: for each the best anchor by shape, and all that fit better than 0.5."""
    heads = [torch.full((len(boxes), 3 * (5 + classes), SIZE // s, SIZE // s), -12.0) for s in STRIDES]
    for b in range(len(boxes)):
        for box, k in zip(boxes[b], labels[b], strict=True):
            if k < 0:
                continue
            w, h = (box[2:] - box[:2]).tolist()
            cx, cy = ((box[2:] + box[:2]) / 2).tolist()
            both = [min(w, pw) * min(h, ph) for pw, ph in ANCHORS.reshape(9, 2)]
            shapes = [o / (w * h + pw * ph - o) for o, (pw, ph) in zip(both, ANCHORS.reshape(9, 2), strict=True)]
            for n, overlap in enumerate(shapes):
                if overlap > 0.5 or n == int(np.argmax(shapes)):
                    i, a = divmod(n, 3)
                    s, (pw, ph) = STRIDES[i], ANCHORS[i, a]
                    gx, gy = int(cx / s), int(cy / s)
                    t = heads[i][b].view(3, 5 + classes, *heads[i].shape[2:])[a, :, gy, gx]
                    inside = torch.tensor([cx / s - gx, cy / s - gy])
                    t[:2] = torch.logit(inside, eps=1e-6)
                    t[2:4] = torch.tensor([w / pw, h / ph]).log()
                    t[4] = t[5 + k] = 12.0
    return heads


def _objects(seed: int = 0):
    data = _set(3, seed)
    return torch.from_numpy(data.boxes_xyxy), torch.from_numpy(data.labels)


@pytest.mark.parametrize("seed", range(3))
def test_perfect_logits_cost_almost_nothing_and_decode_to_the_objects(seed):
    boxes, labels = _objects(seed)
    heads = _perfect(boxes, labels, 2)
    assert 0 <= yolo_loss(heads, boxes, labels) < 0.02
    for b in range(len(boxes)):                             # training and inference read the same formula
        found, _, kinds = decode([h[b : b + 1].numpy() for h in heads])
        assert (iou(found, boxes[b, :1].numpy()) > 0.98).all() and set(kinds) == {int(labels[b, 0])}


def test_any_disturbance_of_perfect_logits_costs():
    boxes, labels = _objects()
    perfect = _perfect(boxes, labels, 2)
    best = yolo_loss(perfect, boxes, labels)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(h.shape, generator=generator) for h in perfect]
    disturbed = [[h + a * n for h, n in zip(perfect, noise, strict=True)] for a in (0, 0.5, 2, 8)]
    losses = [yolo_loss(heads, boxes, labels) for heads in disturbed]
    assert losses[0] == best and losses == sorted(losses)
    assert yolo_loss(noise, boxes, labels) > 50 * best
    wrong_class = torch.where(labels >= 0, 1 - labels, labels)
    assert yolo_loss(perfect, boxes, wrong_class) > best + 5
    moved = boxes + 12
    assert yolo_loss(perfect, moved, labels) > best + 1


def _objectness(heads):
    return torch.cat([h.view(len(h), 3, -1, *h.shape[2:])[:, :, 4].flatten() for h in heads])


def _gradients(heads, boxes, labels):
    leaves = [h.clone().requires_grad_() for h in heads]
    yolo_loss(leaves, boxes, labels).backward()
    return [leaf.grad for leaf in leaves]


def test_ignored_objects_have_no_positive_and_silence_what_finds_them():
    boxes, labels = _objects()
    heads = _perfect(boxes, labels, 2)
    at_object = _objectness(heads) > 0
    ignored = _gradients(heads, boxes, torch.where(labels >= 0, -2, labels))
    # Nobody is told that there is an object (a falling loss would raise a logit: negative gradient) ...
    assert (_objectness(ignored) >= 0).all()
    # ... nor that there is none, and boxes and classes are left alone; empty cells still learn to be empty.
    assert (_objectness(ignored)[at_object] == 0).all() and (_objectness(ignored)[~at_object] > 0).any()
    for grad in ignored:
        channels = grad.view(len(grad), 3, -1, *grad.shape[2:])
        assert (channels[:, :, :4] == 0).all() and (channels[:, :, 5:] == 0).all()
    absent = _gradients(heads, boxes, torch.full_like(labels, -1))
    assert (_objectness(absent)[at_object] > 0).all()       # without an object they are false alarms


def test_empty_images_have_a_finite_loss_that_only_knows_objectness():
    heads = [torch.zeros(2, 21, SIZE // s, SIZE // s) for s in STRIDES]
    loss = yolo_loss(heads, torch.zeros(2, 4, 4), torch.full((2, 4), -1))
    cells = 2 * 3 * sum((SIZE // s) ** 2 for s in STRIDES)
    assert loss == pytest.approx(cells * np.log(2), rel=1e-5)      # one unsure bit per box


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_the_loss_and_its_gradient_are_finite_and_do_not_depend_on_the_order_of_images(seed):
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.randn(2, 21, SIZE // s, SIZE // s, generator=generator) * 5 for s in STRIDES]
    corner = torch.rand(2, 4, 2, generator=generator) * 80
    boxes = torch.cat([corner, corner + torch.rand(2, 4, 2, generator=generator) * 16], -1)
    labels = torch.randint(-2, 2, (2, 4), generator=generator)
    loss = yolo_loss(heads, boxes, labels)
    assert loss.isfinite() and loss >= 0
    torch.testing.assert_close(yolo_loss([h.flip(0) for h in heads], boxes.flip(0), labels.flip(0)), loss)
    torch.testing.assert_close(yolo_loss(heads, boxes.flip(1), labels.flip(1)), loss)
    assert all(g.isfinite().all() for g in _gradients(heads, boxes, labels))


# --- augmentation ---


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_boxes_move_with_the_pixels(seed):
    rng = np.random.default_rng(seed)
    n, x = 4, torch.full((4, 3, SIZE, SIZE), 0.5)
    boxes, labels = torch.zeros(n, 2, 4), torch.full((n, 2), -1)
    for i in range(n):
        x0, y0 = rng.integers(10, 40, 2).tolist()
        w, h = rng.integers(14, 40, 2).tolist()
        x[i, :, y0 : y0 + h, x0 : x0 + w] = 1
        boxes[i, 0], labels[i, 0] = torch.tensor([x0, y0, x0 + w, y0 + h]), 1
    moved, moved_boxes, moved_labels = augment(x, boxes, labels, torch.Generator().manual_seed(seed))
    assert moved.min() >= 0 and moved.max() <= 1
    assert (moved_labels[:, 1] == -1).all()
    for i in range(n):
        if moved_labels[i, 0] != 1:
            continue
        image = moved[i].mean(0)
        bright = image > (image.min() + image.max()) / 2
        ys, xs = np.nonzero(bright.numpy())
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(found - moved_boxes[i, 0].numpy()).max() <= 1.5


def test_augmentation_covers_its_stated_range():
    """Over many draws: mirrored half of the time, zoom 0.7 to 1.4, shift up to 15 % of the side."""
    n = 2000
    box = torch.tensor([[[SIZE / 2 - 2, SIZE / 2 - 8, SIZE / 2 + 6, SIZE / 2 + 8]]]).repeat(n, 1, 1)
    x = torch.zeros(n, 3, 1, 1).expand(n, 3, SIZE, SIZE)[:, :, :SIZE, :SIZE]
    boxes = []
    for part in range(0, n, 250):
        rng = torch.Generator().manual_seed(part)
        boxes.append(augment(x[:250], box[:250], torch.zeros(250, 1, dtype=torch.long), rng)[1])
    b = torch.cat(boxes)[:, 0]
    zoom = (b[:, 3] - b[:, 1]) / 16
    torch.testing.assert_close((b[:, 2] - b[:, 0]) / 8, zoom, rtol=1e-3, atol=1e-3)            # aspect kept
    assert 0.699 < zoom.min() < 0.71 and 1.38 < zoom.max() < 1.401
    shift_y = (b[:, 1] + b[:, 3]) / 2 - SIZE / 2
    assert 0.14 * SIZE < shift_y.abs().max() <= 0.1501 * SIZE


def test_objects_that_leave_the_image_are_ignored_and_gone_ones_dropped():
    n = 400
    x = torch.zeros(n, 3, 32, 32)
    boxes = torch.tensor([[[0.0, 10, 5, 22]]]).repeat(n, 1, 1)
    _, moved, labels = augment(x, boxes, torch.zeros(n, 1, dtype=torch.long), torch.Generator().manual_seed(0))
    sides = (moved[..., 2:] - moved[..., :2]).amin(-1)
    assert set(labels.flatten().tolist()) == {0, -1, -2}
    assert ((labels == -1) == (sides <= 0)).all() and (sides[labels == 0] >= 3).all()
    assert moved.min() >= 0 and moved.max() <= 32


def test_augmenting_does_not_revive_what_was_ignored_or_absent():
    boxes = torch.tensor([[[10.0, 10, 20, 20], [0, 0, 0, 0]]]).repeat(50, 1, 1)
    labels = torch.tensor([[-2, -1]]).repeat(50, 1)
    got = augment(torch.zeros(50, 3, 32, 32), boxes, labels, torch.Generator().manual_seed(0))[2]
    assert (got < 0).all() and (got[:, 1] == -1).all()
