"""What the air and the camera add to a finished picture: rain, blur, exposure and noise. None of it moves a box."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from trtkit.scene_street import Street


def camera_effects(img: np.ndarray, street: Street, rng: np.random.Generator) -> np.ndarray:
    """Rain in the air, lens blur or motion blur, exposure and sensor noise, at random; (H, W, 3) uint8 in and out."""
    if street.condition == "rain":
        img = rain(img, int(rng.integers(-2, 2)), *rng.integers(0, 397, 2), rng.uniform(0.5, 1.0))
    kind = rng.random()
    if kind < 0.1:
        img = cv2.blur(img, (int(rng.integers(2, 6)), 1))  # the camera panned
    elif kind < 0.45:
        img = cv2.GaussianBlur(img, (3, 3), rng.uniform(0.45, 0.8))
    img = expose(img, rng.uniform(0.86, 1.14), rng.uniform(0.88, 1.12))
    noise = rng.uniform(4, 12) if street.condition == "night" else rng.uniform(0.5, 7.0)
    return grainy(img, noise, rng.integers(0, 400, 2))


@lru_cache(maxsize=4)
def _rain_tile(slant: int) -> np.ndarray:
    """Streaks of rain (1100, 1400) uint8, to be added."""
    rng, tile = np.random.default_rng(6 + slant), np.zeros((1100, 1400), np.uint8)
    for x, y, length, tone in zip(rng.integers(0, 1400, 2600).tolist(), rng.integers(-40, 1100, 2600).tolist(),
                                  rng.integers(8, 46, 2600).tolist(), rng.integers(14, 62, 2600).tolist(), strict=True):
        cv2.line(tile, (x, y), (x + slant * length // 12, y + length), tone, 1, cv2.LINE_AA)
    return tile


def rain(img: np.ndarray, slant: int, y: int, x: int, strength: float) -> np.ndarray:
    """Add streaks of rain, taken from the tile at row y and column x (0..399); slant -2..1, strength 0..1."""
    h, w = img.shape[:2]
    tile = _rain_tile(slant)
    if h + 400 > tile.shape[0] or w + 400 > tile.shape[1]:
        tile = np.tile(tile, (-(-(h + 400) // tile.shape[0]), -(-(w + 400) // tile.shape[1])))
    streaks = cv2.cvtColor(tile[y : y + h, x : x + w], cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(img, 1.0, streaks, strength, 0)


def expose(img: np.ndarray, gain: float, gamma: float) -> np.ndarray:
    """Map 0..1 to gain * value ** gamma, clipped; uint8 in and out."""
    ramp = (np.arange(256) / 255.0) ** gamma * gain * 255
    return cv2.LUT(img, np.clip(ramp, 0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    """Sensor noise (1100, 1400, 3) uint8 around 128 with deviation 24, slightly blotchy as after a Bayer filter."""
    noise = np.random.default_rng(5).normal(0, 1, (1100, 1400, 3)).astype(np.float32)
    noise = noise + 0.6 * noise.mean(2, keepdims=True) + 0.5 * cv2.blur(noise, (2, 2))
    return np.clip(128 + 24 * noise / noise.std(), 0, 255).astype(np.uint8)


def grainy(img: np.ndarray, deviation: float, at: np.ndarray) -> np.ndarray:
    """Add sensor noise of this standard deviation (grey levels), from the tile's row and column `at` (0..399)."""
    h, w = img.shape[:2]
    tile = _noise_tile()
    if h + 400 > tile.shape[0] or w + 400 > tile.shape[1]:
        tile = np.tile(tile, (-(-(h + 400) // tile.shape[0]), -(-(w + 400) // tile.shape[1]), 1))
    return cv2.addWeighted(img, 1.0, tile[at[0] : at[0] + h, at[1] : at[1] + w], deviation / 24, -128 * deviation / 24)
