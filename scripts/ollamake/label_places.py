"""Where the labels of points go, so that they cover neither each other nor what is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points of the picture."""
Boxes = npt.NDArray[np.float64]
"""n × 4."""

_ANGLES = (45, 0, 90, 135, 180, -45, -90, -135, 22, 67, 112, 157, -22, -67, -112, -157)
"""Degrees at which a label may stand from its point, preferred first."""
_DISTANCES = (0, 3, 7, 12, 18, 26, 36, 48, 63, 81, 103)
"""Points between the mark of a point and the nearest edge of its label."""
_FARTHER, _TURNED, _CROSSED, _PARTED, _COVERED = 1.0, 0.4, 6.0, 40.0, 1e6
"""Cost of a point of distance, of the next angle, of lying on a piece of a line or having one's leader on something, of being
parted from the point by a line, of covering something."""
_ROUNDS, _LED = 3, 5.0
"""How often each label is placed, and from which distance to its mark a line leads to it."""


@dataclass(frozen=True)
class Point:
    """A point with a label: where it is, the radius of its mark, and the label's width and height, in points of the picture."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def mark(self) -> Box:
        """Return where the mark is."""
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


def overlaps(box: Box | Boxes, others: Boxes) -> npt.NDArray[np.float64]:
    """Return the area that a box shares with each of others, or each of n boxes with each of m: n × m."""
    one = np.asarray(box, dtype=np.float64)[..., None, :]
    width = np.minimum(one[..., 2], others[:, 2]) - np.maximum(one[..., 0], others[:, 0])
    height = np.minimum(one[..., 3], others[:, 3]) - np.maximum(one[..., 1], others[:, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)


def place_labels(
    points: Sequence[Point],
    inside: Box,
    taken: Sequence[Box] = (),
    lines: Sequence[Box] = (),
    walls: Sequence[tuple[int, float]] = (),
) -> list[Box]:
    """Return a box for the label of each point, within ``inside``, off all marks and ``taken``, off ``lines`` if it can be.

    ``walls``: axis (0: x, 1: y) and place of lines that a label should not be parted from its point by. One after the other,
    those with the most neighbours first, and then each again, now that the others are known. Where there is no free place at
    all the label covers least.
    """
    placed: dict[int, Box] = {}
    order = sorted(range(len(points)), key=lambda index: (-_neighbours(points, index), index))
    for index in order * _ROUNDS:
        marks = [point.mark for other, point in enumerate(points) if other != index]
        labels = [box for other, box in placed.items() if other != index]
        placed[index] = _best(points[index], inside, _boxes([*taken, *marks, *labels]), _boxes(lines), walls)
    return [placed[index] for index in range(len(points))]


def along(start: tuple[float, float], end: tuple[float, float], step: float = 4.0) -> list[Box]:
    """Return small boxes that cover a line."""
    pieces = max(1, math.ceil(math.dist(start, end) / step))
    boxes = []
    for piece in range(pieces + 1):
        x, y = (a + (b - a) * piece / pieces for a, b in zip(start, end, strict=True))
        boxes.append((x - step / 2, y - step / 2, x + step / 2, y + step / 2))
    return boxes


def leader(point: Point, box: Box) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return the ends of the line that leads from a mark's middle to its label, None where the label is beside its mark."""
    near = (min(max(point.x, box[0]), box[2]), min(max(point.y, box[1]), box[3]))
    return ((point.x, point.y), near) if math.dist((point.x, point.y), near) > point.radius + _LED else None


def _best(point: Point, inside: Box, taken: Boxes, lines: Boxes, walls: Sequence[tuple[int, float]]) -> Box:
    prices, boxes = zip(*_candidates(point), strict=True)
    candidates = _boxes(boxes)
    # Its own mark counts as well: at an angle the corner of a label may come near.
    covered = overlaps(candidates, np.vstack([taken, _boxes([point.mark])])).sum(axis=1)
    outside = point.width * point.height - overlaps(candidates, _boxes([inside]))[:, 0]
    cost = np.array(prices) + _CROSSED * (overlaps(candidates, lines) > 0).sum(axis=1)
    lost = covered + outside
    cost += np.where(lost > 1e-6, _COVERED + lost, 0)
    best, least = boxes[0], math.inf
    for index in np.argsort(cost, kind="stable"):
        if cost[index] >= least:
            break
        box, total = boxes[index], float(cost[index])
        total += _PARTED * sum(_parts(wall, point, box) for wall in walls)
        if total < least and (ends := leader(point, box)) is not None:
            total += _CROSSED * int((overlaps(_boxes(along(*ends)), taken) > 0).any(axis=1).sum())
        if total < least:
            best, least = box, total
    return best


def _candidates(point: Point) -> list[tuple[float, Box]]:
    found = []
    for distance in _DISTANCES:
        for turn, angle in enumerate(_ANGLES):
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            away = point.radius + 1 + distance
            x, y = point.x + across * (away + point.width / 2), point.y + up * (away + point.height / 2)
            box = (x - point.width / 2, y - point.height / 2, x + point.width / 2, y + point.height / 2)
            found.append((_FARTHER * distance + _TURNED * turn, box))
    return found


def _parts(wall: tuple[int, float], point: Point, box: Box) -> bool:
    axis, place = wall
    here = (point.x, point.y)[axis] > place
    return (box[axis] > place) != here or (box[axis + 2] > place) != here


def _neighbours(points: Sequence[Point], index: int) -> int:
    one = points[index]
    return sum(abs(one.x - other.x) < 60 and abs(one.y - other.y) < 25 for other in points) - 1


def _boxes(boxes: Sequence[Box]) -> Boxes:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
