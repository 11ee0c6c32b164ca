"""Who stands where in a still: the classes, and plausible places for objects and scenery.

A place is drawn at random, then kept if the object is in view, stands in no other and does not hide one too much.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trtkit import scene_art as art
from trtkit.scene_furniture import furniture, lamp_post, signal_pole, traffic_light, tree
from trtkit.scene_parts import KINDS
from trtkit.scene_people import bicycle, person
from trtkit.scene_street import CROSS_WIDTH_M, Street
from trtkit.scene_vehicles import bus, car, truck

CLASSES = ("person", "bicycle", "car", "bus", "truck", "traffic light")
PERSON, BICYCLE, CAR, BUS, TRUCK, SIGNAL = range(6)
SCENERY = -1
VEHICLES = {BICYCLE: bicycle, CAR: car, BUS: bus, TRUCK: truck}
_SLOT_WEIGHTS = (0.13, 0.16, 0.17, 0.18, 0.18, 0.18)
_DEPTH_M = ((4.2, 58), (4.2, 42), (6.5, 92), (12, 105), (10, 92), (7, 50))  # nearest and farthest of each class
FOOTPRINT_M = ((0.4, 0.4), (0.3, 0.9), (1.0, 2.3), (1.3, 5.8), (1.3, 4.2), (0.3, 0.2))  # half width and length, metres
_HEIGHT_M = (1.75, 1.05, 1.5, 3.2, 3.1, 1.1)


class Actor(NamedTuple):
    """One object at one moment; `label` is SCENERY for what is not a class."""

    label: int
    track: int
    model: art.Model
    place: art.Place


def place_objects(street: Street, rng: np.random.Generator) -> list[Actor]:
    """Up to 14 objects and their riders that do not stand in each other and mostly do not hide each other."""
    frame = (0, 0, street.width, street.height)
    actors, taken = [], []
    for _ in range(int(rng.integers(5, 15))):
        label, tolerance = int(rng.choice(6, p=_SLOT_WEIGHTS)), 0.4 if rng.random() < 0.6 else 0.85
        for _try in range(14):
            place, half_xz = _spot(label, street, rng), FOOTPRINT_M[label]
            dx, dz = ground_reach(half_xz, place.yaw)
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


def place_scenery(street: Street, rng: np.random.Generator, *, along_kerb: bool = False) -> list[Actor]:
    """Trees, lamps and street furniture on the pavements; `along_kerb` leaves the middle free for walkers."""
    actors, deep = [], 0.9 if along_kerb else max(0.8, street.wall - street.half - 0.6)
    green = rng.random() < 0.6
    for _ in range(int(rng.integers(3, 9))):
        side, z = _either(rng), float(np.exp(rng.uniform(np.log(6), np.log(55))))
        x = street.middle + side * (street.half + rng.uniform(0.7, deep))
        if street.cross_z and street.cross_z - 6 < z < street.cross_z + CROSS_WIDTH_M + 1:
            continue
        pick = rng.random()
        kind = int(rng.integers(KINDS))
        if pick < 0.3 and green:
            model = tree(kind)
        elif pick < 0.5:
            model, x = lamp_post(kind), street.middle + side * (street.half + 0.5)
        else:
            model = furniture(kind)
        actors.append(Actor(SCENERY, -1, model, art.Place(x, 0, z, np.pi if side < 0 else 0)))
    return actors


def _make(label: int, rng: np.random.Generator) -> art.Model:
    """A random object of this class."""
    kind = int(rng.integers(KINDS))
    if label == PERSON:
        return person(kind, rng.random(), pose="walk" if rng.random() < 0.72 else "stand")
    if label == SIGNAL:
        return traffic_light(int(rng.integers(3)), kind % 4)
    return VEHICLES[label](kind)


def _either(rng: np.random.Generator) -> int:
    """-1 or 1, left or right."""
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


def ground_reach(half_xz: tuple[float, float], yaw: float) -> tuple[float, float]:
    """Half extents along x and z, metres, of a footprint (half width, half length) turned by `yaw` radians."""
    c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
    return half_xz[0] * c + half_xz[1] * s, half_xz[0] * s + half_xz[1] * c


def _rough_box(place: art.Place, dx: float, dz: float, tall: float, camera: art.Camera) -> tuple:
    """Image box (x0, y0, x1, y1) in px around a block of 2 dx x 2 dz metres on the ground and `tall` metres high."""
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
    """Area of a box (x0, y0, x1, y1)."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _cast(label: int, place: art.Place, track: int, street: Street, rng: np.random.Generator) -> list[Actor]:
    """The object itself and what belongs to it: a rider on a bicycle, a pole under a signal."""
    actors = [Actor(label, track, _make(label, rng), place)]
    if label == BICYCLE and rng.random() < 0.4:
        rider = person(int(rng.integers(KINDS)), rng.random(), pose="ride")
        actors.append(Actor(PERSON, track + 1, rider, place._replace(z=place.z - 0.03)))  # painted after the bicycle
    if label == SIGNAL:
        actors.append(Actor(SCENERY, -1, *pole_of(place, street)))
    return actors


def pole_of(head: art.Place, street: Street) -> tuple[art.Model, art.Place]:
    """The pole or mast that carries a signal head, and where it stands."""
    side = 1 if head.x > street.middle else -1
    reach = side * max(street.half + 0.7 - abs(head.x - street.middle), 0.0) if head.y > 4 else 0.0
    return signal_pole(reach, head.y), art.Place(head.x, 0, head.z + 0.25, 0)
