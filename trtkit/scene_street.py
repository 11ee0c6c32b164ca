"""Where and when a scene is: the street's layout in metres, the camera that looks along it, the weather and its light.

Everything later is drawn from a `Street`. Left out on purpose: camera roll and lens distortion, hills and bends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trtkit import scene_art as art

CONDITIONS = ("day", "dusk", "night", "rain", "fog")
CROSS_WIDTH_M = 8.0


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


class Weather(NamedTuple):
    """Colours (0..255) and light factors of one condition."""

    zenith: tuple
    skyline: tuple
    ambient: tuple
    sun: tuple
    haze: tuple
    density: tuple[float, float]
    clouds: float


WEATHER = {
    "day": Weather((88, 140, 206), (196, 216, 232), (0.54, 0.57, 0.62), (0.62, 0.58, 0.5), (190, 206, 222),
                   (0.001, 0.004), 1.0),
    "dusk": Weather((72, 78, 128), (244, 164, 104), (0.36, 0.33, 0.4), (0.5, 0.3, 0.14), (206, 150, 124),
                    (0.002, 0.006), 0.8),
    "night": Weather((8, 11, 24), (36, 36, 52), (0.27, 0.28, 0.35), (0.08, 0.07, 0.05), (26, 27, 38),
                     (0.002, 0.008), 0.15),
    "rain": Weather((112, 120, 130), (166, 172, 178), (0.6, 0.63, 0.67), (0.06, 0.06, 0.06), (148, 156, 164),
                    (0.008, 0.018), 0.5),
    "fog": Weather((176, 182, 188), (202, 206, 208), (0.66, 0.67, 0.69), (0.04, 0.04, 0.04), (198, 202, 205),
                   (0.022, 0.05), 0.1),
}


def layout(rng: np.random.Generator, condition: str | None, width: int, height: int, *, filmed: bool = False) -> Street:
    """Draw the fixed layout, the camera and the light of a scene.

    Args:
        rng: decides all that the other arguments leave open.
        condition: one of `CONDITIONS`; None picks one.
        width: of the image, px.
        height: of the image, px.
        filmed: for `scenes.clip`: a wide street seen from its pavement, always with a side street.
    """
    condition = condition or CONDITIONS[int(rng.choice(5, p=(0.36, 0.17, 0.17, 0.16, 0.14)))]
    weather = WEATHER[condition]
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


def horizon_row(street: Street) -> int:
    """Image row of the horizon, px, at least 4 rows away from both borders."""
    return int(np.clip(round(street.camera.horizon), 4, street.height - 4))
