"""What stands still on a street, as `scene_art` models: traffic lights, trees, lamps, signs and benches.

Only the head of a traffic light is one of the classes; the rest is scenery.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from trtkit.scene_art import FACE, SHEET, Model, Part, assemble
from trtkit.scene_parts import DARK, KINDS, PAINTS, ball, block, frustum, on, pick, quad, round_front, shade, tube


@lru_cache(maxsize=64)
def traffic_light(lit: int, style: int) -> Model:
    """A signal head (the pole is scenery), 1.05 m high, its foot at y = 0; `lit` 0 red, 1 amber, 2 green."""
    rgb = ((30, 32, 34), (44, 46, 44), (200, 160, 30), (36, 60, 44))[style % 4]
    head = frustum(0.19, 0.19, 0.0, 1.08, (-0.14, 0.14) * 2)
    parts = block(frustum(0.29, 0.29, -0.08, 1.16, (-0.16, -0.14) * 2), (22, 22, 24)) if style % 2 else []
    parts += block(head, rgb)
    colours = ((255, 50, 40), (255, 180, 40), (60, 250, 150))
    for k, colour in enumerate(colours):
        y = 0.9 - 0.36 * k
        parts.append(Part(FACE, round_front(0, y, 0.145, 0.165), (14, 14, 15)))
        dim = shade(colour, 0.2)
        parts.append(Part(FACE, round_front(0, y, 0.15, 0.14), colour if k == lit else dim, glow=2 if k == lit else 0))
        visor = quad((-0.17, y + 0.08, 0.15), (0.17, y + 0.08, 0.15), (0.13, y + 0.17, 0.33), (-0.13, y + 0.17, 0.33))
        parts.append(Part(SHEET, visor, (24, 24, 26)))
    return assemble(parts, solid=True)


def signal_pole(reach: float, height: float) -> Model:
    """Pole of a traffic light whose head is `reach` metres to its side (0: on top) with its lower edge at `height`."""
    rgb, top = (86, 90, 94), height + (1.0 if reach else 0.3)
    parts = [tube((reach, 0, 0), (reach, top, 0), 0.085, rgb, 0.065),
             tube((reach, 0, 0), (reach, 0.5, 0), 0.13, rgb, 0.11)]
    if reach:
        parts.append(tube((reach, top, 0), (0, top + 0.1, 0), 0.06, rgb, 0.045))
    return assemble(parts, solid=False)


@lru_cache(maxsize=KINDS)
def tree(kind: int) -> Model:
    """A street tree, 4 to 8 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([25, kind])
    height, spread = rng.uniform(4.2, 8), rng.uniform(1.2, 2.2)
    green = pick(rng, ((62, 92, 44), (78, 100, 40), (50, 84, 50), (120, 96, 40), (92, 110, 60)))
    bark, fork = (78, 62, 48), height * 0.42
    parts = [tube((0, 0, 0), (0, fork, 0), 0.17, bark, 0.12)]
    for dx, dz in ((-0.7, 0.2), (0.7, -0.2), (0, 0.4)):
        parts.append(tube((0, fork * 0.8, 0), (dx, height * 0.7, dz), 0.09, bark, 0.04))
    blobs = rng.normal(0, 1, (46, 3))
    blobs *= (rng.uniform(0, 1, (46, 1)) ** 0.4) / np.linalg.norm(blobs, axis=1, keepdims=True)
    for x, y, z in blobs * (spread, height * 0.3, spread):
        tone = 0.72 + 0.42 * (y / height + 0.3) / 0.6 + rng.uniform(-0.12, 0.12)
        parts.append(ball((x, y + height * 0.7, z), spread * rng.uniform(0.2, 0.36), shade(green, tone)))
    return assemble(parts, solid=False)


@lru_cache(maxsize=KINDS)
def lamp_post(kind: int) -> Model:
    """A street lamp, 5 to 7 m, its arm to the local left. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([26, kind])
    h, rgb = rng.uniform(5, 7), pick(rng, ((60, 64, 66), (110, 114, 118), (40, 56, 50)))
    return assemble([tube((0, 0, 0), (0, h, 0), 0.09, rgb, 0.055), tube((0, h, 0), (-1.1, h + 0.25, 0), 0.045, rgb),
                     tube((0, 0, 0), (0, 0.7, 0), 0.13, rgb, 0.12),
                     tube((-1.0, h + 0.22, 0), (-1.6, h + 0.22, 0), 0.09, (255, 214, 150), 0.07, glow=1)], solid=False)


@lru_cache(maxsize=KINDS)
def furniture(kind: int) -> Model:
    """Something on the pavement that is none of the classes; `kind` in 0..KINDS - 1 decides what and its looks."""
    rng = np.random.default_rng([27, kind])
    return pick(rng, (_bin, _cabinet, _sign, _sign, _bush, _bollard, _bench))(rng)


def _bin(rng: np.random.Generator) -> Model:
    body = frustum(0.24, 0.3, 0.05, 0.95, (-0.25, 0.25, -0.3, 0.3))
    lid = frustum(0.32, 0.28, 0.95, 1.05, (-0.32, 0.32) * 2)
    return assemble(block(body, shade(pick(rng, PAINTS), 0.7)) + block(lid, DARK), solid=True)


def _cabinet(rng: np.random.Generator) -> Model:
    half = rng.uniform(0.3, 0.8)
    body = frustum(half, half, 0, rng.uniform(1.0, 1.7), (-0.3, 0.3) * 2)
    doors = [on(body[n], 0.48, 0.5, 0.05, 0.95, (60, 64, 60)) for n in ("front", "rear")]
    return assemble(block(body, pick(rng, ((120, 128, 118), (150, 150, 146), (90, 100, 110)))) + doors, solid=True)


def _sign(rng: np.random.Generator) -> Model:
    h, corners = rng.uniform(2.1, 2.8), pick(rng, (3, 4, 8, 14))
    border = pick(rng, ((200, 30, 30), (30, 70, 160), (236, 236, 236), (230, 180, 30)))
    plate = round_front(0, h, 0.05, 0.36, corners)
    inner = (plate - (0, h, 0.05)) * 0.74 + (0, h, 0.07)
    pole = tube((0, 0, 0), (0, h + 0.2, 0), 0.035, (130, 132, 134))
    field = pick(rng, ((240, 240, 238), border, (30, 70, 160)))
    return assemble([pole, Part(SHEET, plate, border), Part(SHEET, inner, field)], solid=True)


def _bush(rng: np.random.Generator) -> Model:
    at = rng.uniform((-0.7, 0.2, -0.3), (0.7, 0.7, 0.3), (22, 3))
    green = (60, 96, 48)
    return assemble([ball(p, rng.uniform(0.16, 0.3), shade(green, rng.uniform(0.6, 1.3))) for p in at], solid=False)


def _bollard(rng: np.random.Generator) -> Model:
    post = tube((0, 0, 0), (0, 0.8, 0), 0.09, pick(rng, PAINTS))
    return assemble([post, tube((0, 0.55, 0), (0, 0.65, 0), 0.095, (235, 235, 230))], solid=True)


def _bench(rng: np.random.Generator) -> Model:
    wood = shade((128, 88, 54), rng.uniform(0.7, 1.2))
    leg = frustum(0.04, 0.04, 0, 0.42, (-0.18, 0.18) * 2)
    parts = [p for x in (-0.65, 0.65) for p in block({n: q + np.float32([x, 0, 0]) for n, q in leg.items()}, DARK)]
    for y in (0.58, 0.74):
        slat = quad((-0.8, y, -0.2), (0.8, y, -0.2), (0.8, y + 0.1, -0.24), (-0.8, y + 0.1, -0.24))
        parts.append(Part(SHEET, slat, wood))
    return assemble(parts + block(frustum(0.8, 0.8, 0.42, 0.48, (-0.2, 0.2) * 2), wood), solid=True)
