"""Street scenes with exact boxes, drawn from a seed. The data of lessons 03 to 15.

`render(seed)` gives one photo-like image, `clip(seed, frames)` a fixed camera over moving traffic. The same seed gives
the same pixels in every process. How a scene comes about, one module each:

    scene_street    layout, camera, weather           scene_art        the brush
    scene_backdrop  sky, ground, air                  scene_parts      colours and building blocks
    scene_houses    house fronts                      scene_vehicles   cars, buses, trucks
    scene_place     who stands where in a still       scene_people     people, bicycles
    scene_traffic   who moves where in a clip         scene_furniture  traffic lights, trees, lamps
    scene_compose   actors to pixels and boxes        scene_lens       rain, blur, exposure, noise

Left out on purpose: camera roll and lens distortion, shadows of one object on another, people inside vehicles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trtkit.scene_backdrop import paint_backdrop
from trtkit.scene_compose import compose
from trtkit.scene_lens import camera_effects, expose, grainy, rain
from trtkit.scene_place import CLASSES, place_objects, place_scenery
from trtkit.scene_street import CONDITIONS, layout
from trtkit.scene_traffic import CYCLE_S, traffic

__all__ = ["CLASSES", "CONDITIONS", "Scene", "clip", "render"]


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
    street = layout(rng, condition, width, height)
    backdrop = paint_backdrop(street, rng)
    actors = place_objects(street, rng) + place_scenery(street, rng)
    img, found = compose(street, backdrop, actors)
    return Scene(camera_effects(img, street, rng), *found, street.condition)


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
    """Refuse what neither `render` nor `clip` can draw; their docstrings say what is allowed."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: got {seed!r}, expected an int of at least 0; use e.g. abs(seed)")
    for name, size in (("width", width), ("height", height)):
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 64:
            raise ValueError(f"{name}: got {size!r}, expected an int of at least 64; render larger and scale down")
    if condition is not None and condition not in CONDITIONS:
        raise ValueError(f"condition: got {condition!r}, expected one of {CONDITIONS} or None; pick one of them")


def _film(seed: int, frames: int, fps: float, width: int, height: int, condition: str | None) -> Iterator[Scene]:
    """As `clip`, whose arguments are checked before the first frame is asked for."""
    rng = np.random.default_rng([seed, 1])
    street = layout(rng, condition, width, height, filmed=True)
    backdrop = paint_backdrop(street, rng)
    still = place_scenery(street, rng, along_kerb=True)
    start = rng.uniform(0, CYCLE_S)
    at, gain = rng.integers(0, 400, 2), rng.uniform(0.94, 1.08)
    for frame, moving in enumerate(traffic(street, start, frames, fps, rng)):
        img, found = compose(street, backdrop, still + moving)
        if street.condition == "rain":
            img = rain(img, -1, (at[0] - frame * 61) % 397, (at[1] + frame * 7) % 397, 0.3)
        yield Scene(grainy(expose(img, gain, 1.0), 0.8, at), *found, street.condition)  # noise stands still
