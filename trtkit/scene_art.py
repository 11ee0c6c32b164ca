"""Street objects as small 3-D models, and the brush that paints them. Used by `scenes`.

A model is a list of convex parts in metres, painted back to front through a pinhole camera:

    x_px = cx + focal * X / Z            y_px = horizon + focal * (camera_height - Y) / Z

Local frame of every model: x right, y up, z towards its nose, origin on the ground below its middle. At yaw 0 the nose
points away from the camera (we see the rear), at pi towards it, at +-pi/2 we see a side.
Left out on purpose: a depth buffer, shadows of one object on another, and the real proportions of any brand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

FACE, SHEET, TUBE, RING = range(4)  # one-sided polygon, two-sided polygon, tapered limb, wheel rim
NEAR_M = 0.8  # nearest depth that is projected; nearer points would fly off to infinity
SUBPIXEL_BITS = 3
KINDS = 256  # different objects of each sort; built once, then kept
GAIT_STEPS = 24
_TURN = np.linspace(-np.pi / 2, np.pi / 2, 6)
_CAPS = np.concatenate([_TURN, _TURN + np.pi])  # both round ends of a limb

DARK, TYRE, GLASS, CHROME = (34, 34, 38), (26, 26, 28), (44, 56, 68), (168, 170, 174)
WHITE_LAMP, RED_LAMP, AMBER_LAMP = (255, 246, 214), (235, 36, 28), (255, 176, 60)
PAINTS = ((196, 30, 36), (28, 62, 140), (236, 236, 232), (36, 38, 42), (150, 154, 160), (32, 92, 66), (214, 168, 40),
          (120, 28, 44), (96, 132, 168), (200, 196, 180), (220, 98, 36), (84, 88, 96))
SKINS = ((236, 196, 168), (214, 164, 128), (168, 116, 84), (112, 76, 54), (84, 56, 42))
CLOTHES = ((40, 52, 88), (150, 40, 46), (214, 206, 190), (52, 56, 60), (44, 98, 84), (196, 150, 60), (96, 70, 110),
           (70, 110, 160), (228, 228, 226), (122, 90, 62), (210, 110, 120), (30, 30, 34), (232, 120, 40))


class Camera(NamedTuple):
    """Pinhole camera that looks along +z without roll; `horizon` and `cx` in pixels, `height` in metres."""

    focal: float
    cx: float
    horizon: float
    height: float


class Light(NamedTuple):
    """Light of a scene: colours as (3,) float RGB factors, `to_sun` a unit vector, `density` of haze per metre."""

    ambient: np.ndarray
    sun: np.ndarray
    to_sun: np.ndarray
    haze_rgb: np.ndarray
    density: float
    lamps_on: bool


class Place(NamedTuple):
    """Where a model stands: metres right of, above and ahead of the point below the camera, and its yaw in radians."""

    x: float
    y: float
    z: float
    yaw: float


class Part(NamedTuple):
    """One convex piece: `pts` (K, 3) metres; `radius` of both ends (TUBE) or of the wire (RING), metres."""

    kind: int
    pts: np.ndarray
    rgb: tuple[float, float, float]
    radius: tuple[float, float] = (0.0, 0.0)
    glow: int = 0  # 0 never shines, 1 shines when lamps are on, 2 always
    group: int = 0  # 0 is painted first; 1 (rear volume) and 2 (front volume) in the order the view asks for


@dataclass(frozen=True)
class Model:
    """Parts packed into arrays, so that one NumPy call projects all of them; F parts with P points in all.

    `solid` models (vehicles) are painted in list order, faces turned away left out; others by distance.
    """

    kinds: list[int]  # F entries
    first: list[int]  # F + 1 entries, slice of pts of each part
    pts: np.ndarray  # (P + F, 3) float32, metres: the points of all parts, then the centre of each part
    normal: np.ndarray  # (F, 3) float32, unit; zero for tubes and rings
    rgb: np.ndarray  # (F, 3) float32, 0..255
    radius: np.ndarray  # (F, 2) float32, metres
    glow: np.ndarray  # (F,) int
    group: np.ndarray  # (F,) int
    tubes: np.ndarray  # indices of the tubes
    always: np.ndarray  # (F,) bool, painted from whichever side
    facing: np.ndarray  # (F,) float32, how much sun a part gets at least: tubes are round, so part of them faces it
    solid: bool
    half_xz: tuple[float, float]  # half width and half length on the ground, metres


class Sprite(NamedTuple):
    """A painted object: premultiplied RGB and alpha, both uint8, and where its top-left pixel goes in the image."""

    rgb: np.ndarray  # (h, w, 3)
    alpha: np.ndarray  # (h, w)
    x0: int
    y0: int
    lamps: list[tuple[float, float, float, tuple[float, float, float]]]  # x_px, y_px, radius_px, RGB


def assemble(parts: list[Part], *, solid: bool) -> Model:
    """Pack parts into a `Model`."""
    pts = np.concatenate([p.pts for p in parts]).astype(np.float32)
    counts = np.array([len(p.pts) for p in parts])
    first = np.concatenate([[0], np.cumsum(counts)])
    centre = np.add.reduceat(pts, first[:-1]) / counts[:, None].astype(np.float32)
    kinds = np.array([p.kind for p in parts])
    a, b, c = pts[first[:-1]], pts[first[:-1] + 1], pts[first[1:] - 1]
    normal = np.cross(b - a, c - a) * (kinds <= SHEET)[:, None]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    normal[kinds == SHEET] *= np.sign(normal[kinds == SHEET][:, 1:2] + 1e-6)  # two-sided: lit as if from above
    reach = np.abs(pts).max(0)
    return Model(kinds.tolist(), first.tolist(), np.concatenate([pts, centre]), normal,
                 np.array([p.rgb for p in parts], np.float32), np.array([p.radius for p in parts], np.float32),
                 np.array([p.glow for p in parts]), np.array([p.group for p in parts]), np.flatnonzero(kinds == TUBE),
                 kinds != FACE, np.array([0, 0.25, 0.45, 0.45], np.float32)[kinds], solid,
                 (float(reach[0]), float(reach[2])))


# ---------------------------------------------------------------------------------------------- painting


def _to_world(pts: np.ndarray, place: Place) -> np.ndarray:
    c, s = np.cos(place.yaw), np.sin(place.yaw)
    turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)
    return pts @ turn + np.array([place.x, place.y, place.z], np.float32)


def project(world: np.ndarray, camera: Camera) -> np.ndarray:
    """Pixels (N, 2) of points (N, 3) in metres; points nearer than `NEAR_M` are pushed back to it."""
    scale = camera.focal / np.maximum(world[:, 2], NEAR_M)
    pixels = np.empty((len(world), 2))
    pixels[:, 0] = camera.cx + world[:, 0] * scale
    pixels[:, 1] = camera.horizon + (camera.height - world[:, 1]) * scale
    return pixels


def _lit_colours(model: Model, normal: np.ndarray, light: Light, distance: float) -> np.ndarray:
    """Colours (F, 4) of all parts under this light and seen through this much air; the fourth is opacity, 255."""
    facing = np.maximum(normal @ light.to_sun.astype(np.float32), model.facing)
    sky = 0.86 + 0.14 * normal[:, 1:2]  # upward faces see more sky than downward ones
    lit = model.rgb * (light.ambient * sky + light.sun * facing[:, None])
    clear = np.exp(-light.density * distance)
    rgba = np.full((len(lit), 4), 255.0)
    rgba[:, :3] = lit * clear + light.haze_rgb * (1 - clear)
    if shining := _shining(model, light):
        clear = np.exp(-light.density * distance * 0.45)  # lamps carry further than walls
        rgba[shining, :3] = model.rgb[shining] * 1.15 * clear + light.haze_rgb * (1 - clear)
    return np.minimum(rgba, 255, out=rgba)


def _shining(model: Model, light: Light) -> list[int]:
    return np.flatnonzero(model.glow >= (1 if light.lamps_on else 2)).tolist()


def _paint_order(model: Model, centre: np.ndarray, normal: np.ndarray, eye: np.ndarray) -> list[int]:
    sight = eye - centre
    if not model.solid:
        return np.argsort(-np.einsum("ij,ij->i", sight, sight), kind="stable").tolist()
    shown = np.flatnonzero((np.einsum("ij,ij->i", sight, normal) > 0) | model.always)
    if not model.group.any():
        return shown.tolist()
    depth = [np.square(sight[model.group == g].mean(0)).sum() for g in (1, 2)]
    rank = np.array([0, 1, 2] if depth[0] >= depth[1] else [0, 2, 1])
    return shown[np.argsort(rank[model.group[shown]], kind="stable")].tolist()


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Cloth, dirt and reflections: an RGBA factor tile, 128 is one; alpha is left alone."""
    rng = np.random.default_rng(11)
    tile = np.full((960, 1400, 4), 128, np.uint8)
    fine = cv2.GaussianBlur(rng.normal(0, 10, tile.shape[:2]).astype(np.float32), (0, 0), 0.9)
    coarse = cv2.resize(rng.normal(0, 6, (60, 88)).astype(np.float32), tile.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    tile[..., :3] = np.clip(128 + fine + coarse, 0, 255)[..., None]
    return tile


def paint(model: Model, place: Place, camera: Camera, light: Light, *, frame: tuple[int, int]) -> Sprite | None:
    """Paint one model on its own small canvas, supersampled and then averaged down for smooth edges.

    Args:
        model: what to paint.
        place: where it stands, metres.
        camera: the view.
        light: the light.
        frame: height and width of the image. The sprite goes beyond it, so that what the border cuts off is known,
            but by one image size at most.

    Returns:
        The sprite, or None if the object is outside.
    """
    world = _to_world(model.pts, place)
    screen, centre = project(world, camera), world[model.first[-1] :]
    radius_px = model.radius * (camera.focal / np.maximum(centre[:, 2:], NEAR_M))
    limbs = _limbs(model, screen, np.maximum(radius_px, 0.35))
    low, high = _bounds(model, screen, limbs, radius_px, frame)
    w, h = (high - low).tolist()
    if min(w, h) < 1 or min(high) < 0 or low[0] >= frame[1] or low[1] >= frame[0]:
        return None

    fine = 3 if max(w, h) < 60 else 2 if w * h < 40_000 else 1
    canvas = np.zeros((h * fine, w * fine, 4), np.uint8)
    normal = _to_world(model.normal, Place(0, 0, 0, place.yaw))
    order = _paint_order(model, centre, normal, np.array([0, camera.height, 0], np.float32))
    rgba = _lit_colours(model, normal, light, max(place.z, 0.0))
    _fill(canvas, model, order, screen - low, limbs - low, radius_px, rgba, fine)

    if fine > 1:
        canvas = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA)
    close = light.density * place.z < 0.4  # fog hides dirt and cloth
    if close and 24 < h <= 960 and w <= 1400:
        dx = int(model.rgb[0, 0] * 7) % (1401 - w)  # another piece of the tile for another colour
        canvas = cv2.multiply(canvas, _grain()[:h, dx : dx + w], scale=1 / 128)
    lamps = _lamps(model, set(order), screen, radius_px, camera.focal / max(place.z, NEAR_M), light)
    rgb, alpha = cv2.cvtColor(canvas, cv2.COLOR_RGBA2RGB), cv2.extractChannel(canvas, 3)
    return Sprite(rgb, alpha, int(low[0]), int(low[1]), lamps)


def _limbs(model: Model, screen: np.ndarray, radius_px: np.ndarray) -> np.ndarray:
    """Outlines (C, 12, 2) of the round-ended limbs, in pixels."""
    start = np.array(model.first)[model.tubes]
    p, q = screen[start], screen[start + 1]
    angle = np.arctan2(q[:, 1] - p[:, 1], q[:, 0] - p[:, 0])[:, None] + _CAPS  # (C, 12): far end first, then near end
    outline = np.empty((len(p), 12, 2))
    for axis, wave in enumerate((np.cos(angle), np.sin(angle))):
        outline[:, :6, axis] = q[:, None, axis] + wave[:, :6] * radius_px[model.tubes, 1:]
        outline[:, 6:, axis] = p[:, None, axis] + wave[:, 6:] * radius_px[model.tubes, :1]
    return outline


def _bounds(model: Model, screen, limbs, radius_px, frame) -> tuple[np.ndarray, np.ndarray]:
    """First and last pixel (x, y) of the canvas, at most one image size beyond each border."""
    reach = 1.0 + (float(radius_px.max()) if RING in model.kinds else 0.0)
    low, high = screen.min(0), screen.max(0)
    if len(limbs):
        low, high = np.minimum(low, limbs.min((0, 1))), np.maximum(high, limbs.max((0, 1)))
    low, high = np.floor(low - reach).astype(int), np.ceil(high + reach).astype(int)
    return np.maximum(low, (-frame[1], -frame[0])), np.minimum(high, (2 * frame[1], 2 * frame[0]))


def _fill(canvas, model: Model, order: list[int], screen, limbs, radius_px, rgba, fine: int) -> None:
    """Paint the parts in order; limbs get a lighter stripe on the side of the light, which makes them look round."""
    unit, line = fine << SUBPIXEL_BITS, cv2.LINE_8 if fine > 1 else cv2.LINE_AA
    flat = np.rint(screen * unit).astype(np.int32)
    body = np.rint(limbs * unit).astype(np.int32)
    middle = limbs.mean(1, keepdims=True)
    stripe = middle + (limbs - middle) * 0.55 - radius_px[model.tubes, None, :1] * (0.24, 0.2)
    stripe = np.rint(stripe * unit).astype(np.int32)
    tube_of = dict(zip(model.tubes.tolist(), range(len(model.tubes)), strict=True))
    kinds, first, thick, colours = model.kinds, model.first, radius_px[:, 0].tolist(), rgba.tolist()
    for i in order:
        if kinds[i] == TUBE:
            cv2.fillConvexPoly(canvas, body[tube_of[i]], colours[i], line, SUBPIXEL_BITS)
            if thick[i] > 1.5:
                lighter = [min(c * 1.16 + 3, 255) for c in colours[i]]
                cv2.fillConvexPoly(canvas, stripe[tube_of[i]], lighter, line, SUBPIXEL_BITS)
        elif kinds[i] == RING:
            wire = max(1, round(2 * thick[i] * fine))
            cv2.polylines(canvas, [flat[first[i] : first[i + 1]]], True, colours[i], wire, line, SUBPIXEL_BITS)
        else:
            cv2.fillConvexPoly(canvas, flat[first[i] : first[i + 1]], colours[i], line, SUBPIXEL_BITS)


def _lamps(model: Model, shown: set[int], screen, radius_px, px_per_m: float, light: Light) -> list:
    at = screen[model.first[-1] :]
    return [(float(at[i, 0]), float(at[i, 1]), max(float(radius_px[i, 0]), 0.16 * px_per_m * (model.kinds[i] == FACE)),
             tuple(model.rgb[i].tolist())) for i in _shining(model, light) if i in shown]


def cast_shadow(
    mask: np.ndarray, shrink: int, model: Model, place: Place, camera: Camera, to_sun: np.ndarray, value: int
) -> None:
    """Draw the model's shadow on the ground into `mask` (uint8, the image's size divided by `shrink`), in place."""
    world = _to_world(model.pts[: model.first[-1]], place)
    world = world - to_sun.astype(np.float32) * (world[:, 1:2] / to_sun[1])
    flat = np.rint(project(world, camera) * ((1 << SUBPIXEL_BITS) / shrink)).astype(np.int32)
    if model.solid:
        cv2.fillConvexPoly(mask, cv2.convexHull(flat), value, cv2.LINE_8, SUBPIXEL_BITS)
        return
    thick = np.clip(camera.focal / max(place.z, NEAR_M) / shrink * 2 * model.radius[:, 0], 1, 60).astype(int).tolist()
    for i, kind in enumerate(model.kinds):
        piece = flat[model.first[i] : model.first[i + 1]]
        if kind == SHEET:
            cv2.fillConvexPoly(mask, cv2.convexHull(piece), value, cv2.LINE_8, SUBPIXEL_BITS)
        else:
            cv2.polylines(mask, [piece], kind == RING, value, thick[i], cv2.LINE_8, SUBPIXEL_BITS)


# ---------------------------------------------------------------------------------------------- pieces


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _quad(*corners) -> np.ndarray:
    return np.array(corners, np.float32)


def _patch(quad: np.ndarray, u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
    """Part of a quad (bottom-left, bottom-right, top-right, top-left seen from outside): u to the right, v up."""
    u, v = np.array([[u0], [u1], [u1], [u0]]), np.array([[v0], [v0], [v1], [v1]])
    return (quad[0] * (1 - u) + quad[1] * u) * (1 - v) + (quad[3] * (1 - u) + quad[2] * u) * v


def _frustum(x0: float, x1: float, y0: float, y1: float, z: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    """Outward quads of a block: half widths x0 (below) and x1 (above); z = rear and front below, then above."""
    a, b, c, d = (-x0, y0, z[0]), (x0, y0, z[0]), (x0, y0, z[1]), (-x0, y0, z[1])
    e, f, g, h = (-x1, y1, z[2]), (x1, y1, z[2]), (x1, y1, z[3]), (-x1, y1, z[3])
    return {"rear": _quad(a, b, f, e), "front": _quad(c, d, h, g), "right": _quad(b, c, g, f),
            "left": _quad(d, a, e, h), "top": _quad(e, f, g, h), "bottom": _quad(d, c, b, a)}


def _block(quads: dict[str, np.ndarray], rgb, *, group: int = 0, kind: int = FACE) -> list[Part]:
    return [Part(kind, q[::-1], rgb, group=group) for q in quads.values()]


def _at(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z])


def _on(quad: np.ndarray, u0: float, u1: float, v0: float, v1: float, rgb, *, glow: int = 0, group: int = 0) -> Part:
    """A painted patch of a quad: a window, a lamp, a stripe."""
    return Part(FACE, _patch(quad, u0, u1, v0, v1)[::-1], rgb, glow=glow, group=group)


def _disc(x: float, y: float, z: float, r: float, n: int = 12) -> np.ndarray:
    """Upright wheel-like polygon in the plane of constant x, facing the sign of x."""
    a = np.arange(n) * (2 * np.pi / n) * np.sign(x)
    return np.stack([np.full(n, x), y + r * np.cos(a), z + r * np.sin(a)], 1)


def _round_front(x: float, y: float, z: float, r: float, n: int = 12) -> np.ndarray:
    """Upright disc that faces the nose."""
    a = np.arange(n) * (2 * np.pi / n)
    return np.stack([x + r * np.cos(a), y + r * np.sin(a), np.full(n, z)], 1)


def _shade(rgb, factor: float) -> tuple[float, float, float]:
    return tuple(min(255.0, c * factor) for c in rgb)


def _tube(p, q, r0: float, rgb, r1: float | None = None, *, glow: int = 0) -> Part:
    return Part(TUBE, np.array([p, q], np.float32), rgb, (r0, r0 if r1 is None else r1), glow)


def _ball(p, r: float, rgb, *, glow: int = 0) -> Part:
    return _tube(p, p, r, rgb, glow=glow)


def _wheels(half: float, axles, r: float, *, group_of=lambda z: 0) -> tuple[list[Part], list[Part]]:
    """Tyres as seen from the front (painted under the body) and wheels as seen from the side (over it)."""
    under, over = [], []
    for z in axles:
        g = group_of(z)
        for side in (-1, 1):
            block = _frustum(0.1, 0.1, 0.0, r * 1.2, (z - 0.4 * r, z + 0.4 * r, z - r * 0.9, z + r * 0.9))
            under += _block({k: q + np.array([side * (half - 0.12), 0, 0]) for k, q in block.items()}, TYRE)
            x = side * (half + 0.01)
            over += [Part(FACE, _disc(x, r + 0.03, z, r * 1.17), (18, 18, 20), group=g),
                     Part(FACE, _disc(x, r, z, r, 14), TYRE, group=g),
                     Part(FACE, _disc(x, r, z, r * 0.62, 10), CHROME, group=g),
                     Part(FACE, _disc(x, r, z, r * 0.22, 6), (70, 70, 74), group=g)]
    return under, over


# ---------------------------------------------------------------------------------------------- vehicles


@lru_cache(maxsize=KINDS)
def car(kind: int) -> Model:
    """A sedan, hatchback or SUV, about 4.3 x 1.8 x 1.5 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([21, kind])
    style = _pick(rng, ("sedan", "hatchback", "suv"))
    length = {"sedan": 4.5, "hatchback": 3.9, "suv": 4.5}[style] * rng.uniform(0.95, 1.05)
    half, belt, roof = rng.uniform(0.86, 0.94), 0.86, {"sedan": 1.42, "hatchback": 1.48, "suv": 1.72}[style]
    belt += 0.14 * (style == "suv")
    nose, tail = length / 2, -length / 2
    paint_rgb, r = _pick(rng, PAINTS), 0.36 if style == "suv" else 0.32
    low = 0.26 + 0.06 * (style == "suv")
    profile = np.array([(tail + 0.1, low), (nose - 0.12, low), (nose, low + 0.16), (nose - 0.06, belt - 0.2),
                        (nose - 0.35, belt - 0.09), (nose - 1.1, belt), (tail + 0.15, belt + 0.03), (tail, belt - 0.2),
                        (tail + 0.02, low + 0.14)])  # (z, y), nose to the right
    under, wheels = _wheels(half, (nose - 0.82, tail + 0.78), r)
    parts = under + _block(_frustum(half * 0.9, half * 0.9, 0.16, 0.4, (tail + 0.4, nose - 0.4) * 2), DARK)
    side = np.concatenate([np.full((9, 1), half), profile[:, ::-1]], 1)  # (9, 3)
    parts += [Part(FACE, side[::-1], paint_rgb), Part(FACE, side * (-1, 1, 1), paint_rgb)]
    for i in range(9):
        a, b = side[i], side[(i + 1) % 9]
        parts.append(Part(FACE, np.array([a * (-1, 1, 1), a, b, b * (-1, 1, 1)]), paint_rgb))
    parts += _car_ends(side, rng)
    for sx, q in ((1, _quad((half, low, tail), (half, low, nose), (half, belt, nose), (half, belt, tail))),
                  (-1, _quad((-half, low, nose), (-half, low, tail), (-half, belt, tail), (-half, belt, nose)))):
        parts.append(_on(q, 0.06, 0.94, 0.0, 0.13, DARK))
        for u in (0.36, 0.6) if sx > 0 else (0.4, 0.64):
            parts.append(_on(q, u, u + 0.008, 0.14, 0.95, _shade(paint_rgb, 0.55)))
            parts.append(_on(q, u + 0.02, u + 0.06, 0.72, 0.78, _shade(paint_rgb, 0.6)))
    parts += wheels
    for x in (-half - 0.08, half + 0.08):  # mirrors, before the cabin that hides the far one
        parts.append(_tube((x, belt + 0.05, nose - 1.2), (x * 1.08, belt + 0.07, nose - 1.2), 0.07, paint_rgb))
    rear_base = tail + {"sedan": 0.62, "hatchback": 0.16, "suv": 0.1}[style]
    slope = {"sedan": 0.62, "hatchback": 0.42, "suv": 0.22}[style]
    cabin = _frustum(half - 0.03, half - 0.2, belt - 0.01, roof,
                     (rear_base, nose - 0.95, rear_base + slope, nose - 1.75))
    parts += _block(cabin, paint_rgb)
    tint = _shade(GLASS, rng.uniform(0.7, 1.25))
    for name in ("front", "rear"):
        parts.append(_on(cabin[name], 0.06, 0.94, 0.08, 0.92, tint))
        parts.append(_on(cabin[name], 0.12, 0.4, 0.55, 0.88, _shade(tint, 1.7)))
    for name in ("left", "right"):
        for u0, u1 in ((0.07, 0.48), (0.53, 0.93)):
            parts.append(_on(cabin[name], u0, u1, 0.1, 0.9, tint))
            parts.append(_on(cabin[name], u0 + 0.04, u1 - 0.12, 0.62, 0.84, _shade(tint, 1.6)))
    return assemble(parts, solid=True)


def _car_ends(side: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """Lamps, grille, plates and bumpers on the front and rear of a car's side outline (9, 3)."""
    left = side * (-1, 1, 1)
    front, rear = _quad(side[2], left[2], left[3], side[3]), _quad(left[8], side[8], side[7], left[7])
    parts = [_on(front, 0.25, 0.75, 0.3, 0.85, DARK), _on(front, 0.28, 0.72, 0.5, 0.58, CHROME),
             _on(front, 0.36, 0.64, 0.02, 0.26, (225, 225, 215)),
             _on(rear, 0.34, 0.66, 0.3, 0.62, (230, 225, 190)),
             _on(rear, 0.04, 0.96, 0.0, 0.16, DARK)]
    width = rng.uniform(0.16, 0.24)
    for u in (0.02, 0.98 - width):
        parts.append(_on(front, u, u + width, 0.45, 0.95, WHITE_LAMP, glow=1))
        parts.append(_on(rear, u, u + width, 0.5, 0.98, RED_LAMP, glow=1))
    return parts


@lru_cache(maxsize=KINDS)
def bus(kind: int) -> Model:
    """A city bus, about 11 x 2.5 x 3.1 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([22, kind])
    length, half, top = rng.uniform(9, 12), 1.25, rng.uniform(2.9, 3.3)
    rgb = _pick(rng, ((190, 32, 36), (232, 190, 40), (40, 90, 160), (235, 235, 230), (60, 140, 90), (225, 120, 40)))
    second = _pick(rng, ((240, 240, 236), (40, 44, 52), _shade(rgb, 0.6), (230, 200, 60)))
    nose, tail = length / 2, -length / 2
    under, wheels = _wheels(half, (nose - 2.3, tail + 2.6), 0.48)
    body = _frustum(half, half - 0.06, 0.32, top, (tail, nose, tail + 0.06, nose - 0.18))
    parts = under + _block(body, rgb)
    tint, panes = _shade(GLASS, rng.uniform(0.75, 1.2)), int(rng.integers(5, 9))
    stripe = rng.uniform(0.14, 0.3)
    for name in ("left", "right"):
        parts.append(_on(body[name], 0, 1, 0.0, 0.07, DARK))
        parts.append(_on(body[name], 0, 1, 0.09, stripe, second))
        parts.append(_on(body[name], 0.02, 0.98, 0.44, 0.84, (28, 30, 34)))
        for k in range(panes):
            u0, u1 = 0.03 + 0.94 * k / panes, 0.03 + 0.94 * (k + 0.88) / panes
            parts.append(_on(body[name], u0, u1, 0.46, 0.82, tint, glow=0))
            parts.append(_on(body[name], u0 + 0.01, u0 + 0.05, 0.62, 0.8, _shade(tint, 1.55)))
    for u in (0.84, 0.46):  # doors, on the kerb side
        parts.append(_on(body["right"], u, u + 0.09, 0.07, 0.84, (36, 40, 46)))
        parts.append(_on(body["right"], u + 0.01, u + 0.042, 0.12, 0.8, tint))
        parts.append(_on(body["right"], u + 0.048, u + 0.08, 0.12, 0.8, tint))
    parts += wheels
    front, rear = body["front"], body["rear"]
    parts += [_on(front, 0.05, 0.95, 0.36, 0.82, tint), _on(front, 0.1, 0.34, 0.58, 0.8, _shade(tint, 1.6)),
              _on(front, 0.495, 0.505, 0.36, 0.82, DARK), _on(front, 0.15, 0.85, 0.85, 0.96, (20, 20, 22)),
              _on(front, 0.24, 0.7, 0.875, 0.935, AMBER_LAMP, glow=2), _on(front, 0, 1, 0, 0.08, DARK),
              _on(front, 0.36, 0.64, 0.1, 0.16, (228, 226, 214)), _on(rear, 0.15, 0.85, 0.55, 0.84, tint),
              _on(rear, 0.2, 0.8, 0.16, 0.4, _shade(rgb, 0.7)), _on(rear, 0, 1, 0, 0.1, DARK)]
    for u in (0.04, 0.82):
        parts.append(_on(body["front"], u, u + 0.14, 0.13, 0.21, WHITE_LAMP, glow=1))
        parts.append(_on(body["rear"], u + 0.02, u + 0.11, 0.2, 0.36, RED_LAMP, glow=1))
    cooler = _frustum(half - 0.35, half - 0.45, top - 0.02, top + 0.2, (tail + 1, tail + 4, tail + 1.2, tail + 3.8))
    parts += _block(cooler, _shade(second, 0.9))
    for x in (-half - 0.12, half + 0.12):
        parts.append(_tube((x, top - 0.7, nose + 0.05), (x, top - 1.1, nose + 0.05), 0.1, DARK))
    return assemble(parts, solid=True)


@lru_cache(maxsize=KINDS)
def truck(kind: int) -> Model:
    """A lorry with a box, a tank or an open bed, about 7.5 x 2.4 x 3.2 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([23, kind])
    length, half, load = rng.uniform(6, 8.5), rng.uniform(1.1, 1.25), _pick(rng, ("box", "box", "tank", "bed"))
    nose, tail, cab_top = length / 2, -length / 2, rng.uniform(2.4, 2.9)
    rgb, wall = _pick(rng, PAINTS), nose - 2.0
    under, wheels = _wheels(half, (nose - 1.1, tail + 1.3, tail + 2.3), 0.48, group_of=lambda z: 2 if z > wall else 1)
    parts = under + _block(_frustum(half * 0.8, half * 0.8, 0.55, 0.95, (tail, nose - 0.3) * 2), DARK)
    cab = _frustum(half, half - 0.1, 0.5, cab_top, (wall + 0.1, nose, wall + 0.1, nose - 0.35))
    tint = _shade(GLASS, rng.uniform(0.75, 1.2))
    parts += _block(cab, rgb, group=2)
    parts += [_on(cab["front"], 0.06, 0.94, 0.5, 0.88, tint, group=2),
              _on(cab["front"], 0.1, 0.4, 0.68, 0.86, _shade(tint, 1.6), group=2),
              _on(cab["front"], 0.22, 0.78, 0.18, 0.42, DARK, group=2),
              _on(cab["front"], 0.26, 0.74, 0.28, 0.32, CHROME, group=2),
              _on(cab["front"], 0.0, 1.0, 0.0, 0.09, (60, 60, 64), group=2)]
    for u in (0.03, 0.81):
        parts.append(_on(cab["front"], u, u + 0.16, 0.1, 0.22, WHITE_LAMP, glow=1, group=2))
    for name, (u0, u1) in (("left", (0.12, 0.68)), ("right", (0.32, 0.88))):
        parts.append(_on(cab[name], u0, u1, 0.54, 0.86, tint, group=2))
        parts.append(_on(cab[name], u0 + 0.04, u0 + 0.22, 0.68, 0.84, _shade(tint, 1.6), group=2))
        parts.append(_on(cab[name], u0, u1, 0.44, 0.46, _shade(rgb, 0.6), group=2))
    parts += {"box": _cargo_box, "tank": _cargo_tank, "bed": _cargo_bed}[load](rng, half, tail, wall)
    bumper = _frustum(half, half, 0.5, 0.8, (tail - 0.03, tail) * 2)["rear"]
    parts.append(_on(bumper, 0, 1, 0, 1, (60, 60, 62), group=1))
    for u in (0.03, 0.81):
        parts.append(_on(bumper, u, u + 0.16, 0.2, 0.9, RED_LAMP, glow=1, group=1))
    parts.append(_on(bumper, 0.38, 0.62, 0.2, 0.8, (230, 225, 190), group=1))
    parts += wheels
    return assemble(parts, solid=True)


def _cargo_box(rng, half, tail, wall) -> list[Part]:
    rgb = _pick(rng, ((238, 238, 234), (210, 214, 220), (70, 96, 150), (180, 60, 50), (220, 190, 90), (90, 120, 90)))
    box = _frustum(half, half, 0.95, rng.uniform(2.9, 3.6), (tail, wall) * 2)
    parts = _block(box, rgb, group=1)
    sign = _pick(rng, PAINTS)
    for name in ("left", "right"):
        parts += [_on(box[name], 0.0, 1.0, 0.0, 0.06, _shade(rgb, 0.55), group=1),
                  _on(box[name], 0.2, 0.75, 0.42, 0.66, sign, group=1),
                  _on(box[name], 0.24, 0.6, 0.5, 0.57, (240, 240, 240), group=1)]
        parts += [_on(box[name], u, u + 0.006, 0.06, 1, _shade(rgb, 0.8), group=1) for u in (0.1, 0.3, 0.5, 0.7, 0.9)]
    parts += [_on(box["rear"], 0.04, 0.96, 0.03, 0.95, _shade(rgb, 0.86), group=1),
              _on(box["rear"], 0.49, 0.51, 0.03, 0.95, DARK, group=1)]
    return parts + [_on(box["rear"], u, u + 0.02, 0.1, 0.9, (110, 110, 114), group=1) for u in (0.4, 0.58)]


def _cargo_tank(rng, half, tail, wall) -> list[Part]:
    rgb = _pick(rng, ((200, 204, 208), (226, 226, 222), (190, 150, 60), (120, 150, 180)))
    a = np.arange(12) * (2 * np.pi / 12)
    ring = np.stack([half * 0.98 * np.sin(a), 1.95 + 0.95 * np.cos(a)], 1)  # clockwise seen from behind
    near, far = (np.concatenate([ring, np.full((12, 1), z)], 1) for z in (tail + 0.1, wall - 0.1))
    parts = [Part(FACE, near, rgb, group=1), Part(FACE, far[::-1], rgb, group=1)]
    for i in range(12):
        j = (i + 1) % 12
        side = np.stack([near[j], near[i], far[i], far[j]])
        parts.append(Part(FACE, side, rgb, group=1))
        if i in (2, 3, 8, 9):
            stripe = _pick(rng, ((200, 60, 40), (60, 90, 150), rgb))
            parts.append(Part(FACE, _patch(side, 0, 1, 0.2, 0.75), stripe, group=1))
    return parts


def _cargo_bed(rng, half, tail, wall) -> list[Part]:
    rgb = _pick(rng, ((120, 84, 56), (90, 94, 100), (60, 90, 130), (150, 60, 40)))
    bed = _frustum(half, half, 0.95, 1.5, (tail, wall) * 2)
    parts = _block(bed, rgb, group=1)
    for name in ("left", "right", "rear"):
        parts += [_on(bed[name], 0, 1, v, v + 0.04, _shade(rgb, 0.6), group=1) for v in (0.3, 0.65)]
    z = tail + 0.3
    while z < wall - 1.2:
        size = rng.uniform(0.8, 1.4)
        load = _frustum(half * 0.8, half * 0.75, 1.5, 1.5 + rng.uniform(0.4, 1.2), (z, z + size) * 2)
        parts += _block(load, _pick(rng, ((150, 116, 78), (176, 170, 160), (96, 110, 92), (170, 80, 60))), group=1)
        z += size + 0.1
    return parts


# ---------------------------------------------------------------------------------------------- people and bicycles


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
    extra = _pick(rng, ("", "", "bag", "backpack", "umbrella", "skirt", "coat", "hat"))
    hair = _pick(rng, ((30, 24, 22), (70, 46, 30), (150, 110, 60), (110, 108, 106), (24, 22, 26)))
    return Looks(rng.uniform(1.55, 1.9), rng.uniform(0.92, 1.18), _pick(rng, CLOTHES), _shade(_pick(rng, CLOTHES), 0.7),
                 _pick(rng, SKINS), hair, _pick(rng, ((30, 28, 28), (220, 220, 220), (96, 60, 40))), extra,
                 _pick(rng, PAINTS))


def person(kind: int, turn: float, *, pose: str = "walk") -> Model:
    """Person `kind`; `pose` is "walk", "stand" or "ride", and `turn` counts double steps or turns of the pedals."""
    return _person(kind, round(turn * GAIT_STEPS) % GAIT_STEPS, pose)


@lru_cache(maxsize=4096)
def _person(kind: int, step: int, pose: str) -> Model:
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
        parts += [_tube(hip, knee, 0.088 * b, who.legs, 0.064 * b), _tube(knee, ankle, 0.064 * b, who.legs, 0.044),
                  _tube(ankle + _at(0, -0.02, -0.03), ankle + _at(side * 0.02, -0.03, 0.16), 0.045, who.shoes)]
        arm = -0.9 * swing * np.sin(turn)
        shoulder = np.array([side * 0.2 * b, 1.4, 0])
        elbow = shoulder + 0.27 * np.array([side * 0.25, -np.cos(arm), np.sin(arm)])
        hand = elbow + 0.25 * np.array([0, -np.cos(arm + 0.4), np.sin(arm + 0.4)])
        if who.extra == "umbrella" and side == 1:
            elbow, hand = shoulder + _at(0.03, -0.25, 0.08), shoulder + _at(-0.02, -0.09, 0.28)
        parts += [_tube(shoulder, elbow, 0.058 * b, who.top, 0.046), _tube(elbow, hand, 0.046, who.top, 0.036),
                  _ball(hand, 0.042, who.skin)]
    parts += _torso(who, np.array([0, 0.95, 0.0]), np.array([0, 1.4, 0.01])) + _head(who, np.array([0, 1.63, 0.03]))
    parts += _carried(who)
    drop = min(feet) - 0.075
    scale = np.array([k, k, k])
    moved = [p._replace(pts=(p.pts - (0, drop, 0)) * scale, radius=(p.radius[0] * k, p.radius[1] * k)) for p in parts]
    return assemble(moved, solid=False)


def _torso(who: Looks, hip: np.ndarray, neck: np.ndarray) -> list[Part]:
    b = who.build
    parts = []
    for side in (-1, 1):
        low, high = hip + _at(side * 0.07 * b, 0.02, 0), neck + _at(side * 0.11 * b, -0.03, 0)
        parts.append(_tube(low, high, 0.105 * b, who.top, 0.115 * b))
    parts.append(_tube(neck + _at(-0.15 * b, 0, 0), neck + _at(0.15 * b, 0, 0), 0.07, who.top))
    if who.extra in ("skirt", "coat"):
        rgb = who.accent if who.extra == "skirt" else who.top
        for x in (-0.07, 0.07):
            parts.append(_tube(hip + _at(x, 0.05, 0), hip + _at(x * 1.4, -0.36, 0), 0.12 * b, rgb, 0.15 * b))
    return parts


def _head(who: Looks, at: np.ndarray) -> list[Part]:
    parts = [_tube(at + _at(0, -0.2, -0.02), at + _at(0, -0.08, 0), 0.05, _shade(who.skin, 0.9)),
             _tube(at + _at(0, -0.04, 0.01), at + _at(0, 0.03, 0), 0.09, who.skin, 0.1),
             _tube(at + _at(0, 0.05, -0.045), at + _at(0, -0.02, -0.06), 0.095, who.hair, 0.07),
             _tube(at + _at(0, 0.075, -0.02), at + _at(0, 0.085, 0.02), 0.085, who.hair, 0.06)]
    if who.extra == "hat":
        parts += [_tube(at + _at(0, 0.08, 0), at + _at(0, 0.15, 0), 0.11, who.accent, 0.08),
                  _tube(at + _at(-0.07, 0.07, 0.05), at + _at(0.07, 0.07, 0.05), 0.07, who.accent)]
    return parts


def _carried(who: Looks) -> list[Part]:
    if who.extra == "backpack":
        return [_tube((x, 1.08, -0.2), (x, 1.32, -0.19), 0.1, who.accent) for x in (-0.06, 0.06)]
    if who.extra == "bag":
        bag = _frustum(0.06, 0.05, 0.55, 0.85, (-0.16, 0.18, -0.12, 0.14))
        return _block({n: q + np.array([-0.3, 0, 0.02]) for n, q in bag.items()}, who.accent, kind=SHEET)
    if who.extra == "umbrella":
        a = np.arange(8) * (np.pi / 4)
        rim = np.stack([0.17 + 0.55 * np.cos(a), np.full(8, 1.92), 0.2 + 0.55 * np.sin(a)], 1)
        top = np.array([0.17, 2.18, 0.2])
        tones = [_shade(who.accent, 0.8 + 0.1 * (i % 3)) for i in range(8)]
        cover = [Part(SHEET, np.array([rim[i - 1], rim[i], top]), tones[i]) for i in range(8)]
        return [_tube((0.19, 1.2, 0.25), top + _at(0, 0.06, 0), 0.012, DARK), *cover]
    return []


def _rider(who: Looks, phase: float) -> Model:
    hip, neck = np.array([0, 0.98, -0.2]), np.array([0, 1.42, 0.08])
    plain = who._replace(extra=who.extra if who.extra == "hat" else "")
    parts = _torso(plain, hip, neck) + _head(plain, neck + _at(0, 0.2, 0.08))
    for side, turn in ((-1, phase), (1, phase + np.pi)):
        foot = np.array([side * 0.11, 0.32 + 0.16 * np.cos(turn), -0.03 + 0.16 * np.sin(turn)])
        start = hip + _at(side * 0.09, -0.02, 0)
        knee = (start + foot) / 2 + (side * 0.02, 0.1, 0.24)
        parts += [_tube(start, knee, 0.085, who.legs, 0.065), _tube(knee, foot, 0.062, who.legs, 0.042),
                  _tube(foot, foot + _at(0, -0.02, 0.14), 0.042, who.shoes)]
        shoulder, hand = neck + _at(side * 0.19, -0.02, 0), np.array([side * 0.24, 1.03, 0.42])
        elbow = (shoulder + hand) / 2 + (side * 0.06, -0.07, -0.02)
        parts += [_tube(shoulder, elbow, 0.055, who.top, 0.045), _tube(elbow, hand, 0.043, who.top, 0.036),
                  _ball(hand, 0.042, who.skin)]
    return assemble(parts, solid=False)


@lru_cache(maxsize=KINDS)
def bicycle(kind: int) -> Model:
    """A bicycle, about 1.75 x 0.5 x 1.05 m, without rider. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([24, kind])
    rgb, tyre = _pick(rng, PAINTS), _pick(rng, (TYRE, TYRE, (90, 74, 56)))
    r, base = 0.345, rng.uniform(0.51, 0.56)
    rear, front, crank = (0, r, -base), (0, r, base), (0, 0.3, -0.06)
    seat, head, stem = (0, 0.82, -0.22), (0, 0.84, 0.36), (0, 1.0, 0.33)
    t, a = 0.024, np.arange(18) * (2 * np.pi / 18)
    parts = []
    for _, y, z in (rear, front):
        rim = np.stack([np.zeros(18), y + r * np.cos(a), z + r * np.sin(a)], 1)
        parts.append(Part(RING, rim, tyre, (0.028, 0.028)))
        parts.append(Part(RING, (rim - (0, y, z)) * 0.92 + (0, y, z), CHROME, (0.008, 0.008)))
        parts += [_tube((0, y, z), rim[i], 0.004, (150, 150, 152)) for i in range(0, 18, 3)]
        parts.append(_ball((0, y, z), 0.035, CHROME))
    step = rng.random() < 0.35  # step-through frame
    parts += [_tube(crank, seat, t, rgb), _tube(crank, head, t * 1.15, rgb), _tube(rear, crank, t * 0.8, rgb),
              _tube(rear, seat, t * 0.7, rgb), _tube((0, 0.5, -0.13) if step else (0, 0.76, -0.2), head, t, rgb),
              _tube(head, front, t, rgb), _tube(head, stem, 0.018, CHROME),
              _tube(seat, (0, 0.92, -0.25), 0.016, CHROME),
              _tube((0, 0.94, -0.35), (0, 0.95, -0.1), 0.055, DARK, 0.03),
              _tube((-0.26, 1.02, 0.36), (0.26, 1.02, 0.36), 0.018, DARK),
              _tube((0.1, 0.16, -0.06), (0.05, 0.3, -0.06), 0.016, DARK),
              _tube((-0.1, 0.44, -0.06), (-0.05, 0.3, -0.06), 0.016, DARK),
              _ball(crank, 0.08, (60, 60, 62)), _ball((0, 0.8, 0.5), 0.045, WHITE_LAMP, glow=1),
              _ball((0, 0.62, -0.62), 0.035, RED_LAMP, glow=1)]
    if rng.random() < 0.3:
        basket = _frustum(0.13, 0.17, 0.75, 0.95, (0.45, 0.68, 0.42, 0.72))
        parts += _block(basket, (120, 92, 60), kind=SHEET)
    return assemble(parts, solid=False)


# ---------------------------------------------------------------------------------------------- street furniture


@lru_cache(maxsize=64)
def traffic_light(lit: int, style: int) -> Model:
    """A signal head (the pole is scenery), 1.05 m high, its foot at y = 0; `lit` 0 red, 1 amber, 2 green."""
    rgb = ((30, 32, 34), (44, 46, 44), (200, 160, 30), (36, 60, 44))[style % 4]
    head = _frustum(0.19, 0.19, 0.0, 1.08, (-0.14, 0.14) * 2)
    parts = _block(_frustum(0.29, 0.29, -0.08, 1.16, (-0.16, -0.14) * 2), (22, 22, 24)) if style % 2 else []
    parts += _block(head, rgb)
    colours = ((255, 50, 40), (255, 180, 40), (60, 250, 150))
    for k, colour in enumerate(colours):
        y = 0.9 - 0.36 * k
        parts.append(Part(FACE, _round_front(0, y, 0.145, 0.165), (14, 14, 15)))
        dim = _shade(colour, 0.2)
        parts.append(Part(FACE, _round_front(0, y, 0.15, 0.14), colour if k == lit else dim, glow=2 if k == lit else 0))
        visor = _quad((-0.17, y + 0.08, 0.15), (0.17, y + 0.08, 0.15), (0.13, y + 0.17, 0.33), (-0.13, y + 0.17, 0.33))
        parts.append(Part(SHEET, visor, (24, 24, 26)))
    return assemble(parts, solid=True)


def signal_pole(reach: float, height: float) -> Model:
    """Pole of a traffic light whose head is `reach` metres to its side (0: on top) with its lower edge at `height`."""
    rgb, top = (86, 90, 94), height + (1.0 if reach else 0.3)
    parts = [_tube((reach, 0, 0), (reach, top, 0), 0.085, rgb, 0.065),
             _tube((reach, 0, 0), (reach, 0.5, 0), 0.13, rgb, 0.11)]
    if reach:
        parts.append(_tube((reach, top, 0), (0, top + 0.1, 0), 0.06, rgb, 0.045))
    return assemble(parts, solid=False)


@lru_cache(maxsize=KINDS)
def tree(kind: int) -> Model:
    """A street tree, 4 to 8 m. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([25, kind])
    height, spread = rng.uniform(4.2, 8), rng.uniform(1.2, 2.2)
    green = _pick(rng, ((62, 92, 44), (78, 100, 40), (50, 84, 50), (120, 96, 40), (92, 110, 60)))
    bark, fork = (78, 62, 48), height * 0.42
    parts = [_tube((0, 0, 0), (0, fork, 0), 0.17, bark, 0.12)]
    for dx, dz in ((-0.7, 0.2), (0.7, -0.2), (0, 0.4)):
        parts.append(_tube((0, fork * 0.8, 0), (dx, height * 0.7, dz), 0.09, bark, 0.04))
    blobs = rng.normal(0, 1, (46, 3))
    blobs *= (rng.uniform(0, 1, (46, 1)) ** 0.4) / np.linalg.norm(blobs, axis=1, keepdims=True)
    for x, y, z in blobs * (spread, height * 0.3, spread):
        tone = 0.72 + 0.42 * (y / height + 0.3) / 0.6 + rng.uniform(-0.12, 0.12)
        parts.append(_ball((x, y + height * 0.7, z), spread * rng.uniform(0.2, 0.36), _shade(green, tone)))
    return assemble(parts, solid=False)


@lru_cache(maxsize=KINDS)
def lamp_post(kind: int) -> Model:
    """A street lamp, 5 to 7 m, its arm to the local left. `kind` in 0..KINDS - 1 decides its looks."""
    rng = np.random.default_rng([26, kind])
    h, rgb = rng.uniform(5, 7), _pick(rng, ((60, 64, 66), (110, 114, 118), (40, 56, 50)))
    return assemble([_tube((0, 0, 0), (0, h, 0), 0.09, rgb, 0.055), _tube((0, h, 0), (-1.1, h + 0.25, 0), 0.045, rgb),
                     _tube((0, 0, 0), (0, 0.7, 0), 0.13, rgb, 0.12),
                     _tube((-1.0, h + 0.22, 0), (-1.6, h + 0.22, 0), 0.09, (255, 214, 150), 0.07, glow=1)], solid=False)


@lru_cache(maxsize=KINDS)
def furniture(kind: int) -> Model:
    """Something on the pavement that is none of the classes; `kind` in 0..KINDS - 1 decides what and its looks."""
    rng = np.random.default_rng([27, kind])
    return _pick(rng, (_bin, _cabinet, _sign, _sign, _bush, _bollard, _bench))(rng)


def _bin(rng: np.random.Generator) -> Model:
    body = _frustum(0.24, 0.3, 0.05, 0.95, (-0.25, 0.25, -0.3, 0.3))
    lid = _frustum(0.32, 0.28, 0.95, 1.05, (-0.32, 0.32) * 2)
    return assemble(_block(body, _shade(_pick(rng, PAINTS), 0.7)) + _block(lid, DARK), solid=True)


def _cabinet(rng: np.random.Generator) -> Model:
    half = rng.uniform(0.3, 0.8)
    body = _frustum(half, half, 0, rng.uniform(1.0, 1.7), (-0.3, 0.3) * 2)
    doors = [_on(body[n], 0.48, 0.5, 0.05, 0.95, (60, 64, 60)) for n in ("front", "rear")]
    return assemble(_block(body, _pick(rng, ((120, 128, 118), (150, 150, 146), (90, 100, 110)))) + doors, solid=True)


def _sign(rng: np.random.Generator) -> Model:
    h, corners = rng.uniform(2.1, 2.8), _pick(rng, (3, 4, 8, 14))
    border = _pick(rng, ((200, 30, 30), (30, 70, 160), (236, 236, 236), (230, 180, 30)))
    plate = _round_front(0, h, 0.05, 0.36, corners)
    inner = (plate - (0, h, 0.05)) * 0.74 + (0, h, 0.07)
    pole = _tube((0, 0, 0), (0, h + 0.2, 0), 0.035, (130, 132, 134))
    field = _pick(rng, ((240, 240, 238), border, (30, 70, 160)))
    return assemble([pole, Part(SHEET, plate, border), Part(SHEET, inner, field)], solid=True)


def _bush(rng: np.random.Generator) -> Model:
    at = rng.uniform((-0.7, 0.2, -0.3), (0.7, 0.7, 0.3), (22, 3))
    green = (60, 96, 48)
    return assemble([_ball(p, rng.uniform(0.16, 0.3), _shade(green, rng.uniform(0.6, 1.3))) for p in at], solid=False)


def _bollard(rng: np.random.Generator) -> Model:
    post = _tube((0, 0, 0), (0, 0.8, 0), 0.09, _pick(rng, PAINTS))
    return assemble([post, _tube((0, 0.55, 0), (0, 0.65, 0), 0.095, (235, 235, 230))], solid=True)


def _bench(rng: np.random.Generator) -> Model:
    wood = _shade((128, 88, 54), rng.uniform(0.7, 1.2))
    leg = _frustum(0.04, 0.04, 0, 0.42, (-0.18, 0.18) * 2)
    parts = [p for x in (-0.65, 0.65) for p in _block({n: q + np.float32([x, 0, 0]) for n, q in leg.items()}, DARK)]
    for y in (0.58, 0.74):
        slat = _quad((-0.8, y, -0.2), (0.8, y, -0.2), (0.8, y + 0.1, -0.24), (-0.8, y + 0.1, -0.24))
        parts.append(Part(SHEET, slat, wood))
    return assemble(parts + _block(_frustum(0.8, 0.8, 0.42, 0.48, (-0.2, 0.2) * 2), wood), solid=True)
