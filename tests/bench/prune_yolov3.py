"""YOLOv3 width 0.25 without 20 % and 50 % of its parameters: pruned, fine-tuned, scored.

    python tests/bench/prune_yolov3.py --record             # on a GPU, about 20 minutes; see STEPS for its parts
    python tests/bench/prune_yolov3.py --record --steps cpu # what they are for: INT8 on this CPU beside eager FP32

Writes datasets/weights/yolov3_w025_NAME.safetensors for each of `VARIANTS`, of the better of its fine-tunings, and
datasets/results/prune_yolov3_w025_GPU.json ("cpu": prune_yolov3_w025_cpu.json) after each step, so a run that is cut
off keeps what it has, and the next one goes on with what is missing; two GPUs share the work by --steps. Importance is
chosen on the calibration split; mAP is that of the test split, of the FP16 weights as they are stored. "control" is
the whole network fine-tuned as long as the one without 20 %: its schedule had not ended, so training on alone might
gain something, which is no merit of pruning.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import torch

from trtkit import (
    bench_accuracy,
    bench_graphs,
    bench_rounds,
    data,
    engine,
    evaluate,
    importance,
    models,
    prune,
    qdq,
    recorded,
    weights,
)
from trtkit.costs import costs
from trtkit.torch_runner import TorchRunner
from trtkit.train import TrainConfig, fit, yolo_loss

WEIGHTS = "weights/yolov3_w025.safetensors"
IMPORTANCES = ("l1", "l2", "bn_gamma", "taylor")
GRADIENT_IMAGES = 64            # of the training split, for taylor
CHOICE_IMAGES = 100             # of the calibration split


@dataclass(frozen=True)
class Variant:
    """How much goes, from where (see `cost_aware`), with which activation, and how it is fine-tuned."""

    removed: float              # of the parameters
    cost_exponent: float        # 0 takes parameters where they are missed least, more where they cost time
    train_steps: int
    lr: float                   # peak of the cosine; more where more must be learned anew
    relu: bool = False          # for LeakyReLU, see `models.use_relu`


VARIANTS = {"pruned20": Variant(0.2, 0.0, 800, 1.5e-3), "pruned50": Variant(0.5, 1.5, 3000, 3e-3),
            "pruned50relu": Variant(0.5, 2.0, 5500, 3e-3, relu=True)}
CONTROL = "pruned20"            # the variant whose fine-tuning the whole network gets as well
FINE_TUNINGS = ("pruned20 distilled", "control", "pruned50 distilled", "pruned50relu distilled", "pruned20 plain")
STEPS = ("before", *(f"importance {name}" for name in VARIANTS), *FINE_TUNINGS)


class OutOfTimeError(Exception):
    """The time limit would not hold for the next step."""


class Recipe:
    """Settings, the clock, and what is kept between steps."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.start, self.step_s = args, time.perf_counter(), args.first_step_s
        self.folder, self.work = args.record, Path(tempfile.mkdtemp(prefix="trtkit-"))
        self.network = models.load_weights(args.weights or data.dataset_file(WEIGHTS))
        self.test = data.load_split("test", args.test_images, progress=False)
        self.training: data.TrainingSet | None = None
        self.variants = {name: replace(v, train_steps=args.train_steps or v.train_steps)
                         for name, v in VARIANTS.items()}
        self.settings = {key: getattr(args, key) for key in ("batch", "images", "round_to", "test_images")} | {
            name: asdict(v) for name, v in self.variants.items()}
        self.results: dict = {}

    def left_s(self) -> float:
        return self.args.limit_s - (time.perf_counter() - self.start)

    def score(self, model: torch.nn.Module, scenes: list) -> dict[str, float]:
        """mAP of the weights as they are stored."""
        models.save_weights(model, self.work / "scored.safetensors")
        graph = weights.to_graph(self.work / "scored.safetensors", self.work / "scored.onnx")
        with engine.load(engine.build(graph, backend="ort")) as runner:
            accuracy = evaluate.score(runner, scenes)
            return {"map50": round(accuracy.map50, 4), "map50_95": round(accuracy.map50_95, 4), "runner": runner.label}

    def pruned(self, name: str, by: str) -> torch.nn.Module:
        return smaller(self.network, self.variants[name], by, self.args.round_to)

    def before(self) -> dict:
        """The network that is committed."""
        return {"parameters": parameters(self.network), **self.score(self.network, self.test)}

    def importance(self, name: str) -> dict:
        """Which importance loses least before any fine-tuning? With new statistics, since else all lose everything."""
        scenes = data.load_split("calib", min(CHOICE_IMAGES, self.args.test_images), progress=False)
        leaky = replace(self.variants[name], relu=False)        # with another activation all would be nothing
        settled = {by: bench_graphs.settled(smaller(self.network, leaky, by, self.args.round_to)) for by in IMPORTANCES}
        scores = {by: self.score(model, scenes)["map50"] for by, model in settled.items()}
        best = max(scores, key=scores.get)
        chosen = self.pruned(name, best)
        return {"calib_map50_by": scores, "best": best, "parameters": parameters(chosen),
                "after_pruning": self.score(chosen, self.test)}

    def fine_tuning(self, name: str) -> dict:
        """Train on, from the pruned network or, as a control, from the whole one."""
        which, _, how = name.partition(" ")
        variant = self.variants[CONTROL if which == "control" else which]
        need_s = variant.train_steps * self.step_s * (1.4 if how == "distilled" else 1.0) + 15    # 15: to score
        need_s += self.args.images / 300 if self.training is None else 0                # 16 cores render 380 a second
        if self.left_s() < need_s:
            raise OutOfTimeError(f"{name} needs about {need_s:.0f} s, {self.left_s():.0f} s are left of --limit-s")
        if self.training is None:
            seeds = data.split_seeds("train", self.args.images)
            self.training = data.training_set(seeds, size=self.args.size, progress=False)
        if which == "control":
            model = models.load_weights(self.args.weights or data.dataset_file(WEIGHTS))
        else:
            key = f"importance {which}"
            if key not in self.results:
                self.results[key] = self.importance(which)
            model = self.pruned(which, self.results[key]["best"])
        config = TrainConfig(steps=variant.train_steps, batch=self.args.batch, lr=variant.lr,
                             warmup=min(50, variant.train_steps // 4))
        begun = time.perf_counter()
        tuned = fit(model, self.training, config, teacher=self.network if how == "distilled" else None, progress=False)
        train_s = time.perf_counter() - begun
        self.step_s = max(self.step_s, train_s / config.steps / (1.4 if how == "distilled" else 1.0))
        found = {"parameters": parameters(tuned), "train_steps": config.steps, "train_s": round(train_s, 1),
                 **self.score(tuned, self.test)}
        rivals = [r["map50"] for key, r in self.results.items() if key.startswith(f"{which} ")]
        if which in VARIANTS and self.folder and found["map50"] > max(rivals, default=-1.0):
            path = self.folder / "weights" / f"yolov3_w025_{which}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            models.save_weights(tuned, path, metadata={"fine_tuning": how, "map50": str(found["map50"])})
        return found


def cost_aware(network: torch.nn.Module, by: str, exponent: float) -> Callable:
    """An importance of `trtkit.importance`, times (cells of the smallest map / cells of the group's map)^exponent.

    With the exponent 0 the target alone counts, parameters, and most of those are where the maps are small and cheap.
    Source of the idea: Molchanov et al. 2017, "Pruning Convolutional Neural Networks", section 2.2, "FLOPs
    regularized pruning".
    """
    cells: dict[str, int] = {}
    handles = [layer.register_forward_hook(lambda _, x, y, name=name: cells.update({name: y.shape[2] * y.shape[3]}))
               for name, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    least = min(cells.values())

    def score(group, model: torch.nn.Module) -> torch.Tensor:
        largest = max(cells[m.layer] for m in group.members if m.side == "out" and m.layer in cells)
        return getattr(importance, by)(group, model) * (least / largest) ** exponent

    return score


def take_gradients(network: torch.nn.Module) -> None:
    """One backward pass of its loss, in eval mode, kept in the network: what `importance.taylor` reads."""
    scenes = data.training_set(data.split_seeds("train", GRADIENT_IMAGES), progress=False)
    for at in range(0, GRADIENT_IMAGES, 8):
        x, boxes, labels = (torch.from_numpy(a[at : at + 8]) for a in (
            scenes.images_u8, scenes.boxes_xyxy, scenes.labels))
        yolo_loss(network(x.float() / 255), boxes, labels).backward()


def smaller(network: torch.nn.Module, variant: Variant, by: str, round_to: int) -> torch.nn.Module:
    """The network without the share of its parameters that goes, not trained."""
    if by == "taylor" and all(p.grad is None for p in network.parameters()):
        take_gradients(network)             # once: rendering and the pass take seconds
    pruned = prune.prune_channels(network, torch.zeros(1, 3, 64, 64), params_removed=variant.removed, scope="global",
                                  round_to=round_to, importance=cost_aware(network, by, variant.cost_exponent))
    pruned.zero_grad(set_to_none=True)
    return models.use_relu(pruned) if variant.relu else pruned


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def run(recipe: Recipe, names: list[str], keep: Callable[[dict], None]) -> None:
    """Do the steps that are not done yet."""
    for name in names:
        if name in recipe.results:
            print(f"{name}: done before", flush=True)
            continue
        try:
            first, _, variant = name.partition(" ")
            if first == "before":
                recipe.results[name] = recipe.before()
            elif first == "importance":
                recipe.results[name] = recipe.importance(variant)
            else:
                recipe.results[name] = recipe.fine_tuning(name)
        except OutOfTimeError as e:
            print(f"left out: {e}", flush=True)
            continue
        print(f"{name}: {json.dumps(recipe.results[name])}", flush=True)
        keep(recipe.results)


def verdict(results: dict) -> dict:
    """mAP50 points lost against the committed network, and what is trained as long as the control against that."""
    lost: dict = {}
    for which in VARIANTS:
        tuned = [r for key, r in results.items() if key.startswith(f"{which} ")]
        for against in ("before", "control"):
            if tuned and against in results and tuned[0]["train_steps"] == results[against].get(
                    "train_steps", tuned[0]["train_steps"]):
                lost.setdefault(which, {})[f"points_lost_against_{against}"] = round(
                    100 * (results[against]["map50"] - max(r["map50"] for r in tuned)), 2)
    return lost


def on_cpu(args: argparse.Namespace) -> dict:
    """What the committed networks are for: their INT8 engines on this CPU, in turn with PyTorch's eager FP32."""
    names = {"whole": WEIGHTS} | {name: f"weights/yolov3_w025_{name}.safetensors" for name in VARIANTS}
    work, config = Path(tempfile.mkdtemp(prefix="trtkit-")), engine.BuildConfig(threads=args.threads)
    x = np.random.default_rng(0).random((1, 3, 416, 416), np.float32)
    facts: dict = {"eager fp32": {}}
    plans = {}
    for name, file in names.items():
        fp32 = weights.to_graph(data.dataset_file(file), work / f"{name}.onnx")
        graph = onnx.load(fp32)
        skip = [*qdq.head_convs(graph), qdq.conv_names(graph)[0]]
        int8 = work / f"{name}_int8.onnx"
        onnx.save(qdq.insert_qdq(graph, bench_graphs.table(fp32, 0.25), target="cpu", skip=skip), int8)
        plans[f"{name} int8"] = engine.build(int8, config, backend="ort")
        facts[f"{name} int8"] = {"macs": sum(part.macs for part in costs(graph)),
                                 "mib": round(int8.stat().st_size / 2**20, 2)}
    for name, scored in bench_accuracy.mean_average_precision(plans):
        facts[name] |= scored
    eager = TorchRunner(models.load_weights(data.dataset_file(WEIGHTS)), device="cpu", threads=args.threads)
    runners = {"eager fp32": eager} | {name: engine.load(plan) for name, plan in plans.items()}
    contenders = {k: bench_rounds.host_timed(lambda r=r: r.infer({"images": x})) for k, r in runners.items()}
    times = bench_rounds.interleave(contenders, rounds=args.rounds, turn_s=0.15)
    found = {k: {**bench_rounds.summary(ms), **facts[k], "label": runners[k].label} for k, ms in times.items()}
    for runner in runners.values():
        runner.close()

    def ratio(one: str, other: str) -> dict[str, float]:
        """By round, since what slows a machine down for a second slows down all; and of the fastest calls."""
        medians = [median(a) / median(b) for a, b in zip(times[one], times[other], strict=True)]
        return {"median": round(median(medians), 3),
                "fastest": round(min(map(min, times[one])) / min(map(min, times[other])), 3)}

    return {"threads": args.threads, "engines": found,
            "int8_time_of_whole": {name: ratio(f"{name} int8", "whole int8") for name in VARIANTS},
            "faster_than_eager": {name: ratio("eager fp32", f"{name} int8") for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, nargs="?", const=data.DATASETS, help="write weights/ and results/ here")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=(*STEPS, "cpu"), metavar="STEP")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no fine-tuning that would exceed it")
    parser.add_argument("--train-steps", type=int, help="of each fine-tuning; without it, see VARIANTS")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=16_000, help="of the training split, 0.5 MB of memory each")
    parser.add_argument("--test-images", type=int, default=data.TEST_IMAGES)
    parser.add_argument("--size", type=int, default=416, help="of the training images, pixels")
    parser.add_argument("--round-to", type=int, default=16, help="channels that INT8 kernels of a CPU compute at once")
    parser.add_argument("--weights", type=Path, help="another network than the committed one")
    parser.add_argument("--first-step-s", type=float, default=0.1, help="guess of a training step's time, seconds")
    parser.add_argument("--rounds", type=int, default=40, help="of the step cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the step cpu; 0 for all cores")
    args = parser.parse_args()
    command = f"python tests/bench/prune_yolov3.py {' '.join(sys.argv[1:])}"
    made_from = recorded.provenance(command)

    def keep(name: str, body: dict) -> None:
        if args.record:
            recorded.write(args.record / "results" / name, {"provenance": made_from, **body})

    if args.steps == ["cpu"]:
        body = on_cpu(args)
        print(json.dumps({k: v for k, v in body.items() if k != "engines"}), flush=True)
        keep("prune_yolov3_w025_cpu.json", body)
        return
    torch.backends.cudnn.benchmark = True               # every batch has the same shape
    recipe = Recipe(args)
    gpu = recorded.gpu_model(made_from) or "cpu_trained"
    name = f"prune_yolov3_w025_{gpu}.json"

    def done_before() -> dict:
        if args.record and (args.record / "results" / name).is_file():
            earlier = recorded.load(name, args.record / "results")
            if earlier["settings"] == json.loads(json.dumps(recipe.settings)):
                return earlier["results"]
        return {}

    def keep_all(results: dict) -> None:
        results.update({**done_before(), **results})    # another process may have added to it
        keep(name, {"settings": recipe.settings, "results": results, "verdict": verdict(results)})

    recipe.results = done_before()
    run(recipe, [step for step in STEPS if step in args.steps], keep_all)
    print(json.dumps(verdict(recipe.results)), flush=True)


if __name__ == "__main__":
    main()
