"""Who moves where in a clip: vehicles on lanes, walkers on paths, and the traffic light that both obey.

Vehicles follow each other by the intelligent driver model; people cross the main street while it has red.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trtkit import scene_art as art
from trtkit.scene_furniture import traffic_light
from trtkit.scene_parts import KINDS
from trtkit.scene_people import person
from trtkit.scene_place import BICYCLE, BUS, CAR, FOOTPRINT_M, PERSON, SCENERY, SIGNAL, TRUCK, VEHICLES, Actor, pole_of
from trtkit.scene_street import CROSS_WIDTH_M, Street

WARM_UP_S = 45.0  # traffic runs this long before the first frame, so that the street is already busy
GREEN_S, AMBER_S, RED_S = 9.0, 2.0, 14.0
CYCLE_S = GREEN_S + AMBER_S + RED_S


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


def traffic(street: Street, start: float, frames: int, fps: float, rng: np.random.Generator) -> Iterator[list[Actor]]:
    """Let people and vehicles obey the traffic light, and yield all that moves or shines, once per frame.

    Args:
        street: a filmed layout, so one with a side street.
        start: time of the first frame, seconds; at 0 the main street turns green.
        frames: how many lists to yield.
        fps: frames per second.
        rng: decides who arrives when.

    Yields:
        The actors; somebody who stays has the same `Actor.track` in every frame.
    """
    lanes = _lanes(street)
    queues: list[list[Mover]] = [[] for _ in lanes]
    walkers: list[Mover] = []
    ids = iter(range(2, 1 << 30, 2))  # the two signals are 0 and 1; a bicycle's rider has its number plus one
    t = start - WARM_UP_S
    for _ in range(int(WARM_UP_S / 0.1)):
        t += 0.1
        _step(t, 0.1, street, lanes, queues, walkers, ids, rng)
    for frame in range(frames):
        if frame:
            t += 1 / fps
            _step(t, 1 / fps, street, lanes, queues, walkers, ids, rng)
        yield _signals(street, _phase(t)[0]) + _actors(lanes, queues, walkers)


def _phase(t: float) -> tuple[int, float]:
    """Lit lamp of the main street (0 red, 1 amber, 2 green) and the seconds since it went red, below 0 if it is not."""
    t %= CYCLE_S
    if t < GREEN_S:
        return 2, -1.0
    return (1, -1.0) if t < GREEN_S + AMBER_S else (0, t - GREEN_S - AMBER_S)


def _lanes(street: Street) -> list[Lane]:
    """Main street: a lane and a bicycle lane each way; side street: a lane each way."""
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


def _step(t: float, dt: float, street: Street, lanes, queues, walkers: list[Mover], ids, rng) -> None:
    """Move everybody on by dt seconds; some arrive, some leave."""
    red_for = _phase(t)[1]
    for lane, movers in zip(lanes, queues, strict=True):
        free = 1.0 < red_for < RED_S - 4.0 if lane.crosses else red_for < 0 and _phase(t)[0] == 2
        _drive(lane, movers, free, dt)
        while movers and movers[0].gone > lane.length:
            movers.pop(0)
        if (not movers or movers[-1].gone > 16) and rng.random() < dt / lane.gap_s:
            label = int(lane.labels[int(rng.integers(len(lane.labels)))])
            speed = min(lane.cruise, 4.6) if label == BICYCLE else lane.cruise
            movers.append(Mover(label, next(ids), int(rng.integers(KINDS)), speed))
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
        half = FOOTPRINT_M[mover.label][1]
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
    return Mover(PERSON, track, int(rng.integers(KINDS)), rng.uniform(1.25, 1.65), 0.0, path, 0, (*path[0], 0.0))


def _walk(walker: Mover, may_cross: bool, dt: float) -> None:
    """Move one walker along its path; before the crossing it waits until people may cross."""
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
    """The two heads of the main street's traffic light, and their poles."""
    kerb, z = street.middle + street.half + 0.6, street.cross_z - 5.2
    places = (art.Place(kerb, 2.5, z, np.pi - 0.1), art.Place(street.middle + street.half - 3.0, 4.9, z, np.pi))
    actors = [Actor(SIGNAL, k, traffic_light(lit, k), place) for k, place in enumerate(places)]
    return actors + [Actor(SCENERY, -1, *pole_of(place, street)) for place in places]


def _actors(lanes: list[Lane], queues: list[list[Mover]], walkers: list[Mover]) -> list[Actor]:
    """The vehicles, riders and walkers where they are now."""
    actors = []
    for lane, movers in zip(lanes, queues, strict=True):
        yaw = np.arctan2(lane.dx, lane.dz)
        for m in movers:
            place = art.Place(lane.x + lane.dx * m.gone, 0, lane.z + lane.dz * m.gone, yaw)
            actors.append(Actor(m.label, m.track, VEHICLES[m.label](m.kind), place))
            if m.label == BICYCLE:
                rider = person(m.kind, m.gone / 5.0, pose="ride")
                actors.append(Actor(PERSON, m.track + 1, rider, place._replace(z=place.z - 0.03)))
    for w in walkers:
        model = person(w.kind, w.gone / 1.5, pose="stand" if w.waits else "walk")
        actors.append(Actor(PERSON, w.track, model, art.Place(w.at[0], 0, w.at[1], w.at[2])))
    return actors
