"""Cars, buses and trucks as `scene_art` models: a body of blocks, with windows and lamps painted on its faces.

`kind` picks one of `KINDS` different vehicles of a class. Left out on purpose: the real proportions of any brand, and
people inside.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from trtkit.scene_art import FACE, Model, Part, assemble
from trtkit.scene_parts import (
    AMBER_LAMP,
    CHROME,
    DARK,
    GLASS,
    KINDS,
    PAINTS,
    RED_LAMP,
    TYRE,
    WHITE_LAMP,
    block,
    disc,
    frustum,
    on,
    patch,
    pick,
    quad,
    shade,
    tube,
)


def _wheels(half: float, axles, r: float, *, group_of=lambda z: 0) -> tuple[list[Part], list[Part]]:
    """Tyres as seen from the front (painted under the body) and wheels as seen from the side (over it)."""
    under, over = [], []
    for z in axles:
        g = group_of(z)
        for side in (-1, 1):
            tyre = frustum(0.1, 0.1, 0.0, r * 1.2, (z - 0.4 * r, z + 0.4 * r, z - r * 0.9, z + r * 0.9))
            under += block({k: q + np.array([side * (half - 0.12), 0, 0]) for k, q in tyre.items()}, TYRE)
            x = side * (half + 0.01)
            over += [Part(FACE, disc(x, r + 0.03, z, r * 1.17), (18, 18, 20), group=g),
                     Part(FACE, disc(x, r, z, r, 14), TYRE, group=g),
                     Part(FACE, disc(x, r, z, r * 0.62, 10), CHROME, group=g),
                     Part(FACE, disc(x, r, z, r * 0.22, 6), (70, 70, 74), group=g)]
    return under, over


@lru_cache(maxsize=KINDS)
def car(kind: int) -> Model:
    """A sedan, hatchback or SUV, about 4.3 x 1.8 x 1.5 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([21, kind])
    style = pick(rng, ("sedan", "hatchback", "suv"))
    length = {"sedan": 4.5, "hatchback": 3.9, "suv": 4.5}[style] * rng.uniform(0.95, 1.05)
    half, belt, roof = rng.uniform(0.86, 0.94), 0.86, {"sedan": 1.42, "hatchback": 1.48, "suv": 1.72}[style]
    belt += 0.14 * (style == "suv")
    nose, tail = length / 2, -length / 2
    paint_rgb, r = pick(rng, PAINTS), 0.36 if style == "suv" else 0.32
    low = 0.26 + 0.06 * (style == "suv")
    profile = np.array([(tail + 0.1, low), (nose - 0.12, low), (nose, low + 0.16), (nose - 0.06, belt - 0.2),
                        (nose - 0.35, belt - 0.09), (nose - 1.1, belt), (tail + 0.15, belt + 0.03), (tail, belt - 0.2),
                        (tail + 0.02, low + 0.14)])  # (z, y), nose to the right
    under, wheels = _wheels(half, (nose - 0.82, tail + 0.78), r)
    parts = under + block(frustum(half * 0.9, half * 0.9, 0.16, 0.4, (tail + 0.4, nose - 0.4) * 2), DARK)
    side = np.concatenate([np.full((9, 1), half), profile[:, ::-1]], 1)  # (9, 3)
    parts += [Part(FACE, side[::-1], paint_rgb), Part(FACE, side * (-1, 1, 1), paint_rgb)]
    for i in range(9):
        a, b = side[i], side[(i + 1) % 9]
        parts.append(Part(FACE, np.array([a * (-1, 1, 1), a, b, b * (-1, 1, 1)]), paint_rgb))
    parts += _car_ends(side, rng)
    for sx, q in ((1, quad((half, low, tail), (half, low, nose), (half, belt, nose), (half, belt, tail))),
                  (-1, quad((-half, low, nose), (-half, low, tail), (-half, belt, tail), (-half, belt, nose)))):
        parts.append(on(q, 0.06, 0.94, 0.0, 0.13, DARK))
        for u in (0.36, 0.6) if sx > 0 else (0.4, 0.64):
            parts.append(on(q, u, u + 0.008, 0.14, 0.95, shade(paint_rgb, 0.55)))
            parts.append(on(q, u + 0.02, u + 0.06, 0.72, 0.78, shade(paint_rgb, 0.6)))
    parts += wheels
    for x in (-half - 0.08, half + 0.08):  # mirrors, before the cabin that hides the far one
        parts.append(tube((x, belt + 0.05, nose - 1.2), (x * 1.08, belt + 0.07, nose - 1.2), 0.07, paint_rgb))
    rear_base = tail + {"sedan": 0.62, "hatchback": 0.16, "suv": 0.1}[style]
    slope = {"sedan": 0.62, "hatchback": 0.42, "suv": 0.22}[style]
    cabin = frustum(half - 0.03, half - 0.2, belt - 0.01, roof,
                     (rear_base, nose - 0.95, rear_base + slope, nose - 1.75))
    parts += block(cabin, paint_rgb)
    tint = shade(GLASS, rng.uniform(0.7, 1.25))
    for name in ("front", "rear"):
        parts.append(on(cabin[name], 0.06, 0.94, 0.08, 0.92, tint))
        parts.append(on(cabin[name], 0.12, 0.4, 0.55, 0.88, shade(tint, 1.7)))
    for name in ("left", "right"):
        for u0, u1 in ((0.07, 0.48), (0.53, 0.93)):
            parts.append(on(cabin[name], u0, u1, 0.1, 0.9, tint))
            parts.append(on(cabin[name], u0 + 0.04, u1 - 0.12, 0.62, 0.84, shade(tint, 1.6)))
    return assemble(parts, solid=True)


def _car_ends(side: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """Lamps, grille, plates and bumpers on the front and rear of a car's side outline (9, 3)."""
    left = side * (-1, 1, 1)
    front, rear = quad(side[2], left[2], left[3], side[3]), quad(left[8], side[8], side[7], left[7])
    parts = [on(front, 0.25, 0.75, 0.3, 0.85, DARK), on(front, 0.28, 0.72, 0.5, 0.58, CHROME),
             on(front, 0.36, 0.64, 0.02, 0.26, (225, 225, 215)),
             on(rear, 0.34, 0.66, 0.3, 0.62, (230, 225, 190)),
             on(rear, 0.04, 0.96, 0.0, 0.16, DARK)]
    width = rng.uniform(0.16, 0.24)
    for u in (0.02, 0.98 - width):
        parts.append(on(front, u, u + width, 0.45, 0.95, WHITE_LAMP, glow=1))
        parts.append(on(rear, u, u + width, 0.5, 0.98, RED_LAMP, glow=1))
    return parts


@lru_cache(maxsize=KINDS)
def bus(kind: int) -> Model:
    """A city bus, about 11 x 2.5 x 3.1 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([22, kind])
    length, half, top = rng.uniform(9, 12), 1.25, rng.uniform(2.9, 3.3)
    rgb = pick(rng, ((190, 32, 36), (232, 190, 40), (40, 90, 160), (235, 235, 230), (60, 140, 90), (225, 120, 40)))
    second = pick(rng, ((240, 240, 236), (40, 44, 52), shade(rgb, 0.6), (230, 200, 60)))
    nose, tail = length / 2, -length / 2
    under, wheels = _wheels(half, (nose - 2.3, tail + 2.6), 0.48)
    body = frustum(half, half - 0.06, 0.32, top, (tail, nose, tail + 0.06, nose - 0.18))
    parts = under + block(body, rgb)
    tint, panes = shade(GLASS, rng.uniform(0.75, 1.2)), int(rng.integers(5, 9))
    stripe = rng.uniform(0.14, 0.3)
    for name in ("left", "right"):
        parts.append(on(body[name], 0, 1, 0.0, 0.07, DARK))
        parts.append(on(body[name], 0, 1, 0.09, stripe, second))
        parts.append(on(body[name], 0.02, 0.98, 0.44, 0.84, (28, 30, 34)))
        for k in range(panes):
            u0, u1 = 0.03 + 0.94 * k / panes, 0.03 + 0.94 * (k + 0.88) / panes
            parts.append(on(body[name], u0, u1, 0.46, 0.82, tint, glow=0))
            parts.append(on(body[name], u0 + 0.01, u0 + 0.05, 0.62, 0.8, shade(tint, 1.55)))
    for u in (0.84, 0.46):  # doors, on the kerb side
        parts.append(on(body["right"], u, u + 0.09, 0.07, 0.84, (36, 40, 46)))
        parts.append(on(body["right"], u + 0.01, u + 0.042, 0.12, 0.8, tint))
        parts.append(on(body["right"], u + 0.048, u + 0.08, 0.12, 0.8, tint))
    parts += wheels
    front, rear = body["front"], body["rear"]
    parts += [on(front, 0.05, 0.95, 0.36, 0.82, tint), on(front, 0.1, 0.34, 0.58, 0.8, shade(tint, 1.6)),
              on(front, 0.495, 0.505, 0.36, 0.82, DARK), on(front, 0.15, 0.85, 0.85, 0.96, (20, 20, 22)),
              on(front, 0.24, 0.7, 0.875, 0.935, AMBER_LAMP, glow=2), on(front, 0, 1, 0, 0.08, DARK),
              on(front, 0.36, 0.64, 0.1, 0.16, (228, 226, 214)), on(rear, 0.15, 0.85, 0.55, 0.84, tint),
              on(rear, 0.2, 0.8, 0.16, 0.4, shade(rgb, 0.7)), on(rear, 0, 1, 0, 0.1, DARK)]
    for u in (0.04, 0.82):
        parts.append(on(body["front"], u, u + 0.14, 0.13, 0.21, WHITE_LAMP, glow=1))
        parts.append(on(body["rear"], u + 0.02, u + 0.11, 0.2, 0.36, RED_LAMP, glow=1))
    cooler = frustum(half - 0.35, half - 0.45, top - 0.02, top + 0.2, (tail + 1, tail + 4, tail + 1.2, tail + 3.8))
    parts += block(cooler, shade(second, 0.9))
    for x in (-half - 0.12, half + 0.12):
        parts.append(tube((x, top - 0.7, nose + 0.05), (x, top - 1.1, nose + 0.05), 0.1, DARK))
    return assemble(parts, solid=True)


@lru_cache(maxsize=KINDS)
def truck(kind: int) -> Model:
    """A lorry with a box, a tank or an open bed, about 7.5 x 2.4 x 3.2 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([23, kind])
    length, half, load = rng.uniform(6, 8.5), rng.uniform(1.1, 1.25), pick(rng, ("box", "box", "tank", "bed"))
    nose, tail, cab_top = length / 2, -length / 2, rng.uniform(2.4, 2.9)
    rgb, wall = pick(rng, PAINTS), nose - 2.0
    under, wheels = _wheels(half, (nose - 1.1, tail + 1.3, tail + 2.3), 0.48, group_of=lambda z: 2 if z > wall else 1)
    parts = under + block(frustum(half * 0.8, half * 0.8, 0.55, 0.95, (tail, nose - 0.3) * 2), DARK)
    cab = frustum(half, half - 0.1, 0.5, cab_top, (wall + 0.1, nose, wall + 0.1, nose - 0.35))
    tint = shade(GLASS, rng.uniform(0.75, 1.2))
    parts += block(cab, rgb, group=2)
    parts += [on(cab["front"], 0.06, 0.94, 0.5, 0.88, tint, group=2),
              on(cab["front"], 0.1, 0.4, 0.68, 0.86, shade(tint, 1.6), group=2),
              on(cab["front"], 0.22, 0.78, 0.18, 0.42, DARK, group=2),
              on(cab["front"], 0.26, 0.74, 0.28, 0.32, CHROME, group=2),
              on(cab["front"], 0.0, 1.0, 0.0, 0.09, (60, 60, 64), group=2)]
    for u in (0.03, 0.81):
        parts.append(on(cab["front"], u, u + 0.16, 0.1, 0.22, WHITE_LAMP, glow=1, group=2))
    for name, (u0, u1) in (("left", (0.12, 0.68)), ("right", (0.32, 0.88))):
        parts.append(on(cab[name], u0, u1, 0.54, 0.86, tint, group=2))
        parts.append(on(cab[name], u0 + 0.04, u0 + 0.22, 0.68, 0.84, shade(tint, 1.6), group=2))
        parts.append(on(cab[name], u0, u1, 0.44, 0.46, shade(rgb, 0.6), group=2))
    parts += {"box": _cargo_box, "tank": _cargo_tank, "bed": _cargo_bed}[load](rng, half, tail, wall)
    bumper = frustum(half, half, 0.5, 0.8, (tail - 0.03, tail) * 2)["rear"]
    parts.append(on(bumper, 0, 1, 0, 1, (60, 60, 62), group=1))
    for u in (0.03, 0.81):
        parts.append(on(bumper, u, u + 0.16, 0.2, 0.9, RED_LAMP, glow=1, group=1))
    parts.append(on(bumper, 0.38, 0.62, 0.2, 0.8, (230, 225, 190), group=1))
    parts += wheels
    return assemble(parts, solid=True)


def _cargo_box(rng, half, tail, wall) -> list[Part]:
    """A closed box with a sign on its sides."""
    rgb = pick(rng, ((238, 238, 234), (210, 214, 220), (70, 96, 150), (180, 60, 50), (220, 190, 90), (90, 120, 90)))
    box = frustum(half, half, 0.95, rng.uniform(2.9, 3.6), (tail, wall) * 2)
    parts = block(box, rgb, group=1)
    sign = pick(rng, PAINTS)
    for name in ("left", "right"):
        parts += [on(box[name], 0.0, 1.0, 0.0, 0.06, shade(rgb, 0.55), group=1),
                  on(box[name], 0.2, 0.75, 0.42, 0.66, sign, group=1),
                  on(box[name], 0.24, 0.6, 0.5, 0.57, (240, 240, 240), group=1)]
        parts += [on(box[name], u, u + 0.006, 0.06, 1, shade(rgb, 0.8), group=1) for u in (0.1, 0.3, 0.5, 0.7, 0.9)]
    parts += [on(box["rear"], 0.04, 0.96, 0.03, 0.95, shade(rgb, 0.86), group=1),
              on(box["rear"], 0.49, 0.51, 0.03, 0.95, DARK, group=1)]
    return parts + [on(box["rear"], u, u + 0.02, 0.1, 0.9, (110, 110, 114), group=1) for u in (0.4, 0.58)]


def _cargo_tank(rng, half, tail, wall) -> list[Part]:
    """A lying cylinder with stripes."""
    rgb = pick(rng, ((200, 204, 208), (226, 226, 222), (190, 150, 60), (120, 150, 180)))
    a = np.arange(12) * (2 * np.pi / 12)
    ring = np.stack([half * 0.98 * np.sin(a), 1.95 + 0.95 * np.cos(a)], 1)  # clockwise seen from behind
    near, far = (np.concatenate([ring, np.full((12, 1), z)], 1) for z in (tail + 0.1, wall - 0.1))
    parts = [Part(FACE, near, rgb, group=1), Part(FACE, far[::-1], rgb, group=1)]
    for i in range(12):
        j = (i + 1) % 12
        side = np.stack([near[j], near[i], far[i], far[j]])
        parts.append(Part(FACE, side, rgb, group=1))
        if i in (2, 3, 8, 9):
            stripe = pick(rng, ((200, 60, 40), (60, 90, 150), rgb))
            parts.append(Part(FACE, patch(side, 0, 1, 0.2, 0.75), stripe, group=1))
    return parts


def _cargo_bed(rng, half, tail, wall) -> list[Part]:
    """An open bed, loaded with crates."""
    rgb = pick(rng, ((120, 84, 56), (90, 94, 100), (60, 90, 130), (150, 60, 40)))
    bed = frustum(half, half, 0.95, 1.5, (tail, wall) * 2)
    parts = block(bed, rgb, group=1)
    for name in ("left", "right", "rear"):
        parts += [on(bed[name], 0, 1, v, v + 0.04, shade(rgb, 0.6), group=1) for v in (0.3, 0.65)]
    z = tail + 0.3
    while z < wall - 1.2:
        size = rng.uniform(0.8, 1.4)
        load = frustum(half * 0.8, half * 0.75, 1.5, 1.5 + rng.uniform(0.4, 1.2), (z, z + size) * 2)
        parts += block(load, pick(rng, ((150, 116, 78), (176, 170, 160), (96, 110, 92), (170, 80, 60))), group=1)
        z += size + 0.1
    return parts
