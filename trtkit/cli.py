"""The command line: `trtkit demo`, `trtkit run`, `trtkit train`.

A mistake of the user's ends in one line that says what to do, and exit code 2; anything else is a defect and shows its
traceback.
"""

import argparse
import json
import sys
from pathlib import Path

from trtkit import lessons

WEIGHTS_NAME = "yolov3_w025.safetensors"


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 when it did what it says, 1 when a notebook failed, 2 for bad input."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except (FileNotFoundError, OSError, ValueError) as e:
        sys.stderr.write(f"trtkit: {e}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("trtkit: stopped by Ctrl-C\n")
        return 130
    except Exception as e:
        if type(e).__name__ != "PapermillExecutionError":       # importing papermill for its class takes a second
            raise
        sys.stderr.write(f"trtkit: the notebook failed: {e.ename}: {e.evalue}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("trtkit", description="Deep-learning inference made fast, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="lesson 12: YOLOv3 watches a video, FP32 against INT8")
    demo.add_argument("--out", type=Path, default=lessons.BUILD, help="folder for the page and the video")
    demo.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebook")
    demo.set_defaults(command=_demo)

    run = commands.add_parser("run", help="execute notebooks and write their pages")
    run.add_argument("notebook", nargs="+", help="for example 00_setup or notebooks/00_setup.ipynb")
    run.add_argument("--out", type=Path, default=lessons.BUILD)
    run.add_argument("-p", action="append", default=[], metavar="NAME=VALUE")
    run.set_defaults(command=_run)

    train = commands.add_parser("train", help="train the detector from scratch on rendered scenes")
    train.add_argument("out", type=Path, help=f"weights to write, for example {WEIGHTS_NAME}")
    train.add_argument("--width", type=float, default=0.25)
    train.add_argument("--images", type=int, default=20_000, help="rendered training images, 0.5 MB of memory each")
    train.add_argument("--steps", type=int, default=8000)
    train.add_argument("--batch", type=int, default=64)
    train.add_argument("--lr", type=float, default=2e-3)
    train.add_argument("--checkpoint", type=Path, help="go on from here if it exists, and write it now and then")
    train.set_defaults(command=_train)
    return parser


def _demo(args: argparse.Namespace) -> None:
    out = args.out.resolve()
    parameters = {**dict(map(lessons.parse_parameter, args.p)), "out_dir": str(out)}
    page = lessons.run_notebook(lessons.NOTEBOOKS / "12_realtime_detection.ipynb", out, parameters)
    sys.stdout.write(json.loads((out / "demo.json").read_text())["table"] + "\n")
    sys.stdout.write(f"page:  {page}\nvideo: {out / 'demo.mp4'}\n")


def _run(args: argparse.Namespace) -> None:
    parameters = dict(map(lessons.parse_parameter, args.p))
    for name in args.notebook:
        path = Path(name) if name.endswith(".ipynb") else lessons.NOTEBOOKS / f"{name}.ipynb"
        sys.stdout.write(f"{lessons.run_notebook(path, args.out, parameters)}\n")


def _train(args: argparse.Namespace) -> None:
    import torch

    from trtkit import data, models, train

    training = data.training_set(data.split_seeds("train", args.images))
    torch.manual_seed(0)
    model = models.YOLOv3(len(data.scenes.CLASSES), args.width)
    train.init_head_bias(model)
    config = train.TrainConfig(steps=args.steps, batch=args.batch, lr=args.lr)
    averaged = train.fit(model, training, config, checkpoint=args.checkpoint)
    metadata = {"images": str(args.images), "steps": str(args.steps), "batch": str(args.batch), "lr": str(args.lr)}
    models.save_weights(averaged, args.out, metadata=metadata)
