"""The command line's `trtkit darknet` and `trtkit fetch`."""

import argparse
import sys
from pathlib import Path

KNOWN = ("yolov3", "yolov3-spp", "yolov3-tiny")


def add(commands: argparse._SubParsersAction) -> None:
    """Add the two commands to the parser."""
    table = commands.add_parser("darknet", help="the layers of a darknet cfg as darknet prints them, weights checked")
    table.add_argument("cfg", help=f"a .cfg file, or one of {', '.join(KNOWN)}")
    table.add_argument("--size", type=int, help="side of the input, pixels, instead of the cfg's")
    table.add_argument("--weights", type=Path, help="a .weights file that must come out even")
    table.set_defaults(command=_darknet)

    get = commands.add_parser("fetch", help="download pretrained weights or COCO, checked by size and SHA-256")
    get.add_argument("name", help="for example yolov3.weights; a wrong name lists the right ones")
    get.set_defaults(command=_fetch)


def _darknet(args: argparse.Namespace) -> None:
    from trtkit import darknet_cfg, darknet_layers, darknet_weights

    sections = darknet_cfg.parse(_known(args.cfg)) if args.cfg in KNOWN else darknet_cfg.read(Path(args.cfg))
    layers = darknet_layers.layers(sections, size=args.size)
    convolutions = darknet_weights.convolutions(layers)
    sys.stdout.write(darknet_layers.table(layers))
    floats = sum(c.floats for c in convolutions)
    sys.stdout.write(f"{len(layers)} layers, {sum(layer.bflops for layer in layers):.3f} BFLOPs, {floats:,} floats\n")
    if args.weights:
        header, _ = darknet_weights.read(args.weights, convolutions)
        sys.stdout.write(f"{args.weights.name}: version {header.major}.{header.minor}, {header.seen:,} images seen, "
                         "comes out even\n")


def _known(name: str) -> str:
    from trtkit import darknet_nets

    return darknet_nets.yolov3_tiny() if name == "yolov3-tiny" else darknet_nets.yolov3(spp=name == "yolov3-spp")


def _fetch(args: argparse.Namespace) -> None:
    from trtkit import fetch

    path = fetch.fetch(args.name)
    sys.stdout.write(f"{path}\nlicence: {fetch.SOURCES[args.name].licence}\n")
