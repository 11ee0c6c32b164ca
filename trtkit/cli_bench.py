"""The command line's `trtkit bench`."""

import argparse
import os
import sys
from pathlib import Path

from trtkit import lessons

WORK = lessons.BUILD / "bench"
PARTS = ("build", "speed", "layers", "compile", "accuracy", "overhead", "memory", "processes")


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser."""
    bench = commands.add_parser("bench", help="measure TensorRT beside PyTorch on this GPU, and record the results")
    bench.add_argument("--record", action="store_true", help="write to datasets/results instead of build/bench")
    bench.add_argument("--only", help="parts, with commas; all of them: " + ",".join(PARTS))
    bench.add_argument("--out", type=Path, help="folder of the results")
    bench.add_argument("--level", type=int, default=3, help="the builder's optimization level, 0 to 5")
    bench.add_argument("--jobs", type=int, default=2, help="builds at the same time")
    bench.add_argument("--widths", type=float, nargs="+", choices=(1.0, 0.25))
    bench.add_argument("--precisions", nargs="+", choices=("fp32", "fp16", "int8"))
    bench.add_argument("--batches", type=int, nargs="+", help="images per run")
    bench.add_argument("--rounds", type=int, default=10, help="turns of each contender")
    bench.add_argument("--cycles", type=int, default=50, help="builds of the part memory")
    bench.add_argument("--compile-python", default="python3.12", help="a Python with torch and Triton")
    bench.add_argument("--commit", default="", help="of this code, where it is no repository; else TRTKIT_COMMIT")
    bench.set_defaults(command=_bench)


def _bench(args: argparse.Namespace) -> None:
    from trtkit import bench, recorded

    os.environ.setdefault("TRTKIT_HEADLESS", "1")       # the bars of several builds at once are hard to read
    # What was not asked for is left to `bench`, whose import takes a second.
    chosen = {name: getattr(args, name) for name in ("widths", "precisions", "batches") if getattr(args, name)}
    if args.only:
        chosen["parts"] = tuple(args.only.split(","))
    settings = bench.Settings(
        out=args.out or (recorded.RESULTS if args.record else WORK), work=WORK, level=args.level, jobs=args.jobs,
        rounds=args.rounds, cycles=args.cycles, compile_python=args.compile_python, commit=args.commit,
        command=command(sys.argv[1:]), **chosen,
    )

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()                  # a run of minutes, often into a file

    say(f"results: {bench.run(settings, say)}")


def command(arguments: list[str]) -> str:
    """What was typed, without folders of this machine."""
    kept, skip = [], False
    for word in arguments:
        if not skip and not word.startswith(("--out", "--commit", "--compile-python")):
            kept.append(word)
        skip = word in ("--out", "--commit", "--compile-python")
    return " ".join(["python -m trtkit", *kept])
