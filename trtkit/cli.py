"""The command line: `trtkit demo`, `lessons`, `bench`, `doctor`, `train`, `evaluate`, `datasets`, `darknet`, `fetch`.

A mistake of the user's ends in one line that says what to do, and exit code 2; anything else is a defect and shows its
traceback.
"""

import argparse
import json
import sys
from pathlib import Path

from trtkit import causes, cli_bench, cli_darknet, cli_lessons, lessons

WEIGHTS_NAME = "yolov3_w025.safetensors"
CLIP_SEED, CLIP_FRAMES, CLIP_FPS = 33, 500, 25.0
# Of papermill and nbclient, by name: importing their classes takes a second. CellTimeoutError is an OSError too.
NOTEBOOK_ERRORS = {"PapermillExecutionError", "DeadKernelError", "CellTimeoutError"}
CLIP_ENCODER = {"preset": "veryslow", "crf": "25"}      # at most 1.5 MB for 20 s


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 when it did what it says, 1 when a notebook failed, 2 for bad input."""
    args = _parser().parse_args(argv)
    try:
        return args.command(args) or 0
    except KeyboardInterrupt:
        sys.stderr.write("trtkit: stopped by Ctrl-C\n")
        return 130
    except Exception as e:
        if type(e).__name__ in NOTEBOOK_ERRORS:
            name, text = (e.ename, e.evalue) if hasattr(e, "ename") else (type(e).__name__, str(e))
            sys.stderr.write(f"trtkit: the notebook failed: {causes.first_line(name, text)}\n")
            return 1
        if isinstance(e, ModuleNotFoundError) and e.name == "torch":
            sys.stderr.write("trtkit: this command needs PyTorch; pip install --editable '.[torch]'\n")
        elif isinstance(e, OSError | ValueError) or type(e).__name__ == "BackendError" or _names_its_extra(e):
            sys.stderr.write(f"trtkit: {e}\n")
        else:
            raise
        return 2


def _names_its_extra(e: Exception) -> bool:
    """A package of an extra is missing, and the message says how to install it."""
    return isinstance(e, ModuleNotFoundError) and "pip install --editable" in str(e)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("trtkit", description="Deep-learning inference made fast, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="lesson 12: YOLOv3 watches a video, FP32 against INT8")
    demo.add_argument("--out", type=Path, default=lessons.BUILD, help="folder for the page and the video")
    demo.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebook")
    demo.set_defaults(command=_demo)

    cli_lessons.add(commands)
    cli_bench.add(commands)
    cli_darknet.add(commands)

    train = commands.add_parser("train", help="train the detector from scratch on rendered scenes")
    train.add_argument("out", type=Path, help=f"weights to write, for example {WEIGHTS_NAME}")
    train.add_argument("--width", type=float, default=0.25)
    train.add_argument("--images", type=int, default=20_000, help="rendered training images, 0.5 MB of memory each")
    train.add_argument("--steps", type=int, default=8000)
    train.add_argument("--batch", type=int, default=64)
    train.add_argument("--lr", type=float, default=2e-3)
    train.add_argument("--stop", type=int, help="end after so many of the steps, the schedule unchanged")
    train.add_argument("--checkpoint", type=Path, help="go on from here if it exists, and write it now and then")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="mAP of weights on the test split, FP32")
    evaluate.add_argument("weights", type=Path)
    evaluate.set_defaults(command=_evaluate)

    datasets = commands.add_parser("datasets", help="write sample clip, ready-made graph and manifest again")
    datasets.set_defaults(command=_datasets)

    doctor = commands.add_parser("doctor", help="what this machine can run, why not the rest, and what to do about it")
    doctor.add_argument("--json", action="store_true", help="one JSON object with all facts")
    doctor.set_defaults(command=_doctor)
    return parser


def _doctor(args: argparse.Namespace) -> int:
    from trtkit import doctor

    facts = doctor.gather()
    findings = doctor.examine(facts)
    sys.stdout.write((doctor.as_json(facts, findings) if args.json else doctor.report(findings)) + "\n")
    return int(doctor.has_errors(findings))


def _demo(args: argparse.Namespace) -> None:
    out = args.out.resolve()
    parameters = {**dict(map(lessons.parse_parameter, args.p)), "out_dir": str(out)}
    if isinstance(parameters.get("source"), str) and parameters["source"] != "clip":
        parameters["source"] = str(Path(parameters["source"]).resolve())    # the notebook runs in its own folder
    page = lessons.run_notebook(lessons.NOTEBOOKS / "12_realtime_detection.ipynb", out, parameters)
    sys.stdout.write(json.loads((out / "demo.json").read_text())["table"] + "\n")
    sys.stdout.write(f"page:  {page}\nvideo: {out / 'demo.mp4'}\n")


def _train(args: argparse.Namespace) -> None:
    import torch

    from trtkit import data, models, train

    training = data.training_set(data.split_seeds("train", args.images))
    torch.manual_seed(0)
    model = models.YOLOv3(len(data.scenes.CLASSES), args.width)
    train.init_head_bias(model)
    config = train.TrainConfig(steps=args.steps, batch=args.batch, lr=args.lr)
    averaged = train.fit(model, training, config, checkpoint=args.checkpoint, stop=args.stop)
    metadata = {name: str(getattr(args, name)) for name in ("images", "steps", "batch", "lr", "stop")}
    models.save_weights(averaged, args.out, metadata=metadata)


def _evaluate(args: argparse.Namespace) -> None:
    from trtkit import data, engine, evaluate, weights

    graph = weights.to_graph(args.weights, lessons.BUILD / "evaluate.onnx")
    with engine.load(engine.build(graph)) as runner:
        accuracy = evaluate.score(runner, data.load_split("test"))
    sys.stdout.write(f"mAP50 {accuracy.map50:.4f}  mAP50-95 {accuracy.map50_95:.4f}  {accuracy.per_class}\n")


def _datasets(args: argparse.Namespace) -> None:
    """Write `datasets/clip.mp4`, its ground truth, the ready-made graph, and the manifest of every file there."""
    import cv2

    from trtkit import data, scenes, writer
    from trtkit.progress import bar

    _write_structure()
    truth = []
    with writer.VideoWriter(data.DATASETS / "clip.mp4", CLIP_FPS, (640, 480), encoder=CLIP_ENCODER) as clip:
        film = scenes.clip(CLIP_SEED, CLIP_FRAMES, fps=CLIP_FPS, condition="day")
        for scene in bar(film, "draw clip", total=CLIP_FRAMES, unit="frame"):
            clip.write(scene.img_hwc_u8)
            rows = zip(scene.track_ids, scene.labels, scene.visibility, scene.boxes_xyxy, strict=True)
            truth.append([[int(t), int(k), round(float(v), 2), *map(_one_decimal, box)] for t, k, v, box in rows])
    columns = ["track", "label", "visibility", "x0", "y0", "x1", "y1"]
    body = {"classes": scenes.CLASSES, "columns": columns, "frames": truth}
    (data.DATASETS / "clip_truth.json").write_text(json.dumps(body, separators=(",", ":")) + "\n")

    split = data.scenes_sha256(scenes.render(s) for s in data.split_seeds("test", data.TEST_IMAGES))
    names = [p.relative_to(data.DATASETS).as_posix() for p in sorted(data.DATASETS.rglob("*")) if p.is_file()]
    files = {n: data.file_entry(n) for n in names if not n.endswith((".md", "manifest.json"))}
    manifest = {"test_split": {"sha256": split, "opencv": cv2.__version__}, "files": files}
    (data.DATASETS / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _write_structure() -> None:
    """Trained weights, since the exporter merges initializers that are equal, such as the zero biases of fresh ones."""
    import onnx

    from trtkit import data, export, models, weights

    model = models.load_weights(data.DATASETS / "weights" / WEIGHTS_NAME)
    exported = onnx.load(export.export_onnx(model, lessons.BUILD / "structure.onnx"))
    path = data.DATASETS / weights.STRUCTURE
    path.parent.mkdir(exist_ok=True)
    onnx.save(weights.structure(exported), path)


def _one_decimal(x: float) -> float:
    return round(float(x), 1)
