"""From raw heads to final detections: our NumPy against PyTorch and torchvision.ops.batched_nms, in turns, on one core.

usage: .venv/bin/python tests/bench/decode.py               a quiet street, a busy one, a crowd: times, ratios, stages
       .venv/bin/python tests/bench/decode.py --passing 50 300 1500

Heads are those of a 416x416 input and 80 classes: 10,647 boxes of 85 numbers. Objects are planted as a trained network
shows them, each as several neighbouring cells and anchors that agree on one box; everything else is noise below the
threshold. "torch, all boxes" decodes the 10,647 boxes as most PyTorch detectors do, "torch, passing" first drops the
cells whose objectness cannot reach the threshold, as ours does. All find the same boxes, which is checked.
It asserts no time: times belong to a machine, not to a test.
"""

import argparse
import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402

from trtkit import yolo  # noqa: E402
from trtkit.bench_rounds import host_timed, interleave  # noqa: E402
from trtkit.check import table  # noqa: E402

SIZE, CLASSES, CONF_THR, IOU_THR = 416, 80, 0.25, 0.45
PER_OBJECT = 6              # boxes that find one object, before NMS


def heads_of(passing: int, seed: int = 0) -> list[np.ndarray]:
    """Heads in which `passing` boxes reach the threshold, in groups of six around each object."""
    rng = np.random.default_rng(seed)
    heads = [rng.normal(0, 1, (1, 3 * (5 + CLASSES), SIZE // s, SIZE // s)).astype(np.float32) for s in yolo.STRIDES]
    grids = [h.reshape(3, 5 + CLASSES, *h.shape[2:]) for h in heads]
    for grid in grids:
        grid[:, 4] = rng.normal(-9, 1, grid[:, 4].shape)
        grid[:, 5:] -= 7
    taken: set[tuple[int, ...]] = set()
    while len(taken) < passing:
        head = int(rng.choice(3, p=[0.2, 0.35, 0.45]))
        stride, grid = yolo.STRIDES[head], grids[head]
        centre = rng.uniform(0, SIZE, 2)
        side, label = yolo.ANCHORS[head].mean(0) * rng.uniform(0.7, 1.3, 2), int(rng.integers(CLASSES))
        for _ in range(PER_OBJECT):
            a = int(rng.integers(3))
            cx, cy = np.clip((centre / stride + rng.normal(0, 0.5, 2)).astype(int), 0, SIZE // stride - 1)
            if (head, a, cy, cx) in taken or len(taken) == passing:
                continue
            taken.add((head, a, cy, cx))
            inside = np.clip(centre / stride - [cx, cy], 0.02, 0.98)
            grid[a, 0:2, cy, cx] = np.log(inside / (1 - inside))
            grid[a, 2:4, cy, cx] = np.log(side / yolo.ANCHORS[head][a]) + rng.normal(0, 0.05, 2)
            grid[a, [4, 5 + label], cy, cx] = rng.uniform(1, 5, 2)
    return heads


def ours(heads: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """NumPy: decode, then NMS."""
    boxes, scores, labels = yolo.decode(heads, conf_thr=CONF_THR)
    keep = yolo.nms(boxes, scores, labels, iou_thr=IOU_THR)
    return boxes[keep], scores[keep], labels[keep]


def torch_route(heads: list[np.ndarray], *, first_objectness: bool) -> tuple[np.ndarray, ...]:
    """PyTorch: decode, threshold, batched_nms."""
    found = []
    with torch.inference_mode():
        for head, stride, anchors in zip(heads, yolo.STRIDES, yolo.ANCHORS, strict=True):
            t = torch.from_numpy(head).view(3, 5 + CLASSES, *head.shape[2:]).permute(0, 2, 3, 1)    # (A, H, W, 5+K)
            cell = torch.stack(torch.meshgrid(torch.arange(t.shape[2]), torch.arange(t.shape[1]), indexing="xy"), -1)
            cell, wh = cell.expand(3, -1, -1, -1), torch.from_numpy(anchors)[:, None, None].expand(*t.shape[:3], 2)
            if first_objectness:
                passing = t[..., 4] > np.log(CONF_THR / (1 - CONF_THR))
                t, cell, wh = t[passing], cell[passing], wh[passing]
            centre, half = (t[..., :2].sigmoid() + cell) * stride, wh * t[..., 2:4].exp() / 2
            boxes = torch.cat([centre - half, centre + half], -1).reshape(-1, 4)
            found.append((boxes, (t[..., 4:5].sigmoid() * t[..., 5:].sigmoid()).reshape(-1, CLASSES)))
        boxes, prob = (torch.cat(parts) for parts in zip(*found, strict=True))
        box, label = (prob >= CONF_THR).nonzero(as_tuple=True)
        boxes, scores = boxes[box], prob[box, label]
        keep = torchvision.ops.batched_nms(boxes, scores, label, IOU_THR)[:300]
        return boxes[keep].numpy(), scores[keep].numpy(), label[keep].numpy()


def main() -> None:
    """Print a table of the three routes for each scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passing", type=int, nargs="+", default=[30, 80, 300], metavar="N",
                        help="boxes whose objectness reaches the threshold, one table row per number")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for passing in args.passing:
        heads = heads_of(passing)
        routes = {
            "ours": lambda h=heads: ours(h),
            "torch, passing": lambda h=heads: torch_route(h, first_objectness=True),
            "torch, all boxes": lambda h=heads: torch_route(h, first_objectness=False),
        }
        results = {name: route() for name, route in routes.items()}
        for name, (boxes, scores, labels) in results.items():
            for got, expected in zip((boxes, scores, labels), results["ours"], strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3, err_msg=name)
        candidates = yolo.decode(heads, conf_thr=CONF_THR)
        stages = {"of it decode": lambda h=heads: yolo.decode(h, conf_thr=CONF_THR),
                  "of it NMS": lambda c=candidates: yolo.nms(*c, iou_thr=IOU_THR)}
        times = interleave({k: host_timed(v) for k, v in (routes | stages).items()}, rounds=args.rounds, turn_s=0.1)
        best = {name: min(min(r) for r in of_route) for name, of_route in times.items()}
        middle = float(np.median([np.median(r) for r in times["ours"]]))
        rows.append({"passing": str(passing), "candidates": str(len(candidates[1])),
                     "detections": str(len(results["ours"][1])),
                     **{f"{name} ms": f"{ms:.2f}" for name, ms in best.items()}, "ours, median ms": f"{middle:.2f}",
                     "torch / ours": " ".join(f"{best[k] / best['ours']:.1f}x" for k in routes if k != "ours")})
    print(table(rows, f"minima of {args.rounds} rounds, one core; numpy {np.__version__}, torch {torch.__version__}, "
                      f"torchvision {torchvision.__version__}"))


if __name__ == "__main__":
    main()
