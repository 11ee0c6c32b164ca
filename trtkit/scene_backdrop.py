"""The empty street: sky, skyline, ground and houses, and the air in front of them.

Order matters: each step covers part of the one before, and the haze lies over all of them.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from trtkit import scene_art as art
from trtkit.scene_houses import paint_houses
from trtkit.scene_street import CROSS_WIDTH_M, WEATHER, Street, horizon_row


def paint_backdrop(street: Street, rng: np.random.Generator) -> np.ndarray:
    """Sky, houses and ground without any object, (H, W, 3) uint8 RGB."""
    img = np.empty((street.height, street.width, 3), np.uint8)
    _sky(img, street, rng)
    _skyline(img, street, rng)
    _ground(img, street, rng)
    paint_houses(img, street, rng)
    _haze(img, street)
    if street.condition == "rain":
        _wet_mirror(img, street)
    return img


@lru_cache(maxsize=1)
def _cloud_tile() -> np.ndarray:
    """Fractal noise (512, 1024) uint8: octaves of smooth noise, thresholded softly."""
    rng, total = np.random.default_rng(3), np.zeros((512, 1024), np.float32)
    for octave in range(2, 8):
        small = rng.normal(0, 1, (2**octave, 2 ** (octave + 1))).astype(np.float32)
        total += cv2.resize(small, (1024, 512), interpolation=cv2.INTER_CUBIC) * 0.58**octave
    total = (total - total.mean()) / total.std()
    return np.clip(255 / (1 + np.exp(-2.2 * (total - 0.3))), 0, 255).astype(np.uint8)


def _sky(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """A ramp from zenith to skyline with clouds in it, above the horizon."""
    weather, row = WEATHER[street.condition], horizon_row(street)
    mood = rng.uniform(0.9, 1.08)
    size = (street.width // 3 + 1, row // 3 + 1)  # nothing in the sky is sharp
    ramp = np.array([weather.zenith, np.add(weather.zenith, weather.skyline) / 2, weather.skyline], np.float32) * mood
    sky = cv2.resize(ramp[:, None], size, interpolation=cv2.INTER_LINEAR)
    x, y = int(rng.integers(0, 600)), int(rng.integers(0, 300))
    part = _cloud_tile()[y : y + int(rng.integers(90, 212)), x : x + int(rng.integers(180, 424))]
    cloud = cv2.resize(part, size).astype(np.float32)[..., None] * (weather.clouds * rng.uniform(0, 0.9) / 255)
    tint = np.minimum(np.array(weather.skyline, np.float32) * 0.5 + 120 * (street.condition != "night"), 250)
    small = np.clip(sky + (tint - sky) * cloud, 0, 255).astype(np.uint8)
    img[:row] = cv2.resize(small, (street.width, row), interpolation=cv2.INTER_LINEAR)


def _lit(rgb, light: art.Light, facing: float) -> tuple[float, float, float]:
    """Colour of a matt surface; `facing` is the cosine between its normal and the sun."""
    return tuple(np.clip(np.array(rgb) * (light.ambient + light.sun * max(facing, 0.0)), 0, 255).tolist())


def _skyline(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """Far houses and trees on the horizon, pale from the air in between."""
    row, haze = horizon_row(street), street.light.haze_rgb
    for x in np.sort(rng.uniform(-0.05, 1.0, 16)) * street.width:
        tall, wide = street.height * rng.uniform(0.02, 0.13), street.width * rng.uniform(0.03, 0.1)
        rgb = np.array(_lit(rng.uniform(90, 170, 3), street.light, 0.3)) * 0.5 + haze * 0.5
        if rng.random() < 0.3:
            leaves = (rgb * (0.62, 0.74, 0.6)).tolist()
            cv2.ellipse(img, (int(x), row), (int(wide / 2), int(tall * 0.6)), 0, 180, 360, leaves, -1)
        else:
            cv2.rectangle(img, (int(x), int(row - tall)), (int(x + wide), row), rgb.tolist(), -1)


def _ground(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """Pavement, road, kerbs, road markings and repairs, below the horizon."""
    row, light, mid, half, cz = horizon_row(street), street.light, street.middle, street.half, street.cross_z
    up, wet = float(light.to_sun[1]), 0.72 if street.condition == "rain" else 1.0

    def lit(*rgb):
        return _lit(np.array(rgb) * wet, light, up)

    road, slab = rng.uniform(76, 104), rng.uniform(128, 164)
    pavement, asphalt, paint = lit(slab, slab * 0.97, slab * 0.93), lit(road, road, road * 1.03), lit(226, 224, 214)
    cv2.rectangle(img, (0, row), (street.width, street.height), pavement, -1)
    quads = []
    seam = lit(slab * 0.8, slab * 0.78, slab * 0.74)
    for z in np.arange(2.0, 24.0, 1.2):
        quads.append((mid - street.wall, mid + street.wall, z, z + 0.035 + z * 0.002, seam))
    for x in np.arange(half + 1.0, street.wall, 1.0):
        for side in (-1, 1):
            quads.append((mid + side * x, mid + side * x + 0.04, 1, 40, seam))
    quads.append((mid - half, mid + half, 0, 400, asphalt))
    if cz:
        quads.append((mid - 90, mid + 90, cz, cz + CROSS_WIDTH_M, asphalt))
    edges = [(0, 400)] if not cz else [(0, cz), (cz + CROSS_WIDTH_M, 400)]
    for side in (-1, 1):
        kerb, line = mid + side * half, mid + side * (half - 0.45)
        for z0, z1 in edges:
            quads.append((kerb - 0.09, kerb + 0.16, z0, z1, lit(184, 182, 176)))
            quads.append((kerb - side * 0.02 - 0.12, kerb - side * 0.02, z0, z1, lit(58, 58, 60)))
            quads.append((line - 0.05, line + 0.05, z0, z1, paint))
    solid = rng.random() < 0.25
    for z in np.arange(rng.uniform(-4, 0), 70, 6.0):
        if not cz or not cz - 6.5 < z < cz + CROSS_WIDTH_M + 1:
            quads.append((mid - 0.07, mid + 0.07, z, z + (6.0 if solid else 3.0), paint))
    for _ in range(int(rng.integers(1, 5))):  # repairs of the surface
        x, z, tone = mid + rng.uniform(-half, half * 0.6), rng.uniform(3, 26), rng.uniform(0.72, 1.2)
        quads.append((x, x + rng.uniform(0.6, 2), z, z + rng.uniform(0.8, 5), tuple(c * tone for c in asphalt)))
    crossing = cz - 4.2 if cz else (rng.uniform(7, 22) if rng.random() < 0.4 else 0)
    if crossing:
        for x in np.arange(mid - half + 0.5, mid + half - 0.4, 1.0):
            quads.append((x, x + 0.5, crossing, crossing + 2.8, paint))
        quads.append((mid, mid + half - 0.5, crossing - 1.6, crossing - 1.2, paint))
    _ground_quads(img, street, quads)
    _rough_ground(img, street, rng)


def _ground_quads(img: np.ndarray, street: Street, quads: list[tuple]) -> None:
    """Fill rectangles (x0, x1, z0, z1, rgb) that lie on the ground, in order."""
    x0, x1, z0, z1 = np.array([q[:4] for q in quads]).T
    z0, z1 = np.maximum(z0, art.NEAR_M), np.maximum(z1, art.NEAR_M)
    world = np.stack([np.stack([x0, x1, x1, x0], 1), np.zeros((len(quads), 4)), np.stack([z0, z0, z1, z1], 1)], 2)
    pts = np.rint(art.project(world.reshape(-1, 3), street.camera) * 8).astype(np.int32).reshape(-1, 4, 2)
    for corners, quad in zip(pts, quads, strict=True):
        cv2.fillConvexPoly(img, corners, quad[4], cv2.LINE_AA, art.SUBPIXEL_BITS)


@lru_cache(maxsize=1)
def _asphalt_tile() -> np.ndarray:
    """Ground texture (512, 512) uint8, a factor with 128 as one: grit, stains and cracks; 20 px per metre."""
    rng = np.random.default_rng(4)
    grit = cv2.GaussianBlur(rng.normal(0, 26, (512, 512)).astype(np.float32), (0, 0), 0.8)
    stains = cv2.resize(rng.normal(0, 9, (24, 24)).astype(np.float32), (512, 512), interpolation=cv2.INTER_CUBIC)
    tile = np.clip(128 + grit + stains, 40, 220).astype(np.uint8)
    for _ in range(9):
        walk = np.cumsum(rng.normal(0, 9, (14, 2)), 0) + rng.uniform(0, 512, 2)
        cv2.polylines(tile, [walk.astype(np.int32)], False, int(rng.integers(70, 105)), 1, cv2.LINE_AA)
    return tile


@lru_cache(maxsize=12)
def _rough_strip(width: int, height: int, kind: int) -> np.ndarray:
    """Asphalt in perspective, (height, 2 * width, 3) uint8, the horizon on top; any stretch of it fits any scene."""
    eye = (1.5, 2.0, 2.5, 3.0, 3.5, 2.0)[kind]
    cam = art.Camera(0.92 * width, width, 0, eye)
    metres = np.array([(-2, 0, 2.0), (2, 0, 2.0), (2, 0, 40.0), (-2, 0, 40.0)])
    texels = (metres[:, [0, 2]] * 20 + 170 * kind).astype(np.float32)
    warp = cv2.getPerspectiveTransform(texels, art.project(metres, cam).astype(np.float32))
    rough = cv2.warpPerspective(_asphalt_tile(), warp, (2 * width, height), borderMode=cv2.BORDER_WRAP)
    far = max(2, int(cam.focal * eye / 26))  # beyond 26 m the grit is finer than a pixel
    rough[:far] = cv2.blur(rough[:far], (9, 3))
    return cv2.merge([rough] * 3)


def _rough_ground(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """Multiply the flat ground by the asphalt texture laid out in perspective."""
    row = horizon_row(street)
    rough, x = _rough_strip(street.width, street.height, int(rng.integers(6))), int(rng.integers(street.width))
    img[row:] = cv2.multiply(img[row:], rough[: street.height - row, x : x + street.width], scale=1 / 128)
    if street.light.lamps_on and street.condition in ("night", "dusk"):
        _lamp_pools(img, street, rng)


def _lamp_pools(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """Brighten the ground under the street lamps."""
    row, cam = horizon_row(street), street.camera
    pools = np.full(((street.height - row) // 4 + 1, street.width // 4 + 1), 70, np.uint8)
    for z in np.arange(rng.uniform(4, 10), 60, 13.0):
        for side in (-1, 1):
            x, y = art.project(np.array([[street.middle + side * (street.half - 0.5), 0, z]]), cam)[0]
            size = (int(cam.focal * 3.6 / z / 4), max(1, int(cam.focal * cam.height * 3.4 / z**2 / 4)))
            cv2.ellipse(pools, (int(x / 4), int((y - row) / 4)), size, 0, 0, 360, 200, -1)
    pools = cv2.resize(cv2.blur(cv2.blur(pools, (19, 7)), (19, 7)), (street.width, street.height - row))
    warm = cv2.merge([pools, (pools * 0.94).astype(np.uint8), (pools * 0.8).astype(np.uint8)])
    img[row:] = cv2.multiply(img[row:], warm, scale=1 / 70)


def _haze(img: np.ndarray, street: Street) -> None:
    """Blend towards the haze by distance: the nearest of ground, house front and 140 m along each pixel's ray."""
    cam, w, h = street.camera, street.width // 4 + 1, street.height // 4 + 1
    rows, cols = np.arange(h) * 4.0 + 2 - cam.horizon, np.arange(w) * 4.0 + 2 - cam.cx
    ground = cam.focal * cam.height / np.maximum(rows, 0.5)
    walls = np.where(cols < 0, street.middle - street.wall, street.middle + street.wall)
    side = cam.focal * np.maximum(walls / np.where(cols == 0, 1e-3, cols), 0.0)
    depth = np.minimum(np.minimum(ground[:, None], np.maximum(side, 1.0)[None]), 140.0)
    clear = (np.exp(-street.light.density * depth) * 255).astype(np.uint8)
    keep = cv2.cvtColor(cv2.resize(clear, (street.width, street.height)), cv2.COLOR_GRAY2RGB)
    air = art.one_colour(img.shape, street.light.haze_rgb)
    cv2.add(cv2.multiply(img, keep, scale=1 / 255), cv2.multiply(air, 255 - keep, scale=1 / 255), dst=img)


def _wet_mirror(img: np.ndarray, street: Street) -> None:
    """Blend the blurred mirror image of the houses into the wet ground, fading towards the camera."""
    row = horizon_row(street)
    rows = min(row, street.height - row)
    mirror = cv2.blur(img[row - rows : row][::-1].copy(), (3, 25))
    fade = np.repeat(np.linspace(0.4, 0.0, rows, dtype=np.float32)[:, None], street.width, 1)
    img[row : row + rows] = cv2.blendLinear(img[row : row + rows], mirror, 1 - fade, fade)
