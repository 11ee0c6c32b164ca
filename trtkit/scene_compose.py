"""From actors to one picture and its exact boxes: paint far to near, and keep which object owns which pixel.

    visibility = pixels still owned by the object / pixels it was drawn with

Shadows go under the objects, mirror images in wet ground beside them, the glow of lamps over them.
"""

from __future__ import annotations

from functools import cmp_to_key

import cv2
import numpy as np

from trtkit import scene_art as art
from trtkit.scene_place import SCENERY, Actor, ground_reach
from trtkit.scene_street import CROSS_WIDTH_M, Street, horizon_row


def compose(street: Street, backdrop: np.ndarray, actors: list[Actor]) -> tuple[np.ndarray, tuple]:
    """Paint the actors over a copy of the backdrop.

    Args:
        street: the view and the light.
        backdrop: (H, W, 3) uint8 RGB, left as it is.
        actors: in any order; at most 255 of them in view and of a class.

    Returns:
        The picture (H, W, 3) uint8, and (boxes_xyxy, labels, visibility, track_ids) as in `scenes.Scene`.
    """
    img = backdrop.copy()
    _shadows(img, street, actors)
    ids = np.zeros(img.shape[:2], np.uint8)  # 0: no object, k: k-th painted object of a class
    rows, drawn, lamps = [], [0], []
    for actor in sorted(actors, key=cmp_to_key(_farther)):
        sprite = art.paint(actor.model, actor.place, street.camera, street.light, frame=img.shape[:2])
        if sprite is None:
            continue
        mask = cv2.threshold(sprite.alpha, 127, 255, cv2.THRESH_BINARY)[1]
        x0, y0, x1, y1 = _overlap(sprite, street)
        if x1 <= x0 or y1 <= y0:
            continue
        if street.condition == "rain" and actor.place.y == 0:
            _reflect(img, sprite, street)
        inside = mask[y0 - sprite.y0 : y1 - sprite.y0, x0 - sprite.x0 : x1 - sprite.x0]
        key = 0
        if actor.label != SCENERY:
            bx, by, bw, bh = cv2.boundingRect(inside)
            if bw == 0:
                continue
            rows.append((x0 + bx, y0 + by, x0 + bx + bw, y0 + by + bh, actor.label, actor.track))
            drawn.append(cv2.countNonZero(mask))
            key = len(rows)
        left, right = _window_columns(street, actor.place)
        x0, x1 = max(x0, left), min(x1, right)
        if x1 > x0:
            _blend(img, ids, sprite, mask, (x0, y0, x1, y1), key)
            lamps += [(x, y, r, rgb, key) for x, y, r, rgb in sprite.lamps]
    _bloom(img, ids, lamps, street)
    owned = cv2.calcHist([ids], [0], None, [256], [0, 256]).ravel()  # pixels of each key
    return img, _found(rows, owned[: len(drawn)] / np.maximum(drawn, 1))


def _farther(a: Actor, b: Actor) -> int:
    """Painting order of two objects: by depth, and by distance from the view axis where their depths overlap."""
    (ax, az), (bx, bz) = ground_reach(a.model.half_xz, a.place.yaw), ground_reach(b.model.half_xz, b.place.yaw)
    dx, dz = a.place.x - b.place.x, a.place.z - b.place.z
    if abs(dz) < az + bz and abs(dx) > 0.1:
        gap = max(abs(a.place.x) - ax, 0) - max(abs(b.place.x) - bx, 0)
        if gap:
            return -1 if gap > 0 else 1
    return (dz < 0) - (dz > 0)


def _window_columns(street: Street, place: art.Place) -> tuple[int, int]:
    """Columns in which something at this place is not hidden by the houses at the corner of the side street."""
    if not street.cross_z or place.z < street.cross_z or abs(place.x - street.middle) < street.half:
        return 0, street.width
    walls = np.array([street.middle - street.wall, street.middle + street.wall])
    left, right = street.camera.cx + street.camera.focal * walls / street.cross_z
    return int(np.clip(left, 0, street.width)), int(np.clip(right, 0, street.width))


def _found(rows: list, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, labels, visibility and tracks of the objects that own a pixel; `share` is by key, 0 for no object."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    seen = share[1:] > 0
    table, visibility = table[seen], np.minimum(share[1:][seen], 1.0).astype(np.float32)
    return table[:, :4].copy(), table[:, 4].astype(np.int64), visibility, table[:, 5].astype(np.int64)


def _overlap(sprite: art.Sprite, street: Street) -> tuple[int, int, int, int]:
    """Where the sprite lies in the image: x0, y0, x1, y1, empty if it lies outside."""
    h, w = sprite.alpha.shape
    return (max(sprite.x0, 0), max(sprite.y0, 0), min(sprite.x0 + w, street.width), min(sprite.y0 + h, street.height))


def _blend(img: np.ndarray, ids: np.ndarray, sprite: art.Sprite, mask: np.ndarray, box: tuple, key: int) -> None:
    """Put the sprite over the image inside `box` and note its key as the owner of those pixels."""
    x0, y0, x1, y1 = box
    cut = (slice(y0 - sprite.y0, y1 - sprite.y0), slice(x0 - sprite.x0, x1 - sprite.x0))
    here = (slice(y0, y1), slice(x0, x1))
    keep = cv2.cvtColor(255 - sprite.alpha[cut], cv2.COLOR_GRAY2RGB)
    img[here] = cv2.add(cv2.multiply(img[here], keep, scale=1 / 255), sprite.rgb[cut])
    np.copyto(ids[here], key, where=mask[cut] > 0)


def _shadows(img: np.ndarray, street: Street, actors: list[Actor]) -> None:
    """Soft shadows on the ground: along the sun, or straight down under a grey sky."""
    row, shrink, light = horizon_row(street), 2, street.light
    sunny = float(light.sun.max()) > 0.2
    to_sun = light.to_sun if sunny else np.array([0.0, 1.0, 0.0])
    mask = np.zeros((street.height // shrink + 1, street.width // shrink + 1), np.uint8)
    for actor in actors:
        if actor.place.y == 0 and actor.place.z < 45:  # farther ones are a pixel high
            through = int(255 * np.exp(-light.density * max(actor.place.z, 0)))  # haze lightens far shadows
            art.cast_shadow(mask, shrink, actor.model, actor.place, street.camera, to_sun, through)
    mask = cv2.bitwise_and(mask, _open_ground(street, shrink, mask.shape))
    soft = cv2.blur(mask, (3, 3)) if sunny else cv2.blur(cv2.blur(mask, (9, 5)), (9, 5))
    depth = 0.52 if sunny else 0.55
    keep = cv2.convertScaleAbs(soft, alpha=-depth, beta=255)
    keep = cv2.resize(keep, (mask.shape[1] * shrink, mask.shape[0] * shrink))[row : street.height, : street.width]
    img[row:] = cv2.multiply(img[row:], cv2.cvtColor(keep, cv2.COLOR_GRAY2RGB), scale=1 / 255)


def _open_ground(street: Street, shrink: int, shape: tuple[int, int]) -> np.ndarray:
    """Mask of the ground that no house hides: the street up to the fronts, and the side street between its corners."""
    mask, mid, wall, cz = np.zeros(shape, np.uint8), street.middle, street.wall, street.cross_z

    def fill(x0: float, x1: float, z0: float, z1: float) -> None:
        quad = np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])
        cv2.fillConvexPoly(mask, np.rint(art.project(quad, street.camera) / shrink).astype(np.int32), 255)

    if cz:
        fill(mid - 90, mid + 90, cz, cz + CROSS_WIDTH_M)
        left, right = _window_columns(street, art.Place(mid + wall, 0, cz, 0))
        mask[:, : left // shrink] = 0
        mask[:, right // shrink :] = 0
    fill(mid - wall, mid + wall, art.NEAR_M, 300)
    return mask


def _reflect(img: np.ndarray, sprite: art.Sprite, street: Street) -> None:
    """The object's blurred mirror image on wet ground, under its lowest pixel."""
    h, w = sprite.alpha.shape
    rows = min(int(h * 0.7), street.height - (sprite.y0 + h) + 3)
    x0, x1 = max(sprite.x0, 0), min(sprite.x0 + w, street.width)
    y0 = sprite.y0 + h - 3
    if rows < 4 or x1 <= x0 or y0 < 0:
        return
    cut = (slice(h - rows, h), slice(x0 - sprite.x0, x1 - sprite.x0))
    blur = (3, max(3, rows // 5 | 1))
    fade = np.linspace(0.34, 0.04, rows, dtype=np.float32)[:, None]
    rgb = cv2.blur(sprite.rgb[cut][::-1].copy(), blur) * fade[..., None]
    alpha = cv2.blur(sprite.alpha[cut][::-1].copy(), blur) * (fade / 255)
    here = img[y0 : y0 + rows, x0:x1]
    here[:] = here * (1 - alpha[..., None]) + rgb


def _bloom(img: np.ndarray, ids: np.ndarray, lamps: list, street: Street) -> None:
    """Add a glow around every lamp that is not hidden."""
    dark = {"night": 1.0, "dusk": 0.55, "rain": 0.35, "fog": 0.3}.get(street.condition, 0.0)
    shown = [(x, y, r, rgb) for x, y, r, rgb, key in lamps
             if 0 <= x < street.width and 0 <= y < street.height and ids[int(y), int(x)] == key]
    if not dark or not shown:
        return
    glow = np.zeros((street.height // 4 + 1, street.width // 4 + 1, 3), np.uint8)
    for x, y, r, rgb in shown:
        cv2.circle(glow, (int(x / 4), int(y / 4)), max(1, int(r / 3)), rgb, -1)
    halo = cv2.blur(cv2.blur(glow, (15, 15)), (15, 15))
    wide = cv2.addWeighted(cv2.blur(glow, (5, 5)), 0.8 * dark, halo, 1.4 * dark, 0)
    cv2.add(img, cv2.resize(wide, (glow.shape[1] * 4, glow.shape[0] * 4))[: street.height, : street.width], dst=img)
