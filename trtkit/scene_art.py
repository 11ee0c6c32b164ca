"""The brush: how a small 3-D model becomes pixels and a shadow. Used by the other `scene_*` modules.

A model is a list of convex parts in metres, painted back to front through a pinhole camera:

    x_px = cx + focal * X / Z            y_px = horizon + focal * (camera_height - Y) / Z

Local frame of every model: x right, y up, z towards its nose, origin on the ground below its middle. At yaw 0 the nose
points away from the camera (we see the rear), at pi towards it, at +-pi/2 we see a side.
Left out on purpose: a depth buffer, and shadows of one object on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

FACE, SHEET, TUBE, RING = range(4)  # one-sided polygon, two-sided polygon, tapered limb, wheel rim
NEAR_M = 0.8  # nearest depth that is projected; nearer points would fly off to infinity
SUBPIXEL_BITS = 3
_TURN = np.linspace(-np.pi / 2, np.pi / 2, 6)
_CAPS = np.concatenate([_TURN, _TURN + np.pi])  # both round ends of a limb


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


def _to_world(pts: np.ndarray, place: Place) -> np.ndarray:
    """Turn and move points (N, 3) from a model's frame to the street's, metres."""
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
    """Indices of the parts that are lamps and lit."""
    return np.flatnonzero(model.glow >= (1 if light.lamps_on else 2)).tolist()


def _paint_order(model: Model, centre: np.ndarray, normal: np.ndarray, eye: np.ndarray) -> list[int]:
    """Indices of the parts to paint, first to last."""
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
    """Place and size of the lit lamps that were painted, as `Sprite.lamps`."""
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


def one_colour(shape: tuple, rgb: Sequence[float] | np.ndarray) -> np.ndarray:
    """One colour (R, G, B) everywhere: (H, W, 3) uint8, for a shape (H, W, ...)."""
    picture = np.empty((shape[0], shape[1], 3), np.uint8)
    return cv2.rectangle(picture, (0, 0), (shape[1], shape[0]), [float(c) for c in rgb], -1)  # faster than NumPy
