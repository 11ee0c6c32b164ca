"""The building blocks of every model: colours, and quads, blocks, discs and limbs in metres.

Colours are RGB, 0..255. Polygons are (K, 3) arrays of corners; seen from outside they run anticlockwise in a quad
(bottom-left, bottom-right, top-right, top-left), and `block` and `on` turn them round for `scene_art.FACE`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trtkit.scene_art import FACE, TUBE, Part

KINDS = 256  # different objects of each sort; built once, then kept
DARK, TYRE, GLASS, CHROME = (34, 34, 38), (26, 26, 28), (44, 56, 68), (168, 170, 174)
WHITE_LAMP, RED_LAMP, AMBER_LAMP = (255, 246, 214), (235, 36, 28), (255, 176, 60)
PAINTS = ((196, 30, 36), (28, 62, 140), (236, 236, 232), (36, 38, 42), (150, 154, 160), (32, 92, 66), (214, 168, 40),
          (120, 28, 44), (96, 132, 168), (200, 196, 180), (220, 98, 36), (84, 88, 96))


def pick(rng: np.random.Generator, options: tuple) -> Any:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def shade(rgb: tuple, factor: float) -> tuple[float, float, float]:
    """The colour times a factor, at most 255."""
    return tuple(min(255.0, c * factor) for c in rgb)


def quad(*corners: tuple) -> np.ndarray:
    """Corners as an array (K, 3) float32, metres."""
    return np.array(corners, np.float32)


def vec(x: float, y: float, z: float) -> np.ndarray:
    """A point or a step (3,), metres."""
    return np.array([x, y, z])


def patch(face: np.ndarray, u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
    """Part of a quad (bottom-left, bottom-right, top-right, top-left seen from outside): u to the right, v up."""
    u, v = np.array([[u0], [u1], [u1], [u0]]), np.array([[v0], [v0], [v1], [v1]])
    return (face[0] * (1 - u) + face[1] * u) * (1 - v) + (face[3] * (1 - u) + face[2] * u) * v


def on(
    face: np.ndarray, u0: float, u1: float, v0: float, v1: float, rgb: tuple, *, glow: int = 0, group: int = 0
) -> Part:
    """A painted `patch` of a face: a window, a lamp, a stripe; `glow` and `group` as in `Part`."""
    return Part(FACE, patch(face, u0, u1, v0, v1)[::-1], rgb, glow=glow, group=group)


def frustum(x0: float, x1: float, y0: float, y1: float, z: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    """Outward quads of a block: half widths x0 (below) and x1 (above); z = rear and front below, then above."""
    a, b, c, d = (-x0, y0, z[0]), (x0, y0, z[0]), (x0, y0, z[1]), (-x0, y0, z[1])
    e, f, g, h = (-x1, y1, z[2]), (x1, y1, z[2]), (x1, y1, z[3]), (-x1, y1, z[3])
    return {"rear": quad(a, b, f, e), "front": quad(c, d, h, g), "right": quad(b, c, g, f),
            "left": quad(d, a, e, h), "top": quad(e, f, g, h), "bottom": quad(d, c, b, a)}


def block(quads: dict[str, np.ndarray], rgb: tuple, *, group: int = 0, kind: int = FACE) -> list[Part]:
    """The faces of a `frustum` in one colour."""
    return [Part(kind, q[::-1], rgb, group=group) for q in quads.values()]


def disc(x: float, y: float, z: float, r: float, n: int = 12) -> np.ndarray:
    """Upright wheel-like polygon in the plane of constant x, facing the sign of x."""
    a = np.arange(n) * (2 * np.pi / n) * np.sign(x)
    return np.stack([np.full(n, x), y + r * np.cos(a), z + r * np.sin(a)], 1)


def round_front(x: float, y: float, z: float, r: float, n: int = 12) -> np.ndarray:
    """Upright disc that faces the nose."""
    a = np.arange(n) * (2 * np.pi / n)
    return np.stack([x + r * np.cos(a), y + r * np.sin(a), np.full(n, z)], 1)


def tube(
    p: tuple | np.ndarray, q: tuple | np.ndarray, r0: float, rgb: tuple, r1: float | None = None, *, glow: int = 0
) -> Part:
    """A limb from p to q with radius r0 at p and r1 (None: r0) at q, metres."""
    return Part(TUBE, np.array([p, q], np.float32), rgb, (r0, r0 if r1 is None else r1), glow)


def ball(p: tuple | np.ndarray, r: float, rgb: tuple, *, glow: int = 0) -> Part:
    """A ball of radius r metres around p."""
    return tube(p, p, r, rgb, glow=glow)
