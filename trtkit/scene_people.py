"""People who walk, stand and ride, and the bicycles they ride, as `scene_art` models made of limbs.

A person is a skeleton posed by the phase of a double step (or a turn of the pedals); clothes are the limbs' thickness
and colour.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from trtkit.scene_art import RING, SHEET, Model, Part, assemble
from trtkit.scene_parts import (
    CHROME,
    DARK,
    KINDS,
    PAINTS,
    RED_LAMP,
    TYRE,
    WHITE_LAMP,
    ball,
    block,
    frustum,
    pick,
    shade,
    tube,
    vec,
)

GAIT_STEPS = 24
SKINS = ((236, 196, 168), (214, 164, 128), (168, 116, 84), (112, 76, 54), (84, 56, 42))
CLOTHES = ((40, 52, 88), (150, 40, 46), (214, 206, 190), (52, 56, 60), (44, 98, 84), (196, 150, 60), (96, 70, 110),
           (70, 110, 160), (228, 228, 226), (122, 90, 62), (210, 110, 120), (30, 30, 34), (232, 120, 40))


class Looks(NamedTuple):
    """What stays the same about one person over time."""

    height: float
    build: float
    top: tuple
    legs: tuple
    skin: tuple
    hair: tuple
    shoes: tuple
    extra: str  # "", "bag", "backpack", "umbrella", "skirt", "coat", "hat"
    accent: tuple


@lru_cache(maxsize=KINDS)
def looks(kind: int) -> Looks:
    """Height, clothes and things carried of person `kind` in 0..KINDS - 1."""
    rng = np.random.default_rng([20, kind])
    extra = pick(rng, ("", "", "bag", "backpack", "umbrella", "skirt", "coat", "hat"))
    hair = pick(rng, ((30, 24, 22), (70, 46, 30), (150, 110, 60), (110, 108, 106), (24, 22, 26)))
    return Looks(rng.uniform(1.55, 1.9), rng.uniform(0.92, 1.18), pick(rng, CLOTHES), shade(pick(rng, CLOTHES), 0.7),
                 pick(rng, SKINS), hair, pick(rng, ((30, 28, 28), (220, 220, 220), (96, 60, 40))), extra,
                 pick(rng, PAINTS))


def person(kind: int, turn: float, *, pose: str = "walk") -> Model:
    """Person `kind`; `pose` is "walk", "stand" or "ride", and `turn` counts double steps or turns of the pedals."""
    return _person(kind, round(turn * GAIT_STEPS) % GAIT_STEPS, pose)


@lru_cache(maxsize=4096)
def _person(kind: int, step: int, pose: str) -> Model:
    """As `person`, by the step of the gait, so that each pose is built once."""
    who, phase = looks(kind), 2 * np.pi * step / GAIT_STEPS
    if pose == "ride":
        return _rider(who, phase)
    k, b = who.height / 1.75, who.build
    swing = 0.4 if pose == "walk" else 0.07
    parts, feet = [], []
    for side, turn in ((-1, phase), (1, phase + np.pi)):
        thigh = swing * np.sin(turn)
        shin = thigh - (0.08 + 0.6 * max(0.0, np.cos(turn))) * (swing > 0.2)
        hip = np.array([side * 0.095, 0.92, 0])
        knee = hip + 0.43 * np.array([0, -np.cos(thigh), np.sin(thigh)])
        ankle = knee + 0.42 * np.array([0, -np.cos(shin), np.sin(shin)])
        feet.append(ankle[1])
        parts += [tube(hip, knee, 0.088 * b, who.legs, 0.064 * b), tube(knee, ankle, 0.064 * b, who.legs, 0.044),
                  tube(ankle + vec(0, -0.02, -0.03), ankle + vec(side * 0.02, -0.03, 0.16), 0.045, who.shoes)]
        arm = -0.9 * swing * np.sin(turn)
        shoulder = np.array([side * 0.2 * b, 1.4, 0])
        elbow = shoulder + 0.27 * np.array([side * 0.25, -np.cos(arm), np.sin(arm)])
        hand = elbow + 0.25 * np.array([0, -np.cos(arm + 0.4), np.sin(arm + 0.4)])
        if who.extra == "umbrella" and side == 1:
            elbow, hand = shoulder + vec(0.03, -0.25, 0.08), shoulder + vec(-0.02, -0.09, 0.28)
        parts += [tube(shoulder, elbow, 0.058 * b, who.top, 0.046), tube(elbow, hand, 0.046, who.top, 0.036),
                  ball(hand, 0.042, who.skin)]
    parts += _torso(who, np.array([0, 0.95, 0.0]), np.array([0, 1.4, 0.01])) + _head(who, np.array([0, 1.63, 0.03]))
    parts += _carried(who)
    drop = min(feet) - 0.075
    scale = np.array([k, k, k])
    moved = [p._replace(pts=(p.pts - (0, drop, 0)) * scale, radius=(p.radius[0] * k, p.radius[1] * k)) for p in parts]
    return assemble(moved, solid=False)


def _torso(who: Looks, hip: np.ndarray, neck: np.ndarray) -> list[Part]:
    """Trunk from hip to neck, with the skirt or coat that hangs from it."""
    b = who.build
    parts = []
    for side in (-1, 1):
        low, high = hip + vec(side * 0.07 * b, 0.02, 0), neck + vec(side * 0.11 * b, -0.03, 0)
        parts.append(tube(low, high, 0.105 * b, who.top, 0.115 * b))
    parts.append(tube(neck + vec(-0.15 * b, 0, 0), neck + vec(0.15 * b, 0, 0), 0.07, who.top))
    if who.extra in ("skirt", "coat"):
        rgb = who.accent if who.extra == "skirt" else who.top
        for x in (-0.07, 0.07):
            parts.append(tube(hip + vec(x, 0.05, 0), hip + vec(x * 1.4, -0.36, 0), 0.12 * b, rgb, 0.15 * b))
    return parts


def _head(who: Looks, at: np.ndarray) -> list[Part]:
    """Neck, face, hair and hat; `at` is the middle of the head."""
    parts = [tube(at + vec(0, -0.2, -0.02), at + vec(0, -0.08, 0), 0.05, shade(who.skin, 0.9)),
             tube(at + vec(0, -0.04, 0.01), at + vec(0, 0.03, 0), 0.09, who.skin, 0.1),
             tube(at + vec(0, 0.05, -0.045), at + vec(0, -0.02, -0.06), 0.095, who.hair, 0.07),
             tube(at + vec(0, 0.075, -0.02), at + vec(0, 0.085, 0.02), 0.085, who.hair, 0.06)]
    if who.extra == "hat":
        parts += [tube(at + vec(0, 0.08, 0), at + vec(0, 0.15, 0), 0.11, who.accent, 0.08),
                  tube(at + vec(-0.07, 0.07, 0.05), at + vec(0.07, 0.07, 0.05), 0.07, who.accent)]
    return parts


def _carried(who: Looks) -> list[Part]:
    """What the person carries: backpack, bag, umbrella or nothing."""
    if who.extra == "backpack":
        return [tube((x, 1.08, -0.2), (x, 1.32, -0.19), 0.1, who.accent) for x in (-0.06, 0.06)]
    if who.extra == "bag":
        bag = frustum(0.06, 0.05, 0.55, 0.85, (-0.16, 0.18, -0.12, 0.14))
        return block({n: q + np.array([-0.3, 0, 0.02]) for n, q in bag.items()}, who.accent, kind=SHEET)
    if who.extra == "umbrella":
        a = np.arange(8) * (np.pi / 4)
        rim = np.stack([0.17 + 0.55 * np.cos(a), np.full(8, 1.92), 0.2 + 0.55 * np.sin(a)], 1)
        top = np.array([0.17, 2.18, 0.2])
        tones = [shade(who.accent, 0.8 + 0.1 * (i % 3)) for i in range(8)]
        cover = [Part(SHEET, np.array([rim[i - 1], rim[i], top]), tones[i]) for i in range(8)]
        return [tube((0.19, 1.2, 0.25), top + vec(0, 0.06, 0), 0.012, DARK), *cover]
    return []


def _rider(who: Looks, phase: float) -> Model:
    """Somebody who sits on a bicycle and pedals; phase in radians."""
    hip, neck = np.array([0, 0.98, -0.2]), np.array([0, 1.42, 0.08])
    plain = who._replace(extra=who.extra if who.extra == "hat" else "")
    parts = _torso(plain, hip, neck) + _head(plain, neck + vec(0, 0.2, 0.08))
    for side, turn in ((-1, phase), (1, phase + np.pi)):
        foot = np.array([side * 0.11, 0.32 + 0.16 * np.cos(turn), -0.03 + 0.16 * np.sin(turn)])
        start = hip + vec(side * 0.09, -0.02, 0)
        knee = (start + foot) / 2 + (side * 0.02, 0.1, 0.24)
        parts += [tube(start, knee, 0.085, who.legs, 0.065), tube(knee, foot, 0.062, who.legs, 0.042),
                  tube(foot, foot + vec(0, -0.02, 0.14), 0.042, who.shoes)]
        shoulder, hand = neck + vec(side * 0.19, -0.02, 0), np.array([side * 0.24, 1.03, 0.42])
        elbow = (shoulder + hand) / 2 + (side * 0.06, -0.07, -0.02)
        parts += [tube(shoulder, elbow, 0.055, who.top, 0.045), tube(elbow, hand, 0.043, who.top, 0.036),
                  ball(hand, 0.042, who.skin)]
    return assemble(parts, solid=False)


@lru_cache(maxsize=KINDS)
def bicycle(kind: int) -> Model:
    """A bicycle, about 1.75 x 0.5 x 1.05 m, without rider. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([24, kind])
    rgb, tyre = pick(rng, PAINTS), pick(rng, (TYRE, TYRE, (90, 74, 56)))
    r, base = 0.345, rng.uniform(0.51, 0.56)
    rear, front, crank = (0, r, -base), (0, r, base), (0, 0.3, -0.06)
    seat, head, stem = (0, 0.82, -0.22), (0, 0.84, 0.36), (0, 1.0, 0.33)
    t, a = 0.024, np.arange(18) * (2 * np.pi / 18)
    parts = []
    for _, y, z in (rear, front):
        rim = np.stack([np.zeros(18), y + r * np.cos(a), z + r * np.sin(a)], 1)
        parts.append(Part(RING, rim, tyre, (0.028, 0.028)))
        parts.append(Part(RING, (rim - (0, y, z)) * 0.92 + (0, y, z), CHROME, (0.008, 0.008)))
        parts += [tube((0, y, z), rim[i], 0.004, (150, 150, 152)) for i in range(0, 18, 3)]
        parts.append(ball((0, y, z), 0.035, CHROME))
    step = rng.random() < 0.35  # step-through frame
    parts += [tube(crank, seat, t, rgb), tube(crank, head, t * 1.15, rgb), tube(rear, crank, t * 0.8, rgb),
              tube(rear, seat, t * 0.7, rgb), tube((0, 0.5, -0.13) if step else (0, 0.76, -0.2), head, t, rgb),
              tube(head, front, t, rgb), tube(head, stem, 0.018, CHROME),
              tube(seat, (0, 0.92, -0.25), 0.016, CHROME),
              tube((0, 0.94, -0.35), (0, 0.95, -0.1), 0.055, DARK, 0.03),
              tube((-0.26, 1.02, 0.36), (0.26, 1.02, 0.36), 0.018, DARK),
              tube((0.1, 0.16, -0.06), (0.05, 0.3, -0.06), 0.016, DARK),
              tube((-0.1, 0.44, -0.06), (-0.05, 0.3, -0.06), 0.016, DARK),
              ball(crank, 0.08, (60, 60, 62)), ball((0, 0.8, 0.5), 0.045, WHITE_LAMP, glow=1),
              ball((0, 0.62, -0.62), 0.035, RED_LAMP, glow=1)]
    if rng.random() < 0.3:
        basket = frustum(0.13, 0.17, 0.75, 0.95, (0.45, 0.68, 0.42, 0.72))
        parts += block(basket, (120, 92, 60), kind=SHEET)
    return assemble(parts, solid=False)
