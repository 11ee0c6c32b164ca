"""The houses along the street: flat fronts drawn once, then laid in perspective on both sides.

A front is a picture with windows, a shop or a door, and a second picture of what shines at night. Both come as a
pyramid, because a front that is far away shows few pixels.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from trtkit import scene_art as art
from trtkit.scene_street import CROSS_WIDTH_M, Street

PX_PER_M_FACADE = 26
_TINTS = ((226, 214, 196), (196, 120, 96), (206, 186, 150), (170, 178, 188), (228, 226, 220), (186, 150, 120),
          (150, 160, 150), (220, 190, 170))


@lru_cache(maxsize=24)
def _facade(kind: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """House front `kind`: near-white albedo (H, W, 3) to be tinted, and the light of its windows at night (H, W, 3).

    A pyramid, each level half the size of the one before, so that far fronts do not sparkle.
    """
    rng = np.random.default_rng([7, kind])
    bays, floors = int(rng.integers(3, 6)), int(rng.integers(2, 6))
    bay, floor = int(rng.uniform(2.3, 3.4) * PX_PER_M_FACADE), int(rng.uniform(2.9, 3.5) * PX_PER_M_FACADE)
    ground = int(floor * 1.15)
    h, w = floors * floor + ground + 14, bays * bay
    wall = np.full((h, w), 214, np.float32) + rng.normal(0, 5, (h, w))
    stains = rng.normal(0, 8, (h // 24 + 2, w // 24 + 2)).astype(np.float32)
    wall += cv2.resize(stains, (w, h), interpolation=cv2.INTER_CUBIC)
    if kind % 2:  # bricks: darker joints, every other row shifted
        wall[::5] -= 22
        for row in range(0, h, 5):
            wall[row : row + 5, (row // 5 % 2) * 5 :: 10] -= 14
    front = cv2.merge([np.clip(wall, 0, 255).astype(np.uint8)] * 3)
    glow = np.zeros_like(front)
    ww, wh = int(bay * rng.uniform(0.42, 0.68)), int(floor * rng.uniform(0.5, 0.66))
    for f in range(floors):
        y = 14 + f * floor + (floor - wh) // 2
        if rng.random() < 0.4:
            cv2.rectangle(front, (0, y + wh + 12), (w, y + wh + 15), (178, 176, 172), -1)
        for b in range(bays):
            _window(front, glow, b * bay + (bay - ww) // 2, y, ww, wh, rng)
    cv2.rectangle(front, (0, 0), (w, 9), (168, 166, 162), -1)  # cornice
    cv2.line(front, (0, 10), (w, 10), (110, 108, 106), 2)
    _ground_floor(front, glow, h - ground, bay, bays, rng)
    levels = [(front, glow)]
    while min(levels[-1][0].shape[:2]) > 12:
        levels.append(tuple(cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for p in levels[-1]))
    return levels


def _window(front: np.ndarray, glow: np.ndarray, x: int, y: int, w: int, h: int, rng: np.random.Generator) -> None:
    """Draw one window of w x h px into the front by day (`front`) and its light by night (`glow`), in place."""
    tone = rng.uniform(0.6, 1.3)
    cv2.rectangle(front, (x - 3, y - 3), (x + w + 3, y + h + 3), (238, 236, 230), -1)
    glass = np.linspace(120, 50, h)[:, None, None] * tone * np.array([0.72, 0.86, 1.0])  # mirrors the sky
    front[y : y + h, x : x + w] = np.clip(glass, 0, 255)
    cv2.rectangle(front, (x, y), (x + w, y + 3), (58, 58, 60), -1)  # shade of the lintel
    if rng.random() < 0.35:  # curtain or blind
        cut = int(h * rng.uniform(0.2, 0.7))
        cv2.rectangle(front, (x, y), (x + w, y + cut), (188, 180, 164), -1)
    if rng.random() < 0.42:
        warm = np.array([255, 206, 128]) * rng.uniform(0.45, 0.95)
        glow[y : y + h, x : x + w] = np.clip(warm * np.linspace(1, 0.7, h)[:, None, None], 0, 255)
    for picture, rgb in ((front, (226, 224, 218)), (glow, (0, 0, 0))):
        cv2.line(picture, (x + w // 2, y), (x + w // 2, y + h), rgb, 2)
    cv2.rectangle(front, (x - 5, y + h + 3), (x + w + 5, y + h + 7), (176, 174, 168), -1)  # sill


def _ground_floor(front: np.ndarray, glow: np.ndarray, top: int, bay: int, bays: int, rng: np.random.Generator) -> None:
    """Draw doors and windows, or a shop with its sign, below row `top`, in place."""
    h, w = front.shape[:2]
    shop = rng.random() < 0.6
    cv2.rectangle(front, (0, top), (w, h), (150, 146, 140) if shop else (186, 182, 176), -1)
    cv2.rectangle(front, (0, top), (w, top + 5), (120, 118, 114), -1)
    rgb = tuple(int(c) for c in rng.integers(50, 210, 3))
    if shop:
        cv2.rectangle(front, (4, top + 8), (w - 4, top + 24), rgb, -1)
        for x in range(12, w - 30, 13):  # something like lettering
            if rng.random() < 0.7:
                cv2.line(front, (x, top + 16), (x + int(rng.integers(3, 9)), top + 16), (240, 238, 230), 5)
    door = int(rng.integers(bays))
    for b in range(bays):
        x, y = b * bay + bay // 8, top + (30 if shop else 22)
        if b == door:
            cv2.rectangle(front, (b * bay + bay // 3, y), (b * bay + 2 * bay // 3, h), (70, 54, 44), -1)
        elif shop:
            _window(front, glow, x, y, bay * 3 // 4, h - y - 16, rng)
            glow[y : h - 16, x : x + bay * 3 // 4] = np.maximum(glow[y : h - 16, x : x + bay * 3 // 4], 70)
        else:
            _window(front, glow, x + bay // 8, y, bay // 2, h - y - 34, rng)
    cv2.rectangle(front, (0, h - 8), (w, h), (104, 102, 100), -1)


def paint_houses(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """Paint house fronts along both sides into img (H, W, 3) uint8, far to near; a side street leaves a gap."""
    for side in (-1, 1):
        x = street.middle + side * street.wall
        z, plots = 1.5 - rng.uniform(0, 8), []
        while z < 62:
            kind = int(rng.integers(24))
            length = _facade(kind)[0][0].shape[1] / PX_PER_M_FACADE * (1.8 if z > 24 else 1.0)  # far ones may stretch
            if street.cross_z and z < street.cross_z + CROSS_WIDTH_M and z + length > street.cross_z:
                if street.cross_z - z > 3:
                    plots.append((kind, z, street.cross_z))
                z = street.cross_z + CROSS_WIDTH_M
                continue
            if rng.random() > 0.1:
                plots.append((kind, z, z + length))
            z += length
        for i in reversed(range(len(plots))):
            kind, z0, z1 = plots[i]
            tint = np.array(_TINTS[int(rng.integers(len(_TINTS)))]) * rng.uniform(0.85, 1.1)
            bare = i == 0 or plots[i - 1][2] < z0 or _tall(plots[i - 1][0]) < _tall(kind)
            _house(img, street, kind, tint, x, side, z0, z1, end_shown=bare and z0 > 4)


def _tall(kind: int) -> float:
    """Height of a house front, metres."""
    return _facade(kind)[0][0].shape[0] / PX_PER_M_FACADE


def _house(img, street: Street, kind: int, tint, x: float, side: int, z0: float, z1: float, *, end_shown: bool) -> None:
    """One house from z0 to z1 along the street: its front, and the end wall that faces us if it is to be seen."""
    tall, cam = _tall(kind), street.camera
    if end_shown:  # the wall that faces us where the nearer house is lower or missing
        far = x + side * 11.0
        end = np.array([(x, 0, z0), (far, 0, z0), (far, tall, z0), (x, tall, z0)])
        _wall(img, street, kind, 0.0, tint * 0.92, end, max(-street.light.to_sun[2], 0) * 0.8)
    near = max(z0, cam.focal * abs(x) / (1.2 * street.width), 1.0)  # what is nearer lies outside the image
    if near < z1 - 0.2:
        quad = np.array([(x, 0, near), (x, 0, z1), (x, tall, z1), (x, tall, near)])
        _wall(img, street, kind, (near - z0) / (z1 - z0), tint, quad, -side * street.light.to_sun[0])


def _wall(img: np.ndarray, street: Street, kind: int, start: float, tint, quad: np.ndarray, facing: float) -> None:
    """Map a house front, from share `start` of its width on, on a quad: near-bottom, far-bottom, far-top, near-top."""
    pts = art.project(quad, street.camera)
    low = np.maximum(np.floor(pts.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(pts.max(0)), (street.width, street.height)).astype(int)
    if (high - low < 2).any():
        return
    levels, size = _facade(kind), np.ptp(pts, axis=0)
    ratio = min(levels[0][0].shape[0] / size[1], levels[0][0].shape[1] * (1 - start) / size[0] / 1.5)
    front, glow = levels[min(max(int(np.log2(max(ratio, 1.0) * 1.4)), 0), len(levels) - 1)]
    skip = int(start * front.shape[1])
    shade = np.array(tint) / 230 * (street.light.ambient + street.light.sun * max(facing, 0.0) * 0.85)
    front = front[:, skip:]
    face = cv2.multiply(front, art.one_colour(front.shape, np.clip(shade * 128, 0, 255)), scale=1 / 128)
    if street.condition in ("night", "dusk"):
        face = cv2.addWeighted(face, 1.0, glow[:, skip:], 0.85 if street.condition == "night" else 0.45, 0)
    h, w = face.shape[:2]
    texels = np.array([(0, h), (w, h), (w, 0), (0, 0)], np.float32)
    warp = cv2.getPerspectiveTransform(texels, (pts - low).astype(np.float32))
    roi = img[low[1] : high[1], low[0] : high[0]]
    cv2.warpPerspective(face, warp, roi.shape[1::-1], dst=roi, borderMode=cv2.BORDER_TRANSPARENT)
