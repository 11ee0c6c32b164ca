"""Street scenes with exact boxes, drawn from a seed. The data of lessons 03 to 15.

`render(seed)` gives one photo-like image, `clip(seed, frames)` a fixed camera over moving traffic. The same seed gives
the same pixels in every process. Objects are small 3-D models (`scene_art`) painted far to near; a second buffer keeps
which object owns which pixel, hence

    visibility = pixels still owned by the object / pixels it was drawn with

Left out on purpose: camera roll and lens distortion, shadows of one object on another, people inside vehicles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cmp_to_key, lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from trtkit import scene_art as art

CLASSES = ("person", "bicycle", "car", "bus", "truck", "traffic light")
CONDITIONS = ("day", "dusk", "night", "rain", "fog")
PERSON, BICYCLE, CAR, BUS, TRUCK, SIGNAL = range(6)
SCENERY = -1
_SLOT_WEIGHTS = (0.13, 0.16, 0.17, 0.18, 0.18, 0.18)
_DEPTH_M = ((4.2, 58), (4.2, 42), (6.5, 92), (12, 105), (10, 92), (7, 50))  # nearest and farthest of each class
_FOOTPRINT = ((0.4, 0.4), (0.3, 0.9), (1.0, 2.3), (1.3, 5.8), (1.3, 4.2), (0.3, 0.2))  # half width, half length, metres
_HEIGHT_M = (1.75, 1.05, 1.5, 3.2, 3.1, 1.1)


@dataclass(frozen=True)
class Scene:
    """One image and everything that is in it. N counts objects with at least one visible pixel.

    A traffic light is its signal head; the pole is scenery. A person's bag or umbrella belongs to the person.
    """

    img_hwc_u8: np.ndarray  # (H, W, 3) uint8 RGB
    boxes_xyxy: np.ndarray  # (N, 4) float32, pixels, clipped to the image, tight around the full object
    labels: np.ndarray  # (N,) int64, index into CLASSES
    visibility: np.ndarray  # (N,) float32 in (0, 1]
    track_ids: np.ndarray  # (N,) int64
    condition: str


class Street(NamedTuple):
    """Fixed layout of a scene: metres relative to the camera's foot, x right, z ahead."""

    camera: art.Camera
    light: art.Light
    condition: str
    width: int
    height: int
    middle: float  # x of the road's middle line
    half: float  # half width of the road
    wall: float  # from the middle to the house fronts
    cross_z: float  # near edge of the side street, 0 if there is none


class Actor(NamedTuple):
    """One object at one moment; `label` is SCENERY for what is not a class."""

    label: int
    track: int
    model: art.Model
    place: art.Place


CROSS_WIDTH_M = 8.0


def render(seed: int, *, width: int = 640, height: int = 480, condition: str | None = None) -> Scene:
    """Draw one random street scene.

    Args:
        seed: at least 0; the same seed and size give the same pixels.
        width: of the image, pixels, at least 64.
        height: of the image, pixels, at least 64.
        condition: one of `CONDITIONS`; None picks one.

    Returns:
        The image, with about 3 to 15 objects.

    Raises:
        ValueError: a negative seed, a size below 64 or not an int, an unknown condition.
    """
    _check(seed, width, height, condition)
    rng = np.random.default_rng([seed, 0])
    street = _street(rng, condition, width, height)
    backdrop = _backdrop(street, rng)
    actors = _place_objects(street, rng) + _place_scenery(street, rng)
    img, found = _compose(street, backdrop, actors)
    return Scene(_camera_effects(img, street, rng), *found, street.condition)


def clip(
    seed: int, frames: int, *, fps: float = 25.0, width: int = 640, height: int = 480, condition: str | None = None
) -> Iterator[Scene]:
    """Film a crossing with a fixed camera: vehicles obey a traffic light, people cross on red.

    Args:
        seed: at least 0.
        frames: how many scenes to yield, at least 1.
        fps: frames per second, above 0; it sets how far things move between frames.
        width: of the image, pixels, at least 64.
        height: of the image, pixels, at least 64.
        condition: one of `CONDITIONS`; None picks one.

    Yields:
        One `Scene` per frame; an object keeps its `track_ids` entry for as long as it lives.

    Raises:
        ValueError: as `render`; also frames below 1 and fps not above 0.
    """
    _check(seed, width, height, condition)
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
        raise ValueError(f"frames: got {frames!r}, expected an int of at least 1; 10 s at 25 fps are 250 frames")
    if not fps > 0:
        raise ValueError(f"fps: got {fps!r}, expected frames per second above 0, for example 25.0")
    return _film(seed, frames, fps, width, height, condition)


def _check(seed: int, width: int, height: int, condition: str | None) -> None:
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: got {seed!r}, expected an int of at least 0; use e.g. abs(seed)")
    for name, size in (("width", width), ("height", height)):
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 64:
            raise ValueError(f"{name}: got {size!r}, expected an int of at least 64; render larger and scale down")
    if condition is not None and condition not in CONDITIONS:
        raise ValueError(f"condition: got {condition!r}, expected one of {CONDITIONS} or None; pick one of them")


# ---------------------------------------------------------------------------------------------- light and layout


class Weather(NamedTuple):
    """Colours (0..255) and light factors of one condition."""

    zenith: tuple
    skyline: tuple
    ambient: tuple
    sun: tuple
    haze: tuple
    density: tuple[float, float]
    clouds: float


_WEATHER = {
    "day": Weather((88, 140, 206), (196, 216, 232), (0.54, 0.57, 0.62),
        (0.62, 0.58, 0.5), (190, 206, 222), (0.001, 0.004), 1.0),
    "dusk": Weather((72, 78, 128), (244, 164, 104), (0.36, 0.33, 0.4),
        (0.5, 0.3, 0.14), (206, 150, 124), (0.002, 0.006), 0.8),
    "night": Weather((8, 11, 24), (36, 36, 52), (0.27, 0.28, 0.35),
        (0.08, 0.07, 0.05), (26, 27, 38), (0.002, 0.008), 0.15),
    "rain": Weather((112, 120, 130), (166, 172, 178), (0.6, 0.63, 0.67),
        (0.06, 0.06, 0.06), (148, 156, 164), (0.008, 0.018), 0.5),
    "fog": Weather((176, 182, 188), (202, 206, 208), (0.66, 0.67, 0.69),
        (0.04, 0.04, 0.04), (198, 202, 205), (0.022, 0.05), 0.1),
}


def _street(rng: np.random.Generator, condition: str | None, width: int, height: int, *, filmed=False) -> Street:
    condition = condition or CONDITIONS[int(rng.choice(5, p=(0.36, 0.17, 0.17, 0.16, 0.14)))]
    weather = _WEATHER[condition]
    elevation = rng.uniform(0.22, 0.4) if condition == "dusk" else rng.uniform(0.55, 1.1)
    azimuth = rng.uniform(-2.6, -0.5)  # behind the camera, so that what we see is lit
    to_sun = np.array([np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)])
    strength = rng.uniform(0.7, 1.15) if rng.random() < 0.75 else 0.15  # now and then the day is overcast
    ambient = np.array(weather.ambient) * rng.uniform(0.92, 1.12) * rng.uniform(0.95, 1.05, 3)
    if condition == "day" and strength < 0.2:
        ambient = ambient + 0.12  # clouds scatter what the sun does not send
    lamps_on = condition in ("night", "dusk") or rng.random() < 0.4
    light = art.Light(ambient, np.array(weather.sun) * strength, to_sun, np.array(weather.haze, float),
                      rng.uniform(*weather.density), lamps_on)
    half = rng.uniform(3.4, 6.8)
    wall = half + rng.uniform(2.6, 4.5)
    middle = rng.uniform(-0.75, 0.75) * half
    cross_z = rng.uniform(12, 34) if rng.random() < 0.55 else 0.0
    eye = rng.uniform(1.4, 3.6)
    if filmed:
        half, wall, middle, cross_z, eye = 5.6, 9.6, -6.9, rng.uniform(22, 26), rng.uniform(2.8, 3.6)
    horizon = height * (rng.uniform(0.4, 0.52) - 0.03 * eye)
    camera = art.Camera(width * rng.uniform(0.8, 1.05), width * (0.5 + rng.uniform(-0.12, 0.12)), horizon, eye)
    if filmed:
        camera = camera._replace(focal=width * 0.85, cx=width * 0.66)
    return Street(camera, light, condition, width, height, middle, half, wall, cross_z)


# ---------------------------------------------------------------------------------------------- backdrop


@lru_cache(maxsize=1)
def _cloud_tile() -> np.ndarray:
    """Fractal noise (512, 1024) uint8: octaves of smooth noise, thresholded softly."""
    rng, total = np.random.default_rng(3), np.zeros((512, 1024), np.float32)
    for octave in range(2, 8):
        small = rng.normal(0, 1, (2**octave, 2 ** (octave + 1))).astype(np.float32)
        total += cv2.resize(small, (1024, 512), interpolation=cv2.INTER_CUBIC) * 0.58**octave
    total = (total - total.mean()) / total.std()
    return np.clip(255 / (1 + np.exp(-2.2 * (total - 0.3))), 0, 255).astype(np.uint8)


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


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    """Sensor noise (1100, 1400, 3) uint8 around 128 with deviation 24, slightly blotchy as after a Bayer filter."""
    noise = np.random.default_rng(5).normal(0, 1, (1100, 1400, 3)).astype(np.float32)
    noise = noise + 0.6 * noise.mean(2, keepdims=True) + 0.5 * cv2.blur(noise, (2, 2))
    return np.clip(128 + 24 * noise / noise.std(), 0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _rain_tile(slant: int) -> np.ndarray:
    """Streaks of rain (1100, 1400) uint8, to be added."""
    rng, tile = np.random.default_rng(6 + slant), np.zeros((1100, 1400), np.uint8)
    for x, y, length, tone in zip(rng.integers(0, 1400, 2600).tolist(), rng.integers(-40, 1100, 2600).tolist(),
                                  rng.integers(8, 46, 2600).tolist(), rng.integers(14, 62, 2600).tolist(), strict=True):
        cv2.line(tile, (x, y), (x + slant * length // 12, y + length), tone, 1, cv2.LINE_AA)
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


def _flat(shape: tuple, rgb) -> np.ndarray:
    """One colour everywhere, uint8; OpenCV fills several times faster than NumPy broadcasts."""
    picture = np.empty((shape[0], shape[1], 3), np.uint8)
    return cv2.rectangle(picture, (0, 0), (shape[1], shape[0]), [float(c) for c in rgb], -1)


def _backdrop(street: Street, rng: np.random.Generator) -> np.ndarray:
    """Sky, houses and ground without any object, (H, W, 3) uint8."""
    img = np.empty((street.height, street.width, 3), np.uint8)
    _sky(img, street, rng)
    _skyline(img, street, rng)
    _ground(img, street, rng)
    _houses(img, street, rng)
    _haze(img, street)
    if street.condition == "rain":
        _wet_mirror(img, street)
    return img


def _horizon_row(street: Street) -> int:
    return int(np.clip(round(street.camera.horizon), 4, street.height - 4))


def _sky(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    weather, row = _WEATHER[street.condition], _horizon_row(street)
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
    return tuple(np.clip(np.array(rgb) * (light.ambient + light.sun * max(facing, 0.0)), 0, 255).tolist())


def _skyline(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """Far houses and trees on the horizon, pale from the air in between."""
    row, haze = _horizon_row(street), street.light.haze_rgb
    for x in np.sort(rng.uniform(-0.05, 1.0, 16)) * street.width:
        tall, wide = street.height * rng.uniform(0.02, 0.13), street.width * rng.uniform(0.03, 0.1)
        rgb = np.array(_lit(rng.uniform(90, 170, 3), street.light, 0.3)) * 0.5 + haze * 0.5
        if rng.random() < 0.3:
            leaves = (rgb * (0.62, 0.74, 0.6)).tolist()
            cv2.ellipse(img, (int(x), row), (int(wide / 2), int(tall * 0.6)), 0, 180, 360, leaves, -1)
        else:
            cv2.rectangle(img, (int(x), int(row - tall)), (int(x + wide), row), rgb.tolist(), -1)


def _ground_quads(img: np.ndarray, street: Street, quads: list[tuple]) -> None:
    """Fill rectangles (x0, x1, z0, z1, rgb) that lie on the ground, in order."""
    x0, x1, z0, z1 = np.array([q[:4] for q in quads]).T
    z0, z1 = np.maximum(z0, art.NEAR_M), np.maximum(z1, art.NEAR_M)
    world = np.stack([np.stack([x0, x1, x1, x0], 1), np.zeros((len(quads), 4)), np.stack([z0, z0, z1, z1], 1)], 2)
    pts = np.rint(art.project(world.reshape(-1, 3), street.camera) * 8).astype(np.int32).reshape(-1, 4, 2)
    for corners, quad in zip(pts, quads, strict=True):
        cv2.fillConvexPoly(img, corners, quad[4], cv2.LINE_AA, art.SUBPIXEL_BITS)


def _ground(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    row, light, mid, half, cz = _horizon_row(street), street.light, street.middle, street.half, street.cross_z
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


def _rough_ground(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """Multiply the flat ground by the asphalt texture laid out in perspective."""
    row = _horizon_row(street)
    rough, x = _rough_strip(street.width, street.height, int(rng.integers(6))), int(rng.integers(street.width))
    img[row:] = cv2.multiply(img[row:], rough[: street.height - row, x : x + street.width], scale=1 / 128)
    if street.light.lamps_on and street.condition in ("night", "dusk"):
        _lamp_pools(img, street, rng)


def _lamp_pools(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    row, cam = _horizon_row(street), street.camera
    pools = np.full(((street.height - row) // 4 + 1, street.width // 4 + 1), 70, np.uint8)
    for z in np.arange(rng.uniform(4, 10), 60, 13.0):
        for side in (-1, 1):
            x, y = art.project(np.array([[street.middle + side * (street.half - 0.5), 0, z]]), cam)[0]
            size = (int(cam.focal * 3.6 / z / 4), max(1, int(cam.focal * cam.height * 3.4 / z**2 / 4)))
            cv2.ellipse(pools, (int(x / 4), int((y - row) / 4)), size, 0, 0, 360, 200, -1)
    pools = cv2.resize(cv2.blur(cv2.blur(pools, (19, 7)), (19, 7)), (street.width, street.height - row))
    warm = cv2.merge([pools, (pools * 0.94).astype(np.uint8), (pools * 0.8).astype(np.uint8)])
    img[row:] = cv2.multiply(img[row:], warm, scale=1 / 70)


def _houses(img: np.ndarray, street: Street, rng: np.random.Generator) -> None:
    """House fronts along both sides, far to near; a side street leaves a gap."""
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
    return _facade(kind)[0][0].shape[0] / PX_PER_M_FACADE


def _house(img, street: Street, kind: int, tint, x: float, side: int, z0: float, z1: float, *, end_shown: bool) -> None:
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
    face = cv2.multiply(front, _flat(front.shape, np.clip(shade * 128, 0, 255)), scale=1 / 128)
    if street.condition in ("night", "dusk"):
        face = cv2.addWeighted(face, 1.0, glow[:, skip:], 0.85 if street.condition == "night" else 0.45, 0)
    h, w = face.shape[:2]
    texels = np.array([(0, h), (w, h), (w, 0), (0, 0)], np.float32)
    warp = cv2.getPerspectiveTransform(texels, (pts - low).astype(np.float32))
    roi = img[low[1] : high[1], low[0] : high[0]]
    cv2.warpPerspective(face, warp, roi.shape[1::-1], dst=roi, borderMode=cv2.BORDER_TRANSPARENT)


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
    air = _flat(img.shape, street.light.haze_rgb)
    cv2.add(cv2.multiply(img, keep, scale=1 / 255), cv2.multiply(air, 255 - keep, scale=1 / 255), dst=img)


def _wet_mirror(img: np.ndarray, street: Street) -> None:
    """Blend the blurred mirror image of the houses into the wet ground, fading towards the camera."""
    row = _horizon_row(street)
    rows = min(row, street.height - row)
    mirror = cv2.blur(img[row - rows : row][::-1].copy(), (3, 25))
    fade = np.repeat(np.linspace(0.4, 0.0, rows, dtype=np.float32)[:, None], street.width, 1)
    img[row : row + rows] = cv2.blendLinear(img[row : row + rows], mirror, 1 - fade, fade)


# ---------------------------------------------------------------------------------------------- placing objects


def _make(label: int, rng: np.random.Generator) -> art.Model:
    kind = int(rng.integers(art.KINDS))
    if label == PERSON:
        return art.person(kind, rng.random(), pose="walk" if rng.random() < 0.72 else "stand")
    if label == SIGNAL:
        return art.traffic_light(int(rng.integers(3)), kind % 4)
    return {BICYCLE: art.bicycle, CAR: art.car, BUS: art.bus, TRUCK: art.truck}[label](kind)


def _either(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _spot(label: int, street: Street, rng: np.random.Generator) -> art.Place:
    """A plausible place for a new object: vehicles in lanes or crossing, people on pavements and crossings."""
    near, far = _DEPTH_M[label]
    z, side = float(np.exp(rng.uniform(np.log(near), np.log(far)))), _either(rng)
    mid, half, turn = street.middle, street.half, rng.normal(0, 0.06)
    if label == SIGNAL:
        mast = rng.random() < 0.35 and z > 11
        x = mid + side * (half - rng.uniform(0.8, 2.6) if mast else half + 0.6)
        return art.Place(x, rng.uniform(4.4, 5.2) if mast else rng.uniform(2.0, 3.2), z, np.pi + rng.normal(0, 0.3))
    if label == PERSON:
        on_road = rng.random() < 0.35
        x = mid + (rng.uniform(-half, half) if on_road else side * rng.uniform(half + 0.4, street.wall - 0.5))
        return art.Place(x, 0, z, rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else side * np.pi / 2 + turn)
    if label == BICYCLE:
        x = mid + side * rng.uniform(half - 1.4, half + 1.8)
        yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.7 else (0 if side > 0 else np.pi)
        return art.Place(x, 0, z, yaw + turn)
    style = rng.random()
    if style < 0.56:  # in lane; we drive on the right
        lane = half * 0.5 if half < 5 or rng.random() < 0.6 else half - 1.3
        return art.Place(mid + side * lane, 0, z, (0 if side > 0 else np.pi) + turn)
    if style < 0.82:  # crossing, in the side street where there is one
        if street.cross_z:
            z = street.cross_z + (2.2 if side > 0 else 5.8)
        reach = half if not street.cross_z else street.wall + 6
        return art.Place(mid + rng.uniform(-reach, reach), 0, max(z, near), side * np.pi / 2 + turn)
    return art.Place(mid + side * rng.uniform(0, half), 0, z, rng.uniform(-np.pi, np.pi))  # turning


def _ground_reach(half_xz: tuple[float, float], yaw: float) -> tuple[float, float]:
    c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
    return half_xz[0] * c + half_xz[1] * s, half_xz[0] * s + half_xz[1] * c


def _rough_box(place: art.Place, dx: float, dz: float, tall: float, camera: art.Camera) -> tuple:
    near, far = camera.focal / (place.z - dz), camera.focal / (place.z + dz)
    left, right = place.x - dx, place.x + dx
    top, foot = camera.height - place.y - tall, camera.height - place.y
    return (camera.cx + min(left * near, left * far), camera.horizon + min(top * near, top * far),
            camera.cx + max(right * near, right * far), camera.horizon + max(foot * near, foot * far))


def _inside(box: tuple, other: tuple) -> float:
    """Area of the part of a box that lies inside another one."""
    w, h = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
    return w * h if w > 0 and h > 0 else 0.0


def _area(box: tuple) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _place_objects(street: Street, rng: np.random.Generator) -> list[Actor]:
    """Up to 14 objects and their riders that do not stand in each other and mostly do not hide each other."""
    frame = (0, 0, street.width, street.height)
    actors, taken = [], []
    for _ in range(int(rng.integers(5, 15))):
        label, tolerance = int(rng.choice(6, p=_SLOT_WEIGHTS)), 0.4 if rng.random() < 0.6 else 0.85
        for _try in range(14):
            place, half_xz = _spot(label, street, rng), _FOOTPRINT[label]
            dx, dz = _ground_reach(half_xz, place.yaw)
            if place.z - dz < 2.6:
                continue
            box = _rough_box(place, dx, dz, _HEIGHT_M[label], street.camera)
            seen = 0.85 if rng.random() < 0.75 else 0.35
            if _inside(box, frame) < seen * _area(box) or box[3] - box[1] > 0.9 * street.height:
                continue
            if any(_inside(box, b) > tolerance * min(_area(box), _area(b)) for b, *_ in taken):
                continue
            if any(abs(place.x - p.x) < dx + ex and abs(place.z - p.z) < dz + ez for _, p, ex, ez in taken):
                continue  # they would stand in each other
            taken.append((box, place, dx, dz))
            actors += _cast(label, place, len(actors), street, rng)
            break
    return actors


def _cast(label: int, place: art.Place, track: int, street: Street, rng: np.random.Generator) -> list[Actor]:
    """The object itself and what belongs to it: a rider on a bicycle, a pole under a signal."""
    actors = [Actor(label, track, _make(label, rng), place)]
    if label == BICYCLE and rng.random() < 0.4:
        rider = art.person(int(rng.integers(art.KINDS)), rng.random(), pose="ride")
        actors.append(Actor(PERSON, track + 1, rider, place._replace(z=place.z - 0.03)))  # painted after the bicycle
    if label == SIGNAL:
        actors.append(Actor(SCENERY, -1, *_pole(place, street)))
    return actors


def _pole(head: art.Place, street: Street) -> tuple[art.Model, art.Place]:
    side = 1 if head.x > street.middle else -1
    reach = side * max(street.half + 0.7 - abs(head.x - street.middle), 0.0) if head.y > 4 else 0.0
    return art.signal_pole(reach, head.y), art.Place(head.x, 0, head.z + 0.25, 0)


def _place_scenery(street: Street, rng: np.random.Generator, *, along_kerb: bool = False) -> list[Actor]:
    """Trees, lamps and street furniture on the pavements; `along_kerb` leaves the middle free for walkers."""
    actors, deep = [], 0.9 if along_kerb else max(0.8, street.wall - street.half - 0.6)
    green = rng.random() < 0.6
    for _ in range(int(rng.integers(3, 9))):
        side, z = _either(rng), float(np.exp(rng.uniform(np.log(6), np.log(55))))
        x = street.middle + side * (street.half + rng.uniform(0.7, deep))
        if street.cross_z and street.cross_z - 6 < z < street.cross_z + CROSS_WIDTH_M + 1:
            continue
        pick = rng.random()
        kind = int(rng.integers(art.KINDS))
        if pick < 0.3 and green:
            model = art.tree(kind)
        elif pick < 0.5:
            model, x = art.lamp_post(kind), street.middle + side * (street.half + 0.5)
        else:
            model = art.furniture(kind)
        actors.append(Actor(SCENERY, -1, model, art.Place(x, 0, z, np.pi if side < 0 else 0)))
    return actors


# ---------------------------------------------------------------------------------------------- composing


def _farther(a: Actor, b: Actor) -> int:
    """Painting order of two objects: by depth, and by distance from the view axis where their depths overlap."""
    (ax, az), (bx, bz) = _ground_reach(a.model.half_xz, a.place.yaw), _ground_reach(b.model.half_xz, b.place.yaw)
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


def _compose(street: Street, backdrop: np.ndarray, actors: list[Actor]) -> tuple[np.ndarray, tuple]:
    """Paint the actors over a copy of the backdrop; also return boxes, labels, visibility and track ids."""
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


def _found(rows: list, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(rows, np.float32).reshape(-1, 6)
    seen = share[1:] > 0
    table, visibility = table[seen], np.minimum(share[1:][seen], 1.0).astype(np.float32)
    return table[:, :4].copy(), table[:, 4].astype(np.int64), visibility, table[:, 5].astype(np.int64)


def _overlap(sprite: art.Sprite, street: Street) -> tuple[int, int, int, int]:
    h, w = sprite.alpha.shape
    return (max(sprite.x0, 0), max(sprite.y0, 0), min(sprite.x0 + w, street.width), min(sprite.y0 + h, street.height))


def _blend(img: np.ndarray, ids: np.ndarray, sprite: art.Sprite, mask: np.ndarray, box: tuple, key: int) -> None:
    x0, y0, x1, y1 = box
    cut = (slice(y0 - sprite.y0, y1 - sprite.y0), slice(x0 - sprite.x0, x1 - sprite.x0))
    here = (slice(y0, y1), slice(x0, x1))
    keep = cv2.cvtColor(255 - sprite.alpha[cut], cv2.COLOR_GRAY2RGB)
    img[here] = cv2.add(cv2.multiply(img[here], keep, scale=1 / 255), sprite.rgb[cut])
    np.copyto(ids[here], key, where=mask[cut] > 0)


def _shadows(img: np.ndarray, street: Street, actors: list[Actor]) -> None:
    """Soft shadows on the ground: along the sun, or straight down under a grey sky."""
    row, shrink, light = _horizon_row(street), 2, street.light
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


def _camera_effects(img: np.ndarray, street: Street, rng: np.random.Generator) -> np.ndarray:
    """Rain in the air, lens blur or motion blur, exposure, colour cast and sensor noise."""
    if street.condition == "rain":
        img = _rain(img, int(rng.integers(-2, 2)), *rng.integers(0, 397, 2), rng.uniform(0.5, 1.0))
    kind = rng.random()
    if kind < 0.1:
        img = cv2.blur(img, (int(rng.integers(2, 6)), 1))  # the camera panned
    elif kind < 0.45:
        img = cv2.GaussianBlur(img, (3, 3), rng.uniform(0.45, 0.8))
    img = _expose(img, rng.uniform(0.86, 1.14), rng.uniform(0.88, 1.12))
    noise = rng.uniform(4, 12) if street.condition == "night" else rng.uniform(0.5, 7.0)
    return _grainy(img, noise, rng.integers(0, 400, 2))


def _expose(img: np.ndarray, gain: float, gamma: float) -> np.ndarray:
    ramp = (np.arange(256) / 255.0) ** gamma * gain * 255
    return cv2.LUT(img, np.clip(ramp, 0, 255).astype(np.uint8))


def _grainy(img: np.ndarray, deviation: float, at: np.ndarray) -> np.ndarray:
    h, w = img.shape[:2]
    tile = _noise_tile()
    if h + 400 > tile.shape[0] or w + 400 > tile.shape[1]:
        tile = np.tile(tile, (-(-(h + 400) // tile.shape[0]), -(-(w + 400) // tile.shape[1]), 1))
    return cv2.addWeighted(img, 1.0, tile[at[0] : at[0] + h, at[1] : at[1] + w], deviation / 24, -128 * deviation / 24)


def _rain(img: np.ndarray, slant: int, y: int, x: int, strength: float) -> np.ndarray:
    h, w = img.shape[:2]
    tile = _rain_tile(slant)
    if h + 400 > tile.shape[0] or w + 400 > tile.shape[1]:
        tile = np.tile(tile, (-(-(h + 400) // tile.shape[0]), -(-(w + 400) // tile.shape[1])))
    streaks = cv2.cvtColor(tile[y : y + h, x : x + w], cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(img, 1.0, streaks, strength, 0)


# ---------------------------------------------------------------------------------------------- moving pictures

WARM_UP_S = 45.0  # traffic runs this long before the first frame, so that the street is already busy
GREEN_S, AMBER_S, RED_S = 9.0, 2.0, 14.0


class Lane(NamedTuple):
    """A straight path of vehicles; `stop` is where they wait, metres along the lane."""

    x: float
    z: float
    dx: int
    dz: int
    length: float
    stop: float
    cruise: float  # metres per second
    gap_s: float  # mean time between two vehicles
    labels: tuple[int, ...]
    crosses: bool  # goes while the main street has red


@dataclass
class Mover:
    """A vehicle on a lane, or a walker on a path of corner points."""

    label: int
    track: int
    kind: int
    speed: float
    gone: float = 0.0  # metres along the lane or walked
    path: tuple[tuple[float, float], ...] = ()
    leg: int = 0
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)  # x, z, yaw of a walker
    waits: bool = False


def _phase(t: float) -> tuple[int, float]:
    """Lit lamp of the main street (0 red, 1 amber, 2 green) and the seconds since it went red, below 0 if it is not."""
    t %= GREEN_S + AMBER_S + RED_S
    if t < GREEN_S:
        return 2, -1.0
    return (1, -1.0) if t < GREEN_S + AMBER_S else (0, t - GREEN_S - AMBER_S)


def _lanes(street: Street) -> list[Lane]:
    mid, half, cz = street.middle, street.half, street.cross_z
    motor, reach = (CAR, CAR, CAR, BUS, TRUCK), 46.0
    ahead, meeting = cz - 5.6 + 12, 92 - (cz + CROSS_WIDTH_M + 1.5)
    side_stop = reach - street.wall
    return [Lane(mid + half * 0.42, -12, 0, 1, 107, ahead, 9.5, 3.5, (CAR, CAR, CAR, CAR, CAR, TRUCK), False),
            Lane(mid - half * 0.42, 92, 0, -1, 104, meeting, 9.5, 3.5, motor, False),
            Lane(mid + half - 0.8, -6, 0, 1, 101, ahead - 5, 4.6, 9.0, (BICYCLE,), False),
            Lane(mid - half + 0.8, 92, 0, -1, 100, meeting, 4.6, 11.0, (BICYCLE,), False),
            Lane(mid - reach, cz + 2.1, 1, 0, 2 * reach, side_stop, 7.5, 6.0, (*motor, BICYCLE), True),
            Lane(mid + reach, cz + 5.9, -1, 0, 2 * reach, side_stop, 7.5, 6.0, (*motor, BICYCLE), True)]


def _film(seed: int, frames: int, fps: float, width: int, height: int, condition: str | None) -> Iterator[Scene]:
    rng = np.random.default_rng([seed, 1])
    street = _street(rng, condition, width, height, filmed=True)
    backdrop = _backdrop(street, rng)
    still = _place_scenery(street, rng, along_kerb=True)
    lanes = _lanes(street)
    traffic: list[list[Mover]] = [[] for _ in lanes]
    walkers: list[Mover] = []
    ids = iter(range(2, 1 << 30, 2))  # the two signals are 0 and 1; a bicycle's rider has its number plus one
    start = rng.uniform(0, GREEN_S + AMBER_S + RED_S)
    t = start - WARM_UP_S
    at, gain = rng.integers(0, 400, 2), rng.uniform(0.94, 1.08)
    for _ in range(int(WARM_UP_S / 0.1)):
        t += 0.1
        _step(t, 0.1, street, lanes, traffic, walkers, ids, rng)
    for frame in range(frames):
        if frame:
            t += 1 / fps
            _step(t, 1 / fps, street, lanes, traffic, walkers, ids, rng)
        actors = still + _signals(street, _phase(t)[0]) + _actors(lanes, traffic, walkers)
        img, found = _compose(street, backdrop, actors)
        if street.condition == "rain":
            img = _rain(img, -1, (at[0] - frame * 61) % 397, (at[1] + frame * 7) % 397, 0.3)
        yield Scene(_grainy(_expose(img, gain, 1.0), 0.8, at), *found, street.condition)  # noise stands still


def _step(t: float, dt: float, street: Street, lanes, traffic, walkers: list[Mover], ids, rng) -> None:
    """Move everybody on by dt seconds; some arrive, some leave."""
    red_for = _phase(t)[1]
    for lane, movers in zip(lanes, traffic, strict=True):
        free = 1.0 < red_for < RED_S - 4.0 if lane.crosses else red_for < 0 and _phase(t)[0] == 2
        _drive(lane, movers, free, dt)
        while movers and movers[0].gone > lane.length:
            movers.pop(0)
        if (not movers or movers[-1].gone > 16) and rng.random() < dt / lane.gap_s:
            label = int(lane.labels[int(rng.integers(len(lane.labels)))])
            speed = min(lane.cruise, 4.6) if label == BICYCLE else lane.cruise
            movers.append(Mover(label, next(ids), int(rng.integers(art.KINDS)), speed))
    for walker in walkers:
        _walk(walker, 0.8 < red_for < 2.2, dt)
    walkers[:] = [w for w in walkers if w.leg < len(w.path) - 1]
    if rng.random() < dt / 2.6 and len(walkers) < 14:
        walkers.append(_new_walker(street, next(ids), rng))


def _drive(lane: Lane, movers: list[Mover], free: bool, dt: float) -> None:
    """Intelligent driver model: speed up towards the cruising speed, brake for the leader or the stop line.

    Source: Treiber, Hennecke, Helbing 2000, equations 2 and 3.
    """
    ahead, ahead_speed = np.inf, 0.0
    for mover in movers:
        half = _FOOTPRINT[mover.label][1]
        cruise = min(lane.cruise, 4.6) if mover.label == BICYCLE else lane.cruise
        gap, closing = ahead - mover.gone - half, mover.speed - ahead_speed
        to_line = lane.stop - mover.gone - half
        if not free and -0.5 < to_line < gap and to_line > mover.speed**2 / 9 - 0.5:  # 4.5 m/s2: can still stop
            gap, closing = to_line, mover.speed
        wanted = 1.6 + max(0.0, mover.speed * 0.9 + mover.speed * closing / 4.2)
        push = 1.9 * (1 - (mover.speed / cruise) ** 4 - (wanted / max(gap, 0.2)) ** 2)
        mover.speed = float(np.clip(mover.speed + max(push, -7.0) * dt, 0, cruise))
        mover.gone += mover.speed * dt
        ahead, ahead_speed = mover.gone - half, mover.speed


def _new_walker(street: Street, track: int, rng: np.random.Generator) -> Mover:
    """Somebody on a pavement; most cross the street at the crossing on red."""
    mid, near_kerb = street.middle, street.half + 1.2
    sides = [mid - street.half - rng.uniform(1.0, 3.2), mid + street.half + rng.uniform(2.3, 3.4)]
    begin, end = (street.cross_z - 12 - rng.uniform(0, 8), 0.2), (0.2, street.cross_z - 12 - rng.uniform(0, 8))
    heading, side = int(rng.integers(2)), int(rng.integers(2))
    start_z, end_z = begin[heading], end[heading]
    if rng.random() < 0.3:
        path = ((sides[side], start_z), (sides[side], end_z))
    else:
        zc = street.cross_z - rng.uniform(1.7, 4.0)
        kerbs = (mid - near_kerb, mid + near_kerb)
        path = ((sides[side], start_z), (sides[side], zc), (kerbs[side], zc), (kerbs[1 - side], zc),
                (sides[1 - side], zc), (sides[1 - side], end_z))
    return Mover(PERSON, track, int(rng.integers(art.KINDS)), rng.uniform(1.25, 1.65), 0.0, path, 0, (*path[0], 0.0))


def _walk(walker: Mover, may_cross: bool, dt: float) -> None:
    x, z, yaw = walker.at
    walker.waits = walker.leg == 2 and (x, z) == walker.path[2] and not may_cross
    if walker.waits:
        return
    goal = walker.path[walker.leg + 1]
    dx, dz = goal[0] - x, goal[1] - z
    rest, stride = float(np.hypot(dx, dz)), walker.speed * dt
    walker.gone += stride
    if rest > 1e-6:
        turn = (np.arctan2(dx, dz) - yaw + np.pi) % (2 * np.pi) - np.pi
        yaw += float(np.clip(turn, -4 * dt, 4 * dt)) if walker.gone > stride else turn  # nobody turns on the spot
    if rest <= stride:
        walker.at, walker.leg = (*goal, yaw), walker.leg + 1
    else:
        walker.at = (x + dx / rest * stride, z + dz / rest * stride, yaw)


def _signals(street: Street, lit: int) -> list[Actor]:
    kerb, z = street.middle + street.half + 0.6, street.cross_z - 5.2
    places = (art.Place(kerb, 2.5, z, np.pi - 0.1), art.Place(street.middle + street.half - 3.0, 4.9, z, np.pi))
    actors = [Actor(SIGNAL, k, art.traffic_light(lit, k), place) for k, place in enumerate(places)]
    return actors + [Actor(SCENERY, -1, *_pole(place, street)) for place in places]


def _actors(lanes: list[Lane], traffic: list[list[Mover]], walkers: list[Mover]) -> list[Actor]:
    actors = []
    for lane, movers in zip(lanes, traffic, strict=True):
        yaw = np.arctan2(lane.dx, lane.dz)
        for m in movers:
            place = art.Place(lane.x + lane.dx * m.gone, 0, lane.z + lane.dz * m.gone, yaw)
            make = {BICYCLE: art.bicycle, CAR: art.car, BUS: art.bus, TRUCK: art.truck}[m.label]
            actors.append(Actor(m.label, m.track, make(m.kind), place))
            if m.label == BICYCLE:
                rider = art.person(m.kind, m.gone / 5.0, pose="ride")
                actors.append(Actor(PERSON, m.track + 1, rider, place._replace(z=place.z - 0.03)))
    for w in walkers:
        model = art.person(w.kind, w.gone / 1.5, pose="stand" if w.waits else "walk")
        actors.append(Actor(PERSON, w.track, model, art.Place(w.at[0], 0, w.at[1], w.at[2])))
    return actors
